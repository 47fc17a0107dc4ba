"""Requests, in OpenAI's names plus one extra object, ``diffusion``. Imports nothing heavy.

A field of OpenAI or of another server that we do not have is listed: with any value, if it cannot
change the answer (`ignored`); else with the values that ask for nothing (`only`), and any other one
is an error that names the field. So is a field that nobody knows.
"""

from collections.abc import Iterable
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from a2d_ray.config import AR_RULES, GRAMMAR_RULES, SamplingSection, override
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.http.errors import RequestError
from a2d_ray.serving.openai.options import (
    DiffusionOptions,
    StreamMode,
    StreamOptions,
    Strict,
    ignored,
    only,
)
from a2d_ray.serving.openai.structured import (
    Choices,
    ResponseFormat,
    Schema,
    StructuredOutputs,
    Text,
    TextFormat,
    to_format,
)

RequestPrompt = str | list[int] | list[dict[str, str]] | list[str | int]
"""Plain text, token ids, or chat messages, as `LanguageModel.encode` takes them; or what
`LanguageModel.encode_infill` takes: texts and numbers of masked tokens."""

TemplateOptions = dict[str, bool | int | float | str | None]

_DECODING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "min_tokens",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "stop",
    "stop_token_ids",
    "ignore_eos",
)


class GenerationRequest(Strict):
    """What both endpoints take."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(
        None, ge=0, le=2, description="Below 0.01: 0.01; below 0.00001: 0."
    )
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="-1 and 0: all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    logit_bias: dict[str, float] | None = Field(None, max_length=1024)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=64)
    include_stop_str_in_output: bool | None = Field(
        None, description="Keep the `stop` text that ended the answer."
    )
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="Report log-probabilities of the prompt's tokens, with N alternatives "
        "(vLLM's field); needs a model with an AR mode.",
    )
    response_format: ResponseFormat | None = None
    truncate_prompt_tokens: int | None = Field(
        None, ge=1, description="Keep only the prompt's last N tokens (vLLM's field)."
    )
    structured_outputs: StructuredOutputs | None = Field(None, description="vLLM's field.")
    guided_json: Schema | None = Field(None, description="Older than `structured_outputs`.")
    guided_regex: Text | None = None
    guided_choice: Choices | None = None
    guided_grammar: Text | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    diffusion: DiffusionOptions | None = None
    cache_salt: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="Prompts are cached for requests of the same salt only (vLLM's field).",
    )
    prompt_cache_key: str | None = Field(
        None, description="Requests of one key go to one replica, while it has room."
    )
    # Names of the caller and of the request, places in a queue, and what is kept of the answer.
    user: Any = ignored()
    metadata: Any = ignored()
    safety_identifier: Any = ignored()
    request_id: Any = ignored()
    rid: Any = ignored()
    priority: Any = ignored()
    service_tier: Any = ignored()
    store: Any = ignored()
    prompt_cache_retention: Any = ignored()
    # How other servers decode, and which texts they make of tokens.
    best_of: Any = only(1)
    use_beam_search: Any = only(False)
    early_stopping: Any = only(False)
    length_penalty: Any = only(1)
    typical_p: Any = only(1)
    allowed_token_ids: Any = only()
    bad_words: Any = only([])
    logits_processors: Any = only([])
    thinking_token_budget: Any = only()
    skip_special_tokens: Any = only(True)
    spaces_between_special_tokens: Any = ignored()
    detokenize: Any = only(True)
    no_stop_trim: Any = only(False)
    add_special_tokens: Any = only()
    return_tokens_as_token_ids: Any = only(False)
    return_token_ids: Any = only(False)
    return_hidden_states: Any = only(False)
    echo: Any = only(False)
    # Forms under names of other servers, and how they are made.
    regex: Any = only()
    ebnf: Any = only()
    json_schema: Any = only()
    structural_tag: Any = only()
    guided_decoding_backend: Any = only()
    guided_whitespace_pattern: Any = only()
    # Parts of other servers.
    lora_path: Any = only()
    kv_transfer_params: Any = only()
    vllm_xargs: Any = only({})

    @field_validator("stop")
    @classmethod
    def _check_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        texts = [stop] if isinstance(stop, str) else stop or []
        if len(texts) > 16 or "" in texts:
            raise ValueError("must be one to sixteen texts that are not empty")
        return stop

    @field_validator("logit_bias")
    @classmethod
    def _check_bias(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        for token, value in (bias or {}).items():
            if not (token.isascii() and token.isdecimal() and len(token) < 10):
                raise ValueError(f"keys are token ids, got {token!r}")
            if not -100 <= value <= 100:
                raise ValueError(f"values lie between -100 and 100, got {value!r}")
        return bias

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options needs stream=true", param="stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError(
                "prompt_logprobs come with whole answers: send stream=false, or leave them out",
                param="prompt_logprobs",
            )
        forms = list(self.forms())
        if len(forms) > 1:
            raise RequestError(
                f"{forms[0]} and {forms[1]} exclude each other: send one of them", param=forms[1]
            )
        rule = self.diffusion and self.diffusion.chosen_rule
        if self.constraint() is not None and rule not in (None, "auto", *GRAMMAR_RULES):
            raise RequestError(
                f"{self.constraint()} reads from left to right: it needs diffusion.rule "
                f"{' or '.join(map(repr, GRAMMAR_RULES))}, not {rule!r}",
                param="diffusion.rule",
            )
        return self

    def salted(self, caller_salt: str) -> str:
        """What tells cached prompts apart: the caller's salt, and the request's own beneath it."""
        return caller_salt if self.cache_salt is None else f"{caller_salt}/{self.cache_salt}"

    def stream_mode(self) -> StreamMode:
        """What the stream brings; a whole answer needs no more than its blocks."""
        asked = self.diffusion.stream_mode if self.diffusion else None
        return (asked or "prefix") if self.stream else "block"

    def is_usage_streamed(self) -> bool:
        """Whether a last chunk shall carry the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def is_usage_in_chunks(self) -> bool:
        """Whether every chunk shall carry what it has cost so far."""
        options = self.stream_options
        return self.is_usage_streamed() and bool(options and options.continuous_usage_stats)

    def constraint(self) -> str | None:
        """The field that gives the answer a form; None: it is free."""
        return next(iter(self.forms()), None)

    def forms(self) -> dict[str, ResponseFormat]:
        """The forms that are asked for, by field; not more than one in a valid request."""
        found: dict[str, ResponseFormat] = {}
        if not isinstance(self.response_format, TextFormat | None):
            found["response_format"] = self.response_format
        if self.structured_outputs is not None:
            found["structured_outputs"] = self.structured_outputs.to_format()
        for kind in ("json", "regex", "choice", "grammar"):
            value = getattr(self, f"guided_{kind}")
            if value is not None:
                found[f"guided_{kind}"] = to_format(kind, value)
        return found

    def prompts(self) -> list[RequestPrompt]:
        """The prompts; each gets `num_choices` answers."""
        raise NotImplementedError(f"{type(self).__name__}.prompts")

    def prompt_field(self) -> str:
        """The field that holds the prompts."""
        return "prompt"

    def template_options(self) -> TemplateOptions:
        """What the chat template reads besides the messages."""
        return {}

    def length_field(self) -> str:
        """The field that says how long an answer may become."""
        return "max_tokens"

    def continues_answer(self) -> bool:
        """Whether the last message of a chat is how the answer begins."""
        return False

    def separates_reasoning(self, default: bool) -> bool:
        """Whether the answer's thought is told apart; `default` of the served model."""
        return False

    def hides_reasoning(self) -> bool:
        """Whether a thought that is told apart is left out."""
        return False

    def has_begun(self) -> bool:
        """Whether the prompt's last segment is the beginning of the answer."""
        return False

    def num_choices(self, defaults: SamplingSection) -> int:
        """Answers to each prompt."""
        return self.n or defaults.n

    def num_logprobs(self) -> int | None:
        """Alternatives to report beside each token's log-probability; None: report nothing."""
        return None

    def num_prompt_logprobs(self) -> int | None:
        """The same for each token of the prompt."""
        return self.prompt_logprobs

    def prompt_logprobs_field(self) -> str:
        """The field that asks for the prompt's log-probabilities."""
        return "prompt_logprobs"

    def max_new_tokens(self) -> int | None:
        """Longest answer asked for."""
        return self.max_tokens

    def echoed(self) -> bool:
        """Whether the prompt is part of the answer."""
        return False

    def scores_echo(self) -> bool:
        """Whether its log-probabilities come with those of the answer."""
        return False

    def params(self, defaults: SamplingSection, seed: int) -> SamplingParams:
        """Options of the decoder: the request's, then the served model's `defaults`.

        Args:
            seed: used when the request names none.
        """
        asked = {name: getattr(self, name) for name in _DECODING}
        asked |= (self.diffusion or DiffusionOptions()).asked()
        asked |= {"max_new_tokens": self.max_new_tokens(), "logprobs": self.num_logprobs()}
        asked["prompt_logprobs"] = self.num_prompt_logprobs()
        if self.temperature is not None:
            asked["temperature"] = _usable(self.temperature)
        if self.top_k is not None:
            asked["top_k"] = max(self.top_k, 0)
        if self.logit_bias is not None:
            asked["logit_bias"] = {int(token): bias for token, bias in self.logit_bias.items()}
        if "rule" not in asked:
            asked["rule"] = self._needed_rule(defaults.rule)
        values = defaults.model_dump() | {"seed": seed, "n": 1}
        given = {name: value for name, value in asked.items() if value is not None}
        return SamplingParams(**override(values, given))

    def _needed_rule(self, rule: str) -> str | None:
        """The rule in place of the served model's, which is not up to the request; None: it is."""
        if self.num_prompt_logprobs() is not None and rule not in AR_RULES:
            return "auto"
        if self.constraint() is not None and rule not in ("auto", *GRAMMAR_RULES):
            return "prefix"
        return None


