"""What an engine holds is free when it is dropped: new weights need the room."""

import gc
import weakref

import pytest

from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Request
from tests.generation.test_speculation import PROMPT, make_engine, run


@pytest.mark.parametrize("rule", ["speculate", "ar", "threshold", "steps"])
def test_a_dropped_engine_is_gone_without_the_garbage_collector(rule):
    params = SamplingParams(max_new_tokens=12, rule=rule, ignore_eos=True)
    engine = make_engine(max_running=2)
    requests = [Request(request_id=str(i), prompt=PROMPT, params=params) for i in range(3)]
    gc.collect()
    gc.disable()
    try:
        run(engine, *requests)
        gone = weakref.ref(engine), weakref.ref(engine._runner)
        del engine
        assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()
