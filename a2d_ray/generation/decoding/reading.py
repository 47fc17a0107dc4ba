"""What a decision says of each request: the words of a `Decision`, read on the host."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from a2d_ray.config import AR_RULES
from a2d_ray.generation.decoding.asking import has_penalties
from a2d_ray.generation.decoding.batch import Batch
from a2d_ray.generation.decoding.decide import COMMITTED, REMASKED, SOUND, STABLE_SHIFT, WIDE
from a2d_ray.generation.decoding.decoder import (
    Commitment,
    Inquiry,
    KlassMemory,
    RuleState,
    TokenLogprob,
)


def num_words(batch: Batch, vocab_size: int) -> int:
    """Words of the decision about a batch."""
    num_topped = 0 if batch.top_T is None else len(batch.top_T)
    return 4 * len(batch.place_N) + 2 * num_topped * min(batch.num_top, vocab_size)


def is_wide(words: np.ndarray, batch: Batch) -> bool:
    """Whether a nucleus was larger than what was looked at: the step has to be decided again."""
    flags = words[len(batch.place_N) : 2 * len(batch.place_N)]
    return bool((flags & WIDE).any())


def read(
    words: np.ndarray, asked: Sequence[Inquiry], batch: Batch, logp_MV: Tensor | None
) -> list[Commitment | Exception]:
    """What each request commits, or why it cannot go on.

    Args:
        words: of the decision, int32.
        asked: the requests of the batch, in its order. Grammars take what is committed.
        batch: of them.
        logp_MV: of the decision.
    """
    num_rows = len(batch.place_N)
    columns = words[: 4 * num_rows].reshape(4, num_rows)
    ids, flags = columns[:2].tolist()
    logprobs, confidences = columns[2:].view(np.float32).tolist()
    top = _top(words[4 * num_rows :], asked)
    remembered = 0
    first = 0
    read: list[Commitment | Exception] = []
    for one in asked:
        stop = first + len(one.active.positions)
        rows = slice(first, stop)
        memory = None
        if one.decoder.params.rule == "klass" and logp_MV is not None:
            memory = _memory(one, flags[rows], logp_MV, remembered)
            remembered += stop - first
        columns_of_one = (ids[rows], flags[rows], logprobs[rows], confidences[rows])
        alternatives = [next(top) for _ in one.active.positions] if _has_top(one) else None
        try:
            read.append(_commitment(one, *columns_of_one, alternatives, memory))
        except Exception as error:  # whatever it is, the requests beside this one go on
            read.append(error)
        first = stop
    return read


def _has_top(asked: Inquiry) -> bool:
    return bool(asked.decoder.params.logprobs)


def _top(words: np.ndarray, asked: Sequence[Inquiry]):  # type: ignore[no-untyped-def]
    """(ids, log-probabilities) of the most likely tokens, row by row."""
    num_rows = sum(len(one.active.positions) for one in asked if _has_top(one))
    if not num_rows:
        return iter(())
    halves = words.reshape(2, num_rows, -1)
    return zip(halves[0].tolist(), halves[1].view(np.float32).tolist(), strict=True)


def _commitment(
    asked: Inquiry,
    ids: list[int],
    flags: list[int],
    logprobs: list[float],
    confidences: list[float],
    alternatives: list[tuple[list[int], list[float]]] | None,
    memory: KlassMemory | None,
) -> Commitment:
    decoder = asked.decoder
    is_masked = asked.active.is_masked
    is_committed = [bool(flag & COMMITTED) for flag in flags]
    # A draft behind a refused one does not count, whatever its logits are.
    is_read = is_committed if decoder.params.rule in AR_RULES else is_masked
    if not all(flag & SOUND for flag, counts in zip(flags, is_read, strict=True) if counts):
        raise FloatingPointError("the logits are not finite: no token can be chosen by them")
    if decoder.grammar is not None:
        is_committed = _accepted(asked, ids, is_committed)
    is_remasked = [bool(flag & REMASKED) for flag in flags]
    number = decoder.params.logprobs or 0
    best = alternatives or [([], [])] * len(ids)
    return Commitment(
        ids=tuple(ids),
        logprobs=tuple(
            TokenLogprob.of(token, logprob, top[0][:number], top[1][:number])
            for token, logprob, top in zip(ids, logprobs, best, strict=True)
        ),
        confidences=tuple(confidences),
        is_committed=tuple(is_committed),
        is_remasked=tuple(is_remasked),
        state=_next_state(asked, ids, is_committed, is_remasked, memory),
    )


def _accepted(asked: Inquiry, ids: list[int], is_committed: list[bool]) -> list[bool]:
    """The run of committed tokens that the grammar accepts, up to an end-of-turn token.

    The first is one of `Grammar.allowed`, or ends the answer.
    """
    grammar = asked.decoder.grammar
    assert grammar is not None
    is_accepted = [False] * len(ids)
    for index, (token, counts) in enumerate(zip(ids, is_committed, strict=True)):
        if not counts:
            continue
        if not grammar.accept(token) and any(is_accepted):
            break
        is_accepted[index] = True
        if token in asked.decoder.stop_ids:
            break
    return is_accepted


def _memory(asked: Inquiry, flags: list[int], logp_MV: Tensor, first: int) -> KlassMemory:
    positions = asked.active.positions
    return KlassMemory(
        logp_MV=logp_MV,
        rows={position: first + i for i, position in enumerate(positions)},
        num_stable={p: flag >> STABLE_SHIFT for p, flag in zip(positions, flags, strict=True)},
    )


def _next_state(
    asked: Inquiry,
    ids: list[int],
    is_committed: list[bool],
    is_remasked: list[bool],
    memory: KlassMemory | None,
) -> RuleState:
    state = asked.state
    counts = state.answer_counts
    if has_penalties(asked.decoder.params):
        changed = Counter(counts)
        changed.update(i for i, is_new in zip(ids, is_committed, strict=True) if is_new)
        changed.subtract(i for i, is_back in zip(ids, is_remasked, strict=True) if is_back)
        counts = dict(changed)
    num_remasked = state.num_remasked
    if any(is_remasked):
        again = [
            p for p, is_back in zip(asked.active.positions, is_remasked, strict=True) if is_back
        ]
        num_remasked = num_remasked | {p: num_remasked.get(p, 0) + 1 for p in again}
    return replace(
        state,
        step=state.step + 1,
        answer_counts=counts,
        memory=memory,
        num_remasked=num_remasked,
    )
