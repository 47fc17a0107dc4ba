"""`model_args`: the names that users of the public A2D recipe know, and ours."""

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, get_args

from a2d_ray.config import LikelihoodKind
from a2d_ray.config.errors import OptionError
from a2d_ray.generation.decoding.params import SamplingParams

LOADING: dict[str, Any] = {
    "pretrained": None,
    "dtype": "auto",
    "device": "auto",
    "mask_token_id": None,
    "block_grid": None,
}
OTHERS: dict[str, Any] = {
    "likelihood": "auto",
    "mc_num": 32,
    "max_length": None,
    "is_check_greedy": False,
    "batch_size": 32,
    "cache": None,
    "num_workers": 0,
    "base_url": None,
    "served_model": None,
}
LIKELIHOODS = ("auto", *get_args(LikelihoodKind))
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
# Names of tasks and of --gen_kwargs that we call otherwise; of several, the last one counts.
OF_TASKS = {
    "max_completion_tokens": "max_new_tokens",
    "max_tokens": "max_new_tokens",
    "max_new_tokens": "max_new_tokens",
    "max_gen_toks": "max_new_tokens",
    "min_new_tokens": "min_tokens",
}
NEUTRAL_OF_TASKS: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "n": 1,
    "early_stopping": False,
    "length_penalty": 1,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}
ONLY_SAMPLED = ("temperature", "top_p", "top_k", "min_p")  # without do_sample they mean nothing
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

    ``likelihood`` is ``ar`` (exact), ``nelbo`` or ``auto``, ``mc_num`` the number of noise samples
    of a NELBO, ``pretrained`` the checkpoint.

    Raises:
        OptionError: names the argument, its value and the fix.
        ValueError: there is nothing to measure.
    """
    fields = SamplingParams.model_fields.keys() - set(FROM_TASK)
    known = fields | LOADING.keys() | OTHERS.keys()
    sampling = {}
    loading = dict(LOADING)
    others = dict(OTHERS)
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
                raise OptionError(key, value, "is not supported here", fix)
        elif key not in FROM_HARNESS:
            raise _unknown(key, value, "model argument", known)
    SamplingParams(**sampling)  # a bad value fails before the model is loaded
    if not loading["pretrained"] and not others["base_url"]:
        raise ValueError("model_args need pretrained=CHECKPOINT, or base_url=ENDPOINT")
    if others["likelihood"] not in LIKELIHOODS:
        fix = f"choose from {', '.join(LIKELIHOODS)}"
        raise OptionError("likelihood", others["likelihood"], "is no kind of likelihood", fix)
    if str(others["batch_size"]).startswith("auto"):  # our batches are continuous
        others["batch_size"] = OTHERS["batch_size"]
    loading["path"] = loading.pop("pretrained")
    if loading["device"] == "cuda:0":  # what the harness asks of every model unless it is told
        loading["device"] = "auto"
    model = {key: value for key, value in loading.items() if value is not None}
    return Options(model=model, sampling=sampling, others=others)


def read_task_options(options: dict[str, Any]) -> dict[str, Any]:
    """A task's ``generation_kwargs`` (or ``--gen_kwargs``) as fields of `SamplingParams`.

    Raises:
        OptionError: an option that our decoder does not have.
    """
    given = {key: value for key, value in options.items() if value is not None}
    is_sampled = bool(given.pop("do_sample", False))
    texts = [given.pop("until", None) or [], given.pop("stop", None) or []]
    stop = [text for each in texts for text in ([each] if isinstance(each, str) else each) if text]
    values: dict[str, Any] = {"max_new_tokens": 256, "temperature": 0.0, "stop": stop}
    values |= {OF_TASKS[key]: given.pop(key) for key in OF_TASKS if key in given}
    for key, value in given.items():
        if key in NEUTRAL_OF_TASKS:
            if value != NEUTRAL_OF_TASKS[key]:
                raise OptionError(key, value, "is not supported", "leave it out")
        elif key not in SamplingParams.model_fields:
            kind = "generation option (task or --gen_kwargs)"
            raise _unknown(key, value, kind, SamplingParams.model_fields)
        elif is_sampled or key not in ONLY_SAMPLED:
            values[key] = max(value, 0) if key == "top_k" else value
    return values


def _unknown(key: str, value: Any, kind: str, known: Collection[str]) -> OptionError:
    near = difflib.get_close_matches(key, known, n=1)
    fix = f"did you mean {near[0]}?" if near else f"choose from {', '.join(sorted(known))}"
    return OptionError(key, value, f"is no {kind}", fix)
