"""Block diffusion decoding as it is commonly written: the baseline of the suite ``sampling``.

The prefix is run again for every block, with logits everywhere; the cache is copied for every
denoise step, and each step asks for the logits of the whole block.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from a2d_ray.diffusion.decoding import commit_counts, steps_per_block, token_logprobs
from a2d_ray.generation.decoding.params import SamplingParams


class NaiveSampler:
    """One request at a time, on a transformers model.

    Args:
        model: A2D model with head.
        mask_id: id of the mask token.
        block_size: tokens per block.

    Attributes:
        num_forwards: model calls so far.
    """

    def __init__(self, model: Any, *, mask_id: int, block_size: int) -> None:
        self._model = model
        self._mask_id = mask_id
        self._block_size = block_size
        self.num_forwards = 0

    @torch.inference_mode()
    def sample(self, prompt: Sequence[int], params: SamplingParams) -> list[int]:
        """The answer to a prompt, `max_new_tokens` long."""
        x_T = torch.tensor(prompt)
        num_blocks = -(-params.max_new_tokens // self._block_size)
        for _ in range(num_blocks):
            cache = self._prefix_cache(x_T)
            x_T = torch.cat([x_T, self._denoise(cache, len(x_T), params)])
        return x_T[len(prompt) :][: params.max_new_tokens].tolist()

    @torch.inference_mode()
    def bare_forwards(self, prompt: Sequence[int], params: SamplingParams) -> None:
        """The model calls of `sample` and nothing else: no copies, no decisions."""
        x_T = torch.tensor(prompt)
        block = torch.full((self._block_size,), self._mask_id)
        for _ in range(-(-params.max_new_tokens // self._block_size)):
            cache = self._prefix_cache(x_T)
            for _ in self._counts(params):
                self._forward(block, cache, len(x_T), None)
                cache.crop(-self._block_size)
            x_T = torch.cat([x_T, block])

    def _counts(self, params: SamplingParams) -> list[int]:
        num_blocks = -(-params.max_new_tokens // self._block_size)
        num_steps = steps_per_block(params.steps, num_blocks, self._block_size)
        return commit_counts(self._block_size, num_steps)

    def _prefix_cache(self, x_T: Tensor) -> DynamicCache:
        cache = DynamicCache()
        block_T = torch.arange(len(x_T)) // self._block_size
        staircase = block_T[None, :] <= block_T[:, None]
        self._forward(x_T, cache, 0, staircase[None, None])
        return cache

    def _denoise(self, prefix: DynamicCache, start: int, params: SamplingParams) -> Tensor:
        block = torch.full((self._block_size,), self._mask_id)
        is_masked = torch.ones_like(block, dtype=torch.bool)
        for count in self._counts(params):
            logits = self._forward(block, copy.deepcopy(prefix), start, None)
            position = is_masked.nonzero()[:, 0]
            scores = logits[position].float()
            scores[:, self._mask_id] = -torch.inf
            ids = scores.argmax(-1)
            confidence = token_logprobs(scores, ids)
            best = confidence.argsort(descending=True, stable=True)[:count]
            block[position[best]] = ids[best]
            is_masked[position[best]] = False
        return block

    def _forward(self, ids: Tensor, cache: DynamicCache, start: int, mask: Tensor | None) -> Tensor:
        self.num_forwards += 1
        position = torch.arange(start, start + len(ids))
        return self._model(
            input_ids=ids[None],
            attention_mask=mask,
            position_ids=position[None],
            past_key_values=cache,
            use_cache=True,
        ).logits[0]
