"""How many tokens each step of a window commits under rule ``steps``. Runs on the host."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from a2d_ray.diffusion import decoding
from a2d_ray.generation.decoding.decoder import Decoder, Inquiry


def with_schedule(asked: Inquiry) -> Inquiry:
    """With the tokens of each step of the window, from its first step on (rule ``steps``)."""
    if asked.decoder.params.rule != "steps" or asked.state.step > 0:
        return asked
    counts = window_counts(asked.active.positions, asked.decoder)
    return replace(asked, state=replace(asked.state, counts=counts))


def window_counts(positions: Sequence[int], decoder: Decoder) -> tuple[int, ...]:
    """Tokens that each step of a window commits under rule ``steps``.

    Args:
        positions: the window's masked positions.
        decoder: the request.
    """
    params = decoder.params
    canvas = decoder.canvas
    num_steps = decoding.steps_per_block(params.steps, canvas.num_blocks, canvas.block_size)
    u_SN = None
    if params.stochastic_transfer:
        position_N = torch.tensor(positions, dtype=torch.int64)
        options = {"seed": params.seed, "choice": decoder.choice, "kind": decoding.COUNT}
        u_SN = torch.stack(
            [decoding.position_uniform(position_N, step=s, **options) for s in range(num_steps)]
        )
    return tuple(decoding.commit_counts(len(positions), num_steps, u_SN=u_SN))
