"""Continual pre-training and SFT."""

import math
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Len
from pydantic import (
    BeforeValidator,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from a2d_ray.config.base import GIVEN, Conditions, Duration, Section, one_or_two, require
from a2d_ray.config.data import DATA_EFFECTIVE_IF, DataSection, check_lengths, check_targets
from a2d_ray.config.errors import OptionError
from a2d_ray.config.models import ModelSection
from a2d_ray.config.objective import ObjectiveSection
from a2d_ray.config.rl import RLSection

WorkerRange = Annotated[
    PositiveInt | Annotated[list[PositiveInt], Len(2, 2)], BeforeValidator(one_or_two)
]


class RunSection(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run; its results lie in storage_path/name.",
    )
    storage_path: str = Field(
        "runs", description="Where runs are kept: a directory (shared by all nodes) or s3:// URI."
    )
    resume: bool = Field(
        False, description="Continue this run if it exists; without it a used name is refused."
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of the order of each epoch and of the noise."
    )


class BatchSection(Section):
    rows: int = Field(
        8,
        ge=1,
        description="Rows per optimizer step, over all workers: packed ones, or with "
        "data.packing=false padded documents.",
    )
    rows_per_device: int | None = Field(
        None,
        ge=1,
        description="Rows per forward on one worker; default: its whole share, on CPUs as many as "
        "hold about 2,048 tokens.",
    )


class OptimSection(Section):
    effective_if: ClassVar[Conditions] = {
        "decay": {"schedule": "wsd"},
        "min_lr_fraction": {"schedule": ("cosine", "linear", "wsd")},
    }

    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW betas.")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay (matrices only).")
    clip_norm: float = Field(1.0, gt=0, description="Largest global gradient norm.")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine", description="After warm-up; wsd: constant, then linear decay at the end."
    )
    warmup: float = Field(0.04, ge=0, lt=1, description="Warm-up as a share of all steps.")
    decay: float = Field(0.2, ge=0, le=1, description="Share of all steps that decay.")
    min_lr_fraction: float = Field(0.1, ge=0, le=1, description="Final lr as a share of the peak.")

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise OptionError(
                "warmup",
                self.warmup,
                f"and optim.decay={self.decay} exceed the run",
                "lower one of them",
            )
        return self


class ScheduleSection(Section):
    effective_if: ClassVar[Conditions] = {
        "epochs": {"max_steps": None},
        "eval_rows": {"eval_steps": GIVEN},
        "eval_draws": {"eval_steps": GIVEN},
        "eval_samples": {"eval_steps": GIVEN},
        "keep_best": {"eval_steps": GIVEN},
    }

    epochs: float = Field(1.0, gt=0, description="Passes over the packed rows.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps, instead of epochs.")
    eval_steps: float = Field(
        0.25, ge=0, description="Steps between evaluations; below 1: share of the run; 0: never."
    )
    save_steps: float = Field(
        0.25, ge=0, description="Steps between checkpoints; below 1: share of the run; 0: at end."
    )
    eval_rows: int = Field(64, ge=1, description="Held-out packed rows per evaluation.")
    eval_draws: int = Field(1, ge=1, description="Noise draws per held-out row (fixed).")
    eval_samples: int = Field(
        2, ge=0, description="Held-out prompts that are answered at each evaluation."
    )
    keep_last: int = Field(2, ge=1, description="Checkpoints kept.")
    keep_best: bool = Field(
        False,
        description="Keep the weights with the lowest held-out NELBO as checkpoint-best "
        "(of those evaluated and saved at the same step).",
    )
    max_duration: Duration | None = Field(
        None,
        description="Wall time of this command (seconds, or 90s, 30m, 2h, 1d): the run saves and "
        "stops before it; run.resume=true goes on.",
    )


class ScalingSection(Section):
    num_workers: WorkerRange = Field(
        1, description="Ray Train workers; [min, max]: as many as the cluster has room for."
    )
    use_gpu: bool | Literal["auto"] = Field("auto", description="One GPU per worker.")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs (and torch threads) per worker.")
    max_failures: int = Field(2, ge=0, description="Worker-group restarts before giving up.")

    @property
    def world_sizes(self) -> range:
        """The numbers of workers that a run may have."""
        low, high = (
            self.num_workers if isinstance(self.num_workers, list) else [self.num_workers] * 2
        )
        return range(low, high + 1)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not self.world_sizes:
            raise OptionError(
                "num_workers",
                self.num_workers,
                "must be [min, max] with min <= max",
                "swap them, or give one number",
            )
        return self


class WandbSection(Section):
    mode: Literal["disabled", "offline", "online"] = Field("disabled", description="W&B mode.")
    project: str = Field("a2d-ray", description="W&B project.")
    entity: str | None = Field(None, description="W&B team or user.")


OF_DEEPSPEED = {
    "train_batch_size": "batch.rows",
    "train_micro_batch_size_per_gpu": "batch.rows_per_device",
    "gradient_accumulation_steps": "batch.rows_per_device",
    "gradient_clipping": "optim.clip_norm",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
}
"""DeepSpeed's keys that are derived, and from what."""


