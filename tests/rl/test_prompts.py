"""Prompts of a mixture, and what is refused before anything starts."""

import json

import pytest

from a2d_ray.rl.prompts import PromptSet, read_prompt_rows


def test_prompts_are_the_rows_without_their_answers(make_config):
    found = read_prompt_rows(make_config())
    train, test = found.of("train"), found.of("test")
    assert len(train) + len(test) == 60 and 3 <= len(test) <= 12 and not found.dropped
    assert len({row.id for row in found.rows}) == 60
    assert sorted(int(row.reference) for row in found.rows) == list(range(60))
    again = PromptSet.load(found.dump())
    assert again.rows == found.rows


def test_a_column_is_the_answer_and_long_prompts_are_left_out(make_config, tmp_path):
    named = read_prompt_rows(make_config(rl={"answer_column": "points"}))
    assert {row.reference for row in named.rows} == {0, 1, 2}
    rows = [{"q": "x" * (4 * i), "tests": [i, {"a": None}]} for i in range(12)]
    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows[1:], rows[1]])))
    own = {"spec": f"{file}[test:0]", "text_field": "q"}
    found = read_prompt_rows(make_config(data=own, rl={"answer_column": "tests"}))
    assert [row.reference for row in found.rows][:2] == [[1, {"a": None}], [2, {"a": None}]]
    assert sorted(found.dropped.values()) == [1, 11 - len(found.rows)]


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"rl": {"answer_column": "nobody"}}, ["rl.answer_column=nobody", "points"]),
        ({"data": {"text_field": "question"}}, ["rl.answer_column=null", "name the column"]),
        ({"batch": {"rows": 4000}}, ["prompts, and a step asks 1000", "lower batch.rows"]),
    ],
)
def test_prompts_that_cannot_be_asked(make_config, changes, messages):
    with pytest.raises(ValueError) as refused:
        read_prompt_rows(make_config(**changes))
    assert all(message in str(refused.value) for message in messages), refused.value


SAMPLING = {"rule": "ar", "temperature": 1.0, "max_new_tokens": 12}
PLAIN = {"ar_loss_weight": 0.0, "clean_attention": "block", "first_block": "whole"}


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"rollout": {"sampling": SAMPLING | {"top_p": 0.9}}}, ["sampling.top_p=0.9", "leave it"]),
        ({"rollout": {"sampling": SAMPLING | {"temperature": 0.5}}}, ["set temperature=1"]),
        ({"rollout": {"sampling": SAMPLING | {"seed": 4}}}, ["sampling.seed=4", "run.seed"]),
        ({"rollout": {"staleness": 2}}, ["staleness=2", "placement=separate"]),
        ({"batch": {"rows": 10}}, ["batch.rows=10", "rl.group_size=4", "set 12"]),
        ({"data": {"packing": True}}, ["data.packing=false"]),
        ({"model": {"lora": {"r": 4}}}, ["model.lora=null"]),
        ({"objective": {"ar_loss_weight": 0.0}}, ["objective.ar_loss_weight=1"]),
        ({"rl": {"likelihood": "nelbo"}}, ["ratio=token", "rl.ratio=sequence"]),
        ({"rl": {"reward": {"kind": "regex"}}}, ["needs rl.reward.pattern"]),
        ({"rl": {"reward": {"kind": "exact", "pattern": "x"}}}, ["pattern=x", "regex"]),
        ({"rl": {"reward": {"kind": "regex", "pattern": "("}}}, ["regular expression"]),
        ({"schedule": {"keep_best": True}}, ["schedule.keep_best=false"]),
    ],
)
def test_configurations_that_do_not_go_together(make_config, changes, messages):
    with pytest.raises(ValueError) as refused:
        make_config(**changes)
    assert all(message in str(refused.value) for message in messages), refused.value


def test_exact_likelihoods_need_an_ar_mode(make_config, gym, tmp_path, no_ray):
    import shutil

    from a2d_ray.rl import build_rl_trainer

    plain = shutil.copytree(gym / "a2d", tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    config["a2d"] |= {"ar_mode": None, "objective": "bd3lm"}
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"rl\.likelihood=exact needs an AR mode.*nelbo"):
        build_rl_trainer(make_config(model={"path": str(plain)}))


def test_supervised_jobs_do_not_take_the_section(make_config):
    from a2d_ray.training import build_trainer

    with pytest.raises(ValueError, match=r"use python jobs/rl\.py"):
        build_trainer(make_config())
