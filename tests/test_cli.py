"""The command line: one form, layers of YAML, errors that name key, value and fix."""

import json
import pickle
import re
import subprocess
import sys

import pytest
import yaml

from a2d_ray import config as configs
from a2d_ray.cli import ConfigError, load_config, parse_config, run, to_yaml, validate
from a2d_ray.config import commands
from a2d_ray.config.errors import MissingOptionError, NoEffectError, OptionError
from a2d_ray.config.keys import all_keys, find_field, section_of
from a2d_ray.config.layers import lay_over
from a2d_ray.models.checkpoint import check_checkpoint
from a2d_ray.models.directories import find_directory
from tests.commands import ROOT, run_python

JOBS = {
    "convert": configs.ConvertConfig,
    "export": configs.ExportConfig,
    "prepare_data": configs.PrepareConfig,
    "inspect_data": configs.InspectConfig,
    "sft_bd3lm": configs.TrainConfig,
    "sft_mdlm": configs.TrainConfig,
    "pt_bd3lm": configs.TrainConfig,
    "sft_speculative": configs.TrainConfig,
    "draft_only": configs.TrainConfig,
    "rl": configs.TrainConfig,
    "pt_mdlm": configs.TrainConfig,
    "sample": configs.SampleConfig,
    "chat": configs.ChatConfig,
    "serve": configs.ServeConfig,
    "merge_lora": configs.MergeConfig,
    "generate": configs.GenerateConfig,
    "quickstart": configs.QuickstartConfig,
    "plan": configs.PlanConfig,
    "status": configs.StatusConfig,
    "sweep": configs.SweepConfig,
    "benchmark": configs.BenchmarkConfig,
    "evaluate": configs.EvaluateConfig,
    "frontier": configs.FrontierConfig,
}
CONFIGS = ROOT / "jobs" / "configs"


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


def written(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) or {}


VARIANTS = {
    path.stem: job
    for path in CONFIGS.glob("*.yaml")
    for job in JOBS
    if JOBS[job] is configs.TrainConfig and path.stem.startswith(f"{job}_")
}


@pytest.mark.parametrize("name", [*JOBS, *VARIANTS])
def test_what_a_dry_run_prints_is_whole_and_loads_again(name, capsys, tmp_path):
    job = VARIANTS.get(name, name)
    with pytest.raises(SystemExit) as stop:
        load_config(JOBS[job], job, [str(CONFIGS / f"{name}.yaml"), "--dry-run"])
    text = capsys.readouterr().out
    (tmp_path / "dump.yaml").write_text(text)
    config = parse_config(JOBS[job], job, [str(CONFIGS / f"{name}.yaml")])
    assert stop.value.code == 0 and text == to_yaml(config)
    assert parse_config(JOBS[job], job, [str(tmp_path / "dump.yaml")]) == config
    assert yaml.safe_load(text).keys() == JOBS[job].model_fields.keys()


def defaults(model):
    """What the schema alone gives; required keys are left out."""
    values = {}
    for name, field in model.model_fields.items():
        inner = section_of(field)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if inner is not None and (field.is_required() or default is not None):
            values[name] = defaults(inner)
        elif not field.is_required():
            values[name] = default
    return values


