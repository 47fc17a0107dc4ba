"""The search space: keys of a training run and what they may be. No Ray, no torch here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from a2d_ray.config import ConfigError, NoEffectError, OptionError, SweepConfig, TrainConfig
from a2d_ray.config.layers import always, set_value, validate

KINDS = ("choice", "uniform", "loguniform", "randint")
# What a trial must have for itself.
_OWNED = ("run.name", "run.storage_path", "run.resume", "data.packed_path", "schedule.save_steps")
BLOCK_KEYS = ("objective.block_size", "objective.name")


@dataclass(frozen=True)
class Dimension:
    """What one key may be.

    Attributes:
        key: dotted key of the training configuration.
        kind: of the distribution.
        values: the choices, or (low, high).
    """

    key: str
    kind: str
    values: tuple[Any, ...]

    @property
    def corners(self) -> tuple[Any, ...]:
        """Values to check before anything runs: every choice, or the ends of the range."""
        if self.kind == "randint":
            return (self.values[0], self.values[1] - 1)
        return self.values


def read_space(config: SweepConfig) -> list[Dimension]:
    """The dimensions of a sweep, each checked against the run that it changes.

    Raises:
        OptionError: an unknown key or distribution, a value that the run refuses or that changes
            nothing, or a metric that does not compare what the space varies.
    """
    dimensions = [_dimension(key, value) for key, value in _leaves(config.space)]
    if not dimensions:
        example = "name a key, e.g. space.optim.lr={loguniform: [1e-5, 1e-3]}"
        raise OptionError("space", config.space, "is empty", example)
    for dimension in dimensions:
        _check_dimension(dimension, config.train)
    _check_comparable(config, [d.key for d in dimensions])
    return dimensions


def _check_dimension(dimension: Dimension, base: TrainConfig) -> None:
    """Refuses a key that a run does not take, or that changes nothing beside the base."""
    key = f"space.{dimension.key}"
    if dimension.key in _OWNED:
        raise OptionError(key, dimension.values, "is each trial's own", "leave it out of the space")
    for value in dimension.corners:
        try:
            trial_config(
                base,
                {dimension.key: value},
                name="check",
                storage_path="/",
                gives_way=lambda error: error.field != dimension.key,
            )
        except ConfigError as error:
            raise OptionError(key, value, "makes a run that is refused", str(error)) from None


def trial_config(
    base: TrainConfig,
    point: dict[str, Any],
    *,
    name: str,
    storage_path: str,
    gives_way: Callable[[NoEffectError], bool] = always,
) -> TrainConfig:
    """The run of one trial: the base with the point's values, saved at every evaluation.

    Args:
        base: what all trials share.
        point: value of each dotted key.
        name: of the run.
        storage_path: absolute.
        gives_way: whether an option without effect beside the others is left out, or refused.

    Raises:
        ConfigError: values that do not go together.
    """
    values = base.model_dump(mode="json")
    for key, value in point.items():
        set_value(values, key.split("."), value)
    values["run"] |= {"name": name, "storage_path": storage_path, "resume": True}
    values["schedule"] |= {"save_steps": values["schedule"]["eval_steps"], "keep_last": 1}
    return validate(TrainConfig, values, gives_way=gives_way)


def with_shared_data(base: TrainConfig, dimensions: list[Dimension]) -> TrainConfig:
    """The run with packed rows that serve every block size and number of views of the space.

    Block sizes that do not divide the largest one cannot share rows: each gets its own set.
    """
    choices = {d.key: d.values for d in dimensions if d.kind == "choice"}
    sizes = [*choices.get("objective.block_size", ()), base.objective.block_size]
    views = [*choices.get("objective.views", ()), base.objective.views]
    update: dict[str, int] = {}
    can_share = base.objective.name == "bd3lm" and all(max(sizes) % size == 0 for size in sizes)
    if "objective.block_size" in choices and can_share and base.data.max_block_size is None:
        update["max_block_size"] = max(sizes)
    if "objective.views" in choices and base.data.max_views is None:
        update["max_views"] = max(views)
    shared = base.model_copy(update={"data": base.data.model_copy(update=update)})
    try:
        return validate(TrainConfig, shared.model_dump(mode="json"))
    except ConfigError as error:
        shared_by_all = "cannot hold what all trials are to share"
        raise OptionError("train.data", update, shared_by_all, str(error)) from None


def varies_blocks(keys: list[str]) -> bool:
    """Whether NELBO does not compare the trials: bounds of different block sizes."""
    return any(key in BLOCK_KEYS for key in keys)


def _leaves(space: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in space.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and not set(value) & set(KINDS):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _dimension(key: str, value: Any) -> Dimension:
    space_key = f"space.{key}"
    values = list(value.values()) if isinstance(value, dict) else []
    if len(values) != 1 or not isinstance(values[0], list):
        forms = (
            "give {choice: [...]}, or {uniform: [low, high]}, with loguniform or randint likewise"
        )
        raise OptionError(space_key, value, "is no distribution", forms)
    ((kind, values),) = value.items()
    if kind == "choice":
        if not values:
            raise OptionError(f"{space_key}.choice", values, "is empty", "give its values")
        return Dimension(key, kind, tuple(values))
    convert = int if kind == "randint" else float
    try:
        low, high = map(convert, values)
    except (TypeError, ValueError):
        raise OptionError(
            f"{space_key}.{kind}", values, "is no range", "give two numbers [low, high]"
        ) from None
    if low >= high or (kind == "loguniform" and low <= 0):
        fix = "low must be below high, and above 0 for logs"
        raise OptionError(f"{space_key}.{kind}", values, "is an empty range", fix)
    return Dimension(key, kind, (low, high))


def _check_comparable(config: SweepConfig, keys: list[str]) -> None:
    sweep = config.sweep
    is_steered = sweep.search == "optuna" or sweep.scheduler == "asha"
    if sweep.metric == "nelbo" and is_steered and varies_blocks(keys):
        raise OptionError(
            "sweep.metric",
            sweep.metric,
            "compares within one block size only, and space varies the blocks",
            "set sweep.metric=exact_match with sweep.exact_match_tasks=32 and "
            "sweep.scheduler=none, or sweep.search=random and sweep.scheduler=none",
        )
    causal = "objective.clean_attention"
    if sweep.metric == "accepted_length" and causal not in keys:
        clean = config.train.objective.clean_attention
        if clean != "causal":
            raise OptionError(
                "sweep.metric",
                sweep.metric,
                f"is of drafts, which train.{causal}={clean} has none of",
                f"set train.{causal}=causal",
            )
    if sweep.metric == "reward" and config.train.rl is None:
        problem = "is of reinforcement learning, and train.rl is null"
        raise OptionError("sweep.metric", sweep.metric, problem, "set train.rl, or another metric")
    if sweep.metric == "nelbo" and config.train.rl is not None:
        problem = "is not measured in reinforcement learning"
        raise OptionError("sweep.metric", sweep.metric, problem, "set sweep.metric=reward")
    if config.train.schedule.eval_steps == 0:
        raise OptionError(
            "train.schedule.eval_steps", 0, "is no interval", "a sweep needs evaluations, e.g. 0.25"
        )
