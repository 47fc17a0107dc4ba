"""The engine: requests -> rounds -> committed tokens.

One round is one forward for all running requests. A BD3LM request brings the clean tokens that
are not stored yet (chunks of the prompt at first, a finished block later) and its active block: so
a prompt is run once, and a block is stored in the same forward that denoises the next one for the
first time. An MDLM request brings its whole canvas.
"""

from collections.abc import Collection
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch

from a2d_ray.config import AR_RULES
from a2d_ray.config.errors import TooLongError
from a2d_ray.generation.decoding.ar_mode import default_rule, has_ar_mode, with_own_rule
from a2d_ray.generation.decoding.canvas import check_prompt, make_canvas, stop_token_ids
from a2d_ray.generation.decoding.denoise import check_grammar
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine import graphs
from a2d_ray.generation.engine.measuring import make_drafter
from a2d_ray.generation.engine.pages import PageTable
from a2d_ray.generation.engine.request import Request, StepOutput
from a2d_ray.generation.engine.runner import ModelRunner
from a2d_ray.generation.engine.scheduler import AnySequence, EngineOptions, Scheduler
from a2d_ray.generation.engine.speculation import slots_needed
from a2d_ray.generation.engine.work import Question, Verdict, Work
from a2d_ray.models.contract import Contract

__all__ = ["Engine", "EngineOptions", "Request", "StepOutput"]

_KV_TOKENS = 32_768
Brought = tuple[AnySequence, list[Work]]


