"""Bad input fails before Ray starts, with the key, the value and the fix."""

import json
import os
from types import SimpleNamespace

import pytest

from a2d_ray.cli import to_yaml
from a2d_ray.runs.storage import RunDirectory
from a2d_ray.training.preflight import check_run
from tests.tiny import save_tiny_ar

pytestmark = pytest.mark.usefixtures("no_ray")


def refused(config, *messages):
    with pytest.raises(ValueError) as error:
        check_run(config)
    for message in messages:
        assert message in str(error.value), str(error.value)


def test_a_good_run_passes(make_config):
    assert check_run(make_config("good")).objective is None


def test_model_path_without_a_model(make_config, tmp_path):
    refused(
        make_config(model={"path": str(tmp_path)}),
        f"model.path={tmp_path} cannot be used",
        "config.json",
    )
    none = tmp_path / "none"
    refused(
        make_config(model={"path": str(none)}),
        f"model.path={none} cannot be used (model directory {none} does not exist): it takes an "
        "A2D checkpoint, as python jobs/convert.py",
    )


def test_model_that_was_not_converted(make_config, workshop):
    path = workshop / "ar"
    refused(make_config(model={"path": str(path)}), f"model.path={path}", f"source={path}")


def test_a_family_that_was_not_converted_either(make_config, tmp_path):
    save_tiny_ar(tmp_path / "gpt2", "gpt2")
    path = tmp_path / "gpt2"
    refused(make_config(model={"path": str(path)}), f"model.path={path}", "convert it first")


def test_objective_of_another_kind(make_config, workshop, tmp_path):
    import shutil

    path = tmp_path / "mdlm"
    shutil.copytree(workshop / "a2d", path)
    values = json.loads((path / "config.json").read_text())
    values["a2d"]["objective"] = "mdlm"
    (path / "config.json").write_text(json.dumps(values))
    refused(make_config(model={"path": str(path)}), "mdlm", "model.change_objective=true")
    check_run(make_config("changed", model={"path": str(path), "change_objective": True}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("embedded/summs", "sums"),
        ("rows.jsonl[trian:5]", "train"),
        ("/nowhere/rows.jsonl", "/nowhere/rows.jsonl"),
    ],
)
def test_dataset_spec_with_a_typo(make_config, spec, message):
    refused(make_config(data={"spec": spec}), message)


def test_more_workers_than_cpus(make_config):
    cpus = len(os.sched_getaffinity(0))
    config = make_config(scaling={"num_workers": cpus + 1}, batch={"rows": 4 * (cpus + 1)})
    refused(config, "scaling.num_workers", f"has {cpus}")


def test_gpus_that_are_not_there(make_config):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there are GPUs here")
    refused(make_config(scaling={"use_gpu": True}), "GPU", "has 0")


def test_4_bit_bases_need_bitsandbytes(make_config):
    import importlib.util

    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed here")
    config = make_config(model={"lora": {"r": 4}, "load_in_4bit": True})
    refused(config, "model.load_in_4bit=true", "pip install bitsandbytes")


def test_unwritable_output(make_config, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    config = make_config(run={"name": "x", "storage_path": str(file / "below")})
    refused(config, f"run.storage_path={file / 'below'} is not", "choose another run.storage_path")
    config = make_config(data={"packed_path": str(file)})
    refused(config, f"data.packed_path={file} is not", "choose another data.packed_path")


def test_used_run_name(make_config, workshop):
    (workshop / "runs" / "used").mkdir(parents=True)
    (workshop / "runs" / "used" / "config.yaml").write_text("")
    refused(make_config("used"), "run.name=used", "run.resume=true")


def test_fewer_rows_than_a_step_takes_name_values_that_fit(make_config):
    from a2d_ray.training.trainer import num_steps

    packed = SimpleNamespace(num_rows=lambda split: 3)
    with pytest.raises(ValueError, match=r"batch\.rows=8 exceeds the 3 packed rows") as error:
        num_steps(make_config(schedule={"max_steps": None}, batch={"rows": 8}), packed)
    assert "set batch.rows=3 or lower, schedule.epochs=3 or more" in str(error.value)
    for batch, epochs in ((3, 1), (8, 3)):
        schedule = {"max_steps": None, "epochs": epochs}
        assert num_steps(make_config(schedule=schedule, batch={"rows": batch}), packed) == 1


def test_a_resumed_run_may_change_its_cluster_but_not_what_it_is(make_config, tmp_path):
    from a2d_ray.runs.storage import RUN_CONFIG_FILE
    from a2d_ray.training.trainer import resumable_directory

    place = {"storage_path": str(tmp_path)}
    directory = RunDirectory.of(str(tmp_path), "run")
    directory.write(RUN_CONFIG_FILE, to_yaml(make_config("run", run=place)).encode())
    free = {"num_workers": 2, "max_failures": 9}
    same = make_config("run", run=place, scaling=free, schedule={"max_duration": "2h"})
    assert resumable_directory(same) == directory
    for section, key, old, new in [
        ("optim", "lr", 0.01, 0.005),
        ("run", "seed", 0, 7),
        ("schedule", "max_steps", 6, 8),
    ]:
        changes = {"run": place}
        changes[section] = changes.get(section, {}) | {key: new}
        with pytest.raises(ValueError, match=rf"started with {section}\.{key}={old}, not {new}:"):
            resumable_directory(make_config("run", **changes))


def test_jobs_print_one_line_and_exit_2(workshop):
    import subprocess
    import sys
    from pathlib import Path

    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "jobs/sft_bd3lm.py", "model.path=/nowhere", "run.name=x"],
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr and "/nowhere" in done.stderr
