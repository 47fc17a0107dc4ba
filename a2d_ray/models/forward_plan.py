"""How a backbone runs a layout: all tokens in one row, and who sees whom. Made on the host.

CPUs attend tile by tile (`block_attention`), other devices by FlexAttention (`flex_attention`).

Where only adapters of noised tokens are trained, the clean tokens run first and without a graph:
nothing in their stream has a gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from a2d_ray.diffusion.coverage import TILE
from a2d_ray.diffusion.flat import FlatTokens, flatten
from a2d_ray.diffusion.layout import Layout
from a2d_ray.diffusion.tiles import Tile, attention_tiles, split_tiles
from a2d_ray.models import flex_attention


@dataclass(frozen=True, kw_only=True)
class ForwardPlan:
    """A pure function of a layout, so another thread may make it.

    Attributes:
        tokens: in one row; all clean ones first, where `clean_tiles` are given.
        noised_n: which of them are noised, indices.
        is_causal_clean: `clean_attention: causal`.
        tiles: of attention on CPUs.
        clean_tiles: of the clean tokens, which run first; None: all run together.
        blocks: of attention elsewhere; None: `tiles` hold it.
    """

    tokens: FlatTokens
    noised_n: Tensor
    is_causal_clean: bool
    tiles: Sequence[Tile] = ()
    clean_tiles: Sequence[Tile] | None = None
    blocks: BlockMask | None = None

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        """The same with every tensor moved, to a device or into pinned memory; tiles stay."""
        blocks = self.blocks
        return replace(
            self,
            tokens=self.tokens.moved(move),
            noised_n=move(self.noised_n),
            blocks=None if blocks is None else flex_attention.moved(blocks, move),
        )

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        return self.moved(lambda x: x.to(device, non_blocking=True))

    def attention_state(self) -> dict[str, Any]:
        """What attention functions are given; the plan lies where the model is."""
        if self.blocks is None:
            return {"tiles": self.tiles, "clean_keys": None}
        mask = flex_attention.with_predicate(
            self.blocks, self.tokens, is_causal_clean=self.is_causal_clean
        )
        return {"block_mask": mask}


def plan_forward(
    layout: Layout,
    *,
    is_causal_clean: bool = False,
    device_type: str = "cpu",
    is_clean_frozen: bool = False,
) -> ForwardPlan:
    """The plan of a layout.

    Args:
        layout: on the CPU.
        is_causal_clean: `clean_attention: causal`.
        device_type: where the model is, such as ``cuda``.
        is_clean_frozen: no gradient reaches the clean stream, so that CPUs run it first.
    """
    is_cpu = device_type == "cpu"
    tokens = flatten(layout, 1 if is_cpu else TILE)
    tiles: Sequence[Tile] = ()
    clean_tiles: Sequence[Tile] | None = None
    blocks: BlockMask | None = None
    if not is_cpu:
        blocks = flex_attention.mask_blocks(tokens, is_causal_clean=is_causal_clean)
    elif is_clean_frozen:
        tokens = tokens.moved(itemgetter(tokens.stream_N.clamp(max=1).argsort(stable=True)))
        clean_tiles, tiles = split_tiles(layout, is_causal_clean=is_causal_clean)
    else:
        tiles = attention_tiles(layout, is_causal_clean=is_causal_clean)
    return ForwardPlan(
        tokens=tokens,
        noised_n=(tokens.stream_N > 0).nonzero()[:, 0],
        is_causal_clean=is_causal_clean,
        tiles=tiles,
        clean_tiles=clean_tiles,
        blocks=blocks,
    )
