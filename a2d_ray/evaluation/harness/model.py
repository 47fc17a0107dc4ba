"""lm-evaluation-harness models on our engine: `a2d_mdlm` and `a2d_bd3lm`.

`model_args` carry the names that users of the public A2D recipe know. The harness renders chats to
text; the model remembers which messages a text came from, so that a prompt keeps its segments and
with them the block grid of training.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import takewhile
from typing import Any, Self

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string

from a2d_ray.config import LikelihoodKind, OptionError, override
from a2d_ray.data.chat import ChatRenderer
from a2d_ray.evaluation.backends.local import Backend, Description, load_backend
from a2d_ray.evaluation.backends.requests import (
    BackendPrompt,
    GenerateRequest,
    LogLikelihood,
    Score,
    ScoreRequest,
    TokenSegments,
)
from a2d_ray.evaluation.backends.responses import Responder, ResponseCache, Speed
from a2d_ray.evaluation.harness.options import Options, read_options, read_task_options
from a2d_ray.evaluation.harness.whole_answers import end_of_turn, is_whole_answer
from a2d_ray.evaluation.harness.windows import ar_windows, fit, rolling_windows
from a2d_ray.evaluation.report.statistics import root_of_squares
from a2d_ray.generation.decoding.params import SamplingParams, derive_seed


class A2DHarnessModel(LM):
    """A diffusion language model as the harness sees it.

    Args:
        backend: who answers; None: a model in this process, from `pretrained`.
        options: see `a2d_ray.evaluation.harness.options`.

    Raises:
        ValueError: an unknown or unsupported option, or a checkpoint of the other objective.
    """

    objective: str | None = None

    def __init__(self, *, backend: Backend | None = None, **options: Any) -> None:
        super().__init__()
        self.options = read_options(options)
        self._backend = backend or self._make_backend(self.options)
        self.described: Description = self._backend.describe()
        self._check_objective()
        cache = None
        if path := self.options.others["cache"]:
            kept = path if self.described.is_identified else ":memory:"
            cache = ResponseCache(kept, self.described.fingerprint)
        self.responder = Responder(self._backend, cache, contract=self.described.contract)
        self._chats: dict[str, list[dict[str, str]]] = {}

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> Self:
        """A model as the harness makes it: ``--model_args`` win over what it passes to every model,
        and the batch size of 1, which it passes where nobody names one, asks for nothing."""
        passed = {k: v for k, v in (additional_config or {}).items() if v is not None}
        if str(passed.get("batch_size")) == "1":
            del passed["batch_size"]
        return cls(**passed | arg_dict)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> Self:
        """The same from ``key=value,key=value``."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def speed(self) -> Speed:
        """Of what was generated so far."""
        return self.responder.speed

    def _make_backend(self, options: Options) -> Backend:
        others = options.others
        if others["base_url"]:
            from a2d_ray.evaluation.backends.endpoint import EndpointBackend

            return EndpointBackend(others["base_url"], others["served_model"])
        batch_size = int(others["batch_size"])
        num_workers = int(others["num_workers"])
        if num_workers:
            from a2d_ray.evaluation.backends.actors import RayBackend

            return RayBackend(
                options.model, self.objective, num_workers=num_workers, batch_size=batch_size
            )
        return load_backend(options.model, self.objective, batch_size=batch_size)

    def _check_objective(self) -> None:
        found = self.described.objective
        if self.objective and found and found != self.objective:
            raise ValueError(
                f"--model a2d_{self.objective} was given a checkpoint of objective {found}: use "
                f"--model a2d_{found}"
            )

    # Text and tokens

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer and template in the harness's request cache."""
        return str(self.described.fingerprint.get("tokenizer") or "endpoint")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The tokenizer's own template; the harness records it."""
        tokenizer = self.described.tokenizer
        return "" if tokenizer is None else tokenizer.chat_template

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The chat as text; its messages are remembered for the request that quotes it."""
        messages = [{"role": m["role"], "content": m["content"]} for m in chat_history]
        text = repr(messages)
        if self.described.tokenizer is not None:
            asked = messages if add_generation_prompt else messages[:-1]
            pieces = ChatRenderer(self.described.tokenizer).render_prompt(asked)
            text = "".join(piece.text for piece in pieces)
            text += "" if add_generation_prompt else messages[-1]["content"]
        self._chats[text] = messages
        return text

    def _prompt(self, context: str) -> BackendPrompt:
        """Tokens, or what an endpoint turns into the same tokens."""
        if self.described.tokenizer is None:
            return self._chats.get(context, context)
        return self._segments(context)

    def _segments(self, context: str) -> TokenSegments:
        """The context as segments; what an answer begins with is a segment of its own."""
        from a2d_ray.data.chat import render_prompt

        tokenizer = self._tokenizer
        messages = self._chats.get(context)
        if messages is None:
            return (tuple(tokenizer(context).input_ids),) if context else ()
        is_begun = messages[-1]["role"] == "assistant"
        segments = render_prompt(messages, tokenizer, continue_final_message=is_begun)
        return tuple(map(tuple, segments))

    @cached_property
    def _tokenizer(self) -> Any:
        """The model's; behind an endpoint, that of the checkpoint which is named beside it."""
        if self.described.tokenizer is not None:
            return self.described.tokenizer
        from a2d_ray.evaluation.backends.endpoint import served_tokenizer

        return served_tokenizer(self.options.model.get("path"))

    # Requests of the harness

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers, cut at the first `until`; equal requests of one call differ in their seed."""
        seen: Counter[str] = Counter()
        asked = []
        for instance in requests:
            context, task_options = instance.args
            repeat = seen[repr(instance.args)]
            seen[repr(instance.args)] += 1
            params = self._seeded(self.params(task_options), context, repeat)
            asked.append(GenerateRequest(prompt=self._prompt(context), params=params))
        return [answer.text for answer in self.responder.generate(asked)]

    def params(self, task_options: dict[str, Any]) -> SamplingParams:
        """Options of the model first, then of the task.

        Raises:
            ValueError: an option of the task that our decoder does not have.
        """
        return SamplingParams(**override(read_task_options(task_options), self.options.sampling))

    def _seeded(self, params: SamplingParams, context: str, repeat: int) -> SamplingParams:
        """The options with a seed of this prompt's own, the same over HTTP as in one process."""
        if not params.is_random:
            return params
        seed = derive_seed(params.seed, self._chats.get(context, context), repeat)
        return params.model_copy(update={"seed": seed})

    @property
    def likelihood(self) -> LikelihoodKind:
        """Which likelihoods this model gives: exact ones in the AR mode, or NELBOs.

        Raises:
            OptionError: one that it does not have.
        """
        asked = self.options.others["likelihood"]
        has_ar = self.described.has_ar_mode
        if asked == "ar" and not has_ar:
            raise OptionError(
                "likelihood",
                asked,
                "needs an AR mode, which this model does not have",
                "set likelihood=nelbo, or train bd3lm with objective.clean_attention=causal and "
                "objective.ar_loss_weight=1",
            )
        kind: LikelihoodKind = "ar" if has_ar and asked != "nelbo" else "nelbo"
        if kind == "nelbo" and self.described.contract is None:
            raise OptionError(
                "likelihood",
                asked,
                "is a NELBO here, which no endpoint gives",
                "measure with pretrained=CHECKPOINT alone (no endpoint in a suite), or serve a "
                "model with an AR mode",
            )
        return kind

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation the log-likelihood or -NELBO, in nats, and whether greedy decoding
        gives it.

        The second is exact in the AR mode; beside a NELBO it is False unless `is_check_greedy`: it
        costs an answer per request.
        """
        asked = [
            self.score_request(*instance.args, is_complete=is_whole_answer(instance))
            for instance in requests
        ]
        scores = self._score(asked)
        greedy = [bool(score.is_greedy) for score in scores]
        if self.likelihood == "nelbo" and self.options.others["is_check_greedy"]:
            greedy = self._greedy(asked)
        return [
            (LogLikelihood(-score.nats, score.stderr), flag)
            for score, flag in zip(scores, greedy, strict=True)
        ]

    def _score(self, asked: Sequence[ScoreRequest]) -> list[Score]:
        """Scores; NELBOs by `mc_num` samples, in blocks of `block_size` (MDLM has none)."""
        if self.likelihood == "nelbo":
            num_draws = max(1, -(-int(self.options.others["mc_num"]) // 2))  # a draw has two views
            size = self.options.sampling.get("block_size")
            block_size = None if size is None or self.described.objective == "mdlm" else int(size)
            asked = [replace(r, num_draws=num_draws, block_size=block_size) for r in asked]
        return self.responder.score(asked)

    def score_request(
        self, context: str, continuation: str, *, is_complete: bool = False
    ) -> ScoreRequest:
        """The pair as tokens, split by token prefix.

        Context and continuation are encoded together; the context is what its own encoding and
        the whole begin with alike, so no token spans the border unseen. Behind a chat's generation
        prompt the border is a token border already. A complete answer ends its turn. In the AR
        mode the border is the harness's: spaces there belong to the continuation, and the first
        token of all stands behind the prefix token.
        """
        tokenizer = self._tokenizer
        if is_complete:
            continuation += end_of_turn(tokenizer, is_chat=context in self._chats)
        if context in self._chats:
            segments = self._segments(context)
            tail = tokenizer(continuation, add_special_tokens=False).input_ids
        else:
            if self.likelihood == "ar":
                num_kept = len(context.rstrip())
                continuation = context[num_kept:] + continuation
                context = context[:num_kept]
            whole = tokenizer(context + continuation).input_ids
            pairs = zip(tokenizer(context).input_ids, whole, strict=False)
            num_context = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            num_context = min(num_context, len(whole) - 1)
            segments = (tuple(whole[:num_context]),) if num_context > 0 else ()
            tail = whole[max(num_context, 0) :]
        if not tail:
            raise ValueError(f"the continuation {continuation!r} has no token")
        if self.likelihood == "ar" and not segments:
            # As in the harness: a text that brings the prefix token itself gets no second one.
            has_own = len(tail) > 1 and tail[0] == self._prefix_id
            segments = ((self._prefix_id,),)
            tail = tail[1:] if has_own else tail
        request = ScoreRequest(
            context=segments,
            continuation=tuple(tail),
            likelihood=self.likelihood,
            is_complete=is_complete,
        )
        return fit(request, self._max_length)

    def _greedy(self, asked: Sequence[ScoreRequest]) -> list[bool]:
        tokenizer = self._tokenizer
        options = self.options.sampling | {"temperature": 0.0, "ignore_eos": True}
        prompts = [
            GenerateRequest(
                prompt=request.context,
                params=SamplingParams(**options | {"max_new_tokens": len(request.continuation)}),
            )
            for request in asked
        ]
        answers = self.responder.generate(prompts)
        from a2d_ray.text.stream import decode

        return [
            answer.text == decode(tokenizer, request.continuation)
            for answer, request in zip(answers, asked, strict=True)
        ]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Of whole texts the log-likelihood or -NELBO, in nats; long ones in windows."""
        asked: list[ScoreRequest] = []
        owner: list[int] = []
        for index, instance in enumerate(requests):
            ids = tuple(self._tokenizer(instance.args[0]).input_ids)
            if self.likelihood == "ar":
                parts = list(ar_windows(ids, self._max_length, self._prefix_id))
            else:
                parts = list(rolling_windows(ids, self._max_length))
            asked += parts
            owner += [index] * len(parts)
        parts_of: list[list[Score]] = [[] for _ in requests]
        for index, score in zip(owner, self._score(asked), strict=True):
            parts_of[index].append(score)
        return [
            LogLikelihood(
                -sum(part.nats for part in parts), root_of_squares(part.stderr for part in parts)
            )
            for parts in parts_of
        ]

    @property
    def _prefix_id(self) -> int:
        """What the first token of a text stands behind in the AR mode: BOS, else EOS."""
        bos = self._tokenizer.bos_token_id
        return int(self._tokenizer.eos_token_id if bos is None else bos)

    @property
    def _max_length(self) -> int:
        known = (self.described.max_length, self.options.others["max_length"])
        lengths = [int(length) for length in known if length]
        if not lengths:
            raise OptionError(
                "max_length",
                None,
                "is needed: the endpoint does not tell max_model_len",
                "give the positions of the served model",
            )
        return min(lengths)


@register_model("a2d_mdlm")
class A2DMdlm(A2DHarnessModel):
    """Global masked diffusion."""

    objective = "mdlm"


@register_model("a2d_bd3lm")
class A2DBd3lm(A2DHarnessModel):
    """Block diffusion."""

    objective = "bd3lm"
