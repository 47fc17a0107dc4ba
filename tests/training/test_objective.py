"""What a configuration asks of the algorithm, and the contract it leads to."""

import pytest

from a2d_ray.config import (
    BatchSection,
    DataSection,
    LoraSection,
    ModelSection,
    ObjectiveSection,
    RunSection,
    TrainConfig,
)
from a2d_ray.models.contract import Contract
from a2d_ray.training.objective import loss_spec, trained_contract
from tests.test_config import RECIPE


@pytest.fixture
def config():
    return TrainConfig(
        run=RunSection(name="x"),
        model=ModelSection(path="x"),
        data=DataSection(spec="x.jsonl", targets="last", packing=False),
        batch=BatchSection(rows=4),
        objective=ObjectiveSection(name="bd3lm", block_size=8, block_grid="absolute", **RECIPE),
    )


def test_contract_of_the_reference_preset_samples_from_the_prompts_end(config):
    contract = trained_contract(Contract(mask_token_id=5), config)
    assert (contract.objective, contract.block_grid) == ("bd3lm", "prompt_end")
    assert (contract.block_size, contract.block_sizes) == (8, (8,))
    plain = ObjectiveSection(name="bd3lm", block_grid="absolute", right_shift_logits=True)
    contract = trained_contract(
        Contract(mask_token_id=5), config.model_copy(update={"objective": plain})
    )
    assert (contract.block_grid, contract.right_shift_logits) == ("absolute", True)


def test_every_trained_block_size_is_in_the_contract(config):
    objective = ObjectiveSection(name="bd3lm", block_size=[8, 4, 16])
    contract = trained_contract(
        Contract(mask_token_id=5), config.model_copy(update={"objective": objective})
    )
    assert (contract.block_size, contract.block_sizes) == (16, (4, 8, 16))


def test_only_the_preset_keeps_the_mask_logit(config):
    assert loss_spec(config.objective, mask_id=3).keeps_mask_logit
    assert not loss_spec(ObjectiveSection(name="mdlm"), mask_id=3).keeps_mask_logit


CAUSAL = {"name": "bd3lm", "clean_attention": "causal"}


@pytest.mark.parametrize("before", ["original", "trained", None])
@pytest.mark.parametrize(
    ("objective", "after"),
    [
        (CAUSAL | {"ar_loss_weight": 0.5}, "trained"),
        (CAUSAL, None),
        ({"name": "bd3lm"}, None),
        ({"name": "mdlm"}, None),
    ],
)
def test_only_an_ar_loss_leaves_an_ar_mode_behind(config, before, objective, after):
    run = config.model_copy(update={"objective": ObjectiveSection(**objective)})
    contract = Contract(mask_token_id=5, ar_mode=before)
    assert trained_contract(contract, run).ar_mode == after
    lora = LoraSection(noised_only=True)
    gated = run.model_copy(update={"model": ModelSection(path="x", lora=lora)})
    kept = trained_contract(contract, gated)
    assert (kept.ar_mode, kept.gated_adapters) == (before, lora)
    assert Contract.model_validate({"mask_token_id": 5}).ar_mode is None  # an old checkpoint's
