"""`run_sweep`: Ray Tune over training runs, each with workers of its own."""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from a2d_ray.cli import to_yaml
from a2d_ray.config import OptionError, SweepConfig, TrainConfig
from a2d_ray.data.pipeline import prepare
from a2d_ray.runs.cluster import start_ray
from a2d_ray.runs.resources import available_resources, num_cores, wants_gpu
from a2d_ray.runs.settings import check_same_settings
from a2d_ray.runs.storage import (
    RunDirectory,
    absolute_if_local,
    absolute_path,
    check_writable,
)
from a2d_ray.sweeps.points import TRIALS_DIRECTORY
from a2d_ray.sweeps.results import SweepResults, write_results
from a2d_ray.sweeps.space import Dimension, read_space, trial_config, with_shared_data
from a2d_ray.sweeps.trial import run_trial
from a2d_ray.training.preflight import check_run

_log = logging.getLogger(__name__)

SWEEP_FILE = "sweep.yaml"
TUNE_DIRECTORY = "tune"
DRIVER_CPUS = 0.5
DATA_CPUS = 1  # of each trial, for Ray Data beside its workers


def run_sweep(config: SweepConfig) -> SweepResults:
    """Tries points of the search space, and writes what came out.

    The directory storage_path/name holds sweep.yaml, trials/ (a run each), results.csv, plots and
    the best configuration. A trial that fails is a line in the results. Killed and called again
    with `sweep.resume`, finished trials are kept and interrupted runs continue.

    Returns:
        A row per trial.

    Raises:
        OptionError: what is wrong: the key, the value and the fix, before Ray starts.
    """
    dimensions = read_space(config)
    base = with_shared_data(_with_absolute_paths(config.train), dimensions)
    directory = _directory(config)
    _check_base(base, str(directory / TRIALS_DIRECTORY))
    _settle(config, directory)
    start_ray(_cpus_of_own_ray(base))
    if base.rl is None:
        _prepare_data(base, dimensions)
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # what is on the disk is enough to resume
    results = _tuner(config, base, dimensions, directory).fit()
    return write_results(results, config.model_copy(update={"train": base}), directory)


def _tuner(
    config: SweepConfig, base: TrainConfig, dimensions: list[Dimension], directory: Path
) -> tune.Tuner:
    """A new Tuner, or the one that was interrupted."""
    sweep = config.sweep
    trainable = tune.with_resources(
        partial(
            run_trial,
            base=base.model_dump(mode="json"),
            storage_path=str(directory / TRIALS_DIRECTORY),
            exact_match_tasks=sweep.exact_match_tasks,
        ),
        {"CPU": DRIVER_CPUS},
    )
    path = str(directory / TUNE_DIRECTORY)
    if sweep.resume and tune.Tuner.can_restore(path):
        return tune.Tuner.restore(path, trainable=trainable, resume_unfinished=True)
    return tune.Tuner(
        trainable,
        param_space={d.key: _domain(d) for d in dimensions},
        tune_config=tune.TuneConfig(
            metric=sweep.metric,
            mode="min" if sweep.metric == "nelbo" else "max",
            num_samples=sweep.num_trials,
            max_concurrent_trials=sweep.max_concurrent or _concurrent_trials(base),
            search_alg=_search(config),
            scheduler=_scheduler(config),
            time_budget_s=sweep.time_budget,
        ),
        run_config=tune.RunConfig(
            name=TUNE_DIRECTORY,
            storage_path=str(directory),
            callbacks=[_TrialLines()],
            failure_config=tune.FailureConfig(max_failures=0, fail_fast=False),
        ),
    )


class _TrialLines(tune.Callback):
    """A line for each trial that ends."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune."""
        found = trial.last_result or {}
        figures = ", ".join(
            f"{key} {found[key]:.4g}"
            for key in ("nelbo", "accepted_length", "exact_match", "reward")
            if found.get(key) is not None
        )
        self._tell(trials, trial, figures or "no figures")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Called by Tune."""
        self._tell(trials, trial, "failed")

    def _tell(self, trials: list[Any], trial: Any, what: str) -> None:
        point = ", ".join(f"{key}={value}" for key, value in trial.evaluated_params.items())
        num_done = sum(each.is_finished() for each in trials)
        _log.info("trial %s (%d done): %s; %s", trial.trial_id, num_done, point, what)


def _worker_cpus(base: TrainConfig) -> int:
    """CPUs of a trial's workers, and of its roll-out actors where it has some."""
    training = base.scaling.world_sizes[-1] * base.scaling.cpus_per_worker
    if base.rl is None or base.rl.rollout.placement == "colocated":
        return training
    return training + base.rl.rollout.num_workers * base.rl.rollout.cpus_per_worker