class Engine:
    """Continuous batching of requests on one model. Synchronous: one thread drives it.

    Args:
        model: A2D model with head (`.model`, `.lm_head`). Its weights must not change meanwhile.
        contract: how it is to be used.
        eos_ids: end-of-turn tokens.
        max_length: positions of the model.
        options: limits; None: the defaults.
    """

    def __init__(
        self,
        model: Any,
        contract: Contract,
        *,
        eos_ids: Collection[int],
        max_length: int,
        options: EngineOptions | None = None,
    ) -> None:
        options = options or EngineOptions()
        self._eos_ids = frozenset(eos_ids)
        self._contract = contract
        self._max_length = max_length
        self._vocab_size = model.config.vocab_size
        self._kv_tokens = None
        self._table = None
        if contract.objective != "mdlm":
            self._kv_tokens = options.kv_tokens or max(_KV_TOKENS, max_length)
            self._table = PageTable(self._kv_tokens, is_caching=options.prefix_cache)
        self.num_rounds = self.num_positions = 0  # forwards, and tokens in them
        self._runner = ModelRunner(
            model, kv_tokens=self._kv_tokens, is_shifted=contract.right_shift_logits
        )
        self._max_running = options.max_running
        self._use_graphs(options)
        self._drafter = make_drafter(self._runner, max_length)
        self._scheduler = Scheduler(contract, self._eos_ids, self._table, options, self._drafter)

    def _use_graphs(self, options: EngineOptions) -> None:
        """CUDA graphs, where they are wanted and the device has them.

        Raises:
            ValueError: they are asked for and the device has none.
        """
        capture = graphs.capture_on(self._runner.device) if options.cuda_graphs else None
        if capture is not None:
            blocks = self._contract.block_sizes or (self._contract.block_size,)
            self._runner.use_graphs(capture, {1, *blocks}, options.max_running)
        elif options.cuda_graphs is True:
            raise ValueError(
                f"cuda_graphs=true: the model is on {self._runner.device}, which has no CUDA "
                "graphs; auto uses them where they are"
            )

    def warm_up(self) -> None:
        """Does ahead what the first requests would wait for.

        An accelerator answers a request once: its libraries choose kernels and take memory. Then
        the usual rounds are captured as CUDA graphs, if the engine uses them. At last forwards are
        measured, to plan drafts.
        """
        rule = default_rule(self._contract)
        can_answer = self._contract.objective is not None or has_ar_mode(self._contract)
        if self._runner.device.type != "cpu" and can_answer:
            params = SamplingParams(max_new_tokens=1, ignore_eos=True)
            self.add_request(
                Request(request_id="warm-up", prompt=[[0]], params=params, salt="warm-up")
            )
            while self.has_unfinished():
                self.step()
            self.num_rounds = self.num_positions = 0
            unit = 1 if rule in AR_RULES else self._contract.block_size
            self._runner.capture_usual(self._max_running, unit)
        if rule == "speculate":
            self._drafter.measure()

    @property
    def graph_counts(self) -> dict[str, int]:
        """Rounds' layers and decisions: captured, replayed, and eager by reason; {}: no graphs."""
        return {} if self._runner.graphs is None else dict(self._runner.graphs.counts)

    def add_request(self, request: Request) -> None:
        """Queues a request; its rule ``auto`` becomes the model's own.

        Raises:
            ValueError: options or a prompt that this model cannot serve, or a used id.
        """
        check_prompt(request.prompt, request.params, self._max_length, self._vocab_size)
        params = with_own_rule(
            request.params,
            self._contract,
            is_infill=any(None in segment for segment in request.prompt),
            has_grammar=request.grammar is not None,
        )
        request = replace(request, params=params)
        canvas = make_canvas(request.prompt, params, self._contract)
        if request.grammar is not None:
            stop_ids = stop_token_ids(params, self._eos_ids)
            check_grammar(params, canvas.is_infill, stop_ids)
        length = len(canvas) * (2 if params.cfg_scale > 0 else 1)
        if params.rule in AR_RULES:
            length = slots_needed(canvas, request)
        if self._kv_tokens is not None and length > self._kv_tokens:
            raise TooLongError(
                "prompt",
                len(canvas),
                f"tokens with the answer, in whole blocks and twice with cfg_scale, exceed the KV "
                f"store's kv_tokens={self._kv_tokens}",
                "raise that, shorten the prompt or lower max_new_tokens",
            )
        waiting = (r.request_id for r in self._scheduler.waiting)
        if request.request_id in self._scheduler.running or request.request_id in waiting:
            raise ValueError(f"request_id {request.request_id!r} is in use")
        self._scheduler.waiting.append(request)

    def abort(self, request_id: str) -> None:
        """Forgets a request; unknown ids are fine."""
        self._scheduler.remove(request_id)

    def has_unfinished(self) -> bool:
        """Whether any request is running or waiting."""
        return bool(self._scheduler.running or self._scheduler.waiting)

    @property
    def num_running(self) -> int:
        """Requests that take part in rounds."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a place or for room."""
        return len(self._scheduler.waiting)

    @property
    def kv_usage(self) -> float:
        """Share of the KV store that running requests hold, 0 to 1."""
        return self.num_used_kv_tokens / self._kv_tokens if self._kv_tokens else 0.0

    @property
    def num_used_kv_tokens(self) -> int:
        """Slots that running requests hold; cached pages that nobody uses do not count."""
        return 0 if self._table is None else self._table.capacity - self._table.num_free

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """One round: one forward for all running requests; [] when there is none.

        What goes wrong with one request after the forward ends that request alone.
        """
        works = self._scheduler.plan_round()
        if not works:
            return []
        self.num_rounds += 1
        self.num_positions += sum(work.num_tokens for work in works)
        brought = [
            (sequence, list(own))
            for sequence, own in groupby(works, key=lambda work: work.sequence)
        ]
        questions = [_questions(sequence, own) for sequence, own in brought]
        asked = [question for own in questions if isinstance(own, list) for question in own]
        answers = iter(self._runner.run(works, asked))
        outputs = []
        for (sequence, _), own in zip(brought, questions, strict=True):
            if isinstance(own, Exception):
                outputs.append(sequence.failure(own))
            else:
                outputs.append(_advance(sequence, [next(answers) for _ in own]))
        self._draft(brought, outputs)
        for output in outputs:
            if output.finish_reason is not None:
                self._scheduler.remove(output.request_id)
        return outputs

    def _draft(self, brought: list[Brought], outputs: list[StepOutput]) -> None:
        """Drafts of the requests that go on, from the masks behind what they accepted."""
        drafting = []
        questions = []
        for place, (sequence, works) in enumerate(brought):
            if outputs[place].finish_reason is not None:
                continue
            question = sequence.draft_question(works)
            if question is not None:
                drafting.append((place, sequence))
                questions.append(question)
        if not questions:
            return
        for (place, sequence), answer in zip(drafting, self._runner.ask(questions), strict=True):
            outputs[place] = sequence.draft(answer, outputs[place])


def _questions(sequence: AnySequence, works: list[Work]) -> list[Question] | Exception:
    try:
        return sequence.questions(works)
    except Exception as error:  # whatever it is, the requests beside this one go on
        return error


def _advance(sequence: AnySequence, answers: list[Verdict]) -> StepOutput:
    try:
        return sequence.commit(answers) if answers else sequence.output()
    except Exception as error:  # as above
        return sequence.failure(error)
