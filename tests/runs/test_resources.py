"""More than there is is refused, with the option, the numbers and the fix."""

import os

import pytest

from a2d_ray.config.errors import OptionError
from a2d_ray.runs.resources import (
    Resources,
    Share,
    available_resources,
    check_room,
    gpu_share,
    reserved_device,
)

ONE_CPU = Share(1, "cpus_per_worker")
NO_GPU = Share(0, "gpus_per_worker")


def test_room_for_all_is_no_error():
    there = Resources(4, 2, is_ray=True)
    check_room(there, "n", 2, cpus=ONE_CPU, gpus=Share(1, ""), num_other_cpus=2)
    check_room(there, "n", 4, cpus=ONE_CPU, gpus=Share(0.5, ""))


@pytest.mark.parametrize(
    ("there", "cpus", "gpus", "others", "message"),
    [
        (
            Resources(3, 0, is_ray=True), ONE_CPU, NO_GPU, 1,
            "n=3 asks for 4 CPUs (1 each and 1 beside them), but Ray has 3: lower n or "
            "cpus_per_worker, or add nodes",
        ),
        (
            Resources(4, 1, is_ray=False), ONE_CPU, Share(0.5, "gpus_per_worker"), 0,
            "n=3 asks for 1.5 GPUs (0.5 each), but this machine has 1: lower n or gpus_per_worker",
        ),
    ],
)  # fmt: skip
def test_the_error_says_what_is_asked_and_what_there_is(there, cpus, gpus, others, message):
    with pytest.raises(OptionError) as refused:
        check_room(there, "n", 3, cpus=cpus, gpus=gpus, num_other_cpus=others)
    assert str(refused.value) == message


def test_without_ray_it_is_the_machine_that_counts(no_ray):
    there = available_resources()
    assert (there.cpus, there.is_ray) == (len(os.sched_getaffinity(0)), False)


@pytest.mark.parametrize(
    ("asked", "count", "gpus", "share"),
    [
        ("auto", 1, 0, 0),
        ("auto", 2, 8, 1),
        ("auto", 8, 8, 1),
        ("auto", 2, 1, 0.5),
        ("auto", 9, 8, 0.5),  # one of 8/9 each would not fit on whole GPUs
        ("auto", 3, 1, 0.3333),
        ("auto", 0, 1, 1),  # scaled to zero
        (0.25, 3, 0, 0.25),
        (0, 3, 8, 0),
    ],
)
def test_processes_share_the_gpus_that_there_are(asked, count, gpus, share):
    assert gpu_share(asked, count, Resources(4, gpus, is_ray=True)) == share


@pytest.mark.cluster
def test_a_process_without_a_gpu_of_its_own_computes_on_the_cpu(ray_local):
    import ray

    ask = ray.remote(reserved_device).options(num_cpus=0)
    assert ray.get([ask.remote("auto"), ask.remote("cuda:1")]) == ["cpu", "cuda:1"]


@pytest.mark.parametrize("asked", ["auto", "cpu", "cuda:1"])
def test_a_process_of_no_ray_keeps_its_device_and_starts_none(asked, no_ray):
    assert reserved_device(asked) == asked
