"""a2d-ray: autoregressive language models become diffusion language models, on Ray.

>>> from a2d_ray import SamplingParams, convert, load
>>> convert("package:smollm2", "models/a2d/SmolLM2-135M-Instruct")          # doctest: +SKIP
>>> lm = load("models/a2d/SmolLM2-135M-Instruct")                           # doctest: +SKIP
>>> lm.generate(["Hello"], SamplingParams(max_new_tokens=32))[0].text       # doctest: +SKIP

Names are loaded when first used: importing the package loads neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from a2d_ray.generation.decoding.params import SamplingParams
    from a2d_ray.proving.conversion import convert
    from a2d_ray.text.language_model import LanguageModel, load

__version__ = "0.1.0"
__all__ = ["LanguageModel", "SamplingParams", "convert", "load"]

_HOME = {
    "LanguageModel": "a2d_ray.text.language_model",
    "load": "a2d_ray.text.language_model",
    "SamplingParams": "a2d_ray.generation.decoding.params",
    "convert": "a2d_ray.proving.conversion",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'a2d_ray' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
