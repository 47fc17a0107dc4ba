"""A running request: its canvas, its progress, and the tokens that it brings to a round."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from a2d_ray.generation.decoding.canvas import Canvas, stop_token_ids
from a2d_ray.generation.decoding.denoise import (
    Active,
    Commitment,
    Decoder,
    RuleState,
    TokenLogprob,
    inquire,
)
from a2d_ray.generation.engine.cache import Runs
from a2d_ray.generation.engine.pages import Page, PageTable, root_key
from a2d_ray.generation.engine.request import Request, StepOutput
from a2d_ray.generation.engine.storage import SequenceStorage, StoredBlocks, block_edges
from a2d_ray.generation.engine.work import Question, Verdict, Work
from a2d_ray.models.contract import Contract


@dataclass(frozen=True)
class _Branch:
    """One run of a request through the model; guidance has a second one without the given text.

    Attributes:
        storage: of its keys and values; None: nothing is stored.
        hidden: positions that it sees masked.
    """

    storage: SequenceStorage | None
    hidden: frozenset[int] = frozenset()


class Sequence:
    """A request with what has become of it.

    Args:
        request: the request.
        canvas: its canvas.
        contract: how the checkpoint is used: blocks, mask token, AR mode.
        eos_ids: end-of-turn tokens.
        table: gives slots of the KV store; None: nothing is stored (MDLM).
    """

    def __init__(
        self,
        request: Request,
        canvas: Canvas,
        contract: Contract,
        eos_ids: Collection[int],
        table: PageTable | None,
    ) -> None:
        self.request = request
        self._canvas = canvas
        self._stop_ids = (
            frozenset() if canvas.is_infill else stop_token_ids(request.params, eos_ids)
        )
        self._decoder = Decoder(
            params=request.params,
            canvas=canvas,
            mask_id=contract.mask_token_id,
            stop_ids=self._stop_ids,
            choice=request.choice,
            grammar=request.grammar,
        )
        self._state = RuleState()
        self._ids = list(canvas.ids)
        self._is_masked = list(canvas.is_open)
        self._confidence = [1.0] * len(canvas)
        self._active: Active | None = None  # what the present round asks
        self._logprobs: dict[int, TokenLogprob] = {}
        self._num_visible = _visible_counts(canvas, contract)
        root = root_key(canvas.block_size, contract.block_grid, request.salt)
        self._branches = [
            _Branch(None if table is None else self._storage(table, root, hidden), hidden)
            for hidden in self._hidden_by_branch()
        ]
        self._num_emitted = self._num_forwards = self._num_steps = self._window_index = 0

    def admit(self) -> bool:
        """Reserves room in the KV store; False if there is none now."""
        for branch in self._branches:
            if branch.storage and not branch.storage.admit(len(self._canvas)):
                self.release()
                return False
        return True

    @property
    def is_prefilling(self) -> bool:
        """Whether its prompt is not stored yet."""
        return not self._num_steps and not self._is_stored

    def plan(self, budget: int, in_flight: Collection[Page], *, is_fused: bool) -> list[Work]:
        """The tokens of this round: finished blocks, and the active one if those are all stored.

        Args:
            budget: tokens of finished blocks that are welcome; one block always is.
            in_flight: pages that other requests store in this round.
            is_fused: whether the active block may come with finished ones.
        """
        chunks = []
        coming = set(in_flight)
        for branch in self._branches:
            chunk = StoredBlocks(start=0, stop=0, pages=())
            if branch.storage is not None:
                chunk = branch.storage.next_chunk(budget, coming)
            coming.update(chunk.pages)
            chunks.append(chunk)
        self._num_forwards += 1
        is_asked = self._is_stored and (is_fused or not any(chunk.pages for chunk in chunks))
        self._active = None
        if is_asked:
            self._active = self._decoder.active(self._ids, self._is_masked, self._window)
        pairs = zip(self._branches, chunks, strict=True)
        return [self._work(b, c, is_asked=is_asked) for b, c in pairs if is_asked or c.pages]

    def output(self) -> StepOutput:
        """What there is to say after a round that only stored finished blocks."""
        return self._output((), None)

    def failure(self, error: Exception) -> StepOutput:
        """The last output of a request that cannot go on."""
        return replace(self._output((), "error"), error=error)

    def questions(self, works: Collection[Work]) -> list[Question]:
        """What this round is to decide.

        Args:
            works: of `plan`.
        """
        if self._active is None:
            return []
        asked = inquire(self._decoder, self._active, self._state)
        return [Question(asked=asked, works=tuple(works))]

    def commit(self, answers: Collection[Verdict]) -> StepOutput:
        """Commits what the rule selects.

        Args:
            answers: of `questions`.

        Raises:
            Exception: the answer, where it is one.
        """
        (answer,) = answers
        if isinstance(answer, Exception):
            raise answer
        self._state = answer.state
        self._write(answer)
        self._num_steps += 1
        output = self._output(*self._emit())
        is_done = not any(self._is_masked[slice(*self._window)])
        if output.finish_reason is None and is_done:
            self._open_next_window()
        return output

    def draft_question(self, works: Collection[Work]) -> None:
        """Such a request drafts nothing."""

    def draft(self, answer: Verdict, output: StepOutput) -> StepOutput:
        """Is never asked for."""
        raise AssertionError(f"{self.request.request_id} drafts nothing: {answer}, {output}")

    def release(self) -> None:
        """Gives the slots back."""
        for branch in self._branches:
            if branch.storage is not None:
                branch.storage.release()

    def _work(self, branch: _Branch, chunk: StoredBlocks, *, is_asked: bool) -> Work:
        stop = chunk.stop
        if is_asked:
            stop = len(self._canvas) if branch.storage is None else self._window[1]
        num_active = stop - chunk.stop
        new_runs: Runs | None = None
        all_runs: Runs = ()
        if branch.storage is not None:
            new_runs, all_runs = branch.storage.runs(chunk, 0, num_active)
        return Work(
            sequence=self,
            storage=branch.storage,
            chunk=chunk,
            ids=self._seen(branch, chunk.start, stop),
            positions=range(chunk.start, stop),
            num_noised=num_active,
            new_runs=new_runs,
            all_runs=all_runs,
            num_visible=self._num_visible[chunk.start : chunk.stop] + [stop] * num_active,
        )

    def _hidden_by_branch(self) -> list[frozenset[int]]:
        params = self.request.params
        if params.cfg_scale == 0:
            return [frozenset()]
        kept = params.cfg_keep_tokens
        pairs = zip(self._ids, self._is_masked, strict=True)
        hidden = [i for i, (token, m) in enumerate(pairs) if not m and token not in kept]
        return [frozenset(), frozenset(hidden)]

    def _storage(self, table: PageTable, root: bytes, hidden: frozenset[int]) -> SequenceStorage:
        edges = block_edges(self._canvas.blocks, self._canvas.block_start(0))
        branch = _Branch(None, hidden)
        return SequenceStorage(table, root, [tuple(self._seen(branch, a, b)) for a, b in edges])

    def _seen(self, branch: _Branch, start: int, stop: int) -> list[int]:
        """Ids as a branch sees them."""
        ids = self._ids[start:stop]
        if branch.hidden:
            mask_id = self._decoder.mask_id
            ids = [mask_id if i in branch.hidden else t for i, t in enumerate(ids, start)]
        return ids

    @property
    def _is_stored(self) -> bool:
        return all(b.storage is None or b.storage.is_stored for b in self._branches)

    @property
    def _window(self) -> tuple[int, int]:
        return self._canvas.windows[self._window_index]

    def _write(self, commitment: Commitment) -> None:
        assert self._active is not None
        for index, place in enumerate(self._active.positions):
            if commitment.is_committed[index]:
                self._ids[place] = commitment.ids[index]
                self._confidence[place] = commitment.confidences[index]
                self._is_masked[place] = False
                if self.request.params.logprobs is not None:
                    self._logprobs[place] = commitment.logprobs[index]
            if commitment.is_remasked[index]:
                self._ids[place] = self._decoder.mask_id
                self._is_masked[place] = True

    def _open_next_window(self) -> None:
        self._window_index += 1
        self._state = self._state.open_window()
        finished = block_edges(self._canvas.blocks, self._canvas.block_start(self._window_index))
        for branch in self._branches:
            if branch.storage is None:
                continue
            for start, stop in finished:
                if start >= branch.storage.num_stored:
                    branch.storage.append_block(tuple(self._seen(branch, start, stop)))

    def _emit(self) -> tuple[tuple[int, ...], str | None, int | None]:
        """Tokens that became final; why the answer ends, if it does, and the token that ends it."""
        first = self._canvas.start + self._num_emitted
        stop = self._canvas.start + self._canvas.num_answer
        known = takewhile(lambda place: not self._is_masked[place], range(first, stop))
        final = [self._ids[place] for place in known]
        ends = [i for i, token in enumerate(final) if token in self._stop_ids]
        stop_id = final[ends[0]] if ends else None
        final = final[: ends[0]] if ends else final
        self._num_emitted += len(final)
        if ends:
            return tuple(final), "stop", stop_id
        is_full = self._num_emitted == self._canvas.num_answer
        return tuple(final), "length" if is_full else None, None

    def _output(
        self,
        token_ids: tuple[int, ...],
        finish_reason: str | None,
        stop_token_id: int | None = None,
    ) -> StepOutput:
        storage = self._branches[0].storage
        return StepOutput(
            request_id=self.request.request_id,
            token_ids=token_ids,
            finish_reason=finish_reason,
            num_forwards=self._num_forwards,
            num_denoise_steps=self._num_steps,
            canvas=self._visible(self._ids),
            canvas_confidence=self._visible(self._confidence),
            num_cached_tokens=storage.num_cached_tokens if storage is not None else 0,
            logprobs=self._latest_logprobs(len(token_ids)),
            stop_token_id=stop_token_id,
        )

    def _latest_logprobs(self, num_tokens: int) -> tuple[TokenLogprob, ...] | None:
        """Of the last emitted tokens; those that were given (infill) are certain."""
        if self.request.params.logprobs is None:
            return None
        stop = self._canvas.start + self._num_emitted
        return tuple(
            self._logprobs.get(i) or TokenLogprob(self._canvas.ids[i], 0.0)
            for i in range(stop - num_tokens, stop)
        )

    def _visible(self, values: list[Any]) -> tuple[Any, ...]:
        """Values of the active window, None where it is still masked."""
        return tuple(None if self._is_masked[i] else values[i] for i in range(*self._window))


def _visible_counts(canvas: Canvas, contract: Contract) -> list[int]:
    """Keys that each token of the canvas sees once its block is finished."""
    if contract.clean_attention == "causal" and contract.objective == "bd3lm":
        return list(range(1, len(canvas) + 1))
    edges = block_edges(canvas.blocks, len(canvas))
    return [stop for start, stop in edges for _ in range(start, stop)]
