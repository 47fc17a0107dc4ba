"""What two ranks send in a step, by ZeRO stage and micro-batches: counted on gloo."""

import pytest
import torch
import torch.distributed as dist

from tests.closeness import assert_close
from tests.training.test_engine import train, weights_of
from tests.training.two_ranks import on_two_ranks

OVERLAPPED = {"overlap_comm": True, "reduce_bucket_size": 3_000}  # the model has 27,000
CASES = {
    "stage 2, one": (2, 1, {}),
    "stage 2, two": (2, 2, {}),
    "stage 2, two, overlapped": (2, 2, OVERLAPPED),
    "stage 1, two": (1, 2, {}),
}


class Sent:
    """Bytes of gradients that are reduced, in the backward and behind it, and of weights."""

    def __init__(self):
        self.in_backward = self.behind = self.gathered = 0
        self._reduce, self._gather = dist.all_reduce, dist.all_gather_into_tensor

    def all_reduce(self, tensor, *args, **kwargs):
        if tensor.numel() > 100:  # others are norms and flags
            is_backward = torch._C._current_graph_task_id() != -1
            name = "in_backward" if is_backward else "behind"
            setattr(self, name, getattr(self, name) + 4 * tensor.numel())
        return self._reduce(tensor, *args, **kwargs)

    def all_gather(self, *args, **kwargs):
        output = args[0] if args else kwargs["output_tensor"]
        self.gathered += 4 * output.numel()
        return self._gather(*args, **kwargs)


def _steps(rank):
    """Of each case: what two steps send, and the weights after them."""
    results = {}
    sent = Sent()
    dist.all_reduce, dist.all_gather_into_tensor = sent.all_reduce, sent.all_gather
    for name, (stage, num_micro, zero) in CASES.items():
        engine, _ = train(stage, num_micro, num_steps=2, **zero)
        found = [sent.in_backward, sent.behind, sent.gathered]
        sent.in_backward = sent.behind = sent.gathered = 0
        size = sum(4 * p.numel() for p in engine.module.parameters())
        results[name] = [x / (2 * size) for x in found], weights_of(engine)
    return results


@pytest.mark.slow
def test_stage_1_reduces_once_a_step_and_stage_2_once_a_micro_batch(tmp_path):
    """In passes over all gradients; some travel while a backward runs, where that is asked."""
    results = on_two_ranks(_steps, tmp_path)[0]
    passes = {name: [round(x, 2) for x in found] for name, (found, _) in results.items()}
    for name, (in_backward, behind, gathered) in passes.items():
        num_reduced = 2 if name.startswith("stage 2, two") else 1
        assert abs(in_backward + behind - num_reduced) < 0.05 and abs(gathered - 1) < 0.05, name
        assert (in_backward > 0.5 * num_reduced) == ("overlapped" in name), (name, in_backward)
    expected = results["stage 2, one"][1]
    for _, weights in results.values():
        assert_close(weights, expected)
