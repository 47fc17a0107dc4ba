"""`model_args`: the names that users of the public A2D recipe know, and ours."""

import difflib
from dataclasses import dataclass
from typing import Any

from a2d_ray.generation.params import SamplingParams

LOADING: dict[str, Any] = {
    "pretrained": None,
    "dtype": "auto",
    "device": "auto",
    "mask_token_id": None,
    "block_grid": None,
}
OTHERS: dict[str, Any] = {
    "mc_num": 32,
    "max_length": None,
    "is_check_greedy": False,
    "batch_size": 32,
    "cache": None,
    "num_workers": 0,
    "base_url": None,
    "served_model": None,
}
# Of the public recipe, without a place here: accepted only where they ask for nothing.
NEUTRAL: dict[str, Any] = {
    "cfg": 0.0,
    "cfg_scale": 0.0,
    "cfg_keep_tokens": None,
    "right_shift_logits": False,
    "stochastic_transfer": False,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "trust_remote_code": False,
}
FROM_HARNESS = ("max_batch_size",)  # passed to every model; our batches are continuous
FROM_TASK = ("stop", "stop_token_ids", "n", "logprobs")


@dataclass(frozen=True, kw_only=True)
class Options:
    """`model_args`, read.

    Attributes:
        model: keywords of `a2d_ray.load`; empty for an endpoint.
        sampling: fields of `SamplingParams` that were given.
        others: `OTHERS` with what was given.
    """

    model: dict[str, Any]
    sampling: dict[str, Any]
    others: dict[str, Any]


def read_options(options: dict[str, Any]) -> Options:
    """Sorts `model_args` and refuses what is unknown or not supported.

    ``mc_num`` is the number of noise samples of a likelihood, ``pretrained`` the checkpoint; with
    ``steps`` and no ``rule``, the rule is ``steps``, as in the public recipe.

    Raises:
        ValueError: names the argument, its value and the fix.
    """
    fields = set(vars(SamplingParams())) - set(FROM_TASK)
    known = fields | LOADING.keys() | OTHERS.keys()
    sampling, loading, others = {}, dict(LOADING), dict(OTHERS)
    for key, value in options.items():
        if key in fields:
            sampling[key] = value
        elif key in loading:
            loading[key] = value
        elif key in others:
            others[key] = value
        elif key in NEUTRAL:
            if value not in (NEUTRAL[key], None, ""):
                fix = "name it cfg_scale" if key == "cfg" else "leave it out"
                raise ValueError(f"{key}={value} is not supported here: {fix}")
        elif key not in FROM_HARNESS:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"choose from {sorted(known)}"
            raise ValueError(f"unknown model argument {key}={value}: {hint}")
    if sampling.get("steps") is not None:
        sampling.setdefault("rule", "steps")
    SamplingParams(**sampling)  # a bad value fails before the model is loaded
    if not loading["pretrained"] and not others["base_url"]:
        raise ValueError("model_args need pretrained=CHECKPOINT, or base_url=ENDPOINT")
    loading["path"] = loading.pop("pretrained")
    if loading["device"] == "cuda:0":  # what the harness asks of every model unless it is told
        loading["device"] = "auto"
    model = {key: value for key, value in loading.items() if value is not None}
    return Options(model=model, sampling=sampling, others=others)
