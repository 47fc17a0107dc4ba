"""Decoding rules and their options, written once.

A rule is a row of `RULES`, an option a field of `RuleOptions`. YAML, ``--help``, Python, HTTP,
lm-eval and the web page read them here. What a rule does stands under its name in
`a2d_ray.diffusion.rules.SELECTORS`.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from a2d_ray.config.base import Section
from a2d_ray.config.errors import NoEffectError

RULES: dict[str, tuple[str, ...]] = {
    "auto": (),
    "threshold": ("threshold",),
    "steps": ("steps", "remasking", "stochastic_transfer"),
    "factor": ("factor",),
    "frechet": ("delta",),
    "entropy_bound": ("gamma",),
    "prefix": ("threshold",),
    "klass": ("threshold", "kl_threshold"),
    "entropy": ("entropy_threshold", "entropy_slope"),
    "ar": (),
    "speculate": ("draft_tokens", "draft_shape"),
}
"""The options that each rule knows. Options without a rule mean the first rule that knows them.
``auto`` is the model's own rule (`generation.decoding.ar_mode.default_rule`)."""

AR_RULES = ("ar", "speculate")
"""Rules of the AR mode: the answer is what left-to-right decoding of the same weights writes."""

GRAMMAR_RULES = ("prefix", *AR_RULES)
"""Rules that commit from the left only."""


def rules_of(option: str) -> list[str]:
    """The rules that know an option."""
    return [rule for rule, known in RULES.items() if option in known]


if TYPE_CHECKING:
    Rule = str
else:
    Rule = Literal[tuple(RULES)]

Remasking = Literal["low_confidence", "random", "leftmost"]

DraftShape = Literal["auto", "linear", "tree"]

MAX_DRAFT_TOKENS = 16


class RuleOptions(Section):
    """A rule, and the options of all rules.

    An option that the rule does not know is refused, unless it has its default value: a complete
    dump can be read again.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    rule: Rule = Field(
        "auto",
        description="Decoding rule: which tokens a denoise step commits; auto: speculate where the "
        "model has an AR mode and drafts for it, else threshold.",
    )
    threshold: float = Field(0.9, ge=0, le=1, description="Confidence bound")
    steps: int | None = Field(
        None, ge=1, le=65_536, description="Denoise steps in total; null: one per token"
    )
    remasking: Remasking = Field("low_confidence", description="Which tokens are left for later")
    stochastic_transfer: bool = Field(False, description="Draw the counts from their binomials")
    factor: float = Field(1.0, gt=0, description="Commit n while (n + 1)(1 - conf_n) < factor")
    delta: float = Field(0.25, ge=0, lt=1, description="Least joint-probability margin")
    gamma: float = Field(0.1, ge=0, description="Most summed entropy, nats")
    kl_threshold: float = Field(0.01, gt=0, description="Largest change between steps, nats of KL")
    entropy_threshold: float = Field(0.4, ge=0, description="Entropy bound, nats")
    entropy_slope: float = Field(
        0.02, ge=0, description="Nats added per position behind the first mask"
    )
    draft_tokens: int | None = Field(
        None,
        ge=1,
        le=MAX_DRAFT_TOKENS,
        description="Tokens drafted at a time, which the next forward verifies; null: the engine "
        "decides by cost, load and acceptance",
    )
    draft_shape: DraftShape = Field(
        "auto",
        description="Where the next drafts are prepared: behind the last one only (linear), behind "
        "each (tree), or where it pays (auto)",
    )

    @model_validator(mode="before")
    @classmethod
    def _name_rule(cls, values: Any) -> Any:
        return with_rule(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _check_effect(self) -> Self:
        values = {name: getattr(self, name) for name in OPTION_NAMES}
        check_effect(self.rule, {n: v for n, v in values.items() if v != _default(n)})
        return self


OPTION_NAMES = tuple(name for name in RuleOptions.model_fields if name != "rule")

for _name in OPTION_NAMES:
    _field = RuleOptions.model_fields[_name]
    _field.description = f"{_field.description} (rule {', '.join(rules_of(_name))})."
RuleOptions.model_rebuild(force=True)


def _default(name: str) -> Any:
    return RuleOptions.model_fields[name].default


def _known(rule: Any) -> Collection[str]:
    """The options that a rule knows; none where there is no such rule."""
    return RULES[rule] if rule in list(RULES) else ()


def option_schemas() -> dict[str, dict[str, Any]]:
    """Type, range, default and help of each option as a JSON schema, and its ``rules``."""
    schemas = RuleOptions.model_json_schema()["properties"]
    return {name: schemas[name] | {"rules": rules_of(name)} for name in OPTION_NAMES}


def with_rule(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with a rule, if an option of one is given.

    It is the first rule that knows all that are given; of these, defaults count only if there is
    nothing else.
    """
    values = dict(options)
    given = {n: v for n, v in values.items() if n in OPTION_NAMES and v is not None}
    if given and "rule" not in values:
        wanted = {n for n, v in given.items() if v != _default(n)} or given.keys()
        values["rule"] = max(RULES, key=lambda rule: len(wanted & set(RULES[rule])))
    return values


def check_effect(rule: str, given: Mapping[str, Any]) -> None:
    """Refuses an option that the rule does not know.

    Raises:
        NoEffectError: names it, and the rules that know it.
    """
    for name, value in given.items():
        if name in OPTION_NAMES and name not in _known(rule):
            raise NoEffectError(name, value, "rule", rule, " or ".join(rules_of(name)))


def override(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, and over them `changes`.

    The rule stays if it knows what changes. Where another one takes its place, options that it
    does not know are dropped from `options`.
    """
    before = with_rule(options)
    rule = before.get("rule", _default("rule"))
    if changes.keys() & set(OPTION_NAMES) - set(_known(rule)):
        changes = with_rule(changes)
    known = _known(changes.get("rule", rule))
    kept = {n: v for n, v in before.items() if n not in OPTION_NAMES or n in known}
    return {**kept, **changes}
