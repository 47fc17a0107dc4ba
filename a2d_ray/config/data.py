"""Mixtures and packing, and what fits together with the objective."""

from typing import Any, ClassVar, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from a2d_ray.config.base import GIVEN, Conditions, Section, require
from a2d_ray.config.errors import OptionError
from a2d_ray.config.models import CheckpointSection
from a2d_ray.config.objective import ObjectiveSection


class DataSection(Section):
    effective_if: ClassVar[Conditions] = {
        "decontaminate_ngram": {"decontaminate": GIVEN},
        "text_field": {"adapter": None},
    }

    spec: str = Field(
        min_length=1,
        description="Mixture: name[key:value,...] joined by '+'; Hub ids, directories, files, "
        "or embedded/sums|sorting|spelling|maths|chat|story.",
    )
    packed_path: str = Field(
        "packed", description="Where packed sets are kept; reused by fingerprint."
    )
    max_length: int = Field(512, ge=8, description="Longest document in tokens.")
    tokens_per_row: int = Field(
        2048, ge=16, description="Capacity of a packed row: tokens over all streams."
    )
    packing: bool = Field(True, description="Several documents per row; false: one each, padded.")
    truncation: Literal["right", "filter"] = Field(
        "right", description="right: cut the last answer at a block edge; filter: drop the row."
    )
    targets: Literal["all", "last"] = Field(
        "all", description="Which assistant turns are learned (all needs block_grid=segment)."
    )
    text_field: str | None = Field(None, description="Column of plain text, for pre-training.")
    adapter: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="Own adapter, package.module:function: a row (dict) -> {'messages': [...]} or "
        "{'text': ...}.",
    )
    template_options: dict[str, Any] = Field(
        default_factory=dict,
        description="What the chat template reads besides the messages, e.g. {enable_thinking: "
        "true, date_string: 1 Jan 2026}; kept in the checkpoint, whose prompts use it too.",
    )
    insert_eos: bool = Field(True, description="Plain text: end each document with EOS.")
    eos_tail: int = Field(
        16, ge=1, description="Up to this many EOS targets follow a finished answer."
    )
    test_fraction: float = Field(
        0.05, ge=0, lt=1, description="Held-out share (seeded hash) where no test split exists."
    )
    max_rows: int | None = Field(
        None, ge=1, description="Training rows at most, a random choice over all sources."
    )
    max_tokens: int | None = Field(
        None, ge=1, description="Training tokens at most, a random choice over all sources."
    )
    deduplicate: bool = Field(False, description="Drop rows that repeat another row exactly.")
    decontaminate: list[str] = Field(
        default_factory=list,
        description="Evaluation sets (specs): training rows that share an n-gram are dropped.",
    )
    decontaminate_ngram: int = Field(13, ge=4, description="Words of such an n-gram.")
    max_block_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Largest block size that the set is to serve, for sweeps; null: the "
        "objective's own.",
    )
    max_views: Literal[1, 2] | None = Field(
        None, description="Most views that the set is to serve; null: the objective's own."
    )
    seed: int = Field(0, ge=0, description="Seed of the test split and of the order of the packs.")
    max_bad_fraction: float = Field(
        0.01, ge=0, le=1, description="Stop when a larger share of rows is malformed."
    )


DATA_EFFECTIVE_IF: Conditions = {
    "data.eos_tail": {"objective.name": "mdlm", "objective.preset": "default"},
    "data.max_block_size": {"objective.name": "bd3lm"},
}
"""Of commands with both sections."""


def check_lengths(data: DataSection, objective: ObjectiveSection) -> None:
    """Refuses documents that do not fit the blocks or the rows.

    Raises:
        OptionError: names the keys and the fix.
    """
    is_blockwise = objective.name == "bd3lm"
    key = "objective.block_size"
    size = objective.largest_block
    if is_blockwise and data.max_block_size is not None:
        if data.max_block_size % size:
            raise OptionError(
                "objective.block_size",
                size,
                f"must divide data.max_block_size={data.max_block_size}",
                "change one of them",
            )
        key = "data.max_block_size"
        size = data.max_block_size
    if is_blockwise and data.max_length % size:
        raise OptionError(
            "data.max_length",
            data.max_length,
            f"must be a multiple of {key}={size}",
            f"set {data.max_length // size * size or size}",
        )
    if data.max_views is not None and data.max_views < objective.views:
        raise OptionError(
            "data.max_views",
            data.max_views,
            f"is less than objective.views={objective.views}",
            "raise it, or leave it out",
        )
    views = data.max_views or objective.views
    streams = views + is_blockwise
    fill = longest_eos_tail(data, objective)
    needed = streams * data.max_length + views * fill
    if data.tokens_per_row < needed:
        raise OptionError(
            "data.tokens_per_row",
            data.tokens_per_row,
            f"cannot hold one document of data.max_length={data.max_length} in {streams} streams",
            f"raise it to {needed}",
        )


def longest_eos_tail(data: DataSection, objective: ObjectiveSection) -> int:
    """The most EOS targets that follow a finished answer: 0 where answers are filled otherwise."""
    has_tail = objective.name == "mdlm" and objective.preset == "default"
    return data.eos_tail if has_tail else 0


def check_targets(data: DataSection, objective: ObjectiveSection) -> None:
    """Refuses targets that would see later turns.

    Raises:
        OptionError: names the keys and the fix.
    """
    if objective.preset == "reference":
        needed = {"targets": "last", "packing": False}
        require("objective.preset", objective.preset, data, "data", needed)
    is_blockwise = objective.name == "bd3lm"
    if is_blockwise and objective.block_grid != "segment" and data.targets == "all":
        raise OptionError(
            "objective.block_grid",
            objective.block_grid,
            "lets a later user turn be seen by an earlier answer",
            "set data.targets=last or objective.block_grid=segment",
        )


class PrepareConfig(Section):
    """Read, tokenize and pack a mixture with Ray Data."""

    effective_if: ClassVar[Conditions] = DATA_EFFECTIVE_IF

    data: DataSection
    objective: ObjectiveSection
    model: CheckpointSection = Field(description="Its tokenizer is used.")
    num_cpus: int | None = Field(None, ge=1, description="Logical CPUs of a local Ray.")

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        check_lengths(self.data, self.objective)
        check_targets(self.data, self.objective)
        return self


class InspectConfig(PrepareConfig):
    """Look at a mixture as training sees it: examples in colour, lengths, drops, utilisation."""

    split: Literal["train", "test"] = Field("train", description="Split to look at.")
    examples: int = Field(3, ge=0, description="Documents that are printed.")
    png: str | None = Field(None, description="Where to write the histogram of lengths.")
