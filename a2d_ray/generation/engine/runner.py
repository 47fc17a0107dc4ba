"""The forward of a round: tokens of all sequences in one row, logits of what was asked."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from a2d_ray.generation.engine.attention import Round, Slice, make_tiles
from a2d_ray.generation.engine.cache import KVStore
from a2d_ray.generation.engine.sequence import Work
from a2d_ray.generation.engine.twins import inference_twin

HEAD_ROWS = 512  # positions whose logits are held at a time: 300 MB for a vocabulary of 152,000


class ModelRunner:
    """Runs rounds on one model.

    Args:
        model: A2D model with head.
        kv_tokens: capacity of the KV store; None: there is none (MDLM).
        is_shifted: `right_shift_logits`: the logits at i - 1 predict token i.
    """

    def __init__(self, model: Any, *, kv_tokens: int | None, is_shifted: bool) -> None:
        self._twin = inference_twin(model)
        self._is_shifted = is_shifted
        config = model.config
        weight = model.lm_head.weight
        self._device = weight.device
        self._store = None
        if kv_tokens is not None:
            self._store = KVStore(
                num_layers=config.num_hidden_layers,
                num_key_heads=config.num_key_value_heads,
                head_dim=getattr(config, "head_dim", None)
                or config.hidden_size // config.num_attention_heads,
                capacity=kv_tokens,
                dtype=weight.dtype,
                device=weight.device,
            )

    def logits(self, works: Sequence[Work]) -> Iterator[Tensor]:
        """Yields float32 logits [asked, V] of each work; their finished blocks are stored before.

        The head runs for as many works at a time as ask for about `HEAD_ROWS` positions, so what
        a round takes does not grow with the requests in it.
        """
        hidden_NH = self._hidden(works)
        rows = []
        start = 0
        for work in works:
            part = hidden_NH[start : start + work.num_tokens]
            start += work.num_tokens
            for page in work.chunk.pages:
                page.is_filled = True
            rows.append(self._asked_rows(work, part))
        for group in _groups(rows):
            asked_NH = group[0] if len(group) == 1 else torch.cat(group)
            if not len(asked_NH):
                yield from group
            else:
                yield from self._twin.lm_head(asked_NH).float().cpu().split([*map(len, group)])

    def _hidden(self, works: Sequence[Work]) -> Tensor:
        ids = torch.cat([w.ids_n for w in works])
        positions = torch.cat([torch.arange(w.start, w.stop) for w in works])
        unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self._device)
        return self._twin.model(
            input_ids=ids.to(self._device)[None],
            position_ids=positions.to(self._device)[None],
            attention_mask=unread,
            use_cache=False,
            ragged=Round(slices=[self._slice(w) for w in works], store=self._store),
        ).last_hidden_state[0]

    def _slice(self, work: Work) -> Slice:
        tiles = make_tiles(work.num_visible, self._device)
        storage = work.storage
        if storage is None:
            return Slice(num_tokens=work.num_tokens, new_runs=None, all_runs=(), tiles=tiles)
        new, everything = storage.runs(work.chunk, work.stop - work.chunk.stop)
        return Slice(num_tokens=work.num_tokens, new_runs=new, all_runs=everything, tiles=tiles)

    def _asked_rows(self, work: Work, hidden_nH: Tensor) -> Tensor:
        """Hidden states whose logits predict the asked positions."""
        if not self._is_shifted:
            return hidden_nH[(work.asked - work.start).to(self._device)]
        storage = work.storage
        for page, stop in _page_stops(work):
            page.last_hidden_H = hidden_nH[stop - work.start - 1].clone()
        before = None if storage is None else storage.last_hidden
        if work.start == 0 or before is None:  # nothing precedes position 0: its own logits
            index = (work.asked - work.start - 1).clamp(min=0)
            return hidden_nH[index.to(self._device)]
        index = (work.asked - work.start).to(self._device)
        return torch.cat([before[None], hidden_nH])[index]


def _groups(rows: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of about `HEAD_ROWS` rows together."""
    group: list[Tensor] = []
    for part in rows:
        if group and sum(map(len, group)) + len(part) > HEAD_ROWS:
            yield group
            group = []
        group.append(part)
    yield group


def _page_stops(work: Work) -> list[tuple[Any, int]]:
    stops = []
    stop = work.chunk.start
    for page in work.chunk.pages:
        stop += page.num_tokens
        stops.append((page, stop))
    return stops
