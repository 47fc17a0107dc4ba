"""Suites of tasks, the speed-quality frontier, and suites that clients of an endpoint may start."""

from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from a2d_ray.config.base import GIVEN, GPUS_EACH, Conditions, GpuShare, Section
from a2d_ray.config.errors import OptionError
from a2d_ray.config.models import LoadSection
from a2d_ray.config.rules import override
from a2d_ray.config.sampling import check_sampling
from a2d_ray.config.training import WandbSection

LikelihoodKind = Literal["ar", "nelbo"]


class EvaluatedTask(Section):
    """One number of an evaluation."""

    task: str = Field(min_length=1, description="Task or group of the harness, or one of ours.")
    metric: str = Field(
        pattern=r"^[^,]+,[^,]+$",
        description="Which number, as the harness names it: metric,filter.",
    )
    num_fewshot: int | None = Field(None, ge=0, description="Examples; default: the task's own.")
    limit: int | None = Field(None, ge=1, description="Only the first N documents.")
    chat: bool | Literal["auto"] = Field(
        "auto", description="Render with the chat template; auto: if there is one."
    )
    mdlm_block_size: int | None = Field(
        None, ge=1, description="Window of MDLM, in place of sampling.block_size."
    )
    sampling: dict[str, Any] = Field(
        default_factory=dict, description="Fields of sampling (see sample); others: the task's own."
    )

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        check_sampling(self.sampling, "sampling")
        return self


class EvaluateConfig(Section):
    """Measure a checkpoint on a suite of tasks."""

    effective_if: ClassVar[Conditions] = {
        "endpoint": {"kind": "a2d"},
        "served_model": {"endpoint": GIVEN},
        "num_workers": {"kind": "a2d", "endpoint": None},
        "cpus_per_worker": {"num_workers": GIVEN},
        "gpus_per_worker": {"num_workers": GIVEN},
        "likelihood": {"kind": "a2d"},
        "mc_num": {"kind": "a2d", "endpoint": None, "likelihood": ("auto", "nelbo")},
        "model.device": {"endpoint": None},
        "model.dtype": {"endpoint": None},
        **{
            f"model.{override}": {"kind": "a2d", "endpoint": None}
            for override in (
                *("mask_token_id", "objective", "block_size", "block_grid"),
                *("clean_attention", "right_shift_logits", "eos_token_ids"),
            )
        },
    }

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Results lie in output/name."
    )
    kind: Literal["a2d", "ar"] = Field(
        "a2d", description="ar: an autoregressive checkpoint, by the harness's own model."
    )
    model: LoadSection
    tasks: list[EvaluatedTask] = Field(min_length=1, description="What is measured.")
    output: str = Field("runs/evaluate", description="Where reports and answers are kept.")
    endpoint: str | None = Field(
        None, description="Ask this server, such as http://127.0.0.1:8000/v1, instead of a model."
    )
    served_model: str | None = Field(None, description="Model id there; default: the only one.")
    num_workers: int = Field(0, ge=0, description="Ray actors; 0: in this process.")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs (and torch threads) of an actor.")
    gpus_per_worker: GpuShare = Field("auto", description=GPUS_EACH)
    batch_size: int = Field(32, ge=1, description="Requests that share a forward.")
    likelihood: LikelihoodKind | Literal["auto"] = Field(
        "auto",
        description="ar: exact, one causal forward; nelbo: bound of the diffusion model, by draws; "
        "auto: ar where the checkpoint has an AR mode, else nelbo.",
    )
    mc_num: int = Field(32, ge=1, description="Noise samples of a NELBO.")
    datasets_dir: str | None = Field(
        None, description="Directory with clones of Hub data sets as OWNER/NAME."
    )
    run_code: bool = Field(
        False, description="Allow tasks that run the model's code, in a sandbox."
    )
    seed: int = Field(1234, ge=0, description="Seed of few-shot examples.")
    wandb: WandbSection = WandbSection()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [task.task for task in self.tasks]
        if len(set(names)) < len(names):
            raise OptionError("tasks", names, "holds a task twice", "name each task once")
        return self


class ComparedModel(Section):
    """A further model of a frontier."""

    name: str = Field(min_length=1, description="In the table and the plot.")
    path: str = Field(min_length=1, description="Checkpoint: a directory or a Hub id.")
    kind: Literal["a2d", "ar"] = Field(
        "a2d", description="ar: an autoregressive checkpoint, one token per forward: one point."
    )


class FrontierConfig(EvaluateConfig):
    """Speed against quality: one task under several decoding rules."""

    points: list[dict[str, Any]] = Field(
        min_length=1, description="Fields of sampling, one mapping per point."
    )
    compare: list[ComparedModel] = Field([], description="Measured and drawn beside it.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for index, point in enumerate(self.points):
            check_sampling(override(self.tasks[0].sampling, point), f"points.{index}")
        names = [self.name, *(model.name for model in self.compare)]
        if len(set(names)) < len(names):
            raise OptionError(
                "compare", names, "holds a name twice", "that of the frontier counts, rename one"
            )
        if len(self.tasks) != 1:
            names = [task.task for task in self.tasks]
            raise OptionError("tasks", names, "must be one task", "name one")
        if self.endpoint or self.kind == "ar":
            key = "endpoint" if self.endpoint else "kind"
            raise OptionError(
                key,
                getattr(self, key),
                "has no frontier",
                "name an A2D checkpoint in model.path; an AR model belongs in compare",
            )
        return self


class EvaluationsSection(Section):
    """Suites that clients of an endpoint may start."""

    suites: list[str] = Field(
        ["jobs/configs/evaluate.yaml", "jobs/configs/evaluate"],
        min_length=1,
        description="Files, or directories with *.yaml; clients use the name that each file gives.",
    )
    storage_path: str = Field(
        "runs/evaluations", min_length=1, description="States, answers and reports; they survive."
    )
    max_limit: int = Field(1000, ge=1, description="Documents of each task, at most.")
    max_queued: int = Field(16, ge=1, description="Evaluations that wait; beyond: 429.")
    concurrency: int = Field(16, ge=1, description="Requests under way; clients share the model.")
    run_code: bool = Field(
        False, description="Allow suites that run the model's code, in a sandbox; else 403."
    )
    datasets_dir: str | None = Field(
        None, description="Directory with clones of Hub data sets as OWNER/NAME."
    )
