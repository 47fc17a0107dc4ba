"""Roll-outs are drawn by exact likelihoods, repeat themselves, and follow the weights."""

import numpy as np
import pytest
import torch

from a2d_ray.diffusion.policy import PolicySpec, answer_terms, group_advantages
from a2d_ray.rl.credit import Scored, rollout_micros
from a2d_ray.rl.module import PolicyModule
from a2d_ray.rl.order import PromptOrder, greedy_request, group_requests
from a2d_ray.rl.prompts import read_prompt_rows
from a2d_ray.rl.worker import RolloutWorker, to_arrays
from a2d_ray.training.assembly import build_module, load_model
from a2d_ray.training.batches import StepBuilder
from tests.rl.judges import share_of_small

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(optim={"lr": 1e-3})


@pytest.fixture(scope="module")
def worker(config):
    return RolloutWorker(config.model_dump(mode="json"), "cpu")


@pytest.fixture(scope="module")
def prompts(config):
    return read_prompt_rows(config).of("train")


def requests_of(prompts, config, step=0):
    return [
        request
        for index, prompt in enumerate(prompts)
        for request in group_requests(prompt, (step, 0, index), config)
    ]


def test_a_roll_outs_log_probabilities_are_those_of_the_module_that_trains(config, worker, prompts):
    """Sampling reads a KV cache token by token, or several with drafts; training one layout."""
    rollouts = worker.draw(requests_of(prompts[:3], config)).rollouts
    assert len({rollout.ids for rollout in rollouts}) > 6
    assert {rollout.is_complete for rollout in rollouts} == {True, False}
    batch = [
        Scored(prompt=prompts[i // 4], choice=i % 4, rollout=rollout, reward=0, advantage=0)
        for i, rollout in enumerate(rollouts)
    ]
    loaded, _ = load_model(config, CPU, None)
    module = build_module(loaded, config, CPU).eval()
    builder = StepBuilder.of(config, loaded.tokenizer, rows_per_epoch=1, rows_per_micro=4)
    for layout, noise, credit in rollout_micros(batch, 3, builder):
        hidden = module.backbone(torch.where(noise.is_masked_RT, 256 + 3, layout.ids_RT), layout)
        mask_id = loaded.contract.mask_token_id
        terms = answer_terms(layout, noise, hidden, module.head, mask_id)
        old_N = credit.old_RT[terms.picked]
        assert (terms.logp_N - old_N).abs().max() < 1e-4 and old_N.min() < -2


def test_drafts_change_no_roll_out(make_config, config, worker, prompts):
    plain = make_config(
        rollout={"sampling": {"rule": "ar", "temperature": 1.0, "max_new_tokens": 12}}
    )
    by_ar = worker.draw(requests_of(prompts[:2], plain)).rollouts
    by_drafts = worker.draw(requests_of(prompts[:2], config)).rollouts
    assert [r.ids for r in by_ar] == [r.ids for r in by_drafts]
    assert sum(r.num_steps for r in by_drafts) < sum(r.num_steps for r in by_ar)


def test_a_step_draws_the_same_again_and_another_step_draws_anew(config, worker, prompts):
    first, again, later = (
        [r.ids for r in worker.draw(requests_of(prompts[:2], config, step)).rollouts]
        for step in (0, 0, 1)
    )
    assert first == again and first != later
    alone = worker.draw(requests_of(prompts[:2], config)[5:6]).rollouts
    assert alone[0].ids == first[5]  # whoever is beside it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_weights_decide_at_once(config, prompts, dtype):
    worker = RolloutWorker(config.model_dump(mode="json"), "cpu")
    requests = [greedy_request(prompts[0], config)]
    before = worker.draw(requests).rollouts[0]
    loaded, _ = load_model(config, CPU, None)
    changed = {n: (1.5 * p.detach()).to(dtype) for n, p in loaded.model.named_parameters()}
    arrays = to_arrays(changed)
    for array in arrays.values():
        array.setflags(write=False)  # as Ray's object store gives them
    worker.load(arrays, 1)
    after = worker.draw(requests).rollouts[0]
    assert before.logprobs != after.logprobs and (before.version, after.version) == (0, 1)
    with pytest.raises(RuntimeError, match="update 2 did not arrive: those of 1"):
        worker.draw(requests, 2)
    worker.load({n: p.detach() for n, p in loaded.model.named_parameters()}, 2)
    assert worker.draw(requests).rollouts[0].ids == before.ids


def test_every_prompt_is_asked_once_an_epoch_whatever_is_replaced(prompts):
    order = PromptOrder(prompts=prompts[:12], groups=3, resample=1, seed=5)
    asked = [p.id for step in range(2) for turn in (0, 1) for p in order.at(step, turn, 3)]
    assert sorted(asked) == sorted(p.id for p in prompts[:12])
    assert order.at(1, 1, 2) == order.at(1, 1, 3)[:2]
    second = [p.id for step in (2, 3) for turn in (0, 1) for p in order.at(step, turn, 3)]
    assert sorted(second) == sorted(asked) and second != asked


def test_thirty_plain_steps_raise_the_reward_and_drafts_follow(make_config, prompts):
    """Drawing, judging, learning and drawing with what was learned, without Ray or DeepSpeed."""
    config = make_config()
    worker = RolloutWorker(config.model_dump(mode="json"), "cpu")
    loaded, _ = load_model(config, CPU, None)
    module = PolicyModule(build_module(loaded, config, CPU), PolicySpec(draft_weight=0.1), None)
    builder = StepBuilder.of(config, loaded.tokenizer, rows_per_epoch=1, rows_per_micro=16)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    rewards, lengths = [], []
    for step in range(30):
        rollouts = worker.draw(requests_of(prompts[:4], config, step)).rollouts
        texts = [loaded.tokenizer.decode(r.ids, skip_special_tokens=True) for r in rollouts]
        reward_GS = torch.tensor([share_of_small(text, None) for text in texts]).view(4, 4)
        gains = group_advantages(reward_GS).flatten().tolist()
        batch = [
            Scored(prompt=prompts[i // 4], choice=i % 4, rollout=r, reward=0, advantage=gains[i])
            for i, r in enumerate(rollouts)
        ]
        ((layout, noise, credit),) = rollout_micros(batch, step, builder)
        optimizer.zero_grad()
        (module(layout, noise, credit).loss / layout.num_targets).backward()
        optimizer.step()
        worker.load({name: p.detach() for name, p in loaded.model.named_parameters()}, step + 1)
        rewards.append(reward_GS.mean().item())
        lengths.append(sum(len(r.ids) for r in rollouts) / sum(r.num_steps for r in rollouts))
    assert sum(rewards[-5:]) > sum(rewards[:5]) + 1.0, rewards
    assert sum(lengths[-5:]) > sum(lengths[:5]), lengths


def test_rows_end_with_the_end_of_turn_and_hold_the_prompt(config, worker, prompts):
    from a2d_ray.rl.credit import packed_row

    rollout = worker.draw(requests_of(prompts[:1], config)).rollouts[0]
    scored = Scored(prompt=prompts[0], choice=0, rollout=rollout, reward=1.0, advantage=0.5)
    row = packed_row(scored)
    ids = [*sum(prompts[0].segments, ()), *rollout.ids]
    assert row.ids_C.tolist() == ids
    assert row.is_target_C.sum() == len(rollout.ids)
    assert np.all(row.ids_C[row.is_target_C].numpy() == rollout.ids)
