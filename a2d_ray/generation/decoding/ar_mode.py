"""Which rule a request is decoded with, and what the rules of the AR mode need."""

from a2d_ray.config import AR_RULES, OptionError
from a2d_ray.config.sampling import NOT_FROM_THE_LEFT
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.models.contract import Contract

_TRAINING = "train bd3lm with objective.clean_attention=causal and objective.ar_loss_weight=1"


def has_ar_mode(contract: Contract) -> bool:
    """Whether the rules of `AR_RULES` say what an AR model would."""
    return contract.ar_mode is not None and contract.objective != "mdlm"


def default_rule(contract: Contract) -> str:
    """The rule that a model decodes with unless told otherwise."""
    if not has_ar_mode(contract):
        return "threshold"
    if contract.objective is None:
        return "ar"
    return "speculate" if contract.clean_attention == "causal" else "threshold"


def with_own_rule(
    params: SamplingParams,
    contract: Contract,
    *,
    is_infill: bool = False,
    has_grammar: bool = False,
) -> SamplingParams:
    """Options whose rule ``auto`` has become the model's own, as far as the request allows it.

    Args:
        params: of the request; with another rule they stay as they are.
        contract: how the checkpoint is used: blocks, mask token, AR mode.
        is_infill: whether the prompt has holes.
        has_grammar: whether a grammar holds the answer.

    Raises:
        OptionError: log-probabilities of the prompt where there is no AR mode.
    """
    if params.rule != "auto":
        return params
    rule = default_rule(contract)
    if params.prompt_logprobs is not None:
        _check_scoring(params.prompt_logprobs, contract)
        rule = rule if rule in AR_RULES else "ar"
    if is_infill or any(getattr(params, name) for name in NOT_FROM_THE_LEFT):
        rule = "threshold"
    if has_grammar and rule == "threshold":
        rule = "prefix"
    return SamplingParams(**params.model_dump() | {"rule": rule})


def check_ar_rule(params: SamplingParams, contract: Contract, *, is_infill: bool = False) -> None:
    """Refuses the rules of the AR mode where the model or the prompt has none.

    Args:
        params: with a rule of `AR_RULES`.
        contract: how the checkpoint is used: blocks, mask token, AR mode.
        is_infill: whether the prompt has holes.

    Raises:
        OptionError: names the rule.
    """
    name = params.rule
    fix = "choose another rule, such as threshold"
    if is_infill:
        raise OptionError("rule", name, "writes from left to right and fills no holes", fix)
    if not has_ar_mode(contract):
        raise OptionError("rule", name, _no_ar_mode(contract), f"{fix}, or {_TRAINING}")
    if name == "speculate" and contract.objective is None:
        problem = "needs drafts, and this model is converted but not trained"
        raise OptionError("rule", name, problem, "set rule=ar, or train it")


def _check_scoring(num_alternatives: int, contract: Contract) -> None:
    if not has_ar_mode(contract):
        fix = f"leave it out (the NELBO of a2d_ray.evaluation is a bound), or {_TRAINING}"
        raise OptionError("prompt_logprobs", num_alternatives, _no_ar_mode(contract), fix)


def _no_ar_mode(contract: Contract) -> str:
    kind = "an MDLM" if contract.objective == "mdlm" else "without one"
    return f"needs an AR mode, and this model is {kind}"
