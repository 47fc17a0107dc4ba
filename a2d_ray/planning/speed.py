"""Seconds of a training step on one GPU, on paper: what is computed, moved and sent.

FLOPs and bytes are counted. What a GPU gets of its peak and of its memory's bandwidth is paper:
`PRODUCTS`, `ATTENTION` and `MEMORY`. No GPU has confirmed them.
"""

from dataclasses import dataclass, replace

from a2d_ray.config import ModelSection
from a2d_ray.planning.devices import Device
from a2d_ray.planning.flops import LayoutCost, train_flops
from a2d_ray.planning.sizes import ModelSizes

PRODUCTS = 0.65  # of the peak
ATTENTION = 0.25  # of the peak, of the pairs that attend: tiles are half full, scores run twice
MEMORY = 0.85  # of the bandwidth
TAIL_TOKENS = (
    64  # of padding in a micro-batch: half a tile of `diffusion.coverage` (it takes torch)
)

# Bytes that the element-wise operations of a layer move per token, forward and backward, times
# widths; of the logits behind their product; of weights per micro-batch: cast, gradient, and its
# addition to the one before. Counted operation by operation under bf16 autocast.
EAGER_HIDDEN = 408.0
EAGER_QUERY = 98.0
EAGER_KEY = 92.0
EAGER_NORMED = 168.0
EAGER_MLP = 28.0
EAGER_LOGITS = 36.0
CAST, GRADIENT, ADDITION = 6.0, 6.0, 12.0
# The same where kernels are joined: a share, and logits that are read twice and written. Paper.
COMPILED_SHARE = 0.18
COMPILED_LOGITS = 6.0
OPTIMIZER_BYTES = 28.0  # per trained weight and step: gradient, weight and two moments


@dataclass(frozen=True, kw_only=True)
class StepSeconds:
    """Seconds of a step on one GPU that waits for nobody.

    Attributes:
        products: of layers, forward and backward.
        attention: the same.
        element_wise: memory-bound operations of layers.
        loss: head and what follows its logits.
        weights: casts, gradients and optimizer.
    """

    products: float
    attention: float
    element_wise: float
    loss: float
    weights: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(vars(self).values())


def step_seconds(
    cost: LayoutCost,
    sizes: ModelSizes,
    model: ModelSection,
    device: Device,
    *,
    num_micro: int,
    optimizer_share: float,
) -> StepSeconds:
    """Seconds of one GPU's step.

    Args:
        cost: of its part of the step, over all micro-batches.
        sizes: of the model.
        model: what of it is trained, and how.
        device: peak and bandwidth, which must be known.
        num_micro: micro-batches; each is padded to whole tiles.
        optimizer_share: of the trained weights that this GPU steps.
    """
    assert device.memory_tbyte_s is not None
    peak = 1e12 * device.peak_tflops
    bandwidth = 1e12 * device.memory_tbyte_s * MEMORY
    none = replace(cost, tokens=0.0, pairs=0.0, logits=0.0)
    tokens = cost.tokens + num_micro * TAIL_TOKENS
    is_compiled = model.lora is None if model.compile == "auto" else model.compile
    moved = element_wise_bytes(sizes) * (COMPILED_SHARE if is_compiled else 1.0)
    trained = sizes.trained_parameters(model)
    per_logit = COMPILED_LOGITS if is_compiled else EAGER_LOGITS
    head = train_flops(replace(none, logits=cost.logits), sizes, model)
    weights = num_micro * (CAST * sizes.parameters + (GRADIENT + ADDITION) * trained)
    weights += OPTIMIZER_BYTES * optimizer_share * trained
    return StepSeconds(
        products=train_flops(replace(none, tokens=tokens), sizes, model) / (peak * PRODUCTS),
        attention=train_flops(replace(none, pairs=cost.pairs), sizes, model) / (peak * ATTENTION),
        element_wise=tokens * sizes.layers * moved / bandwidth,
        loss=head / (peak * PRODUCTS) + cost.logits * sizes.vocab * per_logit / bandwidth,
        weights=weights / bandwidth,
    )


def element_wise_bytes(sizes: ModelSizes) -> float:
    """Bytes per token and layer that element-wise operations move when nothing is compiled."""
    normed = sizes.query_width + sizes.kv_width if sizes.qk_norm_parameters else 0
    return (
        EAGER_HIDDEN * sizes.hidden
        + EAGER_QUERY * sizes.query_width
        + EAGER_KEY * sizes.kv_width
        + EAGER_NORMED * normed
        + EAGER_MLP * sizes.intermediate
    )