def leaves(values, model, prefix=""):
    """Dotted keys and values; a list or a free mapping is one value."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        field = find_field(model, key.split("."))
        if field is not None and section_of(field) and isinstance(value, dict):
            yield from leaves(value, model, f"{key}.")
        else:
            yield key, value


@pytest.mark.parametrize("name", [*JOBS, *VARIANTS])
def test_files_hold_only_what_differs_from_what_they_lie_on(name):
    job = VARIANTS.get(name, name)
    model = JOBS[job]
    below = defaults(model)
    if name in VARIANTS:
        below = lay_over(model, below, written(job))
    below = dict(leaves(below, model))
    for key, value in leaves(written(name), model):
        is_required = find_field(model, key.split(".")).is_required()
        assert is_required or key not in below or value != below[key], key


def test_a_file_of_four_lines_gets_the_job_s_own_defaults(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {path: mine}\ndata: {spec: mine.jsonl}\nschedule: {epochs: 3}\n")
    config = parse(str(file))
    assert (config.model.path, config.data.spec, config.schedule.epochs) == (
        "mine",
        "mine.jsonl",
        3,
    )
    assert (config.optim.lr, config.objective.block_size, config.objective.name) == (
        3e-4,
        4,
        "bd3lm",
    )


def test_sections_are_merged_lists_and_free_mappings_replace(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("space: {optim.warmup: {choice: [0.0, 0.1]}}\ntrain: {optim: {lr: 1.0e-3}}\n")
    config = parse_config(configs.SweepConfig, "sweep", [str(file)])
    assert config.space == {"optim.warmup": {"choice": [0.0, 0.1]}}
    assert config.train.optim.lr == 1e-3 and config.train.objective.block_size == 4
    file.write_text("deepspeed: {wall_clock_breakdown: true}\n")
    stage_2 = {"zero_optimization": {"stage": 2}}
    assert parse(str(file)).deepspeed == {"wall_clock_breakdown": True} | stage_2
    assert parse().deepspeed == parse("deepspeed={}").deepspeed == stage_2
    file.write_text("models: [{id: m, load: {path: x}}]\n")
    (model,) = parse_config(configs.ServeConfig, "serve", [str(file)]).models
    assert model.sampling.max_new_tokens == 128  # not the shipped model's


def test_an_option_without_effect_is_refused(tmp_path):
    for args, messages in (
        (["objective.schedule=cosine"], ["objective.noise=exact", "set objective.noise=bernoulli"]),
        (["objective.noise_per=sequence"], ["objective.noise=exact"]),
        (["objective.name=mdlm", "objective.clean_attention=causal"], ["objective.name=mdlm"]),
        (["objective.name=mdlm", "objective.block_grid=absolute"], ["objective.name=bd3lm"]),
        (["data.eos_tail=8"], ["objective.name=bd3lm", "leave data.eos_tail out"]),
        (["data.decontaminate_ngram=5"], ["data.decontaminate=[]", "set data.decontaminate, or"]),
        (["optim.decay=0.3"], ["optim.schedule=cosine", "set optim.schedule=wsd"]),
        (["optim.schedule=constant", "optim.min_lr_fraction=0"], ["cosine or linear or wsd"]),
        (["schedule.epochs=3", "schedule.max_steps=9"], ["set schedule.max_steps=null"]),
        (["schedule.eval_steps=0", "schedule.keep_best=true"], ["schedule.eval_steps=0"]),
    ):
        with pytest.raises(ConfigError) as error:
            parse(*args)
        (problem,) = error.value.problems
        assert f"{problem.field}=" in " ".join(args) and "has no effect" in problem.problem
        assert all(message in str(problem) for message in messages), str(problem)
    file = tmp_path / "mine.yaml"
    file.write_text("train: {optim: {decay: 0.3}}\n")
    with pytest.raises(ConfigError, match=r"^train\.optim\.decay=0\.3 .* train\.optim\.schedule="):
        parse_config(configs.PlanConfig, "plan", [str(file)])


def test_a_later_layer_takes_the_effect_of_an_earlier_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {schedule: wsd, decay: 0.3}\nschedule: {epochs: 5}\n")
    config = parse(str(file), "schedule.max_steps=9", "optim.schedule=linear")
    assert (config.schedule.epochs, config.optim.decay) == (1.0, 0.2)  # the schema's defaults
    assert parse(str(file)).optim.decay == 0.3
    file.write_text("optim: {decay: 0.3}\n")  # a mistake stays one, whatever else is set
    with pytest.raises(ConfigError, match=r"optim\.decay=0\.3 has no effect"):
        parse(str(file), "schedule.max_steps=9")
    # What the shipped file says is no reason to refuse what the user says.
    plan = parse_config(configs.PlanConfig, "plan", ["workload.packed=x"])
    assert plan.workload.documents == 1_000_000


def conditions(model, prefix=""):
    for field_key, needed in getattr(model, "effective_if", {}).items():
        yield model, field_key, needed
    for field in model.model_fields.values():
        if (inner := section_of(field)) is not None:
            yield from conditions(inner)


@pytest.mark.parametrize("name", JOBS)
def test_conditions_name_keys_that_there_are(name):
    for model, key, needed in conditions(JOBS[name]):
        assert {key, *needed} <= set(all_keys(model))


def test_errors_carry_field_value_and_fix_and_pickle():
    for args, field, value in (
        (["optim.lr=fast"], "optim.lr", "fast"),
        (["optim.lrr=1"], "optim.lrr", "1"),
        (["data.max_length=126"], "data.max_length", 126),
        (["objective.block_size=[6,16]"], "objective.block_size", [6, 16]),
        (["deepspeed.optimizer={}"], "deepspeed.optimizer", {}),
        (["optim.decay=0.3"], "optim.decay", 0.3),
        (["model.load_in_4bit=true"], "model.load_in_4bit", True),
    ):
        with pytest.raises(ConfigError) as caught:
            parse(*args)
        (problem,) = caught.value.problems
        assert isinstance(problem, OptionError) and problem.fix
        assert (problem.field, problem.value) == (field, value)
        assert str(problem).startswith(f"{field}=") and str(problem).endswith(problem.fix)
    errors = (
        OptionError("a.b", 1, "is odd", "use 2"),
        MissingOptionError("a"),
        NoEffectError("a.b", 1, "a.c", 2, "3"),
        ConfigError(OptionError("a", 1, "is odd", "use 2"), "text"),
    )
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error) and type(again) is type(error)
    text = "x.a.b=1 has no effect with x.a.c=2: set x.a.c=3, or leave x.a.b out"
    assert str(errors[2].under("x")) == text
    assert str(MissingOptionError("a").under("x")).startswith("x.a is missing")


def test_a_reader_that_goes_away_ends_a_job_quietly():
    for job in ("sft_bd3lm", "plan"):
        flag = "--help" if job == "sft_bd3lm" else ""
        done = subprocess.run(
            f"{sys.executable} jobs/{job}.py {flag} | head -c 1; exit ${{PIPESTATUS[0]}}",
            shell=True, executable="/bin/bash", capture_output=True, text=True, cwd=ROOT,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")


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
def test_the_recipes_resolve_and_their_batches_agree(name):
    file = CONFIGS / f"{name}.yaml"
    job = VARIANTS[name]
    config = parse_config(configs.TrainConfig, job, [str(file)])
    sequences, per_device, workers, accumulated, max_length, epochs = RECIPES[name]
    assert config.batch.rows == sequences == per_device * workers * accumulated
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


@pytest.mark.parametrize("job", ["sft_speculative", "draft_only"])
def test_drafts_at_the_size_of_tiny_a2d_can_be_planned(job):
    from a2d_ray.planning.estimate import plan_run

    file = str(CONFIGS / f"{job}_tiny_a2d.yaml")
    train = parse_config(configs.TrainConfig, job, [file])
    plan = plan_run(configs.PlanConfig(train=train))
    assert (plan.num_workers, plan.num_nodes, train.batch.rows) == (64, 8, 512)
    assert plan.memory[2].total / 2**30 < plan.memory_gib and 0 < plan.hours < 1000
    is_gated = job == "draft_only"
    assert (plan.trained_parameters < plan.parameters / 10) == is_gated
    assert train.objective.clean_attention == "causal" and train.objective.noise == "full"


@pytest.mark.parametrize(
    ("args", "messages"),
    [
        (["optim.lrr=1"], ["optim.lrr=1 is unknown", "did you mean optim.lr?"]),
        (["lr=1"], ["lr=1 is unknown", "optim.lr"]),
        (["objective.block_size=0"], ["objective.block_size=0", "greater than or equal to 1"]),
        (["optim.lr=fast"], ["optim.lr=fast should be a valid number", "Peak learning rate"]),
        (["objective.noise=gauss"], ["objective.noise=gauss", "'exact', 'bernoulli' or 'full'"]),
        (["scaling.use_gpu=maybe"], ["scaling.use_gpu=maybe"]),
        (["data.max_length=500", "objective.block_size=32"], ["data.max_length=500", "multiple"]),
        (["data.tokens_per_row=64"], ["data.tokens_per_row=64", "raise it to"]),
        (["batch.rows=3", "scaling.num_workers=2"], ["batch.rows=3", "scaling.num_workers=2"]),
        (["scaling.num_workers=[1,3]"], ["batch.rows=8", "scaling.num_workers=3", "set 12"]),
        (["scaling.num_workers=[2,1]"], ["scaling.num_workers=[2, 1]", "min <= max"]),
        (["schedule.max_duration=2x"], ["schedule.max_duration=2x"]),
        (["optim.schedule=wsd", "optim.decay=0.99"], ["optim.warmup=0.04", "optim.decay=0.99"]),
        (["model.load_in_4bit=true"], ["model.lora"]),
        (["model.lora.r=0"], ["model.lora.r=0"]),
        (["model.lora.r=4", "model.trainable_layers=2"], ["model.trainable_layers=2"]),
        (["deepspeed.zero_optimization.stage=4"], ["stage=4", "0, 1, 2 or 3"]),
        (["deepspeed.x={a:"], ["deepspeed.x={a: is not valid YAML"]),
        (["deepspeed.zero_optimization=4"], ["deepspeed.zero_optimization=4", "mapping"]),
        (["objective.block_grid=absolute"], ["data.targets=last"]),
        (["deepspeed.gradient_clipping=2"], ["optim.clip_norm"]),
        (["run.name=../x"], ["run.name=../x should match"]),
        (["nowhere.yaml"], ["nowhere.yaml does not exist"]),
        (["--lr", "3"], ["key.sub=value"]),
    ],
)
def test_bad_input_names_key_value_and_fix(args, messages):
    with pytest.raises(ConfigError) as error:
        parse(*args)
    assert all(message in str(error.value) for message in messages), str(error.value)


@pytest.mark.parametrize(
    ("job", "config_class", "arg"),
    [
        ("serve", "ServeConfig", "models.0.load.path=["),
        ("serve", "ServeConfig", "models.0={a: b: c}"),
        ("sft_bd3lm", "TrainConfig", "deepspeed.x={a: 1"),
        ("sft_bd3lm", "TrainConfig", "deepspeed={a: 1"),
        ("sft_bd3lm", "TrainConfig", "model.lora={r: 16"),
        ("sft_bd3lm", "TrainConfig", "objective.block_size=[4, 8"),
        ("sft_bd3lm", "TrainConfig", "optim.betas=[0.9, 0.95"),
        ("sft_bd3lm", "TrainConfig", "deepspeed.x=@y"),
        ("sft_bd3lm", "TrainConfig", 'deepspeed.x="y'),
        ("sft_bd3lm", "TrainConfig", "deepspeed.x=2024-13-45"),
        ("sft_bd3lm", "TrainConfig", "deepspeed.x=" + "[" * 3000),
        ("sample", "SampleConfig", "prompts=[What, now?"),
        ("sample", "SampleConfig", "sampling.logit_bias={70: 100"),
        ("sample", "SampleConfig", "sampling.stop=[a"),
        ("sample", "SampleConfig", "prompts=\udcff"),
    ],
    ids=lambda value: value[:40],
)
def test_text_that_does_not_parse_is_one_line_that_names_the_key(job, config_class, arg):
    with pytest.raises(ConfigError) as error:
        parse_config(getattr(configs, config_class), job, [arg])
    message = str(error.value)
    assert "\n" not in message and (arg.split("=")[0] in message)


@pytest.mark.parametrize(
    ("args", "prompts"),
    [
        (["prompts=What, now?"], ["What, now?"]),
        (["prompts=a,b"], ["a,b"]),
        (["prompts="], [""]),
        (['prompts=["a, b", "c"]'], ["a, b", "c"]),
        (["prompts=[a, b]"], ["a", "b"]),
    ],
)
def test_a_text_is_one_prompt_whatever_is_in_it(args, prompts):
    assert parse_config(configs.SampleConfig, "sample", args).prompts == prompts


def test_whole_numbers_with_exponents_are_numbers_at_every_door(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("schedule: {max_steps: 1e4, save_steps: 2.5e+2}\n")
    typed = parse("schedule.max_steps=1e4", "schedule.save_steps=2.5e2")
    for config in (parse(str(file)), typed):
        assert (config.schedule.max_steps, config.schedule.save_steps) == (10_000, 250)
    assert parse("run.name=1e4").run.name == "1e4"
    with pytest.raises(ConfigError, match=r"schedule\.max_steps=15e-1 should be"):
        parse("schedule.max_steps=15e-1")


@pytest.mark.parametrize("key", ["max-length", "max length", "max.length", "längste"])
def test_a_key_that_is_no_name_is_named_all_the_same(tmp_path, key):
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps({"data": {key: 5}, f"x{key}": 6}))
    with pytest.raises(ConfigError) as error:
        parse(str(file))
    assert f"data.{key}=5 is unknown" in str(error.value) and f"x{key}=6 is" in str(error.value)


def test_sections_and_mappings_are_written_as_in_files():
    config = parse("model.lora={r: 16, alpha: 8}", "deepspeed={zero_optimization: {stage: 1}}")
    assert (config.model.lora.r, config.model.lora.alpha) == (16, 8)
    assert config.deepspeed["zero_optimization"] == {"stage": 1}
    assert parse('model.lora={"r": 4}').model.lora.r == 4
    sample = parse_config(configs.SampleConfig, "sample", ["sampling.logit_bias={70: 100}"])
    assert sample.sampling.logit_bias == {70: 100}


def test_a_fresh_clone_is_told_of_the_quickstart(capsys, tmp_path):
    def find(name):
        with pytest.raises(SystemExit):
            run(lambda: find_directory(name, weights=True))
        return capsys.readouterr().err

    missing = find(f"{tmp_path}/runs/quickstart/train/checkpoint-final")
    assert missing.endswith(
        "does not exist: run make quickstart, or name a model (model.path=...)\n"
    )
    assert find(f"{tmp_path}/runs/mine").endswith("runs/mine does not exist\n")


@pytest.mark.parametrize(
    ("called", "has_clone", "convert", "quickstart"),
    [
        ("jobs/sample.py", True, "python jobs/convert.py", "make quickstart"),
        ("a2d sample", True, "a2d convert", "a2d quickstart"),
        ("/site/worker.py", False, "a2d convert", "a2d quickstart"),
    ],
)
def test_errors_name_jobs_as_the_user_calls_them(
    monkeypatch, tmp_path, called, has_clone, convert, quickstart
):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr(sys, "argv", [called])
    if not has_clone:
        monkeypatch.setattr(commands, "_CLONE", tmp_path)
    with pytest.raises(ValueError, match=f"convert it first with {convert} source="):
        check_checkpoint(tmp_path)
    with pytest.raises(ConfigError, match=f"the form is {convert.replace('convert', 'sample')} "):
        parse_config(configs.SampleConfig, "sample", ["a.yaml", "b.yaml"])
    with pytest.raises(ValueError, match=f"does not exist: run {quickstart}, or name a model"):
        find_directory(f"{tmp_path}/runs/quickstart/train/checkpoint-final", weights=True)


def test_items_of_lists_are_reached_by_number():
    def serve(*args):
        return parse_config(configs.ServeConfig, "serve", args)

    config = serve("models.0.load.path=mine", "models.0.id=m")
    assert (config.models[0].load.path, config.models[0].id) == ("mine", "m")
    for arg, message in (
        ("models.1.load.path=x", "models has the items 0 to 0"),
        ("models.0.load.pth=x", "models.0.load.pth=x is unknown"),
        ("models.0.id=", "models.0.id"),
        ("models.1={}", "models has the items 0 to 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            serve(arg)


def test_every_problem_of_a_file_is_named(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("run: {name: x, nme: y}\nmodel: {path: null}\noptim: {lr: -1}\n")
    with pytest.raises(ConfigError) as error:
        parse(str(file))
    for message in ("run.nme=y", "model.path=null", "optim.lr=-1"):
        assert message in str(error.value)
    with pytest.raises(
        ConfigError, match=r"^model is missing: set it in the YAML file or as model"
    ):
        configs_without_model = {"data": {"spec": "x"}, "objective": {"name": "mdlm"}}
        validate(configs.PrepareConfig, configs_without_model)


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as stop:
        load_config(configs.TrainConfig, "sft_bd3lm", ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for key in ("model.path", "data.spec", "objective.block_size", "optim.lr", "deepspeed"):
        assert key in text
    assert "Tokens per block" in text
    assert "optim.lr=float  (default: 0.0003)" in text  # the job's, not the schema's
    assert "Only with optim.schedule=wsd." in text and "and objective.preset=default." in text


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


@pytest.mark.parametrize("path", sorted((ROOT / "jobs").glob("*.py")), ids=lambda path: path.stem)
def test_jobs_are_thin(path):
    limit = 6 if JOBS.get(path.stem) is configs.TrainConfig else 43
    assert len(path.read_text().splitlines()) <= limit
