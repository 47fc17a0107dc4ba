"""The reference sampler: plain, slow, obviously right. The engine is tested against it.

No cache: every denoise step runs the whole sequence through the model.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from a2d_ray.config import AR_RULES
from a2d_ray.diffusion.decoding import guide
from a2d_ray.generation.decoding.ar_mode import with_own_rule
from a2d_ray.generation.decoding.canvas import Canvas, Segments, make_canvas, stop_token_ids
from a2d_ray.generation.decoding.denoise import (
    Active,
    Decoder,
    RuleState,
    TokenLogprob,
    denoise,
)
from a2d_ray.generation.decoding.grammar import Grammar
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.models.contract import Contract

Forward = Callable[[Tensor, Tensor], Tensor]
"""(ids [T], mask bool [T, T]) -> logits [T, V]."""


REFERENCE_DRAFTS = 4  # where the engine would decide


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The result of one request.

    Attributes:
        token_ids: the answer, without its end-of-turn token; for infill the whole text.
        logprobs: of each at its commitment, with `params.logprobs` alternatives.
        canvas: the answer's part of the canvas, including what follows its end.
        finish_reason: ``stop`` or ``length``.
        num_forwards: denoise steps; with guidance each is two forwards of the model. Rule
            ``speculate``: verifications.
        history: that part after every step (mask id where masked).
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob]
    canvas: list[int]
    finish_reason: str
    num_forwards: int
    history: list[list[int]]


@torch.inference_mode()
def sample(
    forward: Forward,
    prompt: Segments,
    params: SamplingParams,
    contract: Contract,
    *,
    eos_ids: Collection[int] = (),
    choice: int = 0,
    grammar: Grammar | None = None,
    is_reference: bool = False,
) -> Sample:
    """Generates one answer with MDLM or BD3LM, as the model's contract says.

    Args:
        forward: the model.
        prompt: segments of token ids; with holes (None) it is filled in instead of continued.
        params: options of the request (`stop` texts are not its business: it knows ids only).
        contract: how the checkpoint is used: blocks, mask token, AR mode.
        eos_ids: end-of-turn tokens.
        choice: which of the n answers.
        grammar: what the answer obeys.
        is_reference: the preset ``reference``; see `Decoder`.

    Raises:
        ValueError: a block size that was not trained, or a grammar with options it cannot go with.

    Source: the public A2D samplers (dLLM, arXiv 2602.22661).
    """
    params = with_own_rule(
        params,
        contract,
        is_infill=any(None in segment for segment in prompt),
        has_grammar=grammar is not None,
    )
    decoder = Decoder(
        params=params,
        canvas=make_canvas(prompt, params, contract),
        mask_id=contract.mask_token_id,
        stop_ids=stop_token_ids(params, eos_ids),
        choice=choice,
        grammar=grammar,
        is_reference=is_reference,
    )
    run = _Run(forward, decoder, contract)
    if params.rule == "speculate":
        run.speculate(params.draft_tokens or REFERENCE_DRAFTS, params.draft_shape != "linear")
    else:
        run.fill_windows()
    return run.result()


@dataclass
class _Run:
    """A request on its way: canvas, masks and what the rule remembers."""

    forward: Forward
    decoder: Decoder
    contract: Contract
    state: RuleState = field(default_factory=RuleState)
    history: list[list[int]] = field(default_factory=list)
    num_forwards: int = 0

    def __post_init__(self) -> None:
        self.ids = list(self.canvas.ids)
        self.is_masked = list(self.canvas.is_open)
        self.logprobs = [TokenLogprob(token, 0.0) for token in self.canvas.ids]

    @property
    def canvas(self) -> Canvas:
        return self.decoder.canvas

    def fill_windows(self) -> None:
        """Denoises window after window until an end lies in what is final."""
        for window in self.canvas.windows:
            while any(self.is_masked[slice(*window)]):
                self.step(window)
                if self.is_complete():
                    return
            self.state = self.state.open_window()

    def speculate(self, num_drafts: int, is_tree: bool) -> None:
        """Drafts and verifies until the answer ends.

        Args:
            num_drafts: tokens drafted at a time.
            is_tree: draft after every verification; else only where all drafts were accepted.
        """
        drafts: list[int] = []
        while not self.is_complete():
            start = self.is_masked.index(True)
            ids = list(self.ids)
            ids[start : start + len(drafts)] = drafts
            logits_TV = self.ar_logits(ids)
            for place in range(start, start + len(drafts) + 1):
                self.step((place, place + 1), logits_TV)
                draft = dict(enumerate(drafts, start)).get(place)
                if self.is_complete() or self.ids[place] != draft:
                    break
            self.num_forwards += 1
            is_ready = is_tree or place == start + len(drafts)
            drafts = self.drafts(place, num_drafts) if is_ready and start > 0 else []

    def drafts(self, place: int, num_drafts: int) -> list[int]:
        """Drafts behind `place`, whose token is masked like the ones that it drafts."""
        is_shifted = self.contract.right_shift_logits
        stop = min(place + num_drafts + (not is_shifted), len(self.canvas) - is_shifted)
        ids = list(self.ids)
        ids[place] = self.contract.mask_token_id
        mask_TT = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        mask_TT[place:stop, :stop] = True
        logits_TV = self.forward(torch.tensor(ids), mask_TT)
        rows = range(place + (not is_shifted), stop)
        if not rows:
            return []
        positions = [row + is_shifted for row in rows]
        active = Active.masked(positions, [self.contract.mask_token_id] * len(positions))
        free = replace(self.decoder, grammar=None)
        return list(denoise(logits_TV[rows.start : rows.stop], active, free, self.state).ids)

    def ar_logits(self, ids: list[int]) -> Tensor:
        """Logits of the AR mode that predict each position, [T, V]; position 0 by itself."""
        mask_TT = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        return _shifted(self.forward(torch.tensor(ids), mask_TT))

    def step(self, window: tuple[int, int], logits_TV: Tensor | None = None) -> None:
        """One denoise step of a window, by logits that are there already or by a forward."""
        active = self.decoder.active(self.ids, self.is_masked, window)
        if logits_TV is None:
            logits_TV = self.logits(self.sight(window))
            self.num_forwards += 1
        logits_NV = logits_TV[list(active.positions)]
        commitment = denoise(logits_NV, active, self.decoder, self.state)
        self.state = commitment.state
        for index, place in enumerate(active.positions):
            if commitment.is_committed[index]:
                self.ids[place] = commitment.ids[index]
                self.logprobs[place] = commitment.logprobs[index]
                self.is_masked[place] = False
            if commitment.is_remasked[index]:
                self.ids[place] = self.contract.mask_token_id
                self.is_masked[place] = True
        self.history.append(self.ids[self.canvas.start :])

    def sight(self, window: tuple[int, int]) -> Tensor:
        """Who sees whom while a window is denoised, bool [T, T]: its own and earlier blocks.

        Under `clean_attention: causal` a token of a finished block sees none behind it.
        """
        block_T = torch.tensor(self.canvas.blocks, dtype=torch.int64)
        mask_TT = block_T[None, :] <= block_T[:, None]
        if self.contract.objective == "bd3lm" and self.contract.clean_attention == "causal":
            is_active_T = block_T == block_T[window[0]]
            mask_TT &= is_active_T[:, None] | torch.ones_like(mask_TT).tril()
        return mask_TT

    def logits(self, mask_TT: Tensor) -> Tensor:
        """Logits that predict each canvas position, [T, V]."""
        params = self.decoder.params
        logits_TV = self.forward(torch.tensor(self.ids), mask_TT)
        if params.cfg_scale > 0:
            mask_id = self.contract.mask_token_id
            pairs = zip(self.ids, self.canvas.is_open, strict=True)
            hidden = [
                i if is_open or i in params.cfg_keep_tokens else mask_id for i, is_open in pairs
            ]
            factor_11 = torch.tensor([[1 + params.cfg_scale]])
            logits_TV = guide(logits_TV, self.forward(torch.tensor(hidden), mask_TT), factor_11)
        if self.contract.right_shift_logits or params.rule in AR_RULES:
            logits_TV = _shifted(logits_TV)
        return logits_TV

    @property
    def _stop(self) -> int:
        return self.canvas.start + self.canvas.num_answer

    def is_complete(self) -> bool:
        """Whether the answer has ended or is full; what lies behind it stays masked."""
        return self.end() is not None or not any(self.is_masked[self.canvas.start : self._stop])

    def end(self) -> int | None:
        """Where the first stop token lies within what is final; infill does not stop."""
        if self.canvas.is_infill:
            return None
        for place in range(self.canvas.start, self._stop):
            if self.is_masked[place]:
                return None
            if self.ids[place] in self.decoder.stop_ids:
                return place
        return None

    def result(self) -> Sample:
        """What the request came to."""
        start = self.canvas.start
        end = self.end()
        stop = self._stop if end is None else end
        return Sample(
            token_ids=self.ids[start:stop],
            logprobs=self.logprobs[start:stop],
            canvas=self.ids[start:],
            finish_reason="length" if end is None else "stop",
            num_forwards=self.num_forwards,
            history=self.history,
        )


def _shifted(logits_TV: Tensor) -> Tensor:
    """Logits of the token before each position; those of position 0 are its own."""
    return torch.cat([logits_TV[:1], logits_TV[:-1]])
