"""The command line: one form, complete files, errors that name key, value and fix."""

import re

import pytest
import yaml

from a2d_ray import config as configs
from a2d_ray.cli import ConfigError, load_config, parse_config, to_yaml
from tests.commands import ROOT, run_python

JOBS = {
    "convert": configs.ConvertConfig,
    "prepare_data": configs.PrepareConfig,
    "sft_bd3lm": configs.TrainConfig,
    "sft_mdlm": configs.TrainConfig,
    "pt_bd3lm": configs.TrainConfig,
    "pt_mdlm": configs.TrainConfig,
    "sample": configs.SampleConfig,
    "chat": configs.ChatConfig,
    "serve": configs.ServeConfig,
    "merge_lora": configs.MergeConfig,
    "generate": configs.GenerateConfig,
    "quickstart": configs.QuickstartConfig,
    "plan": configs.PlanConfig,
    "status": configs.StatusConfig,
}


def parse(*args):
    return parse_config(configs.TrainConfig, "sft_bd3lm", args)


def test_overrides_win_over_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text((ROOT / "jobs/configs/sft_bd3lm.yaml").read_text())
    config = parse(
        str(file),
        "optim.lr=2e-5",
        "schedule.max_steps=7",
        "optim.betas=[0.9,0.95]",
        "wandb.entity=null",
        "deepspeed.zero_optimization.stage=1",
        "run.resume=true",
    )
    assert config.optim.lr == 2e-5 and config.optim.betas == (0.9, 0.95)
    assert config.schedule.max_steps == 7 and config.run.resume
    assert config.deepspeed["zero_optimization"]["stage"] == 1
    assert config.objective.block_size == 4  # from the file


def test_durations_ranges_and_sections_that_may_be_absent():
    assert parse("schedule.max_duration=2h").schedule.max_duration == 7200
    assert parse("schedule.max_duration=90").schedule.max_duration == 90
    assert list(parse("scaling.num_workers=[1,2]").scaling.world_sizes) == [1, 2]
    assert list(parse("scaling.num_workers=2").scaling.world_sizes) == [2]
    assert parse().model.lora is None and parse("model.lora.r=4").model.lora.r == 4
    batch = parse("data.packing=false", "batch.rows=null", "batch.sequences=16").batch
    assert (batch.size, batch.key) == (16, "batch.sequences")


@pytest.mark.parametrize("name", JOBS)
def test_shipped_files_resolve_and_round_trip(name):
    config = parse_config(JOBS[name], name, [])
    again = JOBS[name].model_validate(yaml.safe_load(to_yaml(config)))
    assert again == config


