"""Which token each position would take, how likely it is, and how many a step commits.

Pure functions of logits, one row per position; they never wait for the device. The mask token's
logit is -inf before they are called. N positions of any requests, V vocabulary, K tokens looked at.
"""

import math

import torch
from torch import Tensor

from a2d_ray.diffusion.randomness import philox, uniform
from a2d_ray.diffusion.schedules import alpha

# Streams of random numbers apart from those of training noise.
CHOICE = 8
ORDER = 9
COUNT = 10
TOKEN = 11

NUCLEUS = 256  # tokens that a nucleus is looked for in first

# Constants of SplitMix64 as signed 64-bit integers.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_A = 0xBF58476D1CE4E5B9 - 2**64
_MIX_B = 0x94D049BB133111EB - 2**64


def position_uniform(
    position_N: Tensor,
    *,
    seed: int | Tensor,
    step: int | Tensor,
    choice: int | Tensor = 0,
    kind: int = CHOICE,
) -> Tensor:
    """One uniform number per position, float64 in [0, 1).

    Args:
        position_N: canvas positions, int64.
        seed: of the request, or int64 [N].
        step: denoise step within the window, or int64 [N].
        choice: index of the answer among the n of a request, or int64 [N].
        kind: `CHOICE` of a token, `ORDER` of commitment, `COUNT` of commitments.
    """
    zero_N = torch.zeros_like(position_N)
    return uniform(kind, seed, choice, zero_N, zero_N + step, position_N)


def gumbel_starts(position_N: Tensor, *, seed: int | Tensor, choice: int | Tensor = 0) -> Tensor:
    """Where the noise of each position starts, int64 [N]; for `token_gumbel`.

    Args:
        position_N: canvas positions, int64.
        seed: of the request, or int64 [N].
        choice: index of the answer among the n of a request, or int64 [N].
    """
    zero_N = torch.zeros_like(position_N)
    counter = (position_N, zero_N + TOKEN, zero_N, zero_N)
    words = philox(counter, (seed & 0xFFFFFFFF, choice))
    return (words[0] << 32) | words[1]


def token_gumbel(start_N: Tensor, vocab_size: int) -> Tensor:
    """Gumbel noise for every position and token, float32 [N, V].

    A position's numbers are a SplitMix64 stream that starts where Philox says: a pure function of
    (seed, choice, position, token).

    Args:
        start_N: see `gumbel_starts`.
        vocab_size: V.

    Source: Gumbel-max trick; Steele et al., "Fast splittable pseudorandom number generators",
    OOPSLA 2014.
    """
    steps_V = _GOLDEN * torch.arange(1, vocab_size + 1, device=start_N.device)
    at_a_time = 1 if start_N.device.type == "cpu" else max(len(start_N), 1)  # a row fits its cache
    starts = start_N[:, None].split(at_a_time)
    return torch.cat([_gumbel(start_M1 + steps_V) for start_M1 in starts])


def _gumbel(z_MV: Tensor) -> Tensor:
    """Noise of the counters, which are overwritten."""
    for shift, factor in ((30, _MIX_A), (27, _MIX_B)):
        z_MV ^= _shift_right(z_MV, shift)
        z_MV *= factor
    z_MV ^= _shift_right(z_MV, 31)
    u_MV = _shift_right(z_MV, 11).double()
    u_MV += 0.5
    u_MV /= 2**53
    return u_MV.log_().neg_().log_().neg_().float()


def _shift_right(z: Tensor, num_bits: int) -> Tensor:
    """Logical shift of 64-bit words."""
    shifted = z >> num_bits
    shifted &= (1 << (64 - num_bits)) - 1
    return shifted


# Which token a position would take.


def guide(conditional_NV: Tensor, unconditional_NV: Tensor, factor_N1: Tensor) -> Tensor:
    """Classifier-free guidance: un + factor (cond - un), the factor is 1 + scale.

    Source: Ho and Salimans, arXiv 2207.12598; for masked diffusion LLaDA, arXiv 2502.09992, where
    the unconditional run sees the prompt masked.
    """
    return unconditional_NV + factor_N1 * (conditional_NV - unconditional_NV)


def keep_top_k(logits_NV: Tensor, top_k_N: Tensor, most: int) -> Tensor:
    """Logits with -inf beyond the k most likely (and ties of the last).

    Args:
        logits_NV: float32.
        top_k_N: int64; 0: all.
        most: the largest of them, at most V.
    """
    best_NK = logits_NV.topk(most, -1).values
    least_N1 = best_NK.gather(1, (top_k_N - 1).clamp(min=0)[:, None])
    least_N1 = torch.where(top_k_N[:, None] > 0, least_N1, -torch.inf)
    return logits_NV.masked_fill(logits_NV < least_N1, -torch.inf)


def keep_top_p(
    logits_NV: Tensor, top_p_N: Tensor, *, is_exact: bool = True
) -> tuple[Tensor, Tensor]:
    """Logits with -inf beyond the fewest most likely whose probabilities reach top_p.

    Ties of the last one stay. Most nuclei are small, so `NUCLEUS` tokens are looked at first.

    Args:
        logits_NV: float32.
        top_p_N: float32; 1: all.
        is_exact: look at all tokens where a nucleus is larger. That waits for the device.

    Returns:
        The logits, and bool [N]: rows whose nucleus is larger than what was looked at. There the
        logits are wrong; with `is_exact` there are none.
    """
    lse_N1 = logits_NV.logsumexp(-1, keepdim=True)
    for size in (NUCLEUS, logits_NV.shape[-1]):
        sorted_NK = logits_NV.topk(min(size, logits_NV.shape[-1]), -1).values
        num_looked_at = sorted_NK.shape[-1]
        num_before_N1 = ((sorted_NK - lse_N1).exp().cumsum(-1) < top_p_N[:, None]).sum(-1, True)
        is_wide_N = (num_before_N1[:, 0] >= num_looked_at) & (top_p_N < 1)
        if num_looked_at == logits_NV.shape[-1]:
            is_wide_N = torch.zeros_like(is_wide_N)
        elif is_exact and bool(is_wide_N.any()):
            continue
        break
    edge_N1 = sorted_NK.gather(-1, num_before_N1.clamp(max=num_looked_at - 1))
    edge_N1 = torch.where(top_p_N[:, None] < 1, edge_N1, -torch.inf)
    return logits_NV.masked_fill(logits_NV < edge_N1, -torch.inf), is_wide_N