def _trial_cpus(base: TrainConfig) -> float:
    """CPUs that a trial takes: workers, its driver, Ray Data."""
    return _worker_cpus(base) + DRIVER_CPUS + DATA_CPUS


def _cpus_of_own_ray(base: TrainConfig) -> int:
    """Logical CPUs for as many trials as have a core for each worker."""
    trials = max(1, num_cores() // _worker_cpus(base))
    return int(trials * _trial_cpus(base)) + 1 + DATA_CPUS


def _concurrent_trials(base: TrainConfig) -> int:
    """Trials that fit into the running Ray at a time, at least one."""
    there = available_resources()
    trials = int((there.cpus - DATA_CPUS) // _trial_cpus(base))
    if wants_gpu(base.scaling):
        gpus = base.scaling.world_sizes[-1]
        if base.rl is not None and base.rl.rollout.placement == "separate":
            gpus += base.rl.rollout.num_workers * bool(base.rl.rollout.use_gpu)
        trials = min(trials, int(there.gpus) // gpus)
    return max(1, trials)


def _domain(dimension: Dimension) -> Any:
    make = getattr(tune, dimension.kind)
    if dimension.kind == "choice":
        return make(list(dimension.values))
    return make(*dimension.values)


def _search(config: SweepConfig) -> Any:
    """Optuna's TPE, or random points; both seeded."""
    sweep = config.sweep
    if sweep.search == "optuna":
        mode = "min" if sweep.metric == "nelbo" else "max"
        return OptunaSearch(metric=sweep.metric, mode=mode, seed=sweep.seed)
    return tune.search.BasicVariantGenerator(random_state=sweep.seed)


def _scheduler(config: SweepConfig) -> ASHAScheduler | None:
    if config.sweep.scheduler == "none":
        return None
    return ASHAScheduler(
        time_attr="percent",
        max_t=1000,  # above 100, or a trial would be ended before its last report
        grace_period=max(1, round(100 * config.sweep.grace)),
        reduction_factor=config.sweep.reduction,
    )


def _prepare_data(base: TrainConfig, dimensions: list[Dimension]) -> None:
    """Packs what the trials train on, once for all, before they start."""
    packs = [d for d in dimensions if d.key.split(".")[0] in ("data", "objective")]
    points: list[dict[str, Any]] = [{}]
    for dimension in packs:
        values = dimension.values if dimension.kind == "choice" else ()
        points = [{**p, dimension.key: v} for p in points for v in values or (None,)]
    done = set()
    for point in points:
        known = {key: value for key, value in point.items() if value is not None}
        try:
            config = trial_config(base, known, name="check", storage_path="/")
        except ValueError:
            continue  # values that do not go together: this trial fails, and says so
        packed = prepare(config.data, config.objective, config.model.path)
        done.add(packed.fingerprint)
    _log.info("%d packed sets for %d combinations", len(done), len(points))


def _directory(config: SweepConfig) -> Path:
    """The sweep's directory, below a path that can be written."""
    sweep = config.sweep
    check_writable("sweep.storage_path", sweep.storage_path)
    return Path(absolute_path(sweep.storage_path)) / sweep.name


def _check_base(base: TrainConfig, storage_path: str) -> None:
    """Checks the run that all trials share, before anything of the sweep is written."""
    try:
        check_run(trial_config(base, {}, name="check", storage_path=storage_path))
    except OptionError as error:
        raise error.under("train") from None


def _settle(config: SweepConfig, directory: Path) -> None:
    """Writes down what the sweep is; refuses a used name or another sweep."""
    sweep = config.sweep
    run = RunDirectory.of(str(directory))
    stored = run.read(SWEEP_FILE)
    if stored is None:
        run.write(SWEEP_FILE, to_yaml(config).encode())
        return
    if not sweep.resume:
        raise OptionError(
            "sweep.name",
            sweep.name,
            f"is in use ({directory} exists)",
            "set sweep.resume=true to continue that sweep, or choose another sweep.name",
        )
    ours = config.model_dump(mode="json")
    theirs = yaml.safe_load(stored)
    free = ("resume", "time_budget", "max_concurrent")
    for values in (ours, theirs):
        values["sweep"] = {k: v for k, v in values["sweep"].items() if k not in free}
    check_same_settings(ours, theirs, field="sweep.name", value=sweep.name)


def _with_absolute_paths(train: TrainConfig) -> TrainConfig:
    """Trials work in other directories."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # data.spec may name relative files
    model = train.model.model_copy(update={"path": absolute_if_local(train.model.path)})
    data = train.data.model_copy(update={"packed_path": absolute_path(train.data.packed_path)})
    return train.model_copy(update={"model": model, "data": data})