class CompletionRequest(GenerationRequest):
    """Body of ``POST /v1/completions``; `prompt` may hold several prompts."""

    prompt: str | list[int] | list[str] | list[list[int]]
    max_tokens: int | None = Field(None, ge=0, description="0, with echo: only the prompt.")
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=20)
    suffix: Any = only("")
    add_special_tokens: Any = only(True)

    @model_validator(mode="after")
    def _check_echo(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise RequestError(
                "max_tokens=0 leaves nothing to answer: send echo=true, or at least 1",
                param="max_tokens",
            )
        return self

    def prompts(self) -> list[RequestPrompt]:
        """Every prompt, as text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt or isinstance(self.prompt[0], int):
            return [_as_ids(self.prompt)]
        return [p if isinstance(p, str) else _as_ids(p) for p in self.prompt]

    def num_logprobs(self) -> int | None:
        """Alternatives to report beside each token's log-probability; None: report nothing."""
        return self.logprobs

    def num_prompt_logprobs(self) -> int | None:
        """The same for each token of the prompt."""
        asked = (self.prompt_logprobs, self.logprobs if self.echo else None)
        return max((number for number in asked if number is not None), default=None)

    def prompt_logprobs_field(self) -> str:
        """The field that asks for the prompt's log-probabilities."""
        return "logprobs" if self.prompt_logprobs is None else "prompt_logprobs"

    def max_new_tokens(self) -> int | None:
        """Longest answer asked for; where there shall be none, what the engine writes at least."""
        return 1 if self.max_tokens == 0 else self.max_tokens

    def echoed(self) -> bool:
        """Whether the prompt is part of the answer."""
        return bool(self.echo)

    def scores_echo(self) -> bool:
        """Whether its log-probabilities come with those of the answer."""
        return self.echoed() and self.logprobs is not None

    def params(self, defaults: SamplingSection, seed: int) -> SamplingParams:
        """Options of the decoder; see `GenerationRequest.params`.

        Who scores a text leaves out the last entry of its log-probabilities, which is the one token
        of the answer. So there must be one, whatever that token is.
        """
        params = super().params(defaults, seed)
        is_score = self.scores_echo() and self.max_new_tokens() == 1
        if is_score and self.ignore_eos is None and self.constraint() is None:
            return params.model_copy(update={"ignore_eos": True})
        return params


def _usable(temperature: float) -> float:
    """The nearest temperature that logits survive, as vLLM has it: next to nothing is greedy."""
    return 0.0 if temperature < 1e-5 else max(temperature, 0.01)


def _as_ids(ids: Iterable[Any]) -> list[int]:
    return list(ids)
