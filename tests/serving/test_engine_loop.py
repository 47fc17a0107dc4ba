"""The engine's thread: hangs, deaths, clients that leave."""

import asyncio
import threading
import time

import pytest

from a2d_ray import SamplingParams
from a2d_ray.generation.engine.engine import Request
from a2d_ray.serving.model import engine_loop
from a2d_ray.serving.model.engine_loop import AsyncEngine, EngineDeadError

PARAMS = SamplingParams(max_new_tokens=400, ignore_eos=True, rule="steps")


def request(name: str) -> Request:
    return Request(request_id=name, prompt=[[5, 6, 7]], params=PARAMS)


async def first_of(engine: AsyncEngine, name: str):
    outputs = engine.generate(request(name))
    return outputs, await anext(outputs)


class Clock:
    """Seconds that pass when a test says so, in place of the loop's clock."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    monkeypatch.setattr(engine_loop, "time", Clock())
    return engine_loop.time


def test_a_round_that_hangs_fails_those_who_wait_when_health_is_asked(lm, clock):
    core = lm.make_engine()
    step, is_hanging, hangs, let_go = core.step, *(threading.Event() for _ in range(3))

    def hanging_step():
        if is_hanging.is_set():
            hangs.set()
            let_go.wait()
        return step()

    core.step = hanging_step
    engine = AsyncEngine(core, round_timeout_s=100)

    async def main():
        outputs, _ = await first_of(engine, "a")
        engine.check_health()
        is_hanging.set()
        waiting = asyncio.ensure_future(collect(outputs))
        assert await asyncio.to_thread(hangs.wait, 60)
        clock.now += 100
        engine.check_health()
        clock.now += 1
        with pytest.raises(EngineDeadError, match=r"hangs.*100 s"):
            engine.check_health()
        with pytest.raises(EngineDeadError, match="hangs"):
            await asyncio.wait_for(waiting, 60)
        with pytest.raises(EngineDeadError):
            await first_of(engine, "b")

    try:
        asyncio.run(main())
    finally:
        let_go.set()
    engine.close()


async def collect(outputs):
    return [output async for output in outputs]


def test_a_long_queue_is_no_hang(lm, clock):
    """Only a single round counts, not how long the engine has been busy."""
    core = lm.make_engine()
    step = core.step

    def slow_step():
        clock.now += 60
        engine.check_health()  # what it raises would end the engine
        return step()

    core.step = slow_step
    engine = AsyncEngine(core, round_timeout_s=100)

    async def main():
        outputs, _ = await first_of(engine, "a")
        async for _ in outputs:
            if clock.now > 1_000:
                break
        await outputs.aclose()

    asyncio.run(main())
    assert clock.now > 1_000
    engine.close()


def test_five_hundred_clients_that_leave_free_every_place_and_page(lm):
    core = lm.make_engine()
    engine = AsyncEngine(core)
    most_running = 0

    async def leave(index: int):
        nonlocal most_running
        outputs, _ = await first_of(engine, str(index))
        most_running = max(most_running, core.num_running)
        await outputs.aclose()

    async def main():
        for start in range(0, 500, 50):
            await asyncio.gather(*(leave(start + i) for i in range(50)))
        outputs, _ = await first_of(engine, "last")  # after all the aborts that were sent
        await outputs.aclose()

    asyncio.run(main())
    deadline = time.monotonic() + 60
    while core.has_unfinished() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert most_running > 1
    assert not core.has_unfinished()
    assert core.num_used_kv_tokens == 0
    assert not engine._listeners
    engine.close()
