"""The suites `learning`, `answers` and `quality`: what their contenders are given."""

import time

import pytest
import torch

from a2d_ray.config import BenchmarkConfig
from benchmarks import answers
from benchmarks.ar_baseline import UNTRAINED, ar_model, kept_or_made, padded_documents
from benchmarks.learning import DEFAULT, VARIANTS, run_config
from tests.closeness import assert_close
from tests.rows import MIXED, packed_row, split_documents


@pytest.mark.parametrize("name", VARIANTS)
def test_contenders_differ_only_as_named(name, tmp_path):
    """All see about as many documents a step, with the same optimizer and blocks."""
    ours, other = run_config(tmp_path, DEFAULT), run_config(tmp_path, name)
    assert other.optim == ours.optim and other.objective.block_size == ours.objective.block_size
    assert other.data.spec == ours.data.spec and other.data.max_length == ours.data.max_length
    assert (other.objective != ours.objective) == bool(VARIANTS[name][0])
    assert (other.model != ours.model) == VARIANTS[name][1]


def test_contenders_for_answers_see_the_same_rows(tmp_path):
    runs = {name: answers.run_config(tmp_path, name, tmp_path) for name in answers.OBJECTIVES}
    joint = runs.pop("joint")
    for name, run in runs.items():
        assert (run.data, run.batch) == (joint.data, joint.batch)
        is_frozen = run.model.lora is not None
        assert is_frozen == (name == "gated") and is_frozen == (run.model.trainable_layers is None)
    with pytest.raises(ValueError, match=r"cases: \['nonsense'\] unknown, choose from \['ar', "):
        next(answers.run(BenchmarkConfig(suite="answers", cases=["nonsense"])))


def test_padded_documents_are_the_packed_ones():
    row = packed_row(MIXED)
    ids_DL, labels_DL, is_real_DL = padded_documents([row, row])
    documents = split_documents(row) * 2
    assert len(ids_DL) == len(documents)
    for ids, labels, is_real, document in zip(
        ids_DL, labels_DL, is_real_DL, documents, strict=True
    ):
        length = len(document.ids_C)
        assert is_real.tolist() == [1] * length + [0] * (len(ids) - length)
        assert torch.equal(ids[:length], document.ids_C)
        expected = torch.where(document.is_target_C, document.ids_C, UNTRAINED)
        assert torch.equal(labels[:length], expected)
        assert (labels[length:] == UNTRAINED).all()


def test_the_ar_model_is_the_original(tmp_path):
    """Its logits are those of the checkpoint that was converted."""
    from a2d_ray import convert
    from a2d_ray.models.architectures import find_architecture
    from tests.tiny import save_tiny_ar

    source = save_tiny_ar(tmp_path / "ar")
    convert(str(source), tmp_path / "a2d")
    row = find_architecture("llama")
    assert row is not None
    original = row.ar_model_class.from_pretrained(source, dtype=torch.float32)
    model = ar_model(tmp_path / "a2d", torch.float32)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        ours, theirs = (of(ids).logits[..., :90] for of in (model, original))
    assert_close(ours, theirs)


def test_a_fine_tuned_model_is_kept_for_those_who_ask_for_the_same(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.tiny import save_tiny_ar

    source, made = save_tiny_ar(tmp_path / "ar"), []

    def make():
        made.append(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32))
        return made[-1], {"steps": len(made)}

    def ask(**asked):
        return kept_or_made(tmp_path / "kept", asked, make, AutoTokenizer.from_pretrained(source))

    first, facts = ask(cpu_s=4)
    again, same = ask(cpu_s=4)
    assert facts == same == {"cpu_s": 4, "steps": 1} and len(made) == 1
    assert again.dtype == torch.bfloat16
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert ask(cpu_s=5)[1] == ask(cpu_s=5)[1] == {"cpu_s": 5, "steps": 2}


def test_a_budget_is_spent_in_cpu_seconds_and_the_schedule_follows_it():
    from benchmarks.bare_training import SCHEDULE_PLACES, within_budget

    started, steps = time.process_time(), []
    for step in within_budget(0.2):
        steps.append(step)
        sum(range(100_000))
        time.sleep(0.002)  # costs no CPU time
    assert time.process_time() - started >= 0.2
    numbers, places = zip(*steps, strict=True)
    assert list(numbers) == list(range(len(steps))) and len(steps) > 2
    assert places[0] == 0 and list(places) == sorted(places) and places[-1] < SCHEDULE_PLACES
    assert list(within_budget(0.0)) == []
