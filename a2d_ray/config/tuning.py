"""Planning, sweeps and the status of runs."""

from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from a2d_ray.config.base import Conditions, Duration, Section
from a2d_ray.config.errors import OptionError
from a2d_ray.config.training import TrainConfig


class WorkloadSection(Section):
    """How much there is to train on; a packed set's manifest knows, else estimates."""

    effective_if: ClassVar[Conditions] = {
        "documents": {"packed": None},
        "tokens_per_document": {"packed": None},
        "target_fraction": {"packed": None},
        "utilisation": {"packed": None},
    }

    packed: str | None = Field(
        None, description="Directory of a packed set: its counts replace the estimates below."
    )
    documents: int = Field(1_000_000, ge=1, description="Documents of one epoch.")
    tokens_per_document: float = Field(400, ge=2, description="Mean tokens of a document.")
    target_fraction: float = Field(
        0.6, gt=0, le=1, description="Share of a document's tokens that are targets."
    )
    utilisation: float = Field(0.98, gt=0, le=1, description="Share of packed rows that is used.")


class ClusterSection(Section):
    """What a run is planned on; null takes the device's own figure."""

    device: str = Field("A100-80GB", description="A100-40GB, A100-80GB, H100-80GB, L4-24GB, ...")
    devices_per_node: int = Field(8, ge=1, description="Workers of one machine.")
    node_gbit_s: float = Field(400, gt=0, description="Network of a machine, one direction.")
    mfu: float | None = Field(
        None, gt=0, le=1, description="Share of the peak that training reaches; null: computed."
    )
    peak_tflops: float | None = Field(None, gt=0, description="Dense bf16 peak of a device.")
    memory_gib: float | None = Field(None, gt=0, description="Memory of a device.")
    memory_tbyte_s: float | None = Field(None, gt=0, description="Bandwidth of that memory.")
    link_gbyte_s: float | None = Field(None, gt=0, description="Link to devices of the same node.")
    price: float | None = Field(None, ge=0, description="US dollars per device and hour.")


class PlanConfig(Section):
    """What a run will take: memory per worker, tokens/s, hours, price, network. Starts nothing."""

    train: TrainConfig = Field(description="The run, as its job takes it.")
    workload: WorkloadSection = WorkloadSection()
    cluster: ClusterSection = ClusterSection()
    output: Literal["table", "json"] = Field("table", description="What is printed.")


class SweepSection(Section):
    """How hyper-parameters are searched."""

    effective_if: ClassVar[Conditions] = {
        "grace": {"scheduler": "asha"},
        "reduction": {"scheduler": "asha"},
    }

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the sweep; everything lies in storage_path/name.",
    )
    storage_path: str = Field("runs", description="Directory that all nodes share.")
    resume: bool = Field(
        False, description="Continue this sweep if it exists; without it a used name is refused."
    )
    num_trials: int = Field(16, ge=1, description="Points that are tried.")
    search: Literal["random", "optuna"] = Field(
        "random", description="random points, or Optuna's TPE, which learns from finished trials."
    )
    scheduler: Literal["none", "asha"] = Field(
        "none", description="asha: stop the worse trials early, by sweep.metric."
    )
    grace: float = Field(0.25, gt=0, le=1, description="Share of a run before it may be stopped.")
    reduction: float = Field(
        3, gt=1, description="One trial in N goes on at each rung; each rung has N times the steps."
    )
    metric: Literal["nelbo", "exact_match", "accepted_length", "reward"] = Field(
        "nelbo",
        description="What is optimised: held-out NELBO with fixed draws (compares within one block "
        "size), the share of exactly right answers, the accepted length of held-out drafts "
        "(objective.clean_attention=causal), or the held-out reward (train.rl).",
    )
    exact_match_tasks: int = Field(
        0, ge=0, description="Held-out tasks of each embedded data set that finished trials answer."
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Trials at a time; null: as many as there is room for."
    )
    time_budget: Duration | None = Field(
        None, description="Wall time of this command; sweep.resume=true goes on."
    )
    seed: int = Field(0, ge=0, description="Seed of the points.")

    @model_validator(mode="after")
    def _check_metric(self) -> Self:
        if self.metric == "exact_match" and not self.exact_match_tasks:
            raise OptionError(
                "metric", self.metric, "needs tasks", "set sweep.exact_match_tasks, e.g. 32"
            )
        if self.metric == "exact_match" and self.scheduler == "asha":
            raise OptionError(
                "scheduler",
                self.scheduler,
                "stops trials before they answer, and sweep.metric=exact_match is of answers",
                "set sweep.scheduler=none",
            )
        return self


class SweepConfig(Section):
    """Search hyper-parameters with Ray Tune; every trial is a training run."""

    sweep: SweepSection
    space: dict[str, Any] = Field(
        description="What varies: any key of `train` with {choice: [...]}, {uniform: [low, high]}, "
        "{loguniform: [low, high]} or {randint: [low, high]} (high excluded)."
    )
    train: TrainConfig = Field(description="The run that all trials share.")


class StatusConfig(Section):
    """Show what runs are doing: step, loss, speed, time left, last checkpoint."""

    storage_path: str = Field("runs", description="Where runs are kept: a directory or a URI.")
    name: str | None = Field(None, description="Only this run; null: all of them.")
    output: Literal["table", "json"] = Field("table", description="What is printed.")
