"""The canvas of one request: what is known, what is masked, and where its blocks start.

The block grid is the one that the model was trained on (`a2d_ray.diffusion.layout`):
``segment``: the answer starts a block; ``absolute``: blocks of B from token 0, so the first block
may begin with the end of the prompt; ``prompt_end``: like ``absolute`` after the prompt was padded
on the left to a multiple of B, so the answer starts a block and the first block may be short.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from a2d_ray.config import AR_RULES, OptionError
from a2d_ray.config.errors import TooLongError
from a2d_ray.generation.decoding.ar_mode import check_ar_rule
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.models.contract import Contract

Segments = Sequence[Sequence[int | None]]
"""Token ids, segment by segment. A prompt with holes (None) is filled in, not continued."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Everything of one request, cut into windows that are denoised one after the other.

    Attributes:
        ids: token ids, the mask id where open.
        is_open: which positions are to be filled in.
        start: where the answer starts; 0 for infill, whose answer is the whole text.
        num_answer: tokens of the answer: the canvas may be longer, since blocks are whole.
        windows: (start, stop) of each window in canvas positions; together they hold the masks.
        blocks: block index of every canvas position; a token sees its own and earlier blocks.
            One block for MDLM, where every token sees every token.
        block_size: tokens of a whole block.
        is_infill: whether the prompt had holes.
    """

    ids: tuple[int, ...]
    is_open: tuple[bool, ...]
    start: int
    num_answer: int
    windows: tuple[tuple[int, int], ...]
    blocks: tuple[int, ...]
    block_size: int
    is_infill: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """What stands before the answer."""
        return self.ids[: self.start]

    @property
    def known_ids(self) -> tuple[int, ...]:
        """What is given: the prompt, or the text around the holes."""
        return tuple(i for i, is_open in zip(self.ids, self.is_open, strict=True) if not is_open)

    @property
    def num_blocks(self) -> int:
        """Blocks that share the denoise steps of the request."""
        return math.ceil(self.num_answer / self.block_size)

    def block_start(self, window: int) -> int:
        """First position of the window's block: before the window if it begins with prompt."""
        return self.blocks.index(self.blocks[self.windows[window][0]])


def make_canvas(prompt: Segments, params: SamplingParams, contract: Contract) -> Canvas:
    """The canvas of a request under the contract of its model.

    Args:
        prompt: segments of token ids (an empty prompt is allowed); with None in them, infill.
        params: options of the request.
        contract: names objective, block size, block grid and mask token.

    Raises:
        ValueError: see `request_block_size` and `check_ar_rule`.
    """
    tokens = [token for segment in prompt for token in segment]
    if params.rule in AR_RULES:
        check_ar_rule(params, contract, is_infill=None in tokens)
        return _ar_canvas(tokens, params, contract)
    block_size = request_block_size(params, contract)
    if None in tokens:
        return _infill_canvas(prompt, tokens, block_size, contract)
    start = len(tokens)
    end = len(tokens) + params.max_new_tokens
    if contract.objective == "mdlm":
        starts = range(start, end, block_size)
        windows = [(i, min(i + block_size, end)) for i in starts]
        blocks = [0] * end
    else:
        blocks, num_known = _known_blocks(prompt, block_size, contract)
        edges = [start, *range(start - num_known + block_size, end + block_size, block_size)]
        windows = [pair for pair in pairwise(edges) if pair[0] < end]
        first = blocks[-1] if num_known else (blocks[-1] + 1 if blocks else 0)
        for index, window in enumerate(windows):
            blocks += [first + index] * (window[1] - window[0])
    num_open = len(blocks) - start
    return Canvas(
        ids=tuple(t for t in tokens if t is not None) + (contract.mask_token_id,) * num_open,
        is_open=(False,) * start + (True,) * num_open,
        start=start,
        num_answer=params.max_new_tokens,
        windows=tuple(windows),
        blocks=tuple(blocks),
        block_size=block_size,
    )


def _ar_canvas(tokens: list[int | None], params: SamplingParams, contract: Contract) -> Canvas:
    """Every token is a block, every open one a window."""
    start = len(tokens)
    end = start + params.max_new_tokens
    return Canvas(
        ids=tuple(t for t in tokens if t is not None) + (contract.mask_token_id,) * (end - start),
        is_open=(False,) * start + (True,) * (end - start),
        start=start,
        num_answer=params.max_new_tokens,
        windows=tuple((i, i + 1) for i in range(start, end)),
        blocks=tuple(range(end)),
        block_size=1,
    )


