"""The AR original by the harness's own model, with the speed of its answers."""

import time
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from a2d_ray.evaluation.backends.responses import Speed
from a2d_ray.evaluation.harness.whole_answers import end_of_turn, is_whole_answer


class TimedHFLM(HFLM):
    """`HFLM` that counts what it generates.

    Attributes:
        speed: tokens of the answers' texts, one forward each, and wall time.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self.speed = Speed()
        super().__init__(*args, **options)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Log-likelihoods; a whole answer ends its turn, as it does for our models."""
        ending = end_of_turn(self.tokenizer, is_chat=bool(self.tokenizer.chat_template))
        asked = [
            replace(one, arguments=(one.args[0], one.args[1] + ending))
            if is_whole_answer(one)
            else one
            for one in requests
        ]
        found: list[tuple[float, bool]] = super().loglikelihood(asked, disable_tqdm=disable_tqdm)
        return found

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
