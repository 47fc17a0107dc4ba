"""Suite `training`: the naive layout against ours, on the same rows, by technique.

Cost is CPU seconds of forward and backward per target token and view. The model has SmolLM2-135M's
shape and random weights; half of every document is the answer; bfloat16 autocast.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from a2d_ray.config import BenchmarkConfig
from a2d_ray.diffusion.layout import PAD_DOC, LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.masks import dense_mask
from a2d_ray.diffusion.noise import NoiseSpec, draw_noise
from a2d_ray.diffusion.objectives import LossSpec, diffusion_loss
from a2d_ray.models.architectures import find_architecture
from a2d_ray.planning.flops import LayoutCost, train_flops
from a2d_ray.planning.sizes import ModelSizes
from a2d_ray.training.module import DiffusionModule
from benchmarks import models
from benchmarks.harness import Case, Timing, measure
from benchmarks.memory import peak_rss_mb
from benchmarks.naive_training import (
    PaddedBatch,
    bare_step,
    naive_loss,
    naive_mask,
    padded_batch,
)
from benchmarks.ray_overhead import ray_train

BLOCK_SIZE = 32
MASK_ID = 49152
EOS_ID = 2
SIZES = replace(models.SIZES, vocab=49_216)  # with the mask token, a multiple of 64
SPEC = LayoutSpec(objective="bd3lm", block_size=BLOCK_SIZE, eos_id=EOS_ID, pad_id=EOS_ID)
LENGTHS = (1024, 512)
UNIT = "CPU s per target and view"


def run(config: BenchmarkConfig) -> Iterator[Case]:
    """`one_view_L*` and `two_views_L*` on one document, `packed_mix_L512` on many, `ray_train`."""
    torch.set_num_threads(config.threads)
    torch.set_flush_denormal(True)
    sizes = replace(SIZES, layers=4) if config.quick else SIZES
    bench = _Bench(_module(sizes, config.seed), sizes, repeats=1 if config.quick else 3)
    wanted = set(config.cases) if config.cases else None
    for length in LENGTHS:
        names = {f"one_view_L{length}", f"two_views_L{length}"}
        if wanted is None or wanted & names:
            rows = [_document(length // 2, length // 2, 0, config.seed)]
            yield from _selected(bench.cases(f"L{length}", rows, is_packed=False), wanted)
    if wanted is None or any("mix" in name for name in wanted):
        rows = _tulu_like_documents(4 if config.quick else 8, 512, config.seed)
        yield from _selected(bench.cases("packed_mix_L512", rows, is_packed=True), wanted)
    del bench
    if wanted is None or "ray_train" in wanted:
        yield ray_train(config)


def _selected(cases: Iterator[Case], wanted: set[str] | None) -> Iterator[Case]:
    return (case for case in cases if wanted is None or case.name in wanted)


@dataclass(frozen=True)
class _Bench:
    """The model and what is done with it.

    Attributes:
        module: trained module; its model also serves the naive layout.
        sizes: of the model.
        repeats: timed runs per contender.
    """

    module: DiffusionModule
    sizes: ModelSizes
    repeats: int

    def cases(self, name: str, rows: list[PackedRow], *, is_packed: bool) -> Iterator[Case]:
        """One and two views on rows of one document each."""
        ours = [_join(rows)] if is_packed else rows
        layout, noise = _draw(rows, views=1)
        batch = padded_batch(rows, layout, noise, multiple=BLOCK_SIZE, pad_id=EOS_ID)
        mask = naive_mask(batch.ids_RL.shape[1], BLOCK_SIZE)
        contenders: dict[str, Callable[[], object]] = {
            "naive": lambda: self._naive(batch),
            "bare": lambda: self._bare(batch, mask),
            "one_view": lambda: self._ours(ours, views=1),
            "two_views": lambda: self._ours(ours, views=2),
        }
        peaks = {key: peak_rss_mb(run) for key, run in reversed(contenders.items())}
        times = measure(contenders, repeats=self.repeats, warmup=0)
        ablation = {
            "masked_logits": lambda: self._naive(batch, masked_logits=True),
            "layout": lambda: self._ours(rows, views=1, is_dense=True),
        }
        times |= measure(ablation, repeats=1, warmup=0)
        targets = int(layout.num_targets)
        facts = {
            "targets": targets,
            "layers": self.sizes.layers,
            "cost_over_naive": _shares(times),
            "flops_over_naive": self._flop_shares(ours, batch),
            "peak_rss_mb": peaks,
            "wall_s": {key: round(timing.wall_s, 2) for key, timing in times.items()},
            "loss_difference": self._loss_difference(batch, rows),
        }
        for views, key in ((1, "one_view"), (2, "two_views")):
            yield Case(
                name=f"{key}_{name}",
                ours=times[key].cpu_s / (targets * views),
                baseline=times["naive"].cpu_s / targets,
                unit=UNIT,
                baseline_forwards=1,
                baseline_floor=times["bare"].cpu_s / targets,
                facts=facts,
            )

    def _ours(self, rows: list[PackedRow], *, views: int, is_dense: bool = False) -> float:
        layout, noise = _draw(rows, views=views)
        if is_dense:
            loss = self._dense_loss(layout, noise)
        else:
            loss = self.module(layout, noise).loss
        loss.backward()
        self.module.zero_grad()
        return float(loss.detach())

    def _dense_loss(self, layout: Any, noise: Any) -> Tensor:
        """Our layout and loss, with the dense mask through SDPA."""

        def backbone(ids_RT: Tensor, _layout: Any) -> Tensor:
            return (
                self._sdpa_model()
                .model(
                    input_ids=ids_RT,
                    position_ids=layout.position_RT,
                    attention_mask=dense_mask(layout),
                    use_cache=False,
                )
                .last_hidden_state
            )

        with self.module.autocast():
            return diffusion_loss(layout, noise, backbone, self.module.head, self.module.loss).loss

    def _naive(self, batch: PaddedBatch, *, masked_logits: bool = False) -> float:
        with self.module.autocast():
            loss = naive_loss(
                self._sdpa_model(),
                batch,
                block_size=BLOCK_SIZE,
                mask_id=MASK_ID,
                masked_logits=masked_logits,
            )
        loss.backward()
        self.module.zero_grad()
        return float(loss.detach())

    def _bare(self, batch: PaddedBatch, mask: Tensor) -> None:
        with self.module.autocast():
            bare_step(self._sdpa_model(), batch, mask)
        self.module.zero_grad()

    def _sdpa_model(self) -> Any:
        self.module.model.config._attn_implementation = "sdpa"
        return self.module.model

    def _loss_difference(self, batch: PaddedBatch, rows: list[PackedRow]) -> float:
        """Relative difference of the two losses: rounding, since the draws are the same."""
        naive = self._naive(batch)
        ours = self._ours(rows, views=1)
        return round(abs(naive - ours) / naive, 6)

    def _flop_shares(self, rows: list[PackedRow], batch: PaddedBatch) -> dict[str, float]:
        """FLOPs of forward and backward per target and view, over those of the naive layout."""
        num_rows, length = batch.ids_RL.shape
        places = 2 * num_rows * length
        naive = train_flops(
            LayoutCost(tokens=places, pairs=2 * length * places, logits=places, targets=1),
            self.sizes,
        )
        shares = {}
        for views, key in ((1, "one_view"), (2, "two_views")):
            layout, noise = _draw(rows, views=views)
            is_real = layout.doc_RT != PAD_DOC
            pairs = dense_mask(layout)[:, 0] & is_real[:, None] & is_real[:, :, None]
            cost = LayoutCost(
                tokens=int(is_real.sum()),
                pairs=int(pairs.sum()),
                logits=int(noise.is_masked_RT.sum()),
                targets=1,
            )
            shares[key] = round(train_flops(cost, self.sizes) / views / naive, 3)
        return shares


def _shares(times: dict[str, Timing]) -> dict[str, float]:
    """CPU time per target and view over the naive layout's, technique by technique."""
    naive = times["naive"].cpu_s
    steps = {
        "1 naive": naive,
        "2 logits at masked targets": times["masked_logits"].cpu_s,
        "3 only tokens that carry loss, no padding": times["layout"].cpu_s,
        "4 block-sparse attention": times["one_view"].cpu_s,
        "5 two views on one clean copy": times["two_views"].cpu_s / 2,
    }
    return {key: round(value / naive, 3) for key, value in steps.items()}


