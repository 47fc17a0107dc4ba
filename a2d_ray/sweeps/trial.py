"""One trial: a training run of its own that reports to Ray Tune."""

from pathlib import Path
from typing import Any

from ray import tune
from ray.train import Result
from ray.tune.integration.ray_train import TuneReportCallback

from a2d_ray.config import TrainConfig
from a2d_ray.data.sources.mixture import parse_spec
from a2d_ray.sweeps.points import run_name, write_point
from a2d_ray.sweeps.space import trial_config

EMBEDDED_TASKS = ("sums", "sorting", "spelling")
MAX_ANSWER_TOKENS = 64


def run_trial(
    point: dict[str, Any], *, base: dict[str, Any], storage_path: str, exact_match_tasks: int
) -> None:
    """Trains a point of the search space; continues its run if it was interrupted.

    Ray Tune calls it in a process of its own; the workers are Ray Train's.

    Args:
        point: value of each dotted key.
        base: the configuration that all trials share.
        storage_path: where the runs of the trials lie.
        exact_match_tasks: held-out tasks of each kind that the result answers; 0: none.
    """
    from a2d_ray.rl import build_rl_trainer
    from a2d_ray.training import build_trainer

    name = run_name(tune.get_context().get_trial_id())
    write_point(point, Path(storage_path) / name)
    config = trial_config(
        TrainConfig.model_validate(base), point, name=name, storage_path=storage_path
    )
    callback = _Report()
    build = build_trainer if config.rl is None else build_rl_trainer
    trainer = build(config, callbacks=[callback])
    callback.num_steps = trainer.plan.num_steps
    result = trainer.fit()
    if result.error is not None:
        raise result.error
    tune.report(_last(result, config, exact_match_tasks))


class _Report(TuneReportCallback):
    """Adds how far the run is, in per cent, which is what ASHA's rungs count."""

    num_steps = 1

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        first = {**metrics[0], "percent": 100 * metrics[0]["step"] / self.num_steps}
        super().after_report(run_context, [first, *metrics[1:]], checkpoint)


def _last(result: Result, config: TrainConfig, num_tasks: int) -> dict[str, Any]:
    assert result.metrics is not None and result.checkpoint is not None
    last = {
        "step": result.metrics["step"],
        "percent": 100.0,
        "nelbo": result.metrics.get("nelbo"),
        "accepted_length": result.metrics.get("accepted_length"),
        "reward": result.metrics.get("reward"),
        "checkpoint_path": result.checkpoint.path,
    }
    if num_tasks:
        last["exact_match"] = _exact_match(Path(result.checkpoint.path), config, num_tasks)
    return last


def _exact_match(checkpoint: Path, config: TrainConfig, num_tasks: int) -> float:
    """Mean share of right answers over the embedded kinds of the mixture that have tasks."""
    from a2d_ray import SamplingParams, load
    from a2d_ray.evaluation.harness.exact_match import exact_match, held_out_tasks

    names = [spec.name.removeprefix("embedded/") for spec in parse_spec(config.data.spec)]
    kinds = [name for name in names if name in EMBEDDED_TASKS]
    lm = load(checkpoint)
    params = SamplingParams(max_new_tokens=MAX_ANSWER_TOKENS)
    scores = [exact_match(lm, held_out_tasks(kind, num_tasks), params).accuracy for kind in kinds]
    return sum(scores) / len(scores)
