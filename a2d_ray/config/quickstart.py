"""The whole way on a laptop."""

from typing import ClassVar

from pydantic import (
    Field,
)

from a2d_ray.config.base import Conditions, Section


class QuickstartConfig(Section):
    """The whole way on a laptop: convert, prepare, train, measure, serve, ask."""

    effective_if: ClassVar[Conditions] = {"minutes": {"steps": None}}

    root: str = Field("runs/quickstart", description="Where everything is kept.")
    steps: int | None = Field(
        None, ge=1, description="Training steps; default: what minutes allow on this machine."
    )
    minutes: float = Field(9.0, gt=0, description="Training time to aim for.")
    num_workers: int = Field(2, ge=1, description="Ray Train workers.")
    seed: int = Field(0, ge=0, description="Of the order of rows and the noise.")
    eval_tasks: int = Field(40, ge=1, description="Held-out tasks of each kind.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the endpoint.")
