"""Bytes that one worker needs: weights, gradients, moments by ZeRO stage; activations; logits.

Masters, gradients and moments are fp32 and computing is bf16 under autocast, as
`training.module` does it. Source of the ZeRO stages: arXiv 1910.02054; of counting activations by
what autograd saves: arXiv 2205.05198.
"""

from dataclasses import dataclass

from a2d_ray.config import ModelSection
from a2d_ray.planning.sizes import ModelSizes

GIB = 2**30
FP32 = 4
BF16 = 2
BUCKET_ELEMENTS = 5e8  # of gradients on their way, DeepSpeed's reduce_bucket_size
LOGITS_CHUNK_TOKENS = (
    1024  # of logits, as `diffusion.losses` computes them (importing it takes torch)
)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes per worker.

    Attributes:
        weights: fp32 masters that the forward reads, and their bf16 casts.
        gradients: fp32, and ZeRO's bucket of those that are being reduced.
        optimizer: two moments, and ZeRO's flat copy of the masters.
        activations: what the backward pass of one micro-batch needs.
        logits: of one chunk of masked tokens, with their gradient.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """All of them, bytes."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def worker_memory(
    sizes: ModelSizes,
    *,
    zero_stage: int,
    num_workers: int,
    micro_tokens: float,
    model: ModelSection,
    is_taught: bool = False,
) -> Memory:
    """Bytes on one worker at the end of a forward pass.

    Args:
        sizes: layers, widths and vocabulary of the model.
        zero_stage: 0 to 3.
        num_workers: that share what the stage shards.
        micro_tokens: laid-out tokens of one forward.
        model: what of it is trained, and how.
        is_taught: whether the AR mode's logits are beside those that learn from them.
    """
    trained = sizes.trained_parameters(model)
    bytes_each = 0.5 if model.load_in_4bit else FP32
    weights = bytes_each * sizes.parameters / (num_workers if zero_stage == 3 else 1)
    kept_layers = 1 if zero_stage == 3 else sizes.layers  # stage 3 gathers a layer at a time
    casts = BF16 * kept_layers * sizes.layer_cast_parameters
    flat_copy = 0 if zero_stage == 0 else FP32 * trained / num_workers
    bucket = 0 if zero_stage == 0 else FP32 * min(trained, BUCKET_ELEMENTS)
    return Memory(
        weights=weights + casts,
        gradients=FP32 * trained / (num_workers if zero_stage >= 2 else 1) + bucket,
        optimizer=2 * FP32 * trained / (num_workers if zero_stage >= 1 else 1) + flat_copy,
        activations=micro_tokens * token_activations(sizes, model),
        logits=(5 if is_taught else 3)
        * FP32
        * min(LOGITS_CHUNK_TOKENS, micro_tokens)
        * sizes.vocab,
    )


def token_activations(sizes: ModelSizes, model: ModelSection) -> float:
    """Bytes that autograd keeps per laid-out token, over all trained layers.

    With gradient checkpointing: the inputs of layers, and one layer that is computed again.
    """
    layers = model.trainable_layers or sizes.layers
    if model.gradient_checkpointing:
        return FP32 * sizes.hidden * layers + layer_activations(sizes)
    return layers * layer_activations(sizes)


def layer_activations(sizes: ModelSizes) -> float:
    """Bytes that autograd keeps per token in one layer (bf16 autocast over an fp32 residual)."""
    # Two norms: their input and what they scale, fp32. Five casts of norms to bf16, one per
    # projection. Queries, keys, values, and the attention's result twice: as it is, and in the
    # order of the output projection. The MLP: gate, its SiLU, up, and their product.
    norms = 2 * 2 * FP32 * sizes.hidden + 5 * BF16 * sizes.hidden
    if sizes.qk_norm_parameters:
        norms += (FP32 + BF16) * (sizes.query_width + sizes.kv_width)
    attention = BF16 * (3 * sizes.query_width + 2 * sizes.kv_width)
    return norms + attention + 4 * BF16 * sizes.intermediate
