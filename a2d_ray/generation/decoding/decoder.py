"""What a decoding rule is given, what it remembers and what it decides, for one request.

M rows of a batch, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from torch import Tensor

from a2d_ray.config import GRAMMAR_RULES, OptionError
from a2d_ray.generation.decoding.canvas import Canvas
from a2d_ray.generation.decoding.grammar import Grammar
from a2d_ray.generation.decoding.params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Active:
    """The positions of one step, ascending.

    Attributes:
        positions: canvas positions.
        ids: their ids now; where masked: a draft, or the mask id.
        is_masked: False only with `remask_threshold`, committed tokens that are looked at again,
            and where given text is scored.
    """

    positions: tuple[int, ...]
    ids: tuple[int, ...]
    is_masked: tuple[bool, ...]

    @classmethod
    def masked(cls, positions: Sequence[int], ids: Sequence[int]) -> Self:
        """Positions that are all masked."""
        return cls(positions=tuple(positions), ids=tuple(ids), is_masked=(True,) * len(positions))


class TokenLogprob(NamedTuple):
    """How likely a token was at the step that committed it.

    Attributes:
        token_id: the token.
        logprob: its log-probability, nats; 0 for given text (infill).
        top: (token id, log-probability) of the most likely tokens there, best first; only of those
            that could have come, so there may be fewer than were asked for.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, token_id: int, logprob: float, ids: list[int], logprobs: list[float]) -> Self:
        """A token among alternatives, of which those at -inf (a grammar's, say) are left out."""
        pairs = zip(ids, logprobs, strict=True)
        return cls(token_id, logprob, tuple(pair for pair in pairs if pair[1] > -math.inf))


@dataclass(frozen=True, kw_only=True)
class KlassMemory:
    """Distributions of a step (rule ``klass``).

    Attributes:
        logp_MV: log-probabilities, on the device; other requests' rows are among them.
        rows: row of each position.
        num_stable: for how many steps each position's distribution has hardly changed.
    """

    logp_MV: Tensor
    rows: dict[int, int]
    num_stable: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class RuleState:
    """What a request remembers from step to step; `RuleState()` is its beginning.

    Attributes:
        step: denoise step within the window.
        counts: tokens per step of the window (rule ``steps``).
        answer_counts: how often each id was committed (penalties).
        memory: of the step before (rule ``klass``).
        num_remasked: how often each position was masked again (`remask_threshold`).
    """

    step: int = 0
    counts: tuple[int, ...] = ()
    answer_counts: dict[int, int] = field(default_factory=dict)
    memory: KlassMemory | None = None
    num_remasked: dict[int, int] = field(default_factory=dict)

    def open_window(self) -> "RuleState":
        """The state at the first step of the next window."""
        return RuleState(answer_counts=self.answer_counts)


@dataclass(frozen=True, kw_only=True)
class Commitment:
    """What one step decided, one entry per active position.

    Attributes:
        ids: the token that it would take, or has.
        logprobs: its log-probability at temperature 1, after guidance, penalties and suppression,
            before top-k, top-p and min-p; with `params.logprobs` likely tokens.
        confidences: its probability.
        is_committed: masked positions that take their token now; at least one.
        is_remasked: committed positions that become masks again.
        state: what the request remembers now.
    """

    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    confidences: tuple[float, ...]
    is_committed: tuple[bool, ...]
    is_remasked: tuple[bool, ...]
    state: RuleState


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """What stays the same through a request.

    Attributes:
        params: its options.
        canvas: its canvas.
        mask_id: id that is never chosen.
        stop_ids: ids that end the answer.
        choice: index of the answer among the n of its prompt.
        grammar: what the answer obeys (`GRAMMAR_RULES`).
        is_reference: the preset ``reference``, for comparison with the public recipe's sampler:
            the mask token is a token like others, and equal scores fall as in torch.topk.

    Raises:
        ValueError: a grammar with options that it cannot go with.
    """

    params: SamplingParams
    canvas: Canvas
    mask_id: int
    stop_ids: frozenset[int]
    choice: int = 0
    grammar: Grammar | None = None
    is_reference: bool = False

    def __post_init__(self) -> None:
        if self.grammar is not None:
            check_grammar(self.params, self.canvas.is_infill, self.stop_ids)

    def active(
        self, ids: Sequence[int], is_masked: Sequence[bool], window: tuple[int, int]
    ) -> Active:
        """The positions of `window` whose logits the next step needs.

        Args:
            ids: of the canvas.
            is_masked: which are masked; at least one in the window.
            window: (start, stop).
        """
        positions = [i for i in range(*window) if is_masked[i]]
        if self.params.remask_threshold > 0:
            # Left of the first mask lies what is final: it may have been read already.
            positions = [i for i in range(positions[0], window[1]) if self.canvas.is_open[i]]
        return Active(
            positions=tuple(positions),
            ids=tuple(ids[i] for i in positions),
            is_masked=tuple(is_masked[i] for i in positions),
        )


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """What one request asks in one step; see `asking.inquire`.

    Attributes:
        decoder: the request.
        active: its positions.
        state: what it remembers.
        allowed: bool [V] each: what its grammar allows at the first position, and in the AR mode
            behind each draft that it allows.
    """

    decoder: Decoder
    active: Active
    state: RuleState
    allowed: tuple[Tensor, ...] = ()


def check_grammar(params: SamplingParams, is_infill: bool, stop_ids: frozenset[int]) -> None:
    """Refuses options that a grammar cannot go with.

    Raises:
        ValueError: a rule that is not of `GRAMMAR_RULES`, holes in the prompt, or no end-of-turn
            token.
    """
    if params.rule not in GRAMMAR_RULES or is_infill:
        where = "a prompt with holes" if is_infill else f"rule {params.rule!r}"
        problem = f"reads from left to right, and does not go with {where}"
        raise ValueError(f"a grammar {problem}: it needs rule {' or '.join(GRAMMAR_RULES)}")
    if not stop_ids:
        problem = "leaves a grammar without an end-of-turn token"
        raise OptionError("ignore_eos", params.ignore_eos, problem, "set ignore_eos=false")
