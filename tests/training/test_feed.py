"""Steps that are made ready beside the one that runs are the steps, in order; errors come out."""

import threading
import time

import pytest
import torch

from a2d_ray.config import TrainConfig
from a2d_ray.diffusion.tensors import Tensors
from a2d_ray.training.batches import StepBuilder
from a2d_ray.training.feed import ReadyStep, StepFeed
from tests.closeness import assert_close
from tests.diffusion.test_objectives import gradients
from tests.rows import MIXED, packed_row, split_documents
from tests.tiny import tiny_a2d_model
from tests.training.modules import module_of


def ready(batch, step):
    return ReadyStep(micros=[(batch, step)], counts=torch.tensor([float(step)]), limit=1.0)


def run(feed, num_steps):
    """As the loop takes them: each step is begun while the one before runs."""
    taken = []
    with feed:
        while (step := feed.take()) is not None:
            if len(taken) + 1 < num_steps:
                feed.begin()
            ahead = feed.ahead()
            assert ahead is feed.ahead()  # it is still to be taken
            taken.append(step.micros[0])
    return taken


@pytest.mark.parametrize("looks_ahead", [True, False])
@pytest.mark.parametrize("first", [0, 3])
def test_every_step_comes_once_and_in_order(looks_ahead, first):
    rows = iter("abcdefg"[first:])
    feed = StepFeed(rows, ready, first, looks_ahead=looks_ahead)
    assert run(feed, 7 - first) == list(zip("abcdefg"[first:], range(first, 7), strict=True))


def test_a_step_is_made_while_another_runs():
    threads = set()

    def slow(batch, step):
        threads.add(threading.current_thread().name)
        time.sleep(0.2)
        return ready(batch, step)

    feed = StepFeed(iter("ab"), slow, 0, looks_ahead=True)
    with feed:
        feed.take()
        assert feed.spent()[1] >= 0.2
        feed.begin()
        time.sleep(0.4)  # the step runs
        feed.ahead()
        assert feed.spent()[1] < 0.1
    assert len(threads) == 2


def test_an_error_is_raised_where_its_step_is_taken_and_the_thread_ends():
    def fails(batch, step):
        if step == 1:
            raise ValueError("a packed row holds a document without targets")
        return ready(batch, step)

    before = threading.active_count()
    taken = []
    with (
        pytest.raises(ValueError, match="without targets"),
        StepFeed(iter("abc"), fails, 0, looks_ahead=True) as feed,
    ):
        taken.append(feed.take())
        feed.begin()
        taken.append(feed.ahead())
    assert len(taken) == 1 and threading.active_count() == before


def test_a_run_that_stops_leaves_no_thread_and_waits_for_none_in_vain():
    before = threading.active_count()
    with StepFeed(iter("abc"), ready, 0, looks_ahead=True) as feed:
        feed.take()
        feed.begin()  # and a signal ends the run
    assert threading.active_count() == before


def steps_of(looks_ahead, module, builder):
    """Losses and weights of three steps of the real builder, plans made beside."""
    rows = [split_documents(packed_row(MIXED, seed=step)) for step in range(3)]

    def make_ready(batch, step):
        micros = builder.micros(batch, torch.full((len(batch),), step))
        planned = [(layout, noise, module.plan(layout, noise)) for layout, noise in micros]
        return ReadyStep(micros=planned, counts=builder.counts(planned), limit=1.0)

    losses = []
    with StepFeed(iter(rows), make_ready, 0, looks_ahead=looks_ahead) as feed:
        while (step := feed.take()) is not None:
            feed.begin()
            module.zero_grad()
            for parts in step.micros:
                loss = module(*parts).loss / step.counts[0]
                loss.backward()
                losses.append(loss.detach())
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter -= 0.1 * parameter.grad
    return losses, [p.detach() for p in module.parameters()]


def test_with_and_without_the_thread_a_run_is_the_same_bit_for_bit(make_builder):
    results = [
        steps_of(looks_ahead, module_of(tiny_a2d_model("llama").train()), make_builder())
        for looks_ahead in (True, False)
    ]
    for ours, expected in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


@pytest.fixture
def make_builder(make_config):
    class Tokenizer:
        eos_token_id, bos_token_id = 2, 1

    config: TrainConfig = make_config("feed")
    return lambda: StepBuilder.of(config, Tokenizer(), rows_per_epoch=8, rows_per_micro=2)


def test_a_plan_changes_no_bit_and_is_pinned_as_one(make_builder):
    layout, noise = make_builder().micros(
        split_documents(packed_row(MIXED)), torch.zeros(4, dtype=torch.int64)
    )[0]
    results = []
    for is_planned in (False, True):
        module = module_of(tiny_a2d_model("llama"))
        plan = module.plan(layout, noise) if is_planned else None
        loss = module(layout, noise, plan).loss
        results.append([loss, *gradients(module, loss).values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    moved = []
    plan.moved(lambda x: moved.append(x) or x)
    assert len(moved) == 6 + 8 and isinstance(plan.reads, Tensors)
    assert_close(plan.reads.weight_L, noise.weight_RT[noise.is_masked_RT])
