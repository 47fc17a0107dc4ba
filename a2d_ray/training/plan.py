"""What the driver settles for every worker of a run, and when things are due."""

from dataclasses import dataclass
from typing import Any

from a2d_ray.config import TrainConfig


@dataclass(frozen=True)
class TrainingPlan:
    """What the driver has settled and every worker must agree on.

    Attributes:
        config: the resolved training configuration.
        packed_path: the packed set.
        num_steps: optimizer steps of the whole run.
        deadline: Unix time before which this command saves and stops; None: there is none.
    """

    config: TrainConfig
    packed_path: str
    num_steps: int
    deadline: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for Ray."""
        return {**vars(self), "config": self.config.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainingPlan":
        """The plan that `to_dict` wrote."""
        return cls(**{**values, "config": TrainConfig.model_validate(values["config"])})


def is_due(step: int, every: float, num_steps: int) -> bool:
    """Whether something is due after `step`: at its interval, and after the last step.

    Args:
        step: optimizer steps done, from 1.
        every: steps between; below 1: share of the run (0.1: ten times); 0: only at the end.
        num_steps: of the whole run.
    """
    if step == num_steps:
        return True
    if every == 0:
        return False
    interval = max(1.0, every * num_steps) if every < 1 else every
    return int(step / interval) > int((step - 1) / interval)
