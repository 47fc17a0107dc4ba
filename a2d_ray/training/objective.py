"""What a configuration asks of the algorithm: layout, noise, loss, and the contract it leads to."""

from a2d_ray.config import ObjectiveSection, TrainConfig
from a2d_ray.diffusion.layout import LayoutSpec
from a2d_ray.diffusion.noise import NoiseSpec
from a2d_ray.diffusion.objectives import LossSpec
from a2d_ray.models.contract import Contract


def layout_spec(objective: ObjectiveSection, *, eos_id: int) -> LayoutSpec:
    """The layout that a configuration asks for."""
    return LayoutSpec(
        objective=objective.name,
        block_size=objective.largest_block,
        block_grid=objective.block_grid,
        views=objective.views,
        eos_id=eos_id,
        pad_id=eos_id,
        causal_clean=objective.clean_attention == "causal",
        right_shift=objective.right_shift_logits,
        ar_targets=objective.reads_ar_mode,
    )


def noise_spec(objective: ObjectiveSection) -> NoiseSpec:
    """The noise that a configuration asks for."""
    return NoiseSpec(
        kind=objective.noise,
        full_share=objective.full_share,
        per=objective.noise_per,
        schedule=objective.schedule,
        is_weighted=objective.weight == "nelbo",
    )


def loss_spec(objective: ObjectiveSection, *, mask_id: int, is_compiled: bool = False) -> LossSpec:
    """The loss that a configuration asks for."""
    return LossSpec(
        mask_id=mask_id,
        keeps_mask_logit=objective.preset == "reference",
        right_shift=objective.right_shift_logits,
        ar_weight=objective.ar_loss_weight,
        confidence_weight=objective.confidence_loss_weight,
        draft_target=objective.draft_target,
        is_compiled=is_compiled,
    )


def trained_contract(contract: Contract, config: TrainConfig) -> Contract:
    """The contract of the checkpoints that a run writes.

    The public recipe trains on an absolute grid and samples from the prompt's end; so does a
    checkpoint of its preset.
    """
    objective = config.objective
    lora = config.model.lora
    is_gated = lora is not None and lora.noised_only
    ar_mode = "trained" if objective.ar_loss_weight else None
    is_blockwise = objective.name == "bd3lm"
    is_recipe = objective.preset == "reference" and is_blockwise
    grid = "prompt_end" if is_recipe else objective.block_grid
    return contract.model_copy(
        update={
            "objective": objective.name,
            "block_size": objective.largest_block,
            "block_sizes": objective.block_sizes if is_blockwise else (),
            "block_grid": grid if is_blockwise else "segment",
            "training_grid": objective.block_grid if is_recipe else None,
            "clean_attention": objective.clean_attention,
            "ar_mode": contract.ar_mode if is_gated else ar_mode,
            "gated_adapters": lora if is_gated else None,
            "right_shift_logits": objective.right_shift_logits,
        }
    )