def _infill_canvas(
    prompt: Segments, tokens: list[int | None], block_size: int, contract: Contract
) -> Canvas:
    """The text itself; its windows are the blocks (MDLM: runs of B from token 0) with holes."""
    is_mdlm = contract.objective == "mdlm"
    if is_mdlm:
        window_of = [i // block_size for i in range(len(tokens))]
    else:
        window_of, _ = _known_blocks(prompt, block_size, contract)
    groups = [list(g) for _, g in groupby(range(len(tokens)), key=window_of.__getitem__)]
    holed = [group for group in groups if any(tokens[i] is None for i in group)]
    return Canvas(
        ids=tuple(contract.mask_token_id if t is None else t for t in tokens),
        is_open=tuple(t is None for t in tokens),
        start=0,
        num_answer=len(tokens),
        windows=tuple((group[0], group[-1] + 1) for group in holed),
        blocks=(0,) * len(tokens) if is_mdlm else tuple(window_of),
        block_size=block_size,
        is_infill=True,
    )


def _known_blocks(prompt: Segments, block_size: int, contract: Contract) -> tuple[list[int], int]:
    """Block index of each token of the prompt, and how many of them share the next one's block."""
    num_tokens = sum(map(len, prompt))
    if contract.block_grid == "segment":
        blocks: list[int] = []
        for segment in prompt:
            first = blocks[-1] + 1 if blocks else 0
            blocks += [first + i // block_size for i in range(len(segment))]
        return blocks, 0
    shift = -num_tokens % block_size if contract.block_grid == "prompt_end" else 0
    blocks = [(i + shift) // block_size for i in range(num_tokens)]
    return blocks, (num_tokens + shift) % block_size


def keep_last(prompt: tuple[tuple[int, ...], ...], num_tokens: int) -> tuple[tuple[int, ...], ...]:
    """The last `num_tokens` tokens of a prompt at most, in the segments that they lay in."""
    surplus = max(0, sum(map(len, prompt)) - num_tokens)
    kept = []
    for segment in prompt:
        dropped = min(surplus, len(segment))
        surplus -= dropped
        if segment[dropped:]:
            kept.append(segment[dropped:])
    return tuple(kept)


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
            "load it with objective='bd3lm' or 'mdlm' (on a command line model.objective=bd3lm)"
        )
    block_size = params.block_size or contract.block_size
    trained = contract.block_sizes
    if contract.objective == "bd3lm" and trained and block_size not in trained:
        fix = f"this model knows {sorted(trained)}"
        raise OptionError("block_size", block_size, "was not trained", fix)
    return block_size


def check_prompt(prompt: Segments, params: SamplingParams, max_length: int, vocab: int) -> None:
    """Refuses a prompt or a block that does not fit, and ids outside the vocabulary.

    Raises:
        OptionError: names the option; `TooLongError` for what exceeds the positions.
    """
    tokens = [token for segment in prompt for token in segment]
    is_infill = None in tokens
    num_new = 0 if is_infill else params.max_new_tokens
    if len(tokens) + num_new > max_length:
        new = "" if is_infill else f" and max_new_tokens={num_new}"
        fix = "shorten the text" if is_infill else "shorten the prompt or lower max_new_tokens"
        problem = f"tokens{new} exceed the model's {max_length} positions"
        raise TooLongError("prompt", len(tokens), problem, fix)
    if params.block_size is not None and params.block_size > max_length:
        problem = f"exceeds the model's {max_length} positions"
        raise OptionError("block_size", params.block_size, problem, "lower it")
    named = {
        "prompt": [t for t in tokens if t is not None],
        "stop_token_ids": params.stop_token_ids,
        "suppress_tokens": params.suppress_tokens,
        "begin_suppress_tokens": params.begin_suppress_tokens,
        "cfg_keep_tokens": params.cfg_keep_tokens,
        "logit_bias": params.logit_bias,
    }
    for name, ids in named.items():
        outside = [i for i in ids if not 0 <= i < vocab]
        if outside:
            problem = f"holds token id {outside[0]}, outside the vocabulary of {vocab}"
            raise OptionError(name, list(ids), problem, "leave it out")
