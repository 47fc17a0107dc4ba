"""Places at a model: never more than there are, and a Retry-After that means something."""

import pytest

from a2d_ray.http.errors import RequestError
from a2d_ray.serving.ray.admission import Admission


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def answer(admission: Admission, clock: Clock, seconds: float) -> None:
    with admission.place():
        clock.now += seconds


def test_a_place_is_free_again_after_an_answer_and_after_a_failure():
    admission = Admission(2)
    with admission.place(), admission.place():
        for _ in range(3):
            with pytest.raises(RequestError) as refused, admission.place():
                pass
            assert refused.value.status == 429
    with pytest.raises(KeyError), admission.place():
        raise KeyError
    with admission.place(), admission.place():
        pass


def test_retry_after_is_what_an_answer_takes_at_present():
    clock = Clock()
    admission = Admission(1, clock)
    assert admission.refusal().retry_after_s == 1
    answer(admission, clock, 4.2)
    assert admission.refusal().retry_after_s == 5
    for _ in range(30):
        answer(admission, clock, 0.01)
    assert admission.refusal().retry_after_s == 1
    answer(admission, clock, 10_000)
    assert admission.refusal().retry_after_s == 60


def test_those_who_leave_early_do_not_count_as_answers():
    clock = Clock()
    admission = Admission(1, clock)
    answer(admission, clock, 8)
    for _ in range(30):
        with pytest.raises(GeneratorExit), admission.place():
            raise GeneratorExit
    assert admission.refusal().retry_after_s == 8
