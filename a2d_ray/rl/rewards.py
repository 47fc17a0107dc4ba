"""Verifiable rewards: an answer, and what its row says -> a number. No Ray here.

A reward sees text alone. What it raises, or that it never returns, is `scoring`'s business.
"""

import importlib
import json
import re
from collections.abc import Callable
from typing import Any

from a2d_ray.config import OptionError, RewardSection

Reward = Callable[[str, Any], float]
"""(answer, the row's answer) -> reward."""

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)```", re.DOTALL)


def make_reward(section: RewardSection) -> Reward:
    """The reward that a configuration asks for.

    Raises:
        OptionError: a function that cannot be imported, or a machine that isolates no code.
    """
    return REWARDS[section.kind](section)


def _exact(section: RewardSection) -> Reward:
    return lambda answer, reference: float(answer.strip() == _text(reference))


def _regex(section: RewardSection) -> Reward:
    pattern = re.compile(section.pattern or "", re.DOTALL)

    def last(text: str) -> str | None:
        """What the last match holds: its first group, where there is one."""
        *_, found = (None, *pattern.finditer(text))
        if found is None:
            return None
        return (found[1] if pattern.groups else found[0] or "").strip()

    def reward(answer: str, reference: Any) -> float:
        found = last(answer)
        if found is None or not pattern.groups:
            return float(found is not None)
        wanted = last(_text(reference))  # a worked answer holds its result in the same form
        return float(found == (_text(reference) if wanted is None else wanted))

    return reward


def _json_schema(section: RewardSection) -> Reward:
    from jsonschema import Draft202012Validator

    def reward(answer: str, reference: Any) -> float:
        schema = section.json_schema
        if schema is None:
            schema = json.loads(reference) if isinstance(reference, str) else reference
        try:
            value = json.loads(answer)
        except ValueError:
            return 0.0
        return float(Draft202012Validator(schema).is_valid(value))

    return reward


def _unit_tests(section: RewardSection) -> Reward:
    from a2d_ray.sandbox.runner import Limits, SandboxError, check_isolation, run_code

    try:
        check_isolation()
    except SandboxError as error:
        fix = "choose another kind of reward"
        raise OptionError(
            "rl.reward.kind", "unit_tests", f"cannot be used ({error})", fix
        ) from None

    def reward(answer: str, reference: Any) -> float:
        limits = Limits(seconds=section.timeout)
        return float(run_code(f"{code_of(answer)}\n{_text(reference)}\n", limits).is_ok)

    return reward


def _function(section: RewardSection) -> Reward:
    module, _, name = (section.function or "").partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise OptionError(
            "rl.reward.function",
            section.function,
            f"cannot be imported ({error})",
            "the module must be importable where the job runs (PYTHONPATH)",
        ) from error
    return lambda answer, reference: float(function(answer, reference))


REWARDS: dict[str, Callable[[RewardSection], Reward]] = {
    "exact": _exact,
    "regex": _regex,
    "json_schema": _json_schema,
    "unit_tests": _unit_tests,
    "function": _function,
}
"""By `rl.reward.kind`: what makes the reward of a section."""


def code_of(answer: str) -> str:
    """The Python of an answer: its fenced blocks, or all of it where there is none."""
    blocks = _FENCE.findall(answer)
    return "\n".join(blocks) if blocks else answer


def _text(reference: Any) -> str:
    return (reference if isinstance(reference, str) else json.dumps(reference)).strip()
