"""The canvas of one request: what is known, what is masked, and where its blocks start.

The block grid is the one that the model was trained on (`a2d_ray.diffusion.layout`):
``segment``: the answer starts a block; ``absolute``: blocks of B from token 0, so the first block
may begin with the end of the prompt; ``prompt_end``: like ``absolute`` after the prompt was padded
on the left to a multiple of B, so the answer starts a block and the first block may be short.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from a2d_ray.generation.params import SamplingParams
from a2d_ray.models.contract import Contract

Segments = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Prompt and answer of one request, cut into windows that are denoised one after the other.

    Attributes:
        prompt_ids: the prompt's tokens, segments joined.
        windows: (start, stop) of each window in canvas positions; together they hold the answer.
        blocks: block index of every canvas position; a token sees its own and earlier blocks.
            One block for MDLM, where every token sees every token.
    """

    prompt_ids: tuple[int, ...]
    windows: tuple[tuple[int, int], ...]
    blocks: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.blocks)

    def block_start(self, window: int) -> int:
        """First position of the window's block: before the window if it begins with prompt."""
        return self.blocks.index(self.blocks[self.windows[window][0]])


def make_canvas(prompt: Segments, params: SamplingParams, contract: Contract) -> Canvas:
    """The canvas of a request under the contract of its model.

    Args:
        prompt: segments of token ids (an empty prompt is allowed).
        params: options of the request.
        contract: names objective, block size and block grid.

    Raises:
        ValueError: see `request_block_size`.
    """
    block_size = request_block_size(params, contract)
    ids = tuple(token for segment in prompt for token in segment)
    num_prompt, end = len(ids), len(ids) + params.max_new_tokens
    if contract.objective == "mdlm":
        starts = range(num_prompt, end, block_size)
        windows = [(start, min(start + block_size, end)) for start in starts]
        return Canvas(prompt_ids=ids, windows=tuple(windows), blocks=(0,) * end)
    blocks, num_known = _prompt_blocks(prompt, num_prompt, block_size, contract)
    edges = [num_prompt, *range(num_prompt - num_known + block_size, end + block_size, block_size)]
    windows = [pair for pair in pairwise(edges) if pair[0] < end]
    first = blocks[-1] if num_known else (blocks[-1] + 1 if blocks else 0)
    for index, (start, stop) in enumerate(windows):
        blocks += [first + index] * (stop - start)
    return Canvas(prompt_ids=ids, windows=tuple(windows), blocks=tuple(blocks))


def _prompt_blocks(
    prompt: Segments, num_prompt: int, block_size: int, contract: Contract
) -> tuple[list[int], int]:
    """Block index of each prompt token, and how many of them share the answer's first block."""
    if contract.block_grid == "segment":
        blocks: list[int] = []
        for segment in prompt:
            first = blocks[-1] + 1 if blocks else 0
            blocks += [first + i // block_size for i in range(len(segment))]
        return blocks, 0
    shift = -num_prompt % block_size if contract.block_grid == "prompt_end" else 0
    blocks = [(i + shift) // block_size for i in range(num_prompt)]
    return blocks, (num_prompt + shift) % block_size


def stop_token_ids(params: SamplingParams, eos_ids: Collection[int]) -> frozenset[int]:
    """Ids that end the answer of a request."""
    return frozenset(params.stop_token_ids) | (
        frozenset() if params.ignore_eos else frozenset(eos_ids)
    )


def request_block_size(params: SamplingParams, contract: Contract) -> int:
    """Block size of a request.

    Raises:
        ValueError: a size that the model was not trained for, or a model without an objective.
    """
    if contract.objective is None:
        raise ValueError(
            "this model is converted but not trained, so its objective is unknown: train it, or "
            "load it with objective='bd3lm' (or 'mdlm')"
        )
    block_size = params.block_size or contract.block_size
    trained = contract.block_sizes
    if contract.objective == "bd3lm" and trained and block_size not in trained:
        raise ValueError(
            f"block_size ({block_size}) was not trained: this model knows {sorted(trained)}"
        )
    return block_size


def check_prompt(prompt: Segments, params: SamplingParams, max_length: int, vocab: int) -> None:
    """Refuses a prompt that does not fit.

    Raises:
        ValueError: too long with its answer, or ids outside the vocabulary.
    """
    length = sum(len(segment) for segment in prompt)
    if length + params.max_new_tokens > max_length:
        raise ValueError(
            f"prompt ({length} tokens) + max_new_tokens ({params.max_new_tokens}) exceed the "
            f"model's {max_length} positions: shorten the prompt or lower max_new_tokens"
        )
    outside = [t for segment in prompt for t in segment if not 0 <= t < vocab]
    if outside:
        raise ValueError(f"prompt holds token id {outside[0]}, outside the vocabulary of {vocab}")
