"""Evaluations over HTTP: ``POST /v1/evaluations`` starts a suite on a served model.

``serve run a2d_ray.evaluation.service:build_evaluation_app`` and Serve's YAML (``import_path``,
``args``) find the builder here; it is loaded when asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from a2d_ray.evaluation.service.deployment import build_evaluation_app

__all__ = ["build_evaluation_app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'a2d_ray.evaluation.service' has no attribute {name!r}")
    from a2d_ray.evaluation.service import deployment

    return getattr(deployment, name)
