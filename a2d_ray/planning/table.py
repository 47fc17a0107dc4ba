"""A run's plan as a table for people."""

from a2d_ray.planning.devices import PRICES_OF
from a2d_ray.planning.estimate import RunEstimate
from a2d_ray.planning.memory import GIB, Memory


def format_plan(plan: RunEstimate) -> str:
    """The plan in lines of text, each with how its figure was found."""
    states = _STATES | {"network per step": _network_state(plan)}
    lines = [f"{_row(label, value)}  [{states[label]}]" for label, value in _facts(plan)]
    lines += ["", "GiB per worker     " + "".join(f"{name:>13}" for name in _PARTS) + "  [counted]"]
    lines += [_memory_row(plan, stage, memory) for stage, memory in plan.memory.items()]
    lines += [
        "",
        "counted: on layout and model; measured: on CPUs, over gloo; given: by you;",
        "paper: from data sheets, confirmed by no GPU (docs/gpu.md)",
        f"price: on demand, of about {PRICES_OF}, not checked: cluster.price sets your own",
        "not counted: evaluations, checkpoints, packing",
    ]
    return "\n".join(lines)


_STATES = {
    "model": "counted",
    "workers": "given",
    "steps": "given",
    "a step": "counted",
    "seconds per step": "paper",
    "of computing": "paper",
    "MFU": "paper",
    "tokens per second": "paper",
    "hours": "paper",
    "price": "paper",
    "padded layout": "counted",
}


def _network_state(plan: RunEstimate) -> str:
    """Bytes of two stages were watched on the wire (docs/scaling.md)."""
    return "measured" if plan.zero_stage in (0, 2) else "counted"


def _parts(plan: RunEstimate) -> str:
    """What the seconds of computing are made of."""
    if plan.seconds is None:
        return "not known: FLOPs over the peak and an MFU that was given"
    parts = vars(plan.seconds).items()
    return ", ".join(f"{name.replace('_', '-')} {seconds:.3g}" for name, seconds in parts)


_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "total")


def _facts(plan: RunEstimate) -> list[tuple[str, str]]:
    step_s = plan.step_s
    return [
        ("model", f"{plan.model}: {plan.parameters / 1e6:,.0f} M parameters, "
                  f"{plan.trained_parameters / 1e6:,.0f} M trained"),
        ("workers", f"{plan.num_workers} x {plan.device} on {plan.num_nodes} nodes, "
                    f"ZeRO-{plan.zero_stage}"),
        ("steps", f"{plan.steps:,}"),
        ("a step", f"{plan.step_tokens:,.0f} tokens of all streams, {plan.step_targets:,.0f} "
                   f"targets, {plan.step_flops / 1e15:,.3g} PFLOP"),
        ("seconds per step", f"{step_s:.3g} (compute {plan.compute_s:.3g}, network "
                             f"{plan.network_s:.3g}, of which {plan.hidden_s:.3g} hidden)"),
        ("of computing", _parts(plan)),
        ("MFU", f"{plan.mfu:.3f}"),
        ("tokens per second", f"{plan.step_tokens / step_s:,.0f} of all streams, "
                              f"{plan.step_targets / step_s:,.0f} targets"),
        ("network per step", f"{plan.network_bytes / 1e9:.3g} GB sent by each worker"),
        ("hours", f"{plan.hours:,.3g} ({plan.hours * plan.num_workers:,.4g} device-hours)"),
        ("price", f"${plan.price:,.2f}"),
        ("padded layout", f"the public recipe's padded rows take {plan.padded_ratio:.2f}x the "
                          "FLOPs per target"),
    ]  # fmt: skip


def _row(label: str, value: str) -> str:
    return f"{label:<19}{value}"


def _memory_row(plan: RunEstimate, stage: int, memory: Memory) -> str:
    values = "".join(f"{getattr(memory, part) / GIB:>13.2f}" for part in _PARTS)
    fits = "fits" if memory.total / GIB <= plan.memory_gib else "too much"
    chosen = " <- this run" if stage == plan.zero_stage else ""
    return f"{f'ZeRO-{stage}':<19}{values}  {fits} {plan.memory_gib:g}{chosen}"
