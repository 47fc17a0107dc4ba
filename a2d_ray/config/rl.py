"""Reinforcement learning: roll-outs, rewards, and what an update is limited by."""

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from a2d_ray.config.base import Conditions, Duration, Section
from a2d_ray.config.errors import OptionError
from a2d_ray.config.rules import AR_RULES
from a2d_ray.config.sampling import SamplingSection

RewardKind = Literal["exact", "regex", "json_schema", "unit_tests", "function"]
"""By name as in `a2d_ray.rl.rewards.REWARDS`."""

OF_THE_RUN = ("n", "seed", "logprobs", "prompt_logprobs")
"""Sampling options that a run sets itself."""

FREE_WHERE_EXACT = ("rule", "max_new_tokens", "temperature", "draft_tokens", "draft_shape")
"""Sampling options that leave the policy the model's own distribution."""


class RewardSection(Section):
    effective_if: ClassVar[Conditions] = {
        "pattern": {"kind": "regex"},
        "json_schema": {"kind": "json_schema"},
        "function": {"kind": "function"},
    }

    kind: RewardKind = Field(
        "exact",
        description="exact: the answer is the row's; regex: it matches rl.reward.pattern; "
        "json_schema: it is JSON of rl.reward.json_schema, or of the row's; unit_tests: its code "
        "passes the row's tests in a sandbox; function: rl.reward.function says.",
    )
    pattern: str | None = Field(
        None,
        description="Regular expression that is looked for in the answer; its last match counts. "
        "With a group, what the group holds must be the row's answer.",
    )
    json_schema: dict[str, Any] | None = Field(
        None, description="JSON schema of every answer; null: each row's answer is one."
    )
    function: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="Own reward, package.module:function: (answer, the row's answer) -> a number.",
    )
    timeout: Duration = Field(
        10.0, description="Longest time for one reward (seconds, or 90s, 30m); then it failed."
    )
    num_workers: int = Field(1, ge=1, description="Processes that compute rewards.")

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        try:
            re.compile(pattern or "")
        except re.error as error:
            raise ValueError(f"must be a regular expression ({error})") from None
        return pattern

    @model_validator(mode="after")
    def _check_given(self) -> Self:
        for kind in ("pattern", "function"):
            needed_by = {"pattern": "regex", "function": "function"}[kind]
            if self.kind == needed_by and getattr(self, kind) is None:
                raise OptionError(
                    "kind", self.kind, f"needs rl.reward.{kind}", "set it, or choose another kind"
                )
        return self


class RolloutSection(Section):
    effective_if: ClassVar[Conditions] = {
        key: {"placement": "separate"}
        for key in ("num_workers", "cpus_per_worker", "use_gpu", "staleness", "max_failures")
    }

    placement: Literal["colocated", "separate"] = Field(
        "colocated",
        description="colocated: every training worker also draws its share of the roll-outs; "
        "separate: Ray actors of their own draw them, on any node.",
    )
    num_workers: int = Field(1, ge=1, description="Roll-out actors.")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs (and torch threads) per actor.")
    use_gpu: bool | Literal["auto"] = Field("auto", description="One GPU per actor.")
    staleness: int = Field(
        0,
        ge=0,
        description="Updates by which roll-outs are older than the weights that they train: they "
        "are drawn while earlier ones are learned. 0: draw, then learn.",
    )
    max_running: int = Field(64, ge=1, description="Roll-outs in one forward of an engine.")
    max_failures: int = Field(8, ge=0, description="Actors that may die before the run gives up.")
    sampling: SamplingSection = Field(
        SamplingSection(rule="auto", temperature=1.0, max_new_tokens=64),
        description="How roll-outs are decoded.",
    )

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        for name in OF_THE_RUN:
            value = getattr(self.sampling, name)
            if value != SamplingSection.model_fields[name].default:
                fix = "leave it out (rl.group_size and run.seed decide)"
                raise OptionError(f"sampling.{name}", value, "is set by the run", fix)
        return self


class RLSection(Section):
    group_size: int = Field(8, ge=2, description="Roll-outs of one prompt: the baseline's sample.")
    likelihood: Literal["exact", "nelbo"] = Field(
        "exact",
        description="exact: log-probabilities of the AR mode; nelbo: the bound with fixed masks, "
        "for checkpoints without an AR mode.",
    )
    ratio: Literal["token", "sequence"] = Field(
        "token",
        description="Importance ratio of every token by itself, or of the whole answer (its "
        "geometric mean per token; the only one with rl.likelihood=nelbo).",
    )
    clip_low: float = Field(0.2, gt=0, lt=1, description="Ratios below 1 - N teach no more.")
    clip_high: float = Field(0.28, gt=0, description="Ratios above 1 + N teach no more.")
    kl_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the KL divergence to the start; above 0 its weights stay in memory.",
    )
    scale_rewards: bool = Field(
        False, description="Divide advantages by the group's standard deviation."
    )
    resample: int = Field(
        0,
        ge=0,
        description="Times that groups of equal rewards, which teach nothing, are replaced by "
        "groups of other prompts within a step.",
    )
    draft_weight: float = Field(
        0.2,
        ge=0,
        description="Weight of the diffusion loss on the roll-outs, which keeps drafts up with the "
        "policy (rl.likelihood=exact).",
    )
    answer_column: str | None = Field(
        None,
        description="Column that the reward gets as the row's answer; null: the row's last "
        "assistant turn.",
    )
    eval_prompts: int = Field(
        64, ge=1, description="Held-out prompts that are answered greedily at each evaluation."
    )
    reward: RewardSection = RewardSection()
    rollout: RolloutSection = RolloutSection()

    @model_validator(mode="after")
    def _check_likelihood(self) -> Self:
        if self.likelihood == "exact":
            self._check_exact()
            return self
        for key, needed in (("ratio", "sequence"), ("rollout.staleness", 0)):
            section = self.rollout if key.startswith("rollout.") else self
            value = getattr(section, key.rpartition(".")[2])
            if value != needed:
                raise OptionError(
                    key,
                    value,
                    "needs log-probabilities from sampling, and rl.likelihood=nelbo is a bound",
                    f"set rl.{key}={needed}, or rl.likelihood=exact",
                )
        return self

    def _check_exact(self) -> None:
        sampling = self.rollout.sampling
        default = SamplingSection(rule=sampling.rule, temperature=1.0)
        for name in SamplingSection.model_fields:
            value = getattr(sampling, name)
            if name in FREE_WHERE_EXACT and name not in ("rule", "temperature"):
                continue
            if name == "rule":
                is_wrong = value not in ("auto", *AR_RULES)
                fix = f"set rule to auto or {' or '.join(AR_RULES)}"
            else:
                is_wrong = value != getattr(default, name)
                fix = "set temperature=1" if name == "temperature" else "leave it out"
            if is_wrong:
                raise OptionError(
                    f"rollout.sampling.{name}",
                    value,
                    "draws from another distribution than rl.likelihood=exact learns",
                    fix,
                )
