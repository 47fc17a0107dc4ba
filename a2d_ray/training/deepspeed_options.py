"""The `deepspeed:` section, read by DeepSpeed itself before anything starts."""

import difflib
from typing import Any

import deepspeed
from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
from deepspeed.runtime.config_utils import DeepSpeedConfigModel
from pydantic import ValidationError

from a2d_ray.config import OptionError, TrainConfig
from a2d_ray.config.errors import first_problem
from a2d_ray.training.engine import deepspeed_config

_DOCUMENTATION = "see https://www.deepspeed.ai/docs/config-json"


class _Asked(dict[str, Any]):
    """Settings that remember which names DeepSpeed looked for: others mean nothing to it."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.names: list[str] = []

    def __contains__(self, key: object) -> bool:
        self.names.append(str(key))
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.names.append(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's."""
        self.names.append(key)
        return super().get(key, default)


def check_deepspeed(config: TrainConfig) -> None:
    """Refuses options of `deepspeed:` that DeepSpeed refuses, or does not know.

    Raises:
        OptionError: the key, the value and the fix.
    """
    world = config.scaling.world_sizes[0]
    zero = config.deepspeed.get("zero_optimization", {})
    most = config.batch.rows_per_device
    is_split = most is not None and config.batch.rows // world > most
    if is_split and zero.get("stage") == 1 and zero.get("overlap_comm"):
        raise OptionError(
            "deepspeed.zero_optimization.overlap_comm",
            True,
            "loses gradients of all but the last micro-batch with stage 1 (DeepSpeed 0.19)",
            "leave it out, use stage 2, or set batch.rows_per_device=null",
        )
    settings = _Asked(deepspeed_config(config, world=world, num_micro=1))
    level = deepspeed.utils.logger.level
    deepspeed.utils.logger.setLevel("ERROR")
    try:
        DeepSpeedConfig(settings)
    except ValidationError as error:
        raise _explained(error).under(f"deepspeed.{_section(settings)}") from None
    except (ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        raise _refused(settings, error) from None
    except DeepSpeedConfigError as error:
        raise _refused(settings, error) from None
    finally:
        deepspeed.utils.logger.setLevel(level)
    for key, value in config.deepspeed.items():
        if key not in settings.names:
            near = difflib.get_close_matches(key, settings.names, n=1)
            fix = f"did you mean deepspeed.{near[0]}?" if near else _DOCUMENTATION
            raise OptionError(f"deepspeed.{key}", value, "is unknown to DeepSpeed", fix)


def _section(settings: _Asked) -> str:
    """The given name that DeepSpeed looked at last."""
    return next(name for name in reversed(settings.names) if dict.__contains__(settings, name))


def _explained(error: ValidationError) -> OptionError:
    models = {model.__name__: model for model in DeepSpeedConfigModel.__subclasses__()}
    found = first_problem(models.get(error.title, DeepSpeedConfigModel), error)
    fix = _DOCUMENTATION if "--help" in found.fix else found.fix
    return OptionError(found.field, found.value, found.problem, fix)


def _refused(settings: _Asked, error: Exception) -> OptionError:
    name = _section(settings)
    text = " ".join(str(error).split())
    problem = f"is refused by DeepSpeed ({type(error).__name__}: {text})"
    return OptionError(f"deepspeed.{name}", dict.get(settings, name), problem, _DOCUMENTATION)