def _module(sizes: ModelSizes, seed: int) -> DiffusionModule:
    architecture = find_architecture("llama")
    assert architecture is not None
    torch.manual_seed(seed)
    config = architecture.config_class(**models.config_values(sizes, max_length=8_192))
    loss = LossSpec(mask_id=MASK_ID, keeps_mask_logit=True)  # as the naive loss does
    model = architecture.model_class(config).train()
    return DiffusionModule(model, loss, is_causal_clean=False, compute_dtype=torch.bfloat16)


def _draw(rows: list[PackedRow], *, views: int) -> Any:
    layout = build_layout(rows, replace(SPEC, views=views))
    return layout, draw_noise(
        layout, NoiseSpec(), seed=0, epoch_R=torch.zeros(len(rows), dtype=torch.int64)
    )


def _document(prompt: int, answer: int, number: int, seed: int) -> PackedRow:
    """A document of random ids; the answer begins at a block edge of the naive layout."""
    generator = torch.Generator().manual_seed(seed * 1009 + number)
    length = prompt + answer
    is_answer = torch.arange(length) >= prompt
    return PackedRow(
        ids_C=torch.randint(3, MASK_ID, (length,), generator=generator),
        doc_C=torch.zeros(length, dtype=torch.int64),
        segment_C=is_answer.long(),
        is_target_C=is_answer,
        doc_id_D=torch.tensor([number]),
        is_complete_D=torch.tensor([True]),
    )


def _tulu_like_documents(number: int, max_length: int, seed: int) -> list[PackedRow]:
    """Documents whose lengths spread as those of chat mixtures do: log-normal, cut at the limit.

    Prompts are whole blocks, so that both layouts have the same blocks.
    """
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(number, 2, generator=generator)
    rows = []
    for i in range(number):
        blocks = (4 * torch.exp(0.9 * spread[i, 0])).long().clamp(1, max_length // BLOCK_SIZE - 1)
        prompt = int(blocks) * BLOCK_SIZE
        answer = int((220 * torch.exp(0.9 * spread[i, 1])).clamp(8, max_length - prompt))
        rows.append(_document(prompt, answer, i, seed))
    return rows


def _join(rows: list[PackedRow]) -> PackedRow:
    """Documents of one row each as one packed row."""
    return PackedRow(
        ids_C=torch.cat([row.ids_C for row in rows]),
        doc_C=torch.cat([torch.full_like(row.doc_C, i) for i, row in enumerate(rows)]),
        segment_C=torch.cat([row.segment_C for row in rows]),
        is_target_C=torch.cat([row.is_target_C for row in rows]),
        doc_id_D=torch.cat([row.doc_id_D for row in rows]),
        is_complete_D=torch.cat([row.is_complete_D for row in rows]),
    )
