"""The OpenAI-compatible endpoint."""

from typing import ClassVar, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from a2d_ray.config.base import GPUS_EACH, Conditions, GpuShare, Section
from a2d_ray.config.errors import OptionError
from a2d_ray.config.evaluation import EvaluationsSection
from a2d_ray.config.models import LoadSection
from a2d_ray.config.sampling import SamplingSection


class ServedModel(Section):
    id: str = Field(min_length=1, description="Name clients use as `model`.")
    load: LoadSection
    sampling: SamplingSection = SamplingSection()
    separate_reasoning: bool = Field(
        True, description="Answers' <think> blocks stand in reasoning_content, apart from content."
    )


class EngineSection(Section):
    max_running: int = Field(64, ge=1, description="Answers in one round; others wait.")
    max_tokens_per_round: int = Field(
        512, ge=1, description="Long prompts are read in chunks of about this size, in tokens."
    )
    kv_tokens: int | None = Field(
        None, ge=1, description="Tokens in the KV store; null: 32,768, or the model's positions."
    )
    prefix_cache: bool = Field(True, description="Keep prompts and answers for later requests.")
    cuda_graphs: bool | Literal["auto"] = Field(
        "auto",
        description="Launch rounds of the usual shapes as CUDA graphs, captured at the start; "
        "auto: on CUDA devices.",
    )


class SecuritySection(Section):
    api_keys_env: str = Field(
        "A2D_API_KEYS", min_length=1, description="Variable with bearer keys, comma-separated."
    )
    api_keys_file: str | None = Field(None, description="File with a bearer key per line.")
    require_keys: bool = Field(False, description="Without a key there, nothing is served.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="Of each key (of all callers together where there are no keys)."
    )
    isolate_prefix_cache: bool = Field(
        True, description="Keys do not share cached prompts (timing would tell what others asked)."
    )


class LimitsSection(Section):
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Beyond: 413.")
    body_timeout_s: float = Field(30.0, gt=0, description="A body that takes longer: 408.")
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="Of one prompt; null: what the model's positions allow."
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="Of one answer; null: what the model's positions allow."
    )
    max_choices: int = Field(64, ge=1, description="Answers to one request: prompts x n.")


class AutoscalingSection(Section):
    """Ray Serve's names; see its AutoscalingConfig."""

    min_replicas: int = Field(1, ge=0, description="Of each model; 0: starts at the first request.")
    max_replicas: int = Field(4, ge=1, description="Of each model.")
    target_ongoing_requests: float = Field(
        16.0, gt=0, description="Per replica: more of them add replicas, fewer remove some."
    )
    upscale_delay_s: float = Field(10.0, ge=0, description="Waits before adding replicas.")
    downscale_delay_s: float = Field(300.0, ge=0, description="Waits before removing replicas.")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise OptionError(
                "min_replicas",
                self.min_replicas,
                f"exceeds max_replicas={self.max_replicas}",
                "lower it, or raise max_replicas",
            )
        return self


class ServeConfig(Section):
    """Serve checkpoints behind an OpenAI-compatible endpoint on Ray Serve."""

    effective_if: ClassVar[Conditions] = {
        "num_replicas": {"autoscaling": None},
        "security.isolate_prefix_cache": {"engine.prefix_cache": True},
    }

    models: list[ServedModel] = Field(min_length=1, description="Models behind the endpoint.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    num_replicas: int = Field(1, ge=1, description="Replicas of each model, without autoscaling.")
    autoscaling: AutoscalingSection | None = Field(
        None, description="Replicas by load, instead of num_replicas."
    )
    cpus_per_replica: float = Field(1, gt=0, description="CPUs (and torch threads) per replica.")
    gpus_per_replica: GpuShare = Field("auto", description=GPUS_EACH)
    max_ongoing_requests: int = Field(64, ge=1, description="Requests in one replica at a time.")
    max_queued_requests: int = Field(256, ge=1, description="Beyond: 429 with Retry-After.")
    is_prefix_aware: bool = Field(
        True, description="Turns of one conversation go to one replica, which has them cached."
    )
    round_timeout_s: float = Field(
        120.0, gt=0, description="An engine whose round takes longer hangs: it is replaced."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="A replica that stops first finishes its requests, at most so long."
    )
    engine: EngineSection = EngineSection()
    security: SecuritySection = SecuritySection()
    limits: LimitsSection = LimitsSection()
    evaluations: EvaluationsSection | None = Field(
        None, description="Serve POST /v1/evaluations beside the models; {} takes the defaults."
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise OptionError("models", ids, "holds an id twice", "the ids must differ")
        most = self.limits.max_choices
        for index, model in enumerate(self.models):
            if model.sampling.n > most:
                raise OptionError(
                    f"models.{index}.sampling.n",
                    model.sampling.n,
                    f"exceeds limits.max_choices={most}",
                    "lower it, or no request without an n of its own would be answered",
                )
        return self


class EvaluationServiceConfig(EvaluationsSection):
    """Evaluations as an application of their own on Ray Serve."""

    endpoint: str = Field(
        "http://127.0.0.1:8000/v1",
        pattern=r"^https?://",
        description="Where the models answer; reached from the replica's node.",
    )
    security: SecuritySection = SecuritySection()
    max_body_bytes: int = Field(2**20, ge=1024, description="Beyond: 413.")
    body_timeout_s: float = Field(30.0, gt=0, description="A body that takes longer: 408.")


class GenerateConfig(Section):
    """Answer a file of prompts on a Ray cluster, offline. A job that was killed goes on."""

    model: LoadSection
    input: str = Field(
        min_length=1,
        description="Prompts (.jsonl, .parquet, ...): file, directory, glob, URI or Hub dataset.",
    )
    output: str = Field(
        min_length=1, description="Directory for the answers; all nodes see it, or a URI."
    )
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="Of the answers.")
    column: str | None = Field(
        None,
        description="Column with texts or chats (whose last answer is left out); null: messages if "
        "there is one, else prompt.",
    )
    chat: bool | Literal["auto"] = Field(
        "auto", description="Texts go through the chat template; auto: if there is one."
    )
    system: str | None = Field(None, description="System prompt of chats that bring none.")
    rows_per_part: int = Field(
        256, ge=1, description="Prompts per file of answers; a killed job redoes started files."
    )
    num_replicas: int = Field(1, ge=1, description="Engines, each with the model.")
    cpus_per_replica: int = Field(1, ge=1, description="CPUs (and torch threads) per engine.")
    gpus_per_replica: GpuShare = Field("auto", description=GPUS_EACH)
    engine: EngineSection = EngineSection()
    sampling: SamplingSection = SamplingSection()
