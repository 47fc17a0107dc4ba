"""An AR checkpoint becomes an A2D checkpoint with the same weights and a mask token.

So does another project's diffusion checkpoint (`importing`), which has its mask token already.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from a2d_ray.models.adapters import is_one_table
from a2d_ray.models.architectures import Architecture
from a2d_ray.models.checkpoint import load_checkpoint, read_contract, save_checkpoint
from a2d_ray.models.contract import Contract, ProofRecord
from a2d_ray.models.directories import read_json
from a2d_ray.models.families import bidirectional_values, windows_of
from a2d_ray.models.importing import import_checkpoint
from a2d_ray.models.outputs import written_beside
from a2d_ray.models.sources import (
    ModelSource,
    check_loading,
    find_source,
    load_ar_config,
    load_ar_model,
    load_ar_tokenizer,
)
from a2d_ray.models.weights import one_line_errors

if TYPE_CHECKING:
    from torch import Tensor

MASK_TOKEN = "<|mask|>"
_PROBE_TOKENS = 8
_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # of the largest logit
_CHECKED = "checked       read back: under a causal mask its logits are the AR model's"
_NO_END = (
    "%s has no end token, neither in its tokenizer nor in its config.json: answers will end at "
    "max_new_tokens only, and data.insert_eos and structured answers need one. Set eos_token in "
    "tokenizer_config.json and convert again"
)
_ROLES = ("bos_token", "unk_token", "sep_token", "cls_token")
_KNOWN_MARKS = ("<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>", "<s>", "</s>", "<unk>")
_log = logging.getLogger(__name__)


class _Probe(NamedTuple):
    """A few tokens, and the AR model's logits at each."""

    ids_T: list[int]
    logits_TV: "Tensor"


@dataclass(frozen=True)
class MaskToken:
    """The mask token of a converted model.

    Attributes:
        token: its text.
        id: its id.
        num_rows: rows of the embedding that holds it.
    """

    token: str
    id: int
    num_rows: int


def convert_weights(
    source: str,
    output: str | Path,
    *,
    revision: str | None = None,
    mask_token: str | None = None,
    random_init: bool = False,
    seed: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    overwrite: bool = False,
    prove: Callable[[ModelSource], ProofRecord | None] | None = None,
) -> Path:
    """Converts an AR checkpoint into an A2D checkpoint, not yet trained (objective null).

    Weights keep their names and values: what was written is read back and must compute what the AR
    model does. The mask token takes, in this order: `mask_token`; the
    tokenizer's own; a reserved token of a packaged model; an embedding row beyond the tokenizer;
    a new row (the vocabulary grows by that one: more rows would be tokens that can be drawn). Its
    rows are set to the mean of the others.

    A diffusion checkpoint of another project (`foreign.FOREIGN_MODELS`) keeps its mask token and
    its trained rows, and gets the objective that it was trained with.

    Args:
        source: local directory, Hub id, or ``package:smollm2``.
        output: directory to write; it appears when complete.
        revision: branch, tag or commit of a Hub id.
        mask_token: existing token to use as mask.
        random_init: fresh random weights instead of the source's.
        seed: seed of `random_init`.
        dtype: stored precision.
        overwrite: replace an `output` that is a model directory.
        prove: proves that the source can be converted, and says what was proved; None may be said
            of architectures that tests know.

    Returns:
        `output`.

    Raises:
        ValueError: what is wrong and the fix.
    """
    output = Path(output).expanduser()
    with written_beside(output, source, overwrite=overwrite) as directory:
        found = find_source(source, revision)
        if found.foreign is not None:
            _check_import(found.foreign.name, mask_token=mask_token, random_init=random_init)
            import_checkpoint(found, directory, dtype=_torch_dtype(dtype))
            return output
        proof = None if prove is None else prove(found)
        if proof is None and not found.architecture.is_known:
            raise ValueError(
                f"{source}: nobody has proved that {found.architecture.ar_model_type} models can "
                "be converted; a2d_ray.convert and job convert prove it first"
            )
        ar_config = load_ar_config(found)  # first: to the tokenizer's loader it is a side issue
        tokenizer = load_ar_tokenizer(found)
        config = _a2d_config(found, ar_config)
        mask = add_mask_token(tokenizer, config.vocab_size, mask_token or _reserved(found))
        if tokenizer.eos_token is None and config.eos_token_id is None:
            _log.warning(_NO_END, source)
        probe = None
        if random_init:
            model = _random_model(found, config, dtype, seed)
        else:
            model, probe = _converted_model(found, ar_config, config, dtype, mask)
        initialize_mask_rows(model, mask)
        _limit_length(tokenizer, config)
        contract = Contract(
            mask_token_id=mask.id,
            ar_mode=None if random_init else "original",
            proof=proof,
            source=source,
            source_revision=found.revision,
        )
        save_checkpoint(directory, model=model, tokenizer=tokenizer, contract=contract)
        if probe is not None:
            _check_written(directory, source, probe, mask)
    return output


