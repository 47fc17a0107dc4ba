"""The diffusion objective: blocks, views, noise and what the loss is divided by."""

from typing import ClassVar, Literal, Self

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from a2d_ray.config.base import BlockGrid, Conditions, Objective, Section, require
from a2d_ray.config.errors import OptionError

CleanAttention = Literal["block", "causal"]

NoiseKind = Literal["exact", "bernoulli", "full"]

DraftTarget = Literal["labels", "ar"]

NoiseSchedule = Literal["linear", "cosine"]
"""By name as in `a2d_ray.diffusion.schedules.SCHEDULES`."""

MAX_BLOCK_SIZE = 4096

NORMS_OF_RECIPE = ("token", "sequence", "batch")


class ObjectiveSection(Section):
    effective_if: ClassVar[Conditions] = {
        "block_grid": {"name": "bd3lm"},
        "clean_attention": {"name": "bd3lm"},
        "noise_per": {"noise": "bernoulli"},
        "schedule": {"noise": "bernoulli"},
        "full_share": {"noise": "full"},
    }

    name: Objective = Field(description="mdlm: global masked diffusion; bd3lm: block diffusion.")
    preset: Literal["default", "reference"] = Field(
        "default",
        description="reference: the public recipe, for comparison: its EOS fill and BOS rule, one "
        "document per row, the mask token's logit kept; the other options must agree.",
    )
    block_size: int | tuple[int, ...] = Field(
        32,
        description="Tokens per block (mdlm: only of sampling). A list, e.g. [4, 8, 16, 32]: each "
        "document draws one in each epoch, and sampling may use any; the largest is the default.",
    )
    block_grid: BlockGrid = Field("segment", description="Where blocks start.")
    clean_attention: CleanAttention = Field(
        "block", description="How clean tokens see each other inside a block."
    )
    first_block: Literal["whole", "random"] = Field(
        "whole",
        description="random: a document draws, anew in each epoch, how long the first block of its "
        "segments is, so that drafts are learned from every offset (bd3lm with "
        "clean_attention=causal and block_grid=segment).",
    )
    views: int = Field(1, ge=1, le=2, description="Complementary noisy views of each document.")
    noise: NoiseKind = Field(
        "exact",
        description="exact counts per block; bernoulli: each token by itself; full: every target "
        "(bd3lm, views=1), as drafts start; corruption_warmup then leaves these documents out.",
    )
    full_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="noise=full: share of documents, drawn anew in each epoch, whose targets are "
        "all masked; the others get noise=exact, so that other rules and the NELBO stay usable.",
    )
    noise_per: Literal["sequence", "block"] = Field(
        "block", description="One noise level per document or per block."
    )
    schedule: NoiseSchedule = Field("linear", description="alpha(t): the share kept at level t.")
    weight: Literal["nelbo", "uniform"] = Field(
        "nelbo", description="nelbo: the likelihood bound's weights; uniform: 1."
    )
    norm: Literal["step", "token", "sequence", "batch"] = Field(
        "step",
        description="step: nats per target of the whole step, however it is cut up; token, "
        "sequence, batch: the public recipe's means over each micro-batch.",
    )
    right_shift_logits: bool = Field(
        False, description="The logit at i-1 predicts token i (bd3lm: not on grid segment)."
    )
    ar_loss_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of a next-token loss on the clean stream, beside the diffusion loss "
        "(bd3lm with clean_attention=causal).",
    )
    router_loss_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the load-balancing loss of a mixture of experts, as its family has "
        "it, beside the mean loss of a target.",
    )
    draft_target: DraftTarget = Field(
        "labels",
        description="What masked targets learn: the labels, or ar: the AR mode's distribution of "
        "the same token, from the clean stream of the same forward (bd3lm with "
        "clean_attention=causal): it is what verifies drafts. EOS fill keeps its labels.",
    )
    confidence_loss_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the entropy at masked tokens that are predicted rightly: surer "
        "models commit more tokens per forward.",
    )
    block_growth: float = Field(
        0.0,
        ge=0,
        le=1,
        description="A list of block sizes: share of steps over which the larger ones join one "
        "after the other, the smallest first; 0: all from the start.",
    )
    corruption_warmup: float = Field(
        0.03, ge=0, le=1, description="Share of steps over which the corrupted share rises to 1."
    )

    @field_validator("block_size")
    @classmethod
    def _one_is_no_list(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        return value[0] if isinstance(value, tuple) and len(value) == 1 else value

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """All block sizes, ascending."""
        size = self.block_size
        return (size,) if isinstance(size, int) else tuple(sorted(set(size)))

    @property
    def largest_block(self) -> int:
        """The largest block size: the default of sampling."""
        return self.block_sizes[-1]

    @property
    def reads_ar_mode(self) -> bool:
        """Whether a training step reads next-token logits of the clean stream."""
        return self.ar_loss_weight > 0 or self.draft_target == "ar"

    @model_validator(mode="after")
    def _check_block_sizes(self) -> Self:
        if not self.block_sizes or not all(1 <= b <= MAX_BLOCK_SIZE for b in self.block_sizes):
            raise OptionError(
                "block_size",
                self.block_size,
                f"must be greater than or equal to 1, at most {MAX_BLOCK_SIZE}",
                "set one such size, or a list of them",
            )
        odd = [size for size in self.block_sizes if self.largest_block % size]
        if odd:
            raise OptionError(
                "block_size",
                list(self.block_sizes),
                "would cut answers elsewhere than at an edge of every grid",
                f"{odd[0]} must divide the largest, {self.largest_block}",
            )
        if self.name == "mdlm" and len(self.block_sizes) > 1:
            raise OptionError(
                "block_size",
                list(self.block_sizes),
                "is a list, but mdlm has no blocks",
                "set one size, that of sampling, or objective.name=bd3lm",
            )
        return self

    @model_validator(mode="after")
    def _check_growth(self) -> Self:
        if self.block_growth and len(self.block_sizes) < 2:
            raise OptionError(
                "block_growth",
                self.block_growth,
                f"has no effect with objective.block_size={self.block_size}",
                "set a list such as objective.block_size=[4, 8, 16, 32], or leave it out",
            )
        return self

    @model_validator(mode="after")
    def _check_ar_loss(self) -> Self:
        if self.ar_loss_weight:
            needed = {"name": "bd3lm", "clean_attention": "causal", "norm": "step"}
            require("ar_loss_weight", self.ar_loss_weight, self, "objective", needed)
        return self

    @model_validator(mode="after")
    def _check_draft_target(self) -> Self:
        if self.draft_target == "ar":
            needed = {
                "name": "bd3lm",
                "clean_attention": "causal",
                "confidence_loss_weight": 0.0,
            }
            require("draft_target", self.draft_target, self, "objective", needed)
        return self

    @model_validator(mode="after")
    def _check_full(self) -> Self:
        if self.noise == "full":
            require("noise", self.noise, self, "objective", {"name": "bd3lm", "views": 1})
        return self

    @model_validator(mode="after")
    def _check_first_block(self) -> Self:
        if self.first_block == "random":
            needed = {"name": "bd3lm", "clean_attention": "causal", "block_grid": "segment"}
            require("first_block", self.first_block, self, "objective", needed)
        return self

    @model_validator(mode="after")
    def _check_shift(self) -> Self:
        if self.right_shift_logits and self.name == "bd3lm" and self.block_grid == "segment":
            raise OptionError(
                "right_shift_logits",
                True,
                "would make an answer's EOS fill the predecessor of the next segment",
                "set objective.block_grid=absolute or prompt_end",
            )
        return self

    @model_validator(mode="after")
    def _check_preset(self) -> Self:
        if self.preset == "default":
            return self
        recipe = {
            "noise": "bernoulli",
            "noise_per": "sequence",
            "views": 1,
            "norm": NORMS_OF_RECIPE,
            "corruption_warmup": 0.0,
            "clean_attention": "block",
            "confidence_loss_weight": 0.0,
        }
        if self.name == "bd3lm":
            recipe["block_grid"] = "absolute"
        require("preset", self.preset, self, "objective", recipe)
        if len(self.block_sizes) > 1:
            raise OptionError(
                "preset", self.preset, "needs one objective.block_size", "set no list of them"
            )
        return self