def _mapping(given: dict[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, dict):
        raise OptionError(key, value, "must be a mapping", "see DeepSpeed's documentation")
    return value


class TrainConfig(Section):
    """Continual pre-training or SFT of an A2D checkpoint with MDLM or BD3LM."""

    effective_if: ClassVar[Conditions] = DATA_EFFECTIVE_IF

    run: RunSection
    model: ModelSection
    data: DataSection
    objective: ObjectiveSection
    batch: BatchSection = BatchSection()
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    scaling: ScalingSection = ScalingSection()
    wandb: WandbSection = WandbSection()
    rl: RLSection | None = Field(
        None, description="Reinforcement learning on the prompts of data.spec (job rl)."
    )
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="Passed to DeepSpeed in its own names, over {zero_optimization: {stage: 2}}. "
        "One worker has nothing to partition and runs ZeRO stage 0, unless zero_optimization has "
        "more than a stage.",
    )

    @field_validator("deepspeed")
    @classmethod
    def _check_deepspeed(cls, given: dict[str, Any]) -> dict[str, Any]:
        for key, ours in OF_DEEPSPEED.items():
            if key in given:
                raise OptionError(key, given[key], f"is derived from {ours}", "set that instead")
        for key in ("bf16", "fp16"):
            if enabled := _mapping(given, key).get("enabled"):
                raise OptionError(
                    f"{key}.enabled", enabled, "is not how precision is set", "use model.dtype"
                )
        zero = {"stage": 2, **_mapping(given, "zero_optimization")}
        stage = zero["stage"]
        if type(stage) is not int or stage not in (0, 1, 2, 3):
            problem = "is a text" if isinstance(stage, str) else "does not exist"
            raise OptionError(
                "zero_optimization.stage", stage, problem, "use 0, 1, 2 or 3, without quotes"
            )
        return given | {"zero_optimization": zero}

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        rows = self.batch.rows
        micro = self.batch.rows_per_device
        common = math.lcm(*self.scaling.world_sizes)
        for workers in self.scaling.world_sizes:
            if rows % workers:
                raise OptionError(
                    "batch.rows",
                    rows,
                    f"must be a multiple of scaling.num_workers={workers}",
                    f"set {math.ceil(rows / common) * common}",
                )
            if micro is not None and (rows // workers) % micro:
                raise OptionError(
                    "batch.rows_per_device",
                    micro,
                    f"must divide batch.rows / scaling.num_workers ({rows // workers})",
                    "change one of them",
                )
        return self

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        check_lengths(self.data, self.objective)
        check_targets(self.data, self.objective)
        return self

    @model_validator(mode="after")
    def _check_gated(self) -> Self:
        if self.model.lora is not None and self.model.lora.noised_only:
            needed = {"name": "bd3lm", "clean_attention": "causal", "ar_loss_weight": 0.0}
            require("model.lora.noised_only", True, self.objective, "objective", needed)
        return self

    @model_validator(mode="after")
    def _check_rl(self) -> Self:
        if self.rl is None:
            return self
        needed: dict[str, Any] = {"name": "bd3lm", "clean_attention": "causal", "ar_loss_weight": 1}
        if self.rl.likelihood == "nelbo":
            needed = {"ar_loss_weight": 0, "draft_target": "labels", "noise": "exact"}
        needed |= {"preset": "default", "norm": "step", "right_shift_logits": False}
        needed |= {"corruption_warmup": 0, "confidence_loss_weight": 0}
        require("rl.likelihood", self.rl.likelihood, self.objective, "objective", needed)
        others = (
            (self.model, "model", {"lora": None}),
            (self.data, "data", {"packing": False}),
            (self.schedule, "schedule", {"keep_best": False}),
        )
        for section, place, wanted in others:
            require("rl.group_size", self.rl.group_size, section, place, wanted)
        self._check_rollouts(self.rl)
        return self

    def _check_rollouts(self, rl: RLSection) -> None:
        if self.batch.rows % rl.group_size:
            fixed = math.ceil(self.batch.rows / rl.group_size) * rl.group_size
            raise OptionError(
                "batch.rows",
                self.batch.rows,
                f"must be a multiple of rl.group_size={rl.group_size}: a row is a roll-out",
                f"set {fixed}",
            )
        if rl.rollout.sampling.max_new_tokens >= self.data.max_length:
            raise OptionError(
                "rl.rollout.sampling.max_new_tokens",
                rl.rollout.sampling.max_new_tokens,
                f"leaves no room for a prompt in data.max_length={self.data.max_length}",
                "lower it, or raise data.max_length",
            )

    @model_validator(mode="after")
    def _check_lora(self) -> Self:
        if self.deepspeed["zero_optimization"]["stage"] == 3 and self.model.lora is not None:
            raise OptionError(
                "deepspeed.zero_optimization.stage",
                3,
                "does not go with model.lora",
                "use 2 (what adapters need beside the frozen weights is small)",
            )
        return self