def describe(directory: str | Path) -> str:
    """What a converted checkpoint is, on a few lines: architecture, parameters, mask token."""
    from safetensors import safe_open

    directory = Path(directory)
    contract = read_contract(directory)
    config = read_json(directory, "config.json")
    with safe_open(directory / "model.safetensors", framework="pt") as weights:
        sizes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    token = read_json(directory, "tokenizer_config.json").get("mask_token")
    return "\n".join(
        [
            f"architecture  {config['architectures'][0]} ({config['dtype']})",
            f"parameters    {sum(math.prod(size) for size in sizes):,}",
            f"mask token    {token or '(no text)'} (id {contract.mask_token_id} of "
            f"{config['vocab_size']:,})",
            *_objective_lines(contract),
            f"source        {contract.source} ({contract.source_revision or 'no revision'})",
            f"output        {directory}",
            *([_CHECKED] if contract.ar_mode == "original" else []),
            *(["proved        " + ", ".join(contract.proof.laws)] if contract.proof else []),
        ]
    )


def _objective_lines(contract: Contract) -> list[str]:
    """What a checkpoint that is trained already was trained for."""
    if contract.objective is None:
        return []
    blocks = f", block {contract.block_size}, grid {contract.block_grid}"
    shift = ", logits shifted to the right" if contract.right_shift_logits else ""
    return [f"objective     {contract.objective}{blocks * (contract.objective == 'bd3lm')}{shift}"]


def add_mask_token(tokenizer: Any, num_rows: int, mask_token: str | None = None) -> MaskToken:
    """Gives a tokenizer its mask token.

    Args:
        tokenizer: changed in place.
        num_rows: rows of the model's embedding.
        mask_token: existing token to use; None: the tokenizer's own mask token, or a new one.

    Returns:
        The token, its id, and the rows that the embedding must have.

    Raises:
        ValueError: `mask_token` is not a token of the vocabulary, or marks text already (ordinary
            text, a token of the chat template, the end).
    """
    vocabulary = tokenizer.get_vocab()
    token = mask_token or tokenizer.mask_token
    if token is not None and token not in vocabulary:
        raise ValueError(f"mask_token {token!r} is not a token of the tokenizer's vocabulary")
    if token is not None and token in (tokenizer.eos_token, tokenizer.pad_token):
        raise ValueError(f"mask_token {token!r} is the end or padding token: choose another")
    if token is not None and token != tokenizer.mask_token:
        _check_unused(tokenizer, token)
    first_free = max(vocabulary.values()) + 1
    tokenizer.add_special_tokens({"mask_token": token or MASK_TOKEN})
    mask_id = int(tokenizer.mask_token_id)
    expected = vocabulary.get(token or MASK_TOKEN, first_free)
    if mask_id != expected:
        raise ValueError(
            f"the tokenizer gave {tokenizer.mask_token} the id {mask_id}, not {expected}: its "
            "ids have gaps; name an existing token as mask_token"
        )
    if mask_id >= num_rows:
        num_rows = mask_id + 1
    return MaskToken(token=tokenizer.mask_token, id=mask_id, num_rows=num_rows)


def initialize_mask_rows(model: Any, mask: MaskToken) -> None:
    """Sets the mask token's embedding row (and its output row when untied) to the others' mean.

    Args:
        model: A2D model, changed in place; grows to `mask.num_rows`, new rows get the mean too.
        mask: what `add_mask_token` returned.
    """
    import torch

    num_old_rows = model.get_input_embeddings().weight.shape[0]
    if mask.num_rows > num_old_rows:
        model.resize_token_embeddings(mask.num_rows, mean_resizing=False)
    weights = [model.get_input_embeddings().weight]
    if not is_one_table(model):
        weights.append(model.get_output_embeddings().weight)
    with torch.no_grad():
        for weight in weights:
            mean = _mean_row(weight[:num_old_rows], mask.id).to(weight.dtype)
            weight[num_old_rows:] = mean
            weight[mask.id] = mean


def _mean_row(weight_VD: "Tensor", excluded: int) -> "Tensor":
    """Mean of all rows but one, in fp32. [D]"""
    total_D = weight_VD.float().sum(0)
    if excluded >= weight_VD.shape[0]:
        return total_D / weight_VD.shape[0]
    return (total_D - weight_VD[excluded].float()) / (weight_VD.shape[0] - 1)


def _check_unused(tokenizer: Any, token: str) -> None:
    """Refuses a mask token that text is made of: its row would become the mean of the others."""
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
    uses = ["ordinary text"] if token not in special else []
    uses += [f"the tokenizer's {role}" for role in _ROLES if getattr(tokenizer, role) == token]
    uses += ["part of the chat template"] if token in str(tokenizer.chat_template) else []
    uses += ["the mark of a text's beginning or end"] if token in _KNOWN_MARKS else []
    if uses:
        raise ValueError(
            f"mask_token {token!r} marks text already (it is {uses[0]}): name a reserved special "
            "token that no text holds, or leave mask_token out"
        )


