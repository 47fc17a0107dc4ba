"""The recipe resolves to the product's own configurations."""

from pathlib import Path

import pytest

from a2d_ray.config import QuickstartConfig
from a2d_ray.data.sources.embedded import embedded_rows
from a2d_ray.data.sources.mixture import check_spec
from a2d_ray.quickstart import recipe
from a2d_ray.quickstart.questions import general_questions

CONFIG = QuickstartConfig(root="runs/q", eval_tasks=40)


def test_without_the_variable_the_configuration_stays():
    assert recipe.resolve_config(CONFIG, {}) == CONFIG
    assert recipe.resolve_config(CONFIG.model_copy(update={"steps": 300}), {}).root == "runs/q"


@pytest.mark.parametrize(("steps", "environ"), [(2, {}), (None, {"QUICKSTART_STEPS": "2"})])
def test_a_smoke_test_has_few_tasks_and_its_own_root(steps, environ):
    resolved = recipe.resolve_config(CONFIG.model_copy(update={"steps": steps}), environ)
    assert (resolved.steps, resolved.root, resolved.eval_tasks) == (2, "runs/q-smoke", 4)


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_a_bad_variable_is_refused(value):
    with pytest.raises(ValueError, match=f"QUICKSTART_STEPS={value}"):
        recipe.resolve_config(CONFIG, {"QUICKSTART_STEPS": value})


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("steps", [2, 300])
def test_training_resolves(num_workers, steps):
    config = recipe.train_config(Path("root"), steps, num_workers, seed=3)
    assert config.run.seed == 3
    assert config.schedule.max_steps == steps
    assert config.objective.block_size == 8 and config.objective.reads_ar_mode
    assert config.run.resume
    assert config.deepspeed["zero_optimization"]["stage"] == 2
    if num_workers <= 2:
        assert config.batch.rows * config.data.tokens_per_row == 768


@pytest.mark.parametrize("is_small", [True, False])
def test_the_mixture_is_there(is_small, tmp_path):
    recipe.own_answers_path(tmp_path).write_text("{}")
    *tasks, own = check_spec(recipe.data_spec(tmp_path, is_small))
    assert [source.name.removeprefix("embedded/") for source in tasks] == list(recipe.TASKS)
    for source in tasks:
        name = source.name.removeprefix("embedded/")
        assert len(embedded_rows(name, "train")) >= source.train
        assert len(embedded_rows(name, "test")) >= source.test
    assert own.train is None


def test_questions_that_are_asked_at_the_end_are_held_out():
    asked = set(general_questions("train"))
    held_out = general_questions("test")
    assert not asked & set(held_out) and recipe.QUESTIONS[2] in held_out
    rows = [row for name in recipe.TASKS for row in embedded_rows(name, "train")]
    answers = {tuple(sorted(row["messages"][1]["content"].split(", "))) for row in rows}
    assert ("18", "35", "71") not in answers
    assert not any("Paul" in str(row) and "42" in str(row) and "Vienna" in str(row) for row in rows)


def test_the_served_model_is_the_checkpoint():
    config = recipe.serve_config(Path("root/checkpoint"), 8123)
    assert config.port == 8123
    assert config.models[0].load.path == "root/checkpoint"
