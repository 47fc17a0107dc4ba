"""The AR original, fine-tuned on the rows of a finished quickstart for as much CPU time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from a2d_ray.config import TrainConfig
from a2d_ray.data.packing.packed import PackedSet, read_positions, to_packed_rows
from a2d_ray.diffusion.layout import PackedRow
from a2d_ray.models.checkpoint import load_checkpoint
from a2d_ray.models.device import resolve_dtype
from a2d_ray.training.optim import freeze_below, learning_rate, make_optimizer
from benchmarks.bare_training import SCHEDULE_PLACES, within_budget

UNTRAINED = -100


def training_cpu_s(run_directory: Path, num_workers: int) -> float:
    """CPU seconds of a run's steps: their wall time on every worker's one thread."""
    lines = map(json.loads, (run_directory / "metrics.jsonl").read_text().splitlines())
    steps = {line["step"]: line["step_s"] for line in lines if "step_s" in line}
    return num_workers * sum(steps.values())


def ar_model(path: Path, dtype: torch.dtype) -> Any:
    """The AR model whose weights a converted checkpoint holds (causal attention)."""
    import transformers

    from a2d_ray.models.architectures import find_architecture

    loaded = load_checkpoint(path, dtype=dtype, device=torch.device("cpu"))
    row = find_architecture(loaded.model.config.model_type)
    assert row is not None
    values = loaded.model.config.to_dict()
    for key in ("model_type", "architectures", "auto_map", "a2d", "dtype"):
        values.pop(key, None)
    config = getattr(transformers, f"{row.prefix}Config")(**values)
    model = row.ar_model_class(config).to(dtype)
    model.load_state_dict(loaded.model.state_dict())
    return model.eval()


def kept_or_made(
    directory: Path,
    asked: dict[str, Any],
    make: Callable[[], tuple[Any, dict[str, Any]]],
    tokenizer: Any,
) -> tuple[Any, dict[str, Any]]:
    """The bfloat16 model that `directory` keeps if it was trained as `asked`, else a new one.

    Args:
        directory: where model, tokenizer and ``training.json`` lie.
        asked: of its training.
        make: trains one; returns it and what else is to be known.
        tokenizer: kept beside it.

    Returns:
        The model and all facts of its training.
    """
    from transformers import AutoModelForCausalLM

    record = directory / "training.json"
    if record.is_file() and asked.items() <= (facts := json.loads(record.read_text())).items():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval(), facts
    model, done = make()
    record.unlink(missing_ok=True)  # an interrupted save is no kept model
    model.to(torch.bfloat16).eval().save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    record.write_text(json.dumps(asked | done))
    return model, asked | done


def fine_tune(
    model: Any, config: TrainConfig, packed: PackedSet, *, budget_s: float, lr: float
) -> dict[str, Any]:
    """Next-token training on the answers, as the quickstart trains otherwise.

    Args:
        model: float32 AR model; its top layers are trained in place.
        config: the diffusion run: rows per step, trained layers, optimizer.
        packed: its packed set.
        budget_s: CPU seconds of this process.
        lr: peak learning rate.

    Returns:
        ``steps``, ``targets`` (tokens seen) and the last tenth's mean ``loss``, nats per target.
    """
    assert config.model.trainable_layers is not None
    freeze_below(model.train(), config.model.trainable_layers)
    optim = config.optim.model_copy(update={"lr": lr})
    optimizer = make_optimizer(model, optim)
    targets = 0
    losses: list[float] = []
    for number, place in within_budget(budget_s):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(place, SCHEDULE_PLACES, optim)
        ids = pa.table({"id": np.arange(config.batch.rows)})
        rows = read_positions(ids, packed, number * config.batch.rows, config.run.seed)
        ids_DL, labels_DL, is_real_DL = padded_documents(to_packed_rows(rows))
        loss = _loss(model, ids_DL, labels_DL, is_real_DL)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        targets += int((labels_DL != UNTRAINED).sum())
    last = losses[-max(1, len(losses) // 10) :]
    model.requires_grad_(False)
    return {"steps": len(losses), "targets": targets, "loss": sum(last) / len(last)}


def padded_documents(rows: list[PackedRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Documents of packed rows, one per row, padded right: ids, labels and is_real, all [D, L]."""
    documents = [
        (row.ids_C[row.doc_C == doc], row.is_target_C[row.doc_C == doc])
        for row in rows
        for doc in row.doc_C.unique()
    ]
    size = (len(documents), max(len(ids) for ids, _ in documents))
    ids_DL = torch.zeros(size, dtype=torch.int64)
    labels_DL = torch.full(size, UNTRAINED)
    is_real_DL = torch.zeros(size, dtype=torch.int64)
    for d, (ids, is_target) in enumerate(documents):
        ids_DL[d, : len(ids)] = ids
        labels_DL[d, : len(ids)] = torch.where(is_target, ids, UNTRAINED)
        is_real_DL[d, : len(ids)] = 1
    return ids_DL, labels_DL, is_real_DL


def _loss(model: Any, ids_DL: Tensor, labels_DL: Tensor, is_real_DL: Tensor) -> Tensor:
    """Mean cross-entropy of the answers; logits only where one is predicted."""
    dtype = resolve_dtype("auto", torch.device("cpu"))  # as diffusion runs compute here
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden_DLH = model.model(
            input_ids=ids_DL, attention_mask=is_real_DL, use_cache=False
        ).last_hidden_state
        is_read = labels_DL[:, 1:] != UNTRAINED
        logits_NV = model.lm_head(hidden_DLH[:, :-1][is_read])
    return cross_entropy(logits_NV.float(), labels_DL[:, 1:][is_read])
