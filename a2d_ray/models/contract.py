"""The contract: what a checkpoint says about how it must be used (config.json, key ``a2d``)."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from a2d_ray.config import BlockGrid, CleanAttention, LoraSection, Objective

ARMode = Literal["original", "trained"]


class ProofRecord(BaseModel):
    """What was proved before a conversion: a small random model of the configuration held laws.

    Attributes:
        family: `model_type` of the AR model.
        laws: by name.
        transformers_version, torch_version, processor: on which they held.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    family: str
    laws: tuple[str, ...]
    transformers_version: str
    torch_version: str
    processor: str


class Contract(BaseModel):
    """Frozen record of how a model was trained, kept in its ``config.json``.

    Attributes:
        objective: ``mdlm``, ``bd3lm``, or None for a converted model that is not yet trained.
        mask_token_id: id that stands for a masked token; never emitted.
        block_size: tokens per block that sampling uses by default.
        block_sizes: block sizes that were trained; others are refused.
        block_grid: where blocks start: at each segment, at token 0, or at the prompt's end.
        training_grid: where blocks started in training, if not as `block_grid` says for sampling.
        right_shift_logits: whether the logit at i-1 predicts token i.
        clean_attention: how clean tokens see each other inside a block.
        ar_mode: whose next-token predictions the clean stream makes under causal attention: the
            AR model's that it was converted from (``original``), its own (``trained``), or None.
        eos_token_ids: ids that end an answer, besides those of tokenizer and configuration.
        gated_adapters: LoRA adapters beside the weights, which act at noised tokens only; None:
            there are none.
        proof: which laws were proved before the conversion; None: tests of this version hold them.
        source: name of the AR model, and `source_revision` its revision.
        a2d_ray_version: version that wrote the checkpoint.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    objective: Objective | None = None
    mask_token_id: int = Field(ge=0)
    block_size: int = Field(32, ge=1)
    block_sizes: tuple[int, ...] = ()
    block_grid: BlockGrid = "segment"
    training_grid: BlockGrid | None = None
    right_shift_logits: bool = False
    clean_attention: CleanAttention = "block"
    ar_mode: ARMode | None = None
    eos_token_ids: tuple[int, ...] = ()
    gated_adapters: LoraSection | None = None
    proof: ProofRecord | None = None
    source: str | None = None
    source_revision: str | None = None
    a2d_ray_version: str | None = None

    @model_validator(mode="after")
    def _check_block_size(self) -> Self:
        if self.block_sizes and self.block_size not in self.block_sizes:
            raise ValueError(
                f"block_size ({self.block_size}) was not trained: choose from {self.block_sizes}"
            )
        return self
