"""Roll-outs and rewards -> micro-batches: one row each, and what it is to learn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from a2d_ray.data.hashing import stable_id
from a2d_ray.diffusion.layout import Layout, PackedRow
from a2d_ray.diffusion.noise import Noise
from a2d_ray.diffusion.policy import Credit, mask_fill, without_fill
from a2d_ray.rl.prompts import PromptRow
from a2d_ray.rl.worker import Rollout
from a2d_ray.training.batches import StepBuilder

Micro = tuple[Layout, Noise, Credit]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A roll-out that was judged.

    Attributes:
        prompt: that it answers.
        choice: its place in its group.
        rollout: the answer.
        reward: NaN: there is none.
        advantage: over its group's mean.
    """

    prompt: PromptRow
    choice: int
    rollout: Rollout
    reward: float
    advantage: float


def rollout_micros(batch: Sequence[Scored], step: int, builder: StepBuilder) -> list[Micro]:
    """Micro-batches of layout, noise and credit; masks are functions of step and roll-out.

    Args:
        batch: this rank's roll-outs.
        step: optimizer steps before.
        builder: of the objective.
    """
    size = builder.rows_per_micro
    parts = [batch[start : start + size] for start in range(0, len(batch), size)]
    return [_micro(part, step, builder) for part in parts]


def _micro(part: Sequence[Scored], step: int, builder: StepBuilder) -> Micro:
    rows = [packed_row(scored) for scored in part]
    epoch_R = torch.full((len(rows),), step)
    length_R = torch.tensor([row.ids_C.numel() for row in rows])
    layout = without_fill(builder.lay_out(rows, epoch_R), length_R)
    noise = mask_fill(layout, builder.draw_noise(layout, epoch_R), length_R)
    return layout, noise, _credit(part, layout)


def packed_row(scored: Scored) -> PackedRow:
    """A row of one document: the prompt, and the answer through its end-of-turn token."""
    prompt = scored.prompt
    segments = [*prompt.segments, scored.rollout.ids]
    lengths = torch.tensor([len(segment) for segment in segments])
    ids_C = torch.tensor([token for segment in segments for token in segment])
    segment_C = torch.repeat_interleave(torch.arange(len(segments)), lengths)
    return PackedRow(
        ids_C=ids_C,
        doc_C=torch.zeros_like(ids_C),
        segment_C=segment_C,
        is_target_C=segment_C == len(segments) - 1,
        doc_id_D=torch.tensor([stable_id(str(prompt.id), str(scored.choice))]),
        is_complete_D=torch.tensor([scored.rollout.is_complete]),
    )


def _credit(part: Sequence[Scored], layout: Layout) -> Credit:
    """Advantages, and old log-probabilities in the places of the tokens that they are of."""
    old_RT = torch.zeros(layout.ids_RT.shape)
    for row, scored in enumerate(part):
        logprobs = scored.rollout.logprobs
        is_answer_T = layout.is_ar_target_RT[row]
        if is_answer_T.any():
            old_RT[row, is_answer_T] = torch.tensor(logprobs)
    advantage_R = torch.tensor([scored.advantage for scored in part])
    return Credit(advantage_R=advantage_R, old_RT=old_RT)
