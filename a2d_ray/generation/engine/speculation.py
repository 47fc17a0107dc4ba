"""A running request in the AR mode: tokens that are verified from left to right, with drafts.

A round of rule ``speculate`` is one forward over

    known tokens that are not stored yet | drafts d1 .. dk | groups of masks

Known tokens and drafts attend causally: the logits of the last known token and of each draft say
which token the AR mode writes next. Drafts count as long as they are what it writes; then comes
its own token, which is known but not stored. A group of masks stands behind one possible end of
the accepted run; its masks see what is before it, and each other: they draft for the next round.
Keys and values of masks and of refused drafts lie in slots that the next round writes again before
anything reads them. Rule ``ar`` is the same without drafts.

K drafts, V vocabulary.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from a2d_ray.generation.decoding.canvas import Canvas, stop_token_ids
from a2d_ray.generation.decoding.denoise import (
    Active,
    Decoder,
    Inquiry,
    RuleState,
    TokenLogprob,
    inquire,
)
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.drafting import Drafter, DraftPlan, max_masks
from a2d_ray.generation.engine.pages import Page, PageTable, root_key
from a2d_ray.generation.engine.request import Request, StepOutput
from a2d_ray.generation.engine.storage import SequenceStorage
from a2d_ray.generation.engine.work import Question, Sight, Verdict, Work
from a2d_ray.models.contract import Contract

SCORED_TOGETHER = 32  # tokens of a prompt
PAGE_TOKENS = 16  # causal states need no block grid: a page is as long as is handy


@dataclass(frozen=True)
class _Drafts:
    """Tokens that the next round verifies.

    Attributes:
        ids: drafted tokens.
        confidence: of each, when it was drafted.
    """

    ids: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()


class SpeculativeSequence:
    """A request of rule ``ar`` or ``speculate``, with what has become of it.

    Args:
        request: the request.
        canvas: its canvas.
        contract: how the checkpoint is used: blocks, mask token, AR mode.
        eos_ids: end-of-turn tokens.
        table: gives slots of the KV store.
        drafter: plans its drafts.
    """

    def __init__(
        self,
        request: Request,
        canvas: Canvas,
        contract: Contract,
        eos_ids: Collection[int],
        table: PageTable,
        drafter: Drafter,
    ) -> None:
        self.request = request
        self._canvas = canvas
        self._is_shifted = contract.right_shift_logits
        self._drafter = drafter
        self._decoder = Decoder(
            params=request.params,
            canvas=canvas,
            mask_id=contract.mask_token_id,
            stop_ids=stop_token_ids(request.params, eos_ids),
            choice=request.choice,
            grammar=request.grammar,
        )
        self._state = RuleState()
        self._ids = list(canvas.prompt_ids)
        # The last token of the prompt is brought again by everybody: its logits are needed.
        num_paged = max(len(self._ids) - 1, 0) // PAGE_TOKENS * PAGE_TOKENS
        starts = range(0, num_paged, PAGE_TOKENS)
        pages = [tuple(self._ids[i : i + PAGE_TOKENS]) for i in starts]
        self._storage = SequenceStorage(table, root_key("ar", request.salt), pages)
        self._num_kept = 0  # tokens in own slots, behind those in pages
        self._drafts = _Drafts()
        self._plan = DraftPlan()
        self._draft_rows: dict[int, range] = {}  # by length of the accepted run
        self._run_length = 0
        self._rows = range(0)  # new tokens of the present round whose logits are read
        self._acceptance = drafter.acceptance.of_a_request()
        self._num_alternatives = request.params.prompt_logprobs
        self._prompt_logprobs: list[TokenLogprob] = []
        self._num_emitted = self._num_forwards = self._num_steps = 0
        self._num_drafted = self._num_accepted = 0

    def admit(self) -> bool:
        """Reserves room in the KV store; False if there is none now."""
        return self._storage.admit(
            slots_needed(self._canvas, self.request),
            is_sharing=self._num_alternatives is None,  # pages do not keep what predicts them
        )

    @property
    def is_prefilling(self) -> bool:
        """Whether its prompt is not stored yet."""
        return not self._num_steps and not self._storage.is_stored

    def plan(self, budget: int, in_flight: Collection[Page], *, is_fused: bool) -> list[Work]:
        """The tokens of this round: pages of the prompt, and behind them what is to be verified.

        Args:
            budget: tokens of the prompt that are welcome; one page always is.
            in_flight: pages that other requests store in this round.
            is_fused: whether verification may come with pages of the prompt.
        """
        chunk = self._storage.next_chunk(budget, in_flight)
        self._num_forwards += 1
        is_asked = self._storage.is_stored and (is_fused or not chunk.pages)
        first = chunk.start if chunk.pages else self._storage.num_stored + self._num_kept
        ids = self._ids[first : None if is_asked else chunk.stop]
        masks = self._masks() if is_asked else []
        if is_asked:
            # Nothing precedes position 0: the mask there is its own predictor.
            ids = [*ids, *self._drafts.ids] or [self._decoder.mask_id]
        num_clean = len(ids)
        num_asked = 1 + len(self._drafts.ids) if is_asked else 0
        if self._num_alternatives is not None and not self._num_steps:
            num_asked = num_clean  # all tokens of the prompt are predicted
        positions = [*range(first, first + num_clean), *(p for _, group in masks for p in group)]
        num_masks = len(positions) - num_clean
        num_own = len(positions) - (chunk.stop - chunk.start)
        new_runs, all_runs = self._storage.runs(chunk, self._num_kept, num_own)
        self._rows = range(num_clean - num_asked, num_clean)
        self._draft_rows = _rows(masks, num_clean, skipped=not self._is_shifted)
        work = Work(
            sequence=self,
            storage=self._storage,
            chunk=chunk,
            ids=ids + [self._decoder.mask_id] * num_masks,
            positions=positions,
            num_noised=num_masks,
            new_runs=new_runs,
            all_runs=all_runs,
            num_visible=[*range(first + 1, first + num_clean + 1)],
            sight=self._sight(masks) if num_masks else None,
            spare_rows=[row for rows in self._draft_rows.values() for row in rows],
        )
        return [work]

    def questions(self, works: Collection[Work]) -> list[Question]:
        """What this round is to decide: how likely the prompt is, and what the AR mode writes.

        Args:
            works: of `plan`.
        """
        (work,) = works
        questions = []
        # The token behind the one at each row is predicted.
        positions = [work.positions[row] + 1 for row in self._rows]
        if not self._ids:
            positions = [0]
        num_scored = sum(position < len(self._ids) for position in positions)
        for first in range(0, num_scored, SCORED_TOGETHER):
            part = slice(first, min(first + SCORED_TOGETHER, num_scored))
            asked = self._scoring(positions[part])
            questions.append(Question(asked=asked, works=(work,), rows=self._rows[part]))
        if num_scored < len(positions):
            ids = [*self._drafts.ids, self._decoder.mask_id]
            active = Active.masked(positions[num_scored:], ids)
            asked = inquire(self._decoder, active, self._state)
            questions.append(Question(asked=asked, works=(work,), rows=self._rows[num_scored:]))
        return questions

    def output(self) -> StepOutput:
        """What there is to say after a round that only stored pages of the prompt."""
        return self._output((), None)

    def failure(self, error: Exception) -> StepOutput:
        """The last output of a request that cannot go on."""
        return replace(self._output((), "error"), error=error)

    def commit(self, answers: Collection[Verdict]) -> StepOutput:
        """Commits drafts that are what the AR mode writes, and a token of its own behind them.

        Args:
            answers: of `questions`.

        Raises:
            Exception: the first answer that is one.
        """
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
            if not answer.is_committed[0]:  # given text was scored
                self._prompt_logprobs += answer.logprobs
                continue
            self._state = answer.state
            return self._accept(answer.logprobs[: sum(answer.is_committed)])
        return self.output()

    def _accept(self, written: tuple[TokenLogprob, ...]) -> StepOutput:
        """Takes what the AR mode writes."""
        written = written[: self._num_left]
        tokens = [logprob.token_id for logprob in written]
        ends = [i for i, token in enumerate(tokens) if token in self._decoder.stop_ids]
        if ends:
            written = written[: ends[0] + 1]
            tokens = tokens[: ends[0] + 1]
        self._ids += tokens
        self._keep(len(self._ids) - 1)
        self._count(self._drafts.ids, tokens)
        self._num_steps += 1
        self._drafts = _Drafts()
        self._run_length = len(tokens) - 1
        return self._emit(list(written))

    def draft_question(self, works: Collection[Work]) -> Question | None:
        """The drafts for the next round, behind what this one accepted; None: there are none.

        Args:
            works: of `plan`.
        """
        rows = self._draft_rows.get(self._run_length)
        if not rows:
            return None
        start = len(self._ids)
        positions = range(start, start + len(rows))
        active = Active.masked(positions, [self._decoder.mask_id] * len(rows))
        free = replace(self._decoder, grammar=None)  # it will bind what is verified
        asked = inquire(free, active, self._state)
        return Question(asked=asked, works=tuple(works), rows=rows)

    def draft(self, answer: Verdict, output: StepOutput) -> StepOutput:
        """Takes the answer to `draft_question`; the output of this round, with the drafts."""
        if isinstance(answer, Exception):  # drafts are worth no failure
            return output
        self._drafts = _Drafts(answer.ids, answer.confidences)
        return replace(output, canvas=self._drafts.ids, canvas_confidence=self._drafts.confidence)

    def release(self) -> None:
        """Gives the slots back."""
        self._storage.release()

    @property
    def _num_left(self) -> int:
        """Tokens that the answer may still get."""
        return self._canvas.num_answer - self._num_emitted

    def _masks(self) -> list[tuple[int, range]]:
        """Groups of masks of this round: (length of the accepted run, positions)."""
        num_held = len(self._drafts.ids)
        plan = self._drafter.plan(self.request.params, num_held, self._acceptance)
        if not plan.num_drafts or not self._ids:
            return []
        num_masks = plan.num_drafts + (not self._is_shifted)
        stop = len(self._canvas) - self._is_shifted
        groups = []
        for end in plan.ends:
            first = len(self._ids) + end
            positions = range(first, min(first + num_masks, stop))
            if len(positions) > (not self._is_shifted):  # one alone drafts nothing
                groups.append((end, positions))
        return groups

    def _sight(self, masks: list[tuple[int, range]]) -> Sight:
        """A mask sees the known tokens, the drafts before its group, and its group."""
        num_drafts = len(self._drafts.ids)
        end_m = torch.tensor([end for end, group in masks for _ in group])
        is_draft_seen = torch.arange(num_drafts) < end_m[:, None]
        is_mask_seen = end_m == end_m[:, None]
        seen_mS = torch.cat([is_draft_seen, is_mask_seen], dim=1)
        return Sight(num_common=len(self._ids), hidden_mS=~seen_mS)

    def _scoring(self, positions: list[int]) -> Inquiry:
        """How likely tokens of the prompt are, by the model's own distribution."""
        ids = tuple(self._ids[position] for position in positions)
        plain = SamplingParams(rule="ar", logprobs=self._num_alternatives)
        return inquire(
            replace(self._decoder, params=plain, grammar=None),
            Active(positions=tuple(positions), ids=ids, is_masked=(False,) * len(ids)),
            RuleState(),
        )

    def _keep(self, num_tokens: int) -> None:
        """The first tokens are stored now; whole pages of them can be found by others."""
        self._num_kept = num_tokens - self._storage.num_stored
        while self._num_kept >= PAGE_TOKENS:
            start = self._storage.num_stored
            self._storage.fill_page(tuple(self._ids[start : start + PAGE_TOKENS]))
            self._num_kept -= PAGE_TOKENS

    def _count(self, drafts: tuple[int, ...], written: list[int]) -> None:
        """Notes how many drafts were what the AR mode wrote."""
        pairs = list(zip(drafts, written, strict=False))
        num_accepted = sum(draft == token for draft, token in pairs)
        self._num_drafted += len(drafts)
        self._num_accepted += num_accepted
        for acceptance in (self._acceptance, self._drafter.acceptance):
            acceptance.count(num_accepted, len(pairs) - num_accepted)

    def _emit(self, logprobs: list[TokenLogprob]) -> StepOutput:
        tokens = tuple(logprob.token_id for logprob in logprobs)
        stop = logprobs[-1] if tokens[-1] in self._decoder.stop_ids else None
        if stop is not None:
            tokens = tokens[:-1]
        self._num_emitted += len(tokens)
        is_long = stop is None and not self._num_left
        reason = "stop" if stop is not None else "length" if is_long else None
        return self._output(tokens, reason, stop, tuple(logprobs[: len(tokens)]))

    def _output(
        self,
        token_ids: tuple[int, ...],
        finish_reason: str | None,
        stop: TokenLogprob | None = None,
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> StepOutput:
        is_reported = self.request.params.logprobs is not None
        return StepOutput(
            request_id=self.request.request_id,
            token_ids=token_ids,
            finish_reason=finish_reason,
            num_forwards=self._num_forwards,
            num_denoise_steps=self._num_steps,
            canvas=(),
            canvas_confidence=(),
            is_draft=True,
            num_cached_tokens=self._storage.num_cached_tokens,
            logprobs=logprobs if is_reported else None,
            stop_token_id=None if stop is None else stop.token_id,
            stop_logprob=stop.logprob if stop is not None and is_reported else None,
            prompt_logprobs=self._known_prompt_logprobs(),
            num_drafted=self._num_drafted,
            num_accepted=self._num_accepted,
        )

    def _known_prompt_logprobs(self) -> tuple[TokenLogprob, ...] | None:
        is_known = self._num_alternatives is not None and self._num_steps > 0
        return tuple(self._prompt_logprobs) if is_known else None


def slots_needed(canvas: Canvas, request: Request) -> int:
    """Slots of the KV store that a request of these rules holds."""
    return len(canvas) + max_masks(request.params) + (not canvas.prompt_ids)


def _rows(masks: list[tuple[int, range]], first: int, *, skipped: bool) -> dict[int, range]:
    """Rows of each group that draft: all but the one that stands where the AR mode chooses."""
    rows = {}
    for end, positions in masks:
        rows[end] = range(first + skipped, first + len(positions))
        first += len(positions)
    return rows
