"""Held-out figures of the model in training, shared out over the ranks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from a2d_ray.config import TrainConfig
from a2d_ray.data.packing.packed import PackedSet
from a2d_ray.diffusion.drafts import draft_sums
from a2d_ray.diffusion.layout import LayoutSpec, PackedRow
from a2d_ray.diffusion.likelihood import NUM_BINS, nelbo_sums
from a2d_ray.models.adapters import merged_copy
from a2d_ray.models.contract import Contract
from a2d_ray.models.gated_lora import settled_copy
from a2d_ray.training.engine import is_partitioned
from a2d_ray.training.ranks import Ranks
from a2d_ray.training.samples import HeldOutSample, generate_samples


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates the module that is being trained.

    Attributes:
        config: the resolved training configuration.
        packed: its test split is read.
        spec: layout of the objective.
        contract: how the checkpoint is used: blocks, mask token, AR mode.
        tokenizer: the checkpoint's; ids to text and back.
        adapted: peft's view of a model with adapters, else None.
        rows_per_micro: rows of one forward.
        ranks: this rank.
    """

    config: TrainConfig
    packed: PackedSet
    spec: LayoutSpec
    contract: Contract
    tokenizer: Any
    adapted: Any
    rows_per_micro: int
    ranks: Ranks

    @property
    def num_rows(self) -> int:
        """Held-out rows of an evaluation."""
        if self.config.schedule.eval_steps == 0:
            return 0
        return min(self.packed.num_rows("test"), self.config.schedule.eval_rows)

    def evaluate(self, engine: Any) -> dict[str, float]:
        """Held-out figures; empty if nothing is held out. Collective.

        Returns:
            ``eval/nelbo`` (nats per answer token, fixed draws), ``eval/perplexity_bound``, and by
            bin of the masked share of a block ``eval/ce_0.2``, ``eval/accuracy_0.2``, ... (the
            number is the bin's upper edge). With several block sizes these are at the largest,
            and ``eval/nelbo_block_4``, ... at the others.

            With `clean_attention: causal` also ``eval/accepted_length`` (tokens) and, by offset in
            a block from 1 on, ``eval/draft_agreement_1``, ... (shares); see `draft_sums`. At the
            other block sizes ``eval/accepted_length_block_4``, ....
        """
        if self.num_rows == 0:
            return {}
        engine.module.eval()
        figures = self._figures(engine.module, self.spec)
        for size in self.config.objective.block_sizes[:-1]:
            smaller = self._figures(engine.module, replace(self.spec, block_size=size))
            compared = [key for key in ("eval/nelbo", "eval/accepted_length") if key in smaller]
            figures |= {f"{key}_block_{size}": smaller[key] for key in compared}
        engine.module.train()
        return figures

    def _figures(self, module: Any, spec: LayoutSpec) -> dict[str, float]:
        """The figures at one block size."""
        draws = range(self.config.schedule.eval_draws)
        nelbo = sum(self._totals(partial(self._nelbo, module, spec, draw)) for draw in draws)
        figures = _nelbo_figures(self.ranks.sum(nelbo))
        if spec.causal_clean:
            drafts = self.ranks.sum(self._totals(partial(self._drafts, module, spec)))
            figures |= _draft_figures(drafts)
        return figures

    def _totals(self, sums: Callable[[list[PackedRow]], Tensor]) -> Any:
        """What `sums` gives over this rank's share of the held-out rows, added up."""
        world = self.ranks.world
        # Every rank makes as many forwards: under ZeRO-3 each of them gathers weights.
        num_mine = -(-self.num_rows // world)
        mine = [self.ranks.rank + i * world for i in range(num_mine)]
        total: Any = 0
        for start in range(0, num_mine, self.rows_per_micro):
            indices = mine[start : start + self.rows_per_micro]
            held_out = [i for i in indices if i < self.num_rows]
            part = sums(self.packed.read_rows("test", held_out or [0]))
            total += part if held_out else torch.zeros_like(part)
        return total

    def _nelbo(self, module: Any, spec: LayoutSpec, draw: int, rows: list[PackedRow]) -> Tensor:
        with module.autocast():
            part = nelbo_sums(rows, spec, module.backbone, module.head, draw=draw, **self._reading)
        counts = torch.stack([part.nats, part.num_tokens.double()])
        return torch.cat([counts, part.by_ratio.flatten()])

    def _drafts(self, module: Any, spec: LayoutSpec, rows: list[PackedRow]) -> Tensor:
        with module.autocast():
            part = draft_sums(rows, spec, module.backbone, module.head, **self._reading)
        counts = torch.stack([part.accepted, part.num_blocks])
        return torch.cat([counts, part.agreed_J, part.drafted_J])

    @property
    def _reading(self) -> dict[str, Any]:
        return {"mask_id": self.contract.mask_token_id, "device": self.ranks.device}

    def samples(self, engine: Any) -> list[HeldOutSample]:
        """Answers to held-out prompts, on rank 0. Not with weights that ZeRO-3 has partitioned."""
        wanted = min(self.config.schedule.eval_samples, self.num_rows)
        if wanted == 0 or not self.ranks.is_first or is_partitioned(engine):
            return []
        rows = self.packed.read_rows("test", range(wanted))
        module = engine.module.eval()
        model = module.model
        if self.contract.gated_adapters is not None:
            model = settled_copy(model)
        elif self.adapted is not None:  # the engine reads the weights of linear layers
            model = merged_copy(self.adapted)
        samples = generate_samples(model, rows, self.contract, self.tokenizer)
        module.train()
        return samples


def _nelbo_figures(totals: Tensor) -> dict[str, float]:
    nats, num_tokens = totals[:2].tolist()
    nelbo = nats / num_tokens
    figures = {"eval/nelbo": nelbo, "eval/perplexity_bound": math.exp(min(nelbo, 700.0))}
    for index, (count, loss, hits) in enumerate(totals[2:].view(3, NUM_BINS).T.tolist()):
        if count:
            edge = f"{(index + 1) / NUM_BINS:g}"
            figures |= {f"eval/ce_{edge}": loss / count, f"eval/accuracy_{edge}": hits / count}
    return figures


def _draft_figures(totals: Tensor) -> dict[str, float]:
    accepted, num_blocks = totals[:2].tolist()
    figures = {"eval/accepted_length": accepted / num_blocks}
    for index, (agreed, drafted) in enumerate(totals[2:].view(2, -1).T.tolist()):
        if drafted:
            figures[f"eval/draft_agreement_{index + 1}"] = agreed / drafted
    return figures
