"""Rule ``auto`` is the model's own, as far as the request allows it."""

import pytest

from a2d_ray.config.errors import OptionError
from a2d_ray.generation.decoding.ar_mode import default_rule, with_own_rule
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.generation.engine.engine import Request
from a2d_ray.models.contract import Contract
from tests.generation.test_speculation import CAUSAL, PROMPT, SHIFTED, OddFirst, make_engine, run

MDLM = Contract(objective="mdlm", mask_token_id=300, ar_mode="original")
BLOCK = CAUSAL.model_copy(update={"clean_attention": "block"})
WITHOUT = CAUSAL.model_copy(update={"ar_mode": None})
CONVERTED = Contract(mask_token_id=300, ar_mode="original")


@pytest.mark.parametrize(
    ("contract", "rule"),
    [
        (CAUSAL, "speculate"),
        (SHIFTED, "speculate"),
        (CONVERTED, "ar"),
        (BLOCK, "threshold"),
        (WITHOUT, "threshold"),
        (MDLM, "threshold"),
    ],
)
def test_the_contract_decides(contract, rule):
    assert default_rule(contract) == with_own_rule(SamplingParams(), contract).rule == rule


@pytest.mark.parametrize(
    ("options", "request_form", "rule"),
    [
        ({"threshold": 0.8}, {}, "threshold"),
        ({"threshold": 0.9}, {}, "threshold"),  # its default, but asked for
        ({"steps": 4}, {}, "steps"),
        ({"rule": "ar"}, {}, "ar"),
        ({"draft_tokens": 3}, {}, "speculate"),
        ({"temperature": 1.0, "top_k": 5}, {}, "speculate"),
        ({"block_size": 4}, {}, "threshold"),
        ({"cfg_scale": 1.0}, {}, "threshold"),
        ({"remask_threshold": 0.5}, {}, "threshold"),
        ({"begin_suppress_tokens": (3,)}, {}, "threshold"),
        ({"block_size": 4}, {"has_grammar": True}, "prefix"),
        ({}, {"has_grammar": True}, "speculate"),
        ({}, {"is_infill": True}, "threshold"),
    ],
)
def test_what_a_request_asks_for_comes_first(options, request_form, rule):
    params = SamplingParams(**options)
    found = with_own_rule(params, CAUSAL, **request_form)
    assert found.rule == rule
    assert found.model_dump() | {"rule": params.rule} == params.model_dump()
    assert with_own_rule(found, MDLM) == found  # what has a rule keeps it


def test_the_prompt_is_scored_wherever_there_is_an_ar_mode():
    asked = SamplingParams(prompt_logprobs=1)
    rules = [with_own_rule(asked, c).rule for c in (CAUSAL, CONVERTED, BLOCK)]
    assert rules == ["speculate", "ar", "ar"]
    for contract in (MDLM, WITHOUT):
        with pytest.raises(OptionError, match=r"prompt_logprobs=1 needs an AR mode.*leave it out"):
            with_own_rule(asked, contract)
    with pytest.raises(OptionError, match="prompt_logprobs"):
        with_own_rule(SamplingParams(prompt_logprobs=1, block_size=4), CAUSAL)


@pytest.mark.parametrize("form", ["plain", "infill", "grammar"])
@pytest.mark.parametrize("contract", [CAUSAL, BLOCK])
def test_the_engine_decodes_with_it(form, contract):
    prompt = [[5, None, None, 8]] if form == "infill" else PROMPT
    answers = []
    for name in (False, True):
        params = SamplingParams(max_new_tokens=12)
        if name:
            shape = {"is_infill": form == "infill", "has_grammar": form == "grammar"}
            params = with_own_rule(params, contract, **shape)
        grammar = OddFirst(8) if form == "grammar" else None
        request = Request(request_id="a", prompt=prompt, params=params, grammar=grammar)
        answers.append(run(make_engine(contract=contract), request)["a"][0])
    assert answers[0] == answers[1] and answers[0]