def _a2d_config(source: ModelSource, ar_config: Any) -> Any:
    """The A2D configuration with the AR model's values, and attention over everything."""
    if ar_config.model_type != source.architecture.ar_model_type:
        raise ValueError(
            f"{source.name} is a {ar_config.model_type} model, not "
            f"{source.architecture.ar_model_type}"
        )
    values = _plain_values(ar_config)
    if not source.architecture.is_known:
        config, notes = a2d_config(source.architecture, ar_config)
        for note in notes:
            _log.warning("%s %s", source.name, note)
        return config
    window = _sliding_window(values)
    if window is not None:
        _log.warning(
            "%s attends within a sliding window of %s tokens; the A2D model attends to everything",
            source.name,
            window,
        )
    whole = {"sliding_window": None, "use_sliding_window": False, "layer_types": None}
    if "sliding_window" in values:
        values |= {key: value for key, value in whole.items() if key in values}
    return source.architecture.config_class(**values)


def a2d_config(architecture: Architecture, ar_config: Any) -> tuple[Any, list[str]]:
    """The A2D configuration of any family, and what it changes besides the mask, a line each."""
    values, notes = bidirectional_values(_plain_values(ar_config))
    return architecture.config_class(**values), notes


def _plain_values(config: Any) -> dict[str, Any]:
    """Values of a configuration without those that say which class it is of."""
    own = ("model_type", "architectures", "transformers_version", "auto_map", "dtype")
    return {key: value for key, value in config.to_dict().items() if key not in own}


def _sliding_window(values: dict[str, Any]) -> int | None:
    """The window in which some layers attend; without ``layer_types`` (Mistral) all of them do."""
    layer_types = values.get("layer_types")
    has_window = layer_types is None or "sliding_attention" in layer_types
    return values.get("sliding_window") if has_window else None


def _converted_model(
    source: ModelSource, ar_config: Any, config: Any, dtype: str, mask: MaskToken
) -> tuple[Any, _Probe]:
    """The A2D model with the AR model's weights, every one of them, and what these compute."""
    import torch

    torch_dtype = getattr(torch, dtype)
    ar_model = load_ar_model(source, ar_config, torch_dtype)
    num_tokens = min(_PROBE_TOKENS, *windows_of(ar_config.to_dict()).values(), _PROBE_TOKENS)
    stride = max(1, ar_config.vocab_size // (2 * _PROBE_TOKENS))
    ids = [i for i in range(0, ar_config.vocab_size, stride) if i != mask.id][:num_tokens]
    with torch.no_grad(), one_line_errors(source.name):
        probe = _Probe(ids, ar_model(torch.tensor([ids])).logits[0].float())
    model, info = source.architecture.model_class.from_pretrained(
        None,
        config=config,
        state_dict=ar_model.state_dict(),
        dtype=torch_dtype,
        output_loading_info=True,
    )
    check_loading(source.name, info)
    return model, probe


def _check_written(directory: Path, name: str, probe: _Probe, mask: MaskToken) -> None:
    """Reads a checkpoint back and compares it with what the AR model computed.

    Raises:
        ValueError: under a causal mask it computes something else.
    """
    import torch

    dtype = str(read_json(directory, "config.json")["dtype"])
    model = load_checkpoint(directory, dtype=getattr(torch, dtype), device="cpu").model
    causal = torch.ones(1, 1, len(probe.ids_T), len(probe.ids_T), dtype=torch.bool).tril()
    with torch.no_grad():
        logits_TV = model(torch.tensor([probe.ids_T]), attention_mask=causal).logits[0].float()
    difference_TV = (logits_TV[:, : probe.logits_TV.shape[1]] - probe.logits_TV).abs()
    difference_TV[:, mask.id : mask.id + 1] = 0
    largest = float(difference_TV.max())
    size = float(probe.logits_TV.abs().max())
    if not largest <= _TOLERANCE[dtype] * size:  # NaN too
        raise ValueError(
            f"the conversion of {name} does not compute what the AR model does: logits under a "
            f"causal mask differ by {largest:.3g} of {size:.3g}. Nothing was written: its files "
            "hold something that this version does not know"
        )


def _random_model(source: ModelSource, config: Any, dtype: str, seed: int) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return source.architecture.model_class._from_config(config, dtype=getattr(torch, dtype))


def _check_import(kind: str, **options: Any) -> None:
    """Refuses options that would undo what a foreign checkpoint has learned."""
    for name, value in options.items():
        if value:
            raise ValueError(
                f"{name} ({value}) has no use here: a {kind} checkpoint has a trained mask token "
                f"and trained weights, which are kept. Leave {name} out"
            )


def _torch_dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _reserved(source: ModelSource) -> str | None:
    return source.packaged.mask_token if source.packaged else None


def _limit_length(tokenizer: Any, config: Any) -> None:
    """Replaces transformers' "no limit" by the model's context."""
    from a2d_ray.models.parts import context_length

    tokenizer.model_max_length = min(tokenizer.model_max_length, context_length(config))
