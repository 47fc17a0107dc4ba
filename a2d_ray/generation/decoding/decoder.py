"""What a decoding rule is given, what it remembers and what it decides, for one request.

N active positions, V vocabulary, K alternatives, T canvas positions.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from a2d_ray.config import GRAMMAR_RULES, OptionError
from a2d_ray.diffusion import decoding
from a2d_ray.generation.decoding.canvas import Canvas
from a2d_ray.generation.decoding.grammar import Grammar
from a2d_ray.generation.decoding.params import SamplingParams


@dataclass(frozen=True, kw_only=True)
class Active:
    """The positions of one step, ascending.

    Attributes:
        position_N: canvas positions, int64.
        id_N: their ids now, int64 (whatever, where masked).
        is_masked_N: False only with `remask_threshold`: committed tokens, looked at again.
    """

    position_N: Tensor
    id_N: Tensor
    is_masked_N: Tensor

    @classmethod
    def masked(cls, position_N: Tensor, mask_id: int) -> Self:
        """Positions that are all masked."""
        return cls(
            position_N=position_N,
            id_N=torch.full_like(position_N, mask_id),
            is_masked_N=torch.ones_like(position_N, dtype=torch.bool),
        )


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
class Commitment:
    """What one step decided.

    Attributes:
        ids_N: int64, the token that each active position would take, or has.
        logprob_N: float32, its log-probability at temperature 1, after guidance, penalties and
            suppression, before top-k, top-p and min-p.
        is_committed_N: bool, masked positions that take their token now; at least one.
        is_remasked_N: bool, committed positions that become masks again.
        top_ids_NK, top_logprobs_NK: the K = `params.logprobs` most likely tokens of each position.
    """

    ids_N: Tensor
    logprob_N: Tensor
    is_committed_N: Tensor
    is_remasked_N: Tensor
    top_ids_NK: Tensor
    top_logprobs_NK: Tensor

    @property
    def confidence_N(self) -> Tensor:  # noqa: N802
        """float32, exp(logprob_N)."""
        return self.logprob_N.exp()

    def token_logprobs(self) -> list[TokenLogprob]:
        """Log-probabilities of the committed tokens, in their order."""
        picked = [
            values_N[self.is_committed_N].tolist()
            for values_N in (self.ids_N, self.logprob_N, self.top_ids_NK, self.top_logprobs_NK)
        ]
        return [TokenLogprob.of(*entry) for entry in zip(*picked, strict=True)]


@dataclass(frozen=True, kw_only=True)
class RuleState:
    """What a request remembers from step to step; `RuleState()` is its beginning.

    Attributes:
        step: denoise step within the window.
        counts: tokens per step of the window (rule ``steps``).
        answer_counts_V: how often each id was committed (penalties).
        logp_NV: log-probabilities at `position_N` in the step before (rule ``klass``).
        num_stable_N: for how many steps they hardly changed (rule ``klass``).
        num_remasked_T: how often each canvas position was masked again (`remask_threshold`).
    """

    step: int = 0
    counts: tuple[int, ...] = ()
    answer_counts_V: Tensor | None = None
    position_N: Tensor | None = None
    logp_NV: Tensor | None = None
    num_stable_N: Tensor | None = None
    num_remasked_T: Tensor | None = None

    def open_window(self) -> "RuleState":
        """The state at the first step of the next window."""
        return RuleState(answer_counts_V=self.answer_counts_V)


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

    def active(self, x_T: Tensor, is_masked_T: Tensor, window: tuple[int, int]) -> Active:
        """The positions of `window` whose logits the next step needs.

        Args:
            x_T: ids of the canvas, int64.
            is_masked_T: which are masked; at least one in the window.
            window: (start, stop).
        """
        is_active_W = is_masked_T[window[0] : window[1]]
        if self.params.remask_threshold > 0:
            # Left of the first mask lies what is final: it may have been read already.
            is_open_W = torch.tensor(self.canvas.is_open[window[0] : window[1]])
            is_active_W = is_open_W.to(x_T.device) & (is_active_W.cumsum(0) > 0)
        position_N = window[0] + is_active_W.nonzero()[:, 0]
        return Active(
            position_N=position_N, id_N=x_T[position_N], is_masked_N=is_masked_T[position_N]
        )

    def uniform(self, position_N: Tensor, step: int, kind: int = decoding.CHOICE) -> Tensor:
        """Random numbers of this answer: one per position."""
        return decoding.position_uniform(
            position_N, seed=self.params.seed, step=step, choice=self.choice, kind=kind
        )


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
