"""Attention of one round: the new tokens of every request against that request's own keys.

The tokens of all requests lie in one row [N]. What a round needs besides tensors is a `Round`,
which reaches every layer as the keyword argument `ragged` of the model's forward. A token sees a
prefix of its request, so a mask is one number per token: how many keys it sees.

H query heads, K key/value heads, G = H / K, d head width, n tokens of a slice, S its keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from a2d_ray.generation.engine.cache import KVStore, Runs, SlotStore
from a2d_ray.generation.engine.spans import SpanPlan, attend, flash, kernel_of
from a2d_ray.models.attention_state import state_of
from a2d_ray.models.block_attention import softmax_beside_sinks

ENGINE_ATTENTION = "a2d_engine"
_CONTIGUOUS = torch.contiguous_format
ROWS_PER_TILE = 128  # of a long slice: early rows are spared the keys that only late rows see


@dataclass(frozen=True, kw_only=True)
class RowTile:
    """Rows of a slice that are computed together.

    Attributes:
        rows: (first, stop) within the slice.
        num_keys: keys that any of them sees.
        num_common: keys that all of them see.
        hidden_RS: bool [rows, num_keys - num_common], True = not seen; None if nothing is hidden.
    """

    rows: tuple[int, int]
    num_keys: int
    num_common: int
    hidden_RS: Tensor | None


def make_tiles(num_visible: Sequence[int]) -> tuple[RowTile, ...]:
    """Tiles of a slice from the number of keys that each of its tokens sees (not decreasing)."""
    tiles = []
    for first in range(0, len(num_visible), ROWS_PER_TILE):
        visible = num_visible[first : first + ROWS_PER_TILE]
        common = visible[0]
        most = visible[-1]
        hidden = None
        if common < most:
            hidden = torch.arange(common, most) >= torch.tensor(visible)[:, None]
        rows = (first, first + len(visible))
        tiles.append(RowTile(rows=rows, num_keys=most, num_common=common, hidden_RS=hidden))
    return tuple(tiles)


@dataclass(frozen=True, kw_only=True)
class Slice:
    """New tokens of one request.

    Attributes:
        num_tokens: n.
        new_runs: slots of the new tokens; None: nothing is stored (S = n).
        all_runs: slots of all S keys, the new ones last.
        tiles: see `make_tiles`.
    """

    num_tokens: int
    new_runs: Runs | None
    all_runs: Runs
    tiles: tuple[RowTile, ...]


@dataclass(eq=False, kw_only=True)
class Round:
    """What the layers need to know about one forward.

    Attributes:
        slices: on a CPU: the new tokens of every request.
        spans: elsewhere: those of all.
        store: None: nothing is stored.
        is_flash: whether all layers so far took FlashAttention.
    """

    slices: Sequence[Slice] = ()
    spans: SpanPlan | None = None
    store: KVStore | SlotStore | None
    is_flash: bool = field(default=True, init=False)
    _num_attended: int = field(default=0, init=False)
    _signed_sin: Tensor | None = field(default=None, init=False)

    def rotate(self, x_NHd: Tensor, cos_1Nd: Tensor, sin_1Nd: Tensor) -> Tensor:
        """Rotary embedding: x cos + rotate_half(x) sin."""
        half = x_NHd.shape[-1] // 2
        if self._signed_sin is None:  # the same in every layer
            sign = torch.ones_like(sin_1Nd[0, :1])
            sign[..., :half] = -1
            self._signed_sin = (sin_1Nd[0] * sign)[:, None]
        return torch.addcmul(x_NHd * cos_1Nd[0, :, None], x_NHd.roll(half, -1), self._signed_sin)

    def attend(
        self,
        query_NHd: Tensor,
        key_NKd: Tensor,
        value_NKd: Tensor,
        scale: float,
        *,
        softcap: float | None = None,
        sink_H: Tensor | None = None,
    ) -> Tensor:
        """Attention output [N, H, d]; stores the new keys and values of every request first.

        All are stored before any are read, so requests may share pages that this round fills.
        Layers are told apart by the order in which they call: it is the same in every forward.

        Args:
            query_NHd, key_NKd, value_NKd: of the new tokens; values may have a width of their own.
            scale: of the scores.
            softcap: c, where scores are c tanh(scores / c).
            sink_H: a score per head that takes its share of the probability and gives nothing.
        """
        layer = self._num_attended
        self._num_attended += 1
        extras: dict[str, Any] = {"softcap": softcap, "sink_H": sink_H}
        if self.spans is None:
            return self._attend_slices(layer, query_NHd, key_NKd, value_NKd, scale, **extras)
        if isinstance(self.store, SlotStore) and self.spans.slot_N is not None:
            self.store.write(layer, self.spans.slot_N, key_NKd, value_NKd)
            key_NKd, value_NKd = self.store.read(layer)
        self.is_flash &= kernel_of(query_NHd, key_NKd, value_NKd, softcap) is flash
        return attend(self.spans, query_NHd, key_NKd, value_NKd, scale, **extras)

    def _attend_slices(
        self,
        layer: int,
        query_NHd: Tensor,
        key_NKd: Tensor,
        value_NKd: Tensor,
        scale: float,
        **extras: Any,
    ) -> Tensor:
        """One request after the other: on a CPU each has its keys in the caches."""
        sizes = [part.num_tokens for part in self.slices]
        keys = key_NKd.transpose(0, 1).split(sizes, dim=1)
        values = value_NKd.transpose(0, 1).split(sizes, dim=1)
        for part, new_key, new_value in zip(self.slices, keys, values, strict=True):
            if part.new_runs is not None:
                assert isinstance(self.store, KVStore)
                self.store.write(layer, part.new_runs, new_key, new_value)
        outputs = []
        for i, (part, query) in enumerate(zip(self.slices, query_NHd.split(sizes), strict=True)):
            if part.new_runs is None:
                seen = keys[i], values[i]
            else:
                assert isinstance(self.store, KVStore)
                seen = self.store.read(layer, part.all_runs)
            outputs.append(_attend_slice(query, *seen, part.tiles, scale, **extras))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_slice(
    query_nHd: Tensor,
    key_KSd: Tensor,
    value_KSd: Tensor,
    tiles: Sequence[RowTile],
    scale: float,
    *,
    softcap: float | None = None,
    sink_H: Tensor | None = None,
) -> Tensor:
    """Two matrix products per tile; the G query heads of a key head are rows of one product."""
    (n, num_heads, dim) = query_nHd.shape
    num_key_heads = key_KSd.shape[0]
    group = num_heads // num_key_heads
    grouped = query_nHd.view(n, num_key_heads, group, dim).transpose(0, 1)
    folded_KRd = torch.mul(grouped, scale, out=torch.empty_like(grouped, memory_format=_CONTIGUOUS))
    folded_KRd = folded_KRd.view(num_key_heads, n * group, dim)
    outputs = []
    for tile in tiles:
        first, stop = tile.rows
        rows = folded_KRd[:, first * group : stop * group]
        scores = torch.bmm(rows, key_KSd[:, : tile.num_keys].transpose(1, 2))
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if tile.hidden_RS is not None:
            by_token = scores.view(num_key_heads, stop - first, group, tile.num_keys)
            by_token[..., tile.num_common :].masked_fill_(tile.hidden_RS[:, None], -torch.inf)
        if sink_H is None:
            probabilities = torch.softmax(scores, -1)  # float32 inside, whatever the dtype
        else:
            sink_KR = sink_H.view(num_key_heads, group).repeat(1, stop - first)
            probabilities = softmax_beside_sinks(scores, sink_KR)
        outputs.append(torch.bmm(probabilities, value_KSd[:, : tile.num_keys]))
    output_KRd = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    width = value_KSd.shape[-1]
    return output_KRd.view(num_key_heads, n, group, width).transpose(0, 1).reshape(n, -1, width)


def engine_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    ragged: Round | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' form of `Round.attend`: query [1, H, N, d] -> [1, N, H, d]."""
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    ragged = state_of(module, "ragged") if ragged is None else ragged
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended = ragged.attend(query, key, value, scale, softcap=softcap, sink_H=s_aux)
    return attended[None].contiguous(), None


AttentionInterface.register(ENGINE_ATTENTION, engine_attention)