# The public recipe's commands: sequences per step, per device, workers, accumulated.
RECIPES = {
    "pt_mdlm_tiny_shakespeare": (16, 16, 1, 1, 128, 20),
    "pt_bd3lm_tiny_shakespeare": (16, 16, 1, 1, 128, 20),
    "sft_mdlm_alpaca": (128, 16, 8, 1, 512, 20),
    "sft_bd3lm_alpaca": (128, 16, 8, 1, 512, 20),
    "sft_mdlm_tiny_a2d": (2048, 16, 64, 2, 1024, 10),
    "sft_bd3lm_tiny_a2d": (2048, 16, 64, 2, 512, 10),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipes_resolve_and_their_batches_agree(name, capsys):
    file = ROOT / f"jobs/configs/{name}.yaml"
    job = "_".join(name.split("_")[:2])
    with pytest.raises(SystemExit) as stop:
        load_config(configs.TrainConfig, job, [str(file), "--dry-run"])
    assert stop.value.code == 0
    config = configs.TrainConfig.model_validate(yaml.safe_load(capsys.readouterr().out))
    sequences, per_device, workers, accumulated, max_length, epochs = RECIPES[name]
    assert config.batch.sequences == sequences == per_device * workers * accumulated
    assert config.batch.rows_per_device == per_device and config.scaling.num_workers == workers
    assert (config.data.max_length, config.schedule.epochs) == (max_length, epochs)
    assert config.objective.preset == "reference" and not config.data.packing
    assert config.objective.name in name and config.objective.block_size == 32
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert any("The recipe:" in line for line in header)
    packed = " ".join(line.removeprefix("# ") for line in header).partition("Cheaper")[2]
    overrides = [w.strip(";:,.") for w in packed.split() if re.match(r"\w+\.\w+=", w)]
    cheaper = parse_config(configs.TrainConfig, job, [str(file), *overrides])
    assert cheaper.batch.rows and cheaper.data.packing


@pytest.mark.parametrize(
    "name",
    [
        *RECIPES,
        *(n for n, c in JOBS.items() if c is configs.TrainConfig),
        "sample",
        "chat",
        "generate",
    ],
)
def test_files_are_complete(name):
    def keys(values, prefix=""):
        return {
            key
            for name, value in values.items()
            for key in (
                keys(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
            )
        }

    written = yaml.safe_load((ROOT / f"jobs/configs/{name}.yaml").read_text())
    resolved = JOBS.get(name, configs.TrainConfig).model_validate(written)
    assert keys(written) == keys(resolved.model_dump())


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (["optim.lrr=1"], ["unknown key optim.lrr", "did you mean optim.lr?"]),
        (["lr=1"], ["unknown key lr", "optim.lr"]),
        (["objective.block_size=0"], ["objective.block_size (0)", "greater than or equal to 1"]),
        (["optim.lr=fast"], ["optim.lr='fast'", "number"]),
        (["objective.noise=gauss"], ["objective.noise='gauss'", "'exact' or 'bernoulli'"]),
        (["scaling.use_gpu=maybe"], ["scaling.use_gpu='maybe'"]),
        (["data.max_length=500", "objective.block_size=32"], ["data.max_length (500)", "multiple"]),
        (["data.tokens_per_row=64"], ["data.tokens_per_row (64)", "raise it to"]),
        (["batch.rows=3", "scaling.num_workers=2"], ["batch.rows (3)", "scaling.num_workers (2)"]),
        (["scaling.num_workers=[1,3]"], ["batch.rows (8)", "scaling.num_workers (3)"]),
        (["scaling.num_workers=[2,1]"], ["scaling.num_workers ([2, 1])", "min <= max"]),
        (["batch.sequences=16"], ["batch.rows (8)", "batch.sequences (16)", "give one"]),
        (["data.packing=false"], ["batch.rows (8)", "data.packing=false", "batch.sequences=8"]),
        (["schedule.max_duration=2x"], ["schedule.max_duration='2x'"]),
        (["optim.schedule=wsd", "optim.decay=0.99"], ["optim.warmup (0.04)", "optim.decay (0.99)"]),
        (["model.load_in_4bit=true"], ["model.lora"]),
        (["model.lora.r=0"], ["model.lora.r='0'"]),
        (["model.lora.r=4", "model.trainable_layers=2"], ["model.trainable_layers (2)"]),
        (["deepspeed.zero_optimization.stage=4"], ["stage (4)", "0, 1, 2 or 3"]),
        (["objective.block_grid=absolute"], ["data.targets=last"]),
        (["deepspeed.gradient_clipping=2"], ["optim.clip_norm"]),
        (["run.name=../x"], ["run.name='../x'"]),
        (["nowhere.yaml"], ["nowhere.yaml does not exist"]),
        (["--lr", "3"], ["key.sub=value"]),
    ],
)
def test_bad_input_names_key_value_and_fix(args, messages):
    with pytest.raises(ConfigError) as error:
        parse(*args)
    assert all(message in str(error.value) for message in messages), str(error.value)


def test_items_of_lists_are_reached_by_number():
    def serve(*args):
        return parse_config(configs.ServeConfig, "serve", args)

    config = serve("models.0.load.path=mine", "models.0.id=m")
    assert (config.models[0].load.path, config.models[0].id) == ("mine", "m")
    for arg, message in (
        ("models.1.load.path=x", "models has the items 0 to 0"),
        ("models.0.load.pth=x", "unknown key models.0.load.pth"),
        ("models.0.id=", "models.0.id"),
    ):
        with pytest.raises(ConfigError, match=message):
            serve(arg)


def test_every_problem_of_a_file_is_named(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("run: {name: x, nme: y}\nmodel: {}\noptim: {lr: -1}\n")
    with pytest.raises(ConfigError) as error:
        parse(str(file))
    for message in ("run.nme", "model.path is missing", "optim.lr=-1", "objective is missing"):
        assert message in str(error.value)


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(configs.TrainConfig, "sft_bd3lm", ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for key in ("model.path", "data.spec", "objective.block_size", "optim.lr", "deepspeed"):
        assert key in text
    assert "Tokens per block" in text


@pytest.mark.parametrize(
    ("job", "args", "code", "message"),
    [
        ("sft_bd3lm", ["optim.lr=3e-4", "--dry-run"], 0, "lr: 0.0003"),
        ("sft_bd3lm", ["objective.block_size=0"], 2, "objective.block_size"),
        ("sample", ["modl.path=x"], 2, "model.path"),
    ],
)
def test_jobs_answer_within_two_seconds_of_cpu_time(job, args, code, message):
    done = run_python("-X", "importtime", f"jobs/{job}.py", *args)
    assert done.code == code and message in done.out + done.err
    assert "Traceback" not in done.err
    imported = {line.rpartition("|")[2].strip() for line in done.err.splitlines()}
    assert "pydantic" in imported and not imported & {"torch", "transformers", "ray", "deepspeed"}
    assert done.cpu_s < 2


@pytest.mark.parametrize("name", JOBS)
def test_jobs_are_thin(name):
    assert len((ROOT / "jobs" / f"{name}.py").read_text().splitlines()) <= 40
