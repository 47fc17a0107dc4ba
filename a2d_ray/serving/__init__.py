"""OpenAI-compatible serving on Ray Serve.

``serve run a2d_ray.serving:build_openai_app`` and Serve's YAML (``import_path``, ``args``) find the
builder here; it is loaded when asked for, so importing the package loads neither Ray nor FastAPI.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from a2d_ray.serving.ray.deployment import build_openai_app

__all__ = ["build_openai_app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'a2d_ray.serving' has no attribute {name!r}")
    from a2d_ray.serving.ray import deployment

    return getattr(deployment, name)
