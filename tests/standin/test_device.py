"""The stand-in device refuses, computes and counts as an accelerator would."""

import pytest
import torch

from tests.standin.device import DEVICE, kernel


@pytest.fixture
def device():
    with DEVICE.present() as device:
        yield device


def test_values_are_those_of_the_cpu_and_mixing_is_refused(device):
    host = torch.arange(6.0).view(2, 3)
    x = host.to(device)
    assert x.device == device and torch.equal((x @ x.T).cpu(), host @ host.T)
    assert torch.equal(torch.stack([x, x])[1].cpu(), host)
    x[0, 1] = 7.0
    assert x.cpu()[0].tolist() == [0.0, 7.0, 2.0] and host[0, 1] == 1
    with pytest.raises(RuntimeError, match="same device"):
        x + host
    with pytest.raises(RuntimeError, match="same device"):
        host[torch.tensor([0]).to(device)]


def test_views_are_free_and_share_their_values(device):
    with DEVICE.counting() as counts:
        x = torch.zeros(4, 4, device=device)
        x.view(16)[3:5].fill_(1)
        x.t()[0, 1] += 0
    assert x.cpu().sum() == 2
    assert sum(counts.launches.values()) == 4  # zeros, fill, add, and the copy that += ends with
    assert not counts.waits


def test_what_waits_for_the_device_is_counted(device):
    x = torch.arange(8, device=device)
    with DEVICE.counting() as counts:
        x[x > 3]
        x.nonzero()
        int(x[2])
        x.cpu()
    assert sum(counts.waits.values()) == 4
    assert sum(counts.to_host.values()) == 2 and counts.bytes_to_host == 8 + 64
    with DEVICE.counting() as counts:
        torch.tensor([1, 2]).to(device)
        x[torch.tensor([1, 2])]  # the index travels
    assert sum(counts.to_device.values()) == 2 and counts.bytes_to_device == 32


def test_a_kernel_is_one_launch(device):
    x = torch.ones(3, device=device)
    with DEVICE.counting() as counts:
        y = kernel(lambda a: (a + 1) * 2)(x)
    assert y.device == device and y.cpu().tolist() == [4.0] * 3
    assert sum(counts.launches.values()) == 1


def test_it_is_there_only_while_it_is_wanted():
    with DEVICE.present():
        assert torch.accelerator.is_available()
    assert not torch.accelerator.is_available() or torch.cuda.is_available()
    with torch.inference_mode():
        assert torch.ones(1).is_inference()