def keep_min_p(logits_NV: Tensor, log_min_p_N: Tensor) -> Tensor:
    """Logits with -inf where a token is too unlikely beside the most likely one.

    Args:
        logits_NV: float32.
        log_min_p_N: log of the least share of its probability, float32; -inf: all.
    """
    least_N1 = logits_NV.amax(-1, keepdim=True) + log_min_p_N[:, None]
    return logits_NV.masked_fill(logits_NV < least_N1, -torch.inf)


def draw(logits_NV: Tensor, u_N: Tensor) -> Tensor:
    """One token per position from softmax(logits) by inverse CDF; int64 [N].

    Args:
        logits_NV: float32; -inf is never drawn. A row whose probabilities are not finite gives V.
        u_N: uniform numbers in [0, 1), float64.
    """
    cumulative_NV = torch.softmax(logits_NV, -1).double().cumsum(-1)
    total_N = cumulative_NV[:, -1]
    # Rounding must not reach the total: behind it lie tokens of probability zero.
    target_N = torch.minimum(u_N * total_N, total_N.nextafter(torch.zeros_like(total_N)))
    return torch.searchsorted(cumulative_NV, target_N[:, None], right=True)[:, 0]


def most_likely(logits_NV: Tensor) -> Tensor:
    """argmax, the lowest id among equals; int64 [N].

    By groups of 64 tokens, whose maxima are a vectorised reduction: 9 times faster on a CPU.
    """
    num_rows, vocab = logits_NV.shape
    num_grouped = vocab - vocab % 64
    if num_grouped == 0 or logits_NV.device.type != "cpu":
        return logits_NV.argmax(-1)
    grouped = logits_NV[:, :num_grouped].unflatten(1, (-1, 64))
    group_N = grouped.amax(-1).argmax(-1)
    row_N = torch.arange(num_rows)
    best_N = group_N * 64 + grouped[row_N, group_N].argmax(-1)
    if num_grouped == vocab:
        return best_N
    last, last_N = logits_NV[:, num_grouped:].max(-1)
    return torch.where(last > logits_NV[row_N, best_N], num_grouped + last_N, best_N)


def token_logprobs(logits_NV: Tensor, ids_N: Tensor) -> Tensor:
    """logit[id] - logsumexp(logits), float32 [N]; its exp is the confidence."""
    # Cross-entropy is one pass over each row, half the time of logsumexp.
    return -torch.nn.functional.cross_entropy(logits_NV, ids_N, reduction="none")


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy of softmax(logits) in nats: logsumexp - sum p * logit, float32 [N]."""
    lse_N = logits_NV.logsumexp(-1)
    p_NV = torch.exp(logits_NV - lse_N[:, None])
    return (lse_N - torch.where(p_NV > 0, p_NV * logits_NV, 0).sum(-1)).clamp(min=0)


def divergence(logp_NV: Tensor, previous_NV: Tensor) -> Tensor:
    """KL(p || previous) in nats, of log-probabilities, float32 [N]."""
    ratio_NV = torch.where(logp_NV > -torch.inf, logp_NV - previous_NV, 0)
    return (logp_NV.exp() * ratio_NV).sum(-1)


# How many tokens each step commits: rule ``steps``.


def commit_counts(
    num_masks: int,
    num_steps: int,
    schedule: str = "linear",
    u_SN: Tensor | None = None,
) -> list[int]:
    """How many tokens each denoise step of a window commits (rule ``steps``).

    For j = 0..S-1 with t = (S-j)/S, s = (S-j-1)/S and r = 1 - (1 - alpha(s)) / (1 - alpha(t)):
    round-half-even of num_left x r, at most num_left; zeros are dropped. Stochastic transfer
    draws the count from Binomial(num_left, r) instead.

    Args:
        num_masks: masked tokens of the window, N.
        num_steps: steps of the window, S.
        schedule: alpha(t).
        u_SN: uniform numbers for stochastic transfer; None: rounding.

    Returns:
        Positive counts that add up to num_masks.

    Source: the public A2D sampler (dLLM, 2602.22661), in its precision: alpha in float32.
    """
    times = torch.arange(num_steps, -1, -1, dtype=torch.float64) / num_steps
    masked_share = 1 - alpha(schedule, times.float())
    counts = []
    left = num_masks
    for step, ratio in enumerate((1 - masked_share[1:] / masked_share[:-1]).tolist()):
        if u_SN is None:
            count = min(round(left * ratio), left)
        else:
            count = int((u_SN[step, :left] < ratio).sum())
        left -= count
        if count > 0:
            counts.append(count)
    return counts


def steps_per_block(num_steps: int | None, num_blocks: int, block_size: int) -> int:
    """Denoise steps of a block when `num_blocks` share `num_steps`; None: one per token."""
    return block_size if num_steps is None else math.ceil(num_steps / num_blocks)
