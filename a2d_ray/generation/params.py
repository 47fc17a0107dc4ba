"""What one request asks of the decoder. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal

Rule = Literal["steps", "threshold"]
Remasking = Literal["low_confidence", "random"]


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Options of one request.

    Args:
        max_new_tokens: longest answer, in tokens.
        block_size: tokens per block; None: the checkpoint's own.
        steps: denoise steps over the whole answer for rule ``steps``; each block gets
            ceil(steps / ceil(max_new_tokens / block_size)). None: one token per forward.
        rule: ``threshold`` commits every token whose confidence exceeds `threshold` (at least
            one); ``steps`` commits a fixed number per step.
        threshold: confidence bound in [0, 1] for rule ``threshold``.
        remasking: which tokens rule ``steps`` commits first.
        temperature: 0 is greedy (argmax); otherwise the softmax temperature.
        seed: with the position and step, fixes every random choice of the request.
        stop: texts that end the answer; the answer is cut before them.
        stop_token_ids: token ids that end the answer, besides the end-of-turn token.
        ignore_eos: go on after the end-of-turn token.

    Raises:
        ValueError: a value outside its range, naming the field.
    """

    max_new_tokens: int = 128
    block_size: int | None = None
    steps: int | None = None
    rule: Rule = "threshold"
    threshold: float = 0.9
    remasking: Remasking = "low_confidence"
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] | list[str] | str = ()
    stop_token_ids: tuple[int, ...] | list[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        )
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _require(self.max_new_tokens >= 1, "max_new_tokens", self.max_new_tokens, "at least 1")
        _require(
            self.block_size is None or self.block_size >= 1,
            "block_size",
            self.block_size,
            "at least 1",
        )
        _require(self.steps is None or self.steps >= 1, "steps", self.steps, "at least 1")
        _require(self.rule in ("steps", "threshold"), "rule", self.rule, "'steps' or 'threshold'")
        _require(0 <= self.threshold <= 1, "threshold", self.threshold, "between 0 and 1")
        _require(
            self.remasking in ("low_confidence", "random"),
            "remasking",
            self.remasking,
            "'low_confidence' or 'random'",
        )
        _require(self.temperature >= 0, "temperature", self.temperature, "0 or more")
        _require("" not in self.stop, "stop", self.stop, "texts that are not empty")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
