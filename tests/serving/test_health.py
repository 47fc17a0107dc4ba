"""What /health says of deployments, from Serve's own status objects."""

import asyncio

import pytest
from ray.serve.schema import (
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
)

from a2d_ray.http.errors import RequestError
from a2d_ray.serving.ray.health import DeploymentHealth

SECRET = "worker 10.0.0.7 died in model-7.py"


def overview(status, **replicas):
    return DeploymentStatusOverview(
        status=DeploymentStatus(status),
        status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
        replica_states={ReplicaState(state): n for state, n in replicas.items()},
        message=SECRET,
    )


@pytest.mark.parametrize(
    ("deployment", "wanted", "wanted_with_zero"),
    [
        (overview("HEALTHY", RUNNING=2), True, True),
        (overview("UPDATING", RUNNING=1, STARTING=1), True, True),
        (overview("UNHEALTHY", RUNNING=1, STOPPING=1), True, True),
        (overview("HEALTHY"), False, True),  # asleep
        (overview("HEALTHY", RUNNING=0), False, True),
        (overview("UPSCALING", STARTING=1), False, True),  # wakes up
        (overview("DOWNSCALING", STOPPING=1), False, True),
        (overview("UPDATING", STARTING=1), False, False),
        (overview("UNHEALTHY", STARTING=1), False, False),
        (overview("DEPLOY_FAILED"), False, False),
    ],
)
def test_only_a_model_that_sleeps_on_purpose_is_well_without_a_replica(
    deployment, wanted, wanted_with_zero
):
    def is_well(scales_to_zero) -> bool:
        health = DeploymentHealth(lambda: {"m": deployment}, scales_to_zero=scales_to_zero)
        try:
            asyncio.run(health.check("m"))
        except RequestError as error:
            assert error.status == 503 and error.retry_after_s
            assert not any(word in error.message for word in ("10.0.0.7", "model-7", "DEPLOY"))
            return False
        return True

    assert (is_well(False), is_well(True)) == (wanted, wanted_with_zero)


def test_a_model_without_a_running_replica_would_have_to_wake_up():
    deployments = {"awake": overview("HEALTHY", RUNNING=1), "asleep": overview("HEALTHY")}
    health = DeploymentHealth(lambda: deployments, scales_to_zero=True)
    assert asyncio.run(health.is_running("awake")) and not asyncio.run(health.is_running("asleep"))


def test_serve_is_asked_once_a_second_however_many_ask_us():
    now, asked = [0.0], []

    def ask():
        asked.append(now[0])
        return {"a": overview("HEALTHY", RUNNING=1), "b": overview("HEALTHY", RUNNING=1)}

    async def main():
        health = DeploymentHealth(ask, scales_to_zero=False, clock=lambda: now[0])
        for now[0] in (0.0, 0.5, 0.9, 1.1, 5.0):
            await asyncio.gather(*(health.check(name) for name in "ab" * 20))

    asyncio.run(main())
    assert asked == [0.0, 1.1, 5.0]
