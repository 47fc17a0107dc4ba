"""The AR original by the harness's own model, with the speed of its answers."""

import time
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from a2d_ray.evaluation.responses import Speed


class TimedHFLM(HFLM):
    """`HFLM` that counts what it generates.

    Attributes:
        speed: tokens of the answers' texts, one forward each, and wall time.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.speed = Speed()
        super().__init__(*args, **options)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers, as the harness writes them."""
        started = time.perf_counter()
        answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        self.speed.seconds += time.perf_counter() - started
        num_tokens = sum(len(self.tok_encode(answer)) for answer in answers)
        self.speed.num_answers += len(answers)
        self.speed.num_tokens += num_tokens
        self.speed.num_forwards += num_tokens
        return answers
