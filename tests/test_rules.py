"""A decoding rule is written once: every door knows it, and refuses in the same words."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from pydantic import ValidationError

from a2d_ray import SamplingParams
from a2d_ray.cli import load_config, parse_config, to_yaml
from a2d_ray.config import (
    AR_RULES,
    OPTION_NAMES,
    RULES,
    EvaluatedTask,
    FrontierConfig,
    RuleOptions,
    SampleConfig,
    SamplingSection,
    override,
)
from a2d_ray.config.errors import OptionError
from a2d_ray.diffusion.rules import SELECTORS, Masked
from a2d_ray.evaluation.backends.endpoint import request_body
from a2d_ray.evaluation.harness.options import read_options, read_task_options
from a2d_ray.http.problems import to_request_error
from a2d_ray.serving.openai.options import DiffusionOptions
from a2d_ray.serving.openai.protocol import CompletionRequest

ROOT = Path(__file__).parent.parent
DEFAULTS = RuleOptions().model_dump()


def in_python(options, path):
    return SamplingParams(**options)


def in_yaml(options, path):
    path.write_text(yaml.safe_dump({"model": {"path": "x"}, "sampling": options}))
    return parse_config(SampleConfig, "sample", [str(path)]).sampling


def on_the_command_line(options, path):
    path.write_text("model: {path: x}")
    args = [f"sampling.{name}={value}" for name, value in options.items()]
    return parse_config(SampleConfig, "sample", [str(path), *args]).sampling


def over_http(options, path):
    try:
        body = {"model": "m", "prompt": "p", "diffusion": options}
        request = CompletionRequest.model_validate(body)
    except ValidationError as error:
        problems = [p | {"loc": ("body", *p["loc"])} for p in error.errors()]
        raise ValueError(to_request_error(problems).message) from None
    return request.params(SamplingSection(rule="steps", steps=3), seed=0)


def in_the_harness(options, path):
    given = read_options({"pretrained": "x", **options}).sampling
    return SamplingParams(**override(read_task_options({"steps": 3}), given))


def of_a_task(options, path):
    return SamplingParams(**read_task_options(options))


def in_a_suite(options, path):
    task = EvaluatedTask(task="t", metric="acc,none", sampling=options)
    return SamplingParams(**task.sampling)


DOORS = [
    in_python,
    in_yaml,
    on_the_command_line,
    over_http,
    in_the_harness,
    of_a_task,
    in_a_suite,
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"steps": 16}, "steps"),
        ({"remasking": "random"}, "steps"),
        ({"threshold": 0.5}, "threshold"),
        ({"factor": 1.0}, "factor"),  # its default, but asked for
        ({"gamma": 0.5}, "entropy_bound"),
        ({"threshold": 0.5, "kl_threshold": 0.1}, "klass"),
        ({"entropy_slope": 0.1}, "entropy"),
        ({"rule": "prefix", "threshold": 0.5}, "prefix"),
    ],
)
def test_options_without_a_rule_mean_the_first_rule_that_knows_them(door, options, rule, tmp_path):
    found = door(options, tmp_path / "job.yaml")
    assert found.rule == rule
    assert {name: getattr(found, name) for name in options} == options


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"rule": "threshold", "factor": 2.0},
            "factor=2.0 has no effect with rule=threshold: set rule=factor, or leave factor out",
        ),
        (
            {"rule": "steps", "threshold": 0.5},
            "threshold=0.5 has no effect with rule=steps: set rule=threshold or prefix or klass, "
            "or leave threshold out",
        ),
        ({"steps": 16, "gamma": 0.5}, "gamma=0.5 has no effect with rule=steps: set rule="),
        ({"factor": -1.0}, "factor"),
    ],
)
def test_an_option_of_another_rule_is_refused_in_the_same_words(door, options, words, tmp_path):
    with pytest.raises(ValueError) as refusal:
        door(options, tmp_path / "job.yaml")
    place = re.compile(r"\b(sampling|diffusion)\.")  # where the options stand at this door
    assert words in place.sub("", str(refusal.value))


@pytest.mark.parametrize(
    ("options", "field"),
    [({"tempratur": 1.0}, "tempratur"), ({"rule": "factor", "steps": 3}, "steps"), ({"n": 0}, "n")],
)
def test_a_refusal_carries_field_value_and_fix(options, field):
    with pytest.raises(OptionError) as refusal:
        SamplingParams(**options)
    error = refusal.value
    assert (error.field, error.value) == (field, options[field]) and error.fix
    assert str(error).startswith(f"{field}={options[field]} ")


@pytest.mark.parametrize("rule", RULES)
def test_a_complete_dump_can_be_read_again(rule, tmp_path):
    """All options are in it, those of other rules with their defaults."""
    changed = {"threshold": 0.5, "steps": 7, "factor": 2.0, "remasking": "random"}
    own = {name: value for name, value in changed.items() if name in RULES[rule]}
    params = SamplingParams(rule=rule, **own)
    assert SamplingParams(**params.model_dump()) == params
    assert SamplingSection.model_validate_json(params.model_dump_json()) == SamplingSection(
        rule=rule, **own
    )
    config = SampleConfig.model_validate({"model": {"path": "x"}, "sampling": params.model_dump()})
    (tmp_path / "job.yaml").write_text(to_yaml(config))
    assert parse_config(SampleConfig, "sample", [str(tmp_path / "job.yaml")]) == config
    copied = params.model_copy(update={"max_new_tokens": 3})
    assert SamplingParams(**copied.model_dump()) == copied


@pytest.mark.parametrize("rule", RULES)
def test_an_endpoint_is_asked_for_the_rule_and_its_options(rule):
    for served in (SamplingSection(), SamplingSection(rule="factor", factor=3.0)):
        defaults = json.loads(served.model_dump_json())
        card = {"block_size": 4, "defaults": defaults, "lossless": "own"}
        body = request_body(SamplingParams(rule=rule, max_new_tokens=8), card)
        asked = body["extra_body"]["diffusion"]
        named = {name for name in RULES[rule] if name != "draft_tokens"}  # the engine's choice
        assert asked.keys() - {"remask_threshold", "block_size"} == {"rule", *named}
        request = CompletionRequest(model="m", prompt="p", diffusion=asked)
        found = request.params(served, seed=0)
        wanted = {"steps": 8} if rule == "steps" else {}
        block = {} if rule in ("auto", *AR_RULES) else {"block_size": 4}
        assert found == SamplingParams(rule=rule, **block, **wanted)


def test_what_changes_chooses_the_rule_and_drops_what_another_one_knew():
    before = SamplingParams(rule="klass", threshold=0.5, kl_threshold=0.2, temperature=1.0)

    def changed(**changes):
        return SamplingParams(**override(before.model_dump(), changes))

    assert changed() == before
    assert changed(top_k=3) == before.model_copy(update={"top_k": 3})
    assert changed(threshold=0.6) == before.model_copy(update={"threshold": 0.6})
    assert changed(rule="prefix") == SamplingParams(rule="prefix", threshold=0.5, temperature=1.0)
    assert changed(steps=4) == SamplingParams(rule="steps", steps=4, temperature=1.0)
    with pytest.raises(OptionError, match=r"factor=2\.0 has no effect with rule=klass"):
        changed(rule="klass", factor=2)
    with pytest.raises(OptionError, match="rule=magic"):
        changed(rule="magic")


def test_points_of_a_frontier_stand_over_the_options_of_its_task():
    values = {"name": "f", "model": {"path": "x"}, "points": [{"threshold": 0.5}, {"steps": 8}]}
    task = {"task": "t", "metric": "acc,none", "sampling": {"rule": "steps", "steps": 4}}
    FrontierConfig.model_validate(values | {"tasks": [task]})
    bad = values | {"tasks": [task], "points": [{"threshold": 0.5}, {"steps": 8, "gamma": 0.2}]}
    with pytest.raises(ValueError, match=r"points\.1\.gamma=0.2 has no effect with points"):
        FrontierConfig.model_validate(bad)


def test_the_command_line_chooses_over_the_files(tmp_path):
    assert parse_config(SampleConfig, "sample", ["sampling.steps=16"]).sampling.rule == "steps"
    file = tmp_path / "mine.yaml"
    file.write_text("sampling: {rule: factor, factor: 2.0}\n")
    chosen = parse_config(SampleConfig, "sample", [str(file), "sampling.rule=steps"]).sampling
    assert (chosen.rule, chosen.factor) == ("steps", 1.0)
    with pytest.raises(ValueError, match=r"sampling\.steps=16 has no effect with sampling\.rule"):
        parse_config(SampleConfig, "sample", [str(file), "sampling.steps=16"])


def test_help_tells_which_rule_knows_an_option(capsys):
    with pytest.raises(SystemExit):
        load_config(SampleConfig, "sample", ["--help"])
    text = capsys.readouterr().out
    assert "sampling.kl_threshold=float  (default: 0.01)" in text
    assert "Largest change between steps, nats of KL (rule klass)." in text
    assert "(rule threshold, prefix, klass)." in text


def test_the_halves_of_the_registry_name_the_same_rules():
    assert {"auto", *SELECTORS} == RULES.keys()
    assert {name for known in RULES.values() for name in known} == set(OPTION_NAMES)
    assert set(OPTION_NAMES) <= DiffusionOptions.model_fields.keys()
    formulas = (ROOT / "docs" / "algorithm.md").read_text()
    assert [rule for rule in RULES if f"\n| `{rule}`: " not in formulas] == []


@pytest.mark.parametrize("rule", SELECTORS)
def test_a_rule_reads_its_own_options_and_commits_something(rule):
    logits = torch.randn(8, 30, generator=torch.Generator().manual_seed(0))
    confidence = logits.softmax(-1).amax(-1).view(2, 4)
    masked = Masked(
        is_masked_RB=torch.ones(2, 4, dtype=torch.bool),
        confidence_RB=confidence,
        position_RB=torch.arange(8).view(2, 4),
        order_RB=confidence,
        count_R1=torch.tensor([[2], [1]]),
        is_kept_RB=torch.zeros(2, 4, dtype=torch.bool),
        num_stable_RB=torch.zeros(2, 4, dtype=torch.int64),
        logits_NV=logits,
        place_N=torch.arange(8),
    )
    options = {n: v for n in RULES[rule] if isinstance(v := DEFAULTS[n], float)}
    columns = {name: torch.tensor([[value]] * 2) for name, value in options.items()}
    chosen = SELECTORS[rule](masked, SimpleNamespace(**columns))
    assert chosen.dtype == torch.bool and chosen.shape == (2, 4) and chosen.any(1).all()


ROW = '    "novel": ("novel_threshold",),\n'
OPTION = '    novel_threshold: float = Field(0.2, ge=0, le=1, description="Least novelty")\n\n'
SELECTOR = '    "novel": lambda masked, options: masked.order_RB > options.novel_threshold,\n'


def insert(path: Path, line: str, before: str) -> None:
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, line + before, 1))


def test_a_new_rule_is_known_at_every_door(tmp_path):
    """Its row, its option and its function, in a copy of the package; nothing else."""
    package = shutil.copytree(ROOT / "a2d_ray", tmp_path / "a2d_ray")
    insert(package / "config" / "rules.py", ROW, before='}\n"""The options')
    insert(package / "config" / "rules.py", OPTION, before="    @model_validator")
    insert(package / "diffusion" / "rules.py", SELECTOR, before='}\n"""The rules')
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "new_rule.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "known"
