"""Planted confidences in place of a model: exact steps, order, tokens per forward and stops."""

import math
from types import SimpleNamespace

import pytest
import torch

from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Engine, Request
from a2d_ray.models.contract import Contract
from tests.tiny import tiny_a2d_model

MASK, EOS, VOCAB = 300, 7, 320


class Oracle:
    """Stands for the model: token 20 + i at answer position i, or EOS, as sure as planted."""

    def __init__(self, num_prompt, confidence, eos_at=None):
        self.num_prompt, self.confidence, self.eos_at = num_prompt, confidence, eos_at
        self.asked = []

    config = SimpleNamespace()

    def base_model(self, position_ids, **_):
        """Hidden states that say where they are."""
        return SimpleNamespace(last_hidden_state=position_ids[..., None].float())

    def logits_of(self, hidden):
        places = [int(position) - self.num_prompt for position in hidden[:, 0]]
        self.asked.append(places)
        rows = torch.zeros(len(places), VOCAB)
        for row, place in zip(rows, places, strict=True):
            p = self.confidence[place % len(self.confidence)]
            others = VOCAB - 2  # neither the token nor the mask, which is never chosen
            row[EOS if place == self.eos_at else 20 + place] = math.log(p / (1 - p) * others)
        return rows


def run(confidence, block_size=8, eos_at=None, **options):
    """Outputs of every round, and the positions that were asked for."""
    contract = Contract(objective="bd3lm", mask_token_id=MASK, block_size=block_size)
    engine = Engine(tiny_a2d_model("llama"), contract, eos_ids={EOS}, max_length=512)
    engine._runner.twin = oracle = Oracle(3, confidence, eos_at)
    engine._runner._logits_of = oracle.logits_of
    params = SamplingParams(**{"max_new_tokens": 16, **options})
    engine.add_request(Request(request_id="a", prompt=[[9, 10, 11]], params=params))
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    assert engine.num_used_kv_tokens == 0
    return outputs, oracle.asked


def emitted(outputs):
    return [list(output.token_ids) for output in outputs]


FALLING = [0.99, 0.98, 0.97, 0.96, 0.4, 0.3, 0.2, 0.1]


@pytest.mark.parametrize(
    ("options", "steps_per_block"),
    [
        ({"threshold": 0.9}, 5),  # four at once, then one by one
        ({"threshold": 0.35}, 4),
        ({"threshold": 0.05}, 1),
        ({"rule": "steps", "steps": 4}, 2),
        ({"rule": "steps"}, 8),
        ({"rule": "prefix", "threshold": 0.25}, 3),
        ({"rule": "factor", "factor": 0.19}, 6),  # (4 + 1)(1 - 0.96) = 0.2: three, one by one
    ],
)
def test_rules_take_the_steps_that_the_confidences_ask_for(options, steps_per_block):
    outputs, _ = run(FALLING, **options)
    assert len(outputs) == outputs[-1].num_denoise_steps == 2 * steps_per_block
    assert [token for new in emitted(outputs) for token in new] == [20 + i for i in range(16)]
    assert outputs[-1].finish_reason == "length"


def test_a_token_goes_out_when_all_before_it_are_known():
    outputs, asked = run(FALLING[::-1], threshold=0.35, max_new_tokens=8)
    # The right half is sure at once but waits for the left one, which comes from the right.
    assert emitted(outputs) == [[], [], [], [20 + i for i in range(8)]]
    assert asked == [list(range(8)), [0, 1, 2], [0, 1], [0]]
    assert outputs[0].canvas == (None, None, None, 23, 24, 25, 26, 27)
    assert outputs[0].canvas_confidence[3:] == pytest.approx(FALLING[::-1][3:], abs=1e-5)


def test_an_end_in_the_final_prefix_stops_before_the_rest_is_denoised():
    outputs, _ = run(FALLING, threshold=0.9, eos_at=2)
    assert emitted(outputs) == [[20, 21]] and outputs[-1].finish_reason == "stop"


def test_an_end_behind_an_open_position_waits():
    outputs, _ = run(FALLING[::-1], threshold=0.35, eos_at=5)
    assert emitted(outputs) == [[], [], [], [20, 21, 22, 23, 24]]
    assert outputs[-1].finish_reason == "stop"
