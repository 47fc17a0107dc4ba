"""Tokens, attention pairs and FLOPs of one document, as the layout lays it out. No torch here.

A multiplication and an addition are two FLOPs. The counts equal those of `diffusion.layout` and
`diffusion.masks` (tested); `padded_cost` is the layout of the public recipe, to compare with.
"""

from dataclasses import dataclass

from a2d_ray.config import ModelSection, ObjectiveSection
from a2d_ray.planning.sizes import ModelSizes

WHOLE = ModelSection(path="whole")  # everything is trained, nothing computed twice


@dataclass(frozen=True, kw_only=True)
class LayoutCost:
    """What the model computes for one document.

    Attributes:
        tokens: laid-out tokens over all streams.
        pairs: (query, key) pairs that attend.
        logits: positions whose logits are computed.
        targets: target tokens over all views: what the loss divides by.
    """

    tokens: float
    pairs: float
    logits: float
    targets: float


def layout_cost(prompt: int, answer: int, objective: ObjectiveSection) -> LayoutCost:
    """Cost of one document of a prompt and an answer that is whole, without an EOS tail.

    Args:
        prompt: tokens before the answer; 0: plain text.
        answer: target tokens, at least 1.
        objective: mdlm; bd3lm, with the blocks of the grid `segment`.
    """
    views = objective.views
    if objective.name == "mdlm":
        length = prompt + answer
        return LayoutCost(
            tokens=views * length,
            pairs=views * length**2,
            logits=_masked(answer, answer, objective),
            targets=views * answer,
        )
    size = objective.largest_block
    answer_blocks = -(-answer // size)
    targets = answer_blocks * size  # with the EOS fill of the last block
    clean = prompt + (answer_blocks - 1) * size  # nobody attends to the last block's clean copy
    if objective.reads_ar_mode:
        clean = prompt + answer
    blocks = [*_blocks(prompt, size), *[size] * (answer_blocks - 1)]
    starts = [sum(blocks[:i]) for i in range(len(blocks))]
    clean_pairs = sum(b * (s + b) for b, s in zip(blocks, starts, strict=True))
    if objective.clean_attention == "causal":
        clean_pairs = clean * (clean + 1) // 2
    before = sum(prompt + i * size for i in range(answer_blocks))
    noisy_pairs = targets * size + size * before
    return LayoutCost(
        tokens=clean + views * targets,
        pairs=clean_pairs + views * noisy_pairs,
        logits=_masked(targets, size, objective) + answer * objective.reads_ar_mode,
        targets=views * targets,
    )


def padded_cost(length: int, targets: int, objective: ObjectiveSection) -> LayoutCost:
    """Cost of one row of the public recipe: padded to `length`, logits and attention everywhere."""
    places = length * (2 if objective.name == "bd3lm" else 1)
    return LayoutCost(tokens=places, pairs=places**2, logits=places, targets=targets)


def forward_flops(cost: LayoutCost, sizes: ModelSizes) -> float:
    """FLOPs of one forward pass."""
    return _layer_flops(cost, sizes) * sizes.layers + _head_flops(cost, sizes)


def train_flops(cost: LayoutCost, sizes: ModelSizes, model: ModelSection = WHOLE) -> float:
    """FLOPs of a forward and a backward pass.

    The backward pass costs twice its forward, half of it for the gradients of weights: frozen
    weights need none, and layers below the first trained one no backward pass. Checkpointed layers
    are computed once more. The adapters' own products are left out.

    Args:
        cost: of what is trained on.
        sizes: layers, widths and vocabulary of the model.
        model: what of it is trained, and how.
    """
    layer = _layer_flops(cost, sizes)
    head = _head_flops(cost, sizes)
    trained = model.trainable_layers or sizes.layers
    is_frozen = model.lora is not None
    is_head_trained = not is_frozen and model.trainable_layers is None
    backward = (1 if is_frozen else 2) * layer * trained + (2 if is_head_trained else 1) * head
    again = layer * sizes.layers if model.gradient_checkpointing else 0
    return forward_flops(cost, sizes) + backward + again


def _layer_flops(cost: LayoutCost, sizes: ModelSizes) -> float:
    matrices = 2 * cost.tokens * sizes.layer_matrix_parameters
    return matrices + 2 * cost.pairs * sizes.pair_products  # scores, and the weighted values


def _head_flops(cost: LayoutCost, sizes: ModelSizes) -> float:
    return 2 * cost.logits * sizes.hidden * sizes.vocab


def _masked(targets: int, per_block: int, objective: ObjectiveSection) -> float:
    """Expected masked targets. `exact`: k uniform on 1..m; two views mask each once."""
    if objective.views == 2:
        return float(targets)
    full = objective.full_share if objective.noise == "full" else 0.0
    return targets * (full + (1 - full) * (per_block + 1) / (2 * per_block))


def _blocks(length: int, size: int) -> list[int]:
    whole, rest = divmod(length, size)
    return [size] * whole + ([rest] if rest else [])
