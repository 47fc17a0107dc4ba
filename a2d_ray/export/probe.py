"""How loud the mask token is where the servers of SDAR let it compete.

Our training leaves the mask token's logit free, and our engine never draws it. Those servers take
the largest logit, the mask's too: a masked place where it wins stays masked for ever (SGLang), or
the mask token is emitted (LMDeploy).

T positions of the canvas, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch

from a2d_ray.config.commands import command_of

MAX_MASK_PROBABILITY = 1e-2
_BLOCKS = 2  # per prompt


def check_mask_is_quiet(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    mask_id: int,
    block_size: int,
    threshold: float,
) -> float:
    """The largest probability of the mask token at a masked place while prompts are continued.

    Args:
        model: the A2D model with the weights that were written.
        prompts: token ids.
        mask_id: id of the mask token.
        block_size: tokens per block, on the absolute grid.
        threshold: tokens that are likelier are committed.

    Raises:
        ValueError: it is above `MAX_MASK_PROBABILITY`.
    """
    found = max(
        _largest_mask_probability(model, list(prompt), mask_id, block_size, threshold)
        for prompt in prompts
    )
    if not found <= MAX_MASK_PROBABILITY:  # NaN too
        raise ValueError(
            f"the mask token's probability reaches {found:.3g} at a masked place (the limit is "
            f"{MAX_MASK_PROBABILITY}): those servers would not finish such a block. Its logit is 0 "
            f"there, and all others are far below: train longer, or use {command_of('serve')}"
        )
    return found


@torch.inference_mode()
def _largest_mask_probability(
    model: Any, prompt: list[int], mask_id: int, block_size: int, threshold: float
) -> float:
    largest = 0.0
    first = len(prompt) // block_size
    for stop in range((first + 1) * block_size, (first + 1 + _BLOCKS) * block_size, block_size):
        x_T = torch.tensor(prompt + [mask_id] * (stop - len(prompt)), device=model.device)
        block_T = torch.arange(stop, device=model.device) // block_size
        sees_TT = block_T[None, :] <= block_T[:, None]
        while (masked_N := (x_T == mask_id).nonzero()[:, 0]).numel():
            logits_TV = model(x_T[None], sees_TT[None, None]).logits[0]
            p_NV = logits_TV[masked_N].float().softmax(-1)
            largest = max(largest, float(p_NV[:, mask_id].max()))
            p_NV[:, mask_id] = 0
            confidence_N, token_N = p_NV.max(-1)
            is_committed_N = confidence_N > threshold
            is_committed_N[confidence_N.argmax()] = True
            x_T[masked_N[is_committed_N]] = token_N[is_committed_N]
        prompt = x_T.tolist()
    return largest
