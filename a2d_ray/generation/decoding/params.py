"""What one request asks of the decoder. Imports nothing heavy."""

import hashlib
import json
from typing import Any, Self

from pydantic import ValidationError

from a2d_ray.config import SamplingSection
from a2d_ray.config.errors import first_problem


class SamplingParams(SamplingSection):
    """Options of one request: the fields of `a2d_ray.config.SamplingSection`, by keyword.

    Raises:
        OptionError: an unknown option, one that the rule does not know, or a value that cannot be
            used.
    """

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except ValidationError as error:
            raise first_problem(type(self), error) from None

    @property
    def is_random(self) -> bool:
        """Whether an answer depends on the seed."""
        return self.temperature > 0 or self.remasking == "random" or self.stochastic_transfer

    def of_prompt(self, index: int) -> Self:
        """The options of one of several prompts, each of which draws with a seed of its own.

        The first one's are `self`: it is answered as if it were alone.
        """
        if index == 0:
            return self
        return self.model_copy(update={"seed": derive_seed(self.seed, index)})


def derive_seed(seed: int, *names: Any) -> int:
    """A seed of 32 bits for one of many requests, so that no two draw alike.

    Args:
        seed: of all of them.
        names: what tells the request from the others, as JSON values.
    """
    text = json.dumps([seed, *names], sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
