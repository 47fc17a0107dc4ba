"""Offline generation, what is to be done: prompts cut into parts, which a resumed job finds again.

The output directory holds ``plan.json`` (what was asked, and how many parts there are),
``model.json`` (which model answers), and ``prompts/``, ``answers/`` and ``conversations/`` (rows to
train on) with a file per part. The answers of a part appear last and all at once, so a part either
is done or is done again.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from a2d_ray import __version__
from a2d_ray.config import GenerateConfig, OptionError
from a2d_ray.data.sources.adapters import MalformedRowError
from a2d_ray.data.sources.files import file_format, read_file
from a2d_ray.data.sources.storage import DataFile, list_files
from a2d_ray.generation.decoding.ar_mode import with_own_rule
from a2d_ray.generation.decoding.canvas import make_canvas
from a2d_ray.generation.decoding.params import SamplingParams
from a2d_ray.models.checkpoint import check_checkpoint
from a2d_ray.models.directories import file_stamps
from a2d_ray.runs.settings import check_same_settings
from a2d_ray.runs.storage import PLAN_FILE, RunDirectory

MODEL_FILE = "model.json"


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The parts of a job.

    Attributes:
        folder: where they are.
        num_rows: prompts in all.
        num_parts: parts in all.
        missing: indices of the parts without answers.
    """

    folder: RunDirectory
    num_rows: int
    num_parts: int
    missing: tuple[int, ...]


def read_prompts(folder: RunDirectory, part: int) -> list[dict[str, Any]]:
    """Rows of a part: ``index``, ``row``, and ``error``: what is wrong with it, or None."""
    return [json.loads(line) for line in (folder.read(_prompts(part)) or b"").splitlines()]


def write_answers(
    folder: RunDirectory,
    part: int,
    format: str,
    rows: list[dict[str, Any]],
    conversations: list[dict[str, Any]],
) -> None:
    """Keeps the answers of a part, and the conversations among them; from then on it is done."""
    if conversations:
        name = f"conversations/{_part(part)}.{format}"
        folder.write(name, _encode(conversations, format, CONVERSATION_SCHEMA))
    folder.write(answers_file(part, format), _encode(rows, format))


def plan_batch(config: GenerateConfig) -> BatchPlan:
    """Checks the job, cuts its prompts into parts if that was not done, and finds what is missing.

    Raises:
        ValueError: no such model or input, a model that does not decode so, nothing in the input,
            an unwritable output, or an output that holds the answers to something else.
    """
    contract = check_checkpoint(**_checked_model(config))
    params = with_own_rule(SamplingParams(**config.sampling.model_dump()), contract)
    make_canvas((), params, contract)  # or every row fails
    folder = RunDirectory.of(config.output, field="output")
    files = _input_files(config.input)
    asked = _asked(config, files)
    content = folder.read(PLAN_FILE)
    if content is None:
        plan = _start(config, files, folder, asked)
    else:
        plan = json.loads(content)
        check_same_settings(
            asked, plan["asked"], field="output", value=config.output, fix="ask as before"
        )
    done = folder.names("answers")
    parts = range(plan["num_parts"])
    missing = [p for p in parts if Path(answers_file(p, config.format)).name not in done]
    return BatchPlan(
        folder=folder,
        num_rows=plan["num_rows"],
        num_parts=plan["num_parts"],
        missing=tuple(missing),
    )


def _start(
    config: GenerateConfig, files: list[DataFile], folder: RunDirectory, asked: dict[str, Any]
) -> dict[str, Any]:
    """Cuts the prompts and writes down what is to be done."""
    num_rows, num_parts = _cut(config, files, folder)
    plan = {"num_rows": num_rows, "num_parts": num_parts, "asked": asked}
    _write(config, folder, PLAN_FILE, json.dumps(plan, indent=2).encode())
    return plan


def _write(config: GenerateConfig, folder: RunDirectory, name: str, content: bytes) -> None:
    try:
        folder.write(name, content)
    except OSError as error:
        raise unwritable(config, error) from None


def unwritable(config: GenerateConfig, error: OSError) -> OptionError:
    """The error of an output directory that the system refuses."""
    fix = "make it writable, or choose another output"
    return OptionError("output", config.output, f"cannot be written ({error})", fix)


def answers_file(part: int, format: str) -> str:
    """Name of a part's answers within the output directory."""
    return f"answers/{_part(part)}.{format}"


def _prompts(part: int) -> str:
    return f"prompts/{_part(part)}.jsonl"


def _part(part: int) -> str:
    return f"part-{part:06d}"


def _checked_model(config: GenerateConfig) -> dict[str, Any]:
    return config.model.model_dump(exclude_none=True, exclude={"device", "dtype"})


def _input_files(name: str) -> list[DataFile]:
    try:
        files = [file for file in list_files(name) if file_format(file.name)]
    except OptionError as error:
        raise error.renamed("input") from None
    if not files:
        formats = "name a .jsonl, .parquet, .json, .csv or .arrow file"
        raise OptionError("input", name, "holds nothing that is read", formats)
    return sorted(files, key=lambda file: file.name)


def _asked(config: GenerateConfig, files: list[DataFile]) -> dict[str, Any]:
    """What the answers depend on, by the keys of the configuration."""
    values = config.model_dump(
        include={"model", "sampling", "column", "chat", "system", "format", "rows_per_part"}
    )
    nested = {f"{key}.{k}": v for key in ("model", "sampling") for k, v in values.pop(key).items()}
    return {
        **values,
        **nested,
        "input": [[file.name, file.stamp] for file in files],
        "model.files": file_stamps(config.model.path),
        "a2d_ray": __version__,
    }


def record_model(output: str, folder: RunDirectory, fingerprint: dict[str, Any]) -> None:
    """Notes which model answers; every replica calls it before it does.

    Args:
        output: option that names the folder.
        folder: of the job.
        fingerprint: of the model that was loaded.

    Raises:
        ValueError: other weights have answered here.
    """
    known = folder.read(MODEL_FILE)
    if known is None:
        folder.write(MODEL_FILE, json.dumps(fingerprint, indent=2).encode())
    elif json.loads(known)["weights"] != fingerprint["weights"]:
        raise OptionError(
            "output",
            output,
            f"holds answers of other weights (see {MODEL_FILE})",
            "the model was replaced while the job ran: choose another output",
        )


def _cut(config: GenerateConfig, files: list[DataFile], folder: RunDirectory) -> tuple[int, int]:
    """Writes the prompts of every part; returns the numbers of rows and parts."""
    rows = _rows(files)
    num_rows = 0
    num_parts = 0
    while part := list(islice(rows, config.rows_per_part)):
        numbered = [{"index": num_rows + i, **row} for i, row in enumerate(part)]
        _write(config, folder, _prompts(num_parts), _encode(numbered, "jsonl"))
        num_rows = num_rows + len(part)
        num_parts = num_parts + 1
    if not num_rows:
        raise ValueError(f"input={config.input} holds no rows")
    return num_rows, num_parts


def _rows(files: list[DataFile]) -> Iterator[dict[str, Any]]:
    for file in files:
        for number, row in read_file(file.path, file_format(file.name) or ""):
            if isinstance(row, MalformedRowError):
                yield {"row": None, "error": f"{file.name}, row {number}: {row}"}
            else:
                yield {"row": row, "error": None}


ANSWER_SCHEMA = pa.schema(
    {
        "index": pa.int64(),
        "choice": pa.int64(),
        "input": pa.string(),  # as JSON: rows of one input need not have the same columns
        "text": pa.string(),
        "token_ids": pa.list_(pa.int64()),
        "finish_reason": pa.string(),
        "usage": pa.struct(
            {
                "prompt_tokens": pa.int64(),
                "completion_tokens": pa.int64(),
                "forwards": pa.int64(),
                "denoise_steps": pa.int64(),
                "cached_tokens": pa.int64(),
                "drafted": pa.int64(),  # by rule speculate
                "accepted": pa.int64(),
            }
        ),
        "logprobs": pa.list_(pa.float64()),
        "top_logprobs": pa.list_(
            pa.list_(pa.struct({"token_id": pa.int64(), "logprob": pa.float64()}))
        ),
        "error": pa.string(),
    }
)

CONVERSATION_SCHEMA = pa.schema(
    {"messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))}
)


def _encode(rows: list[dict[str, Any]], format: str, schema: pa.Schema = ANSWER_SCHEMA) -> bytes:
    if format == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        return "".join(lines).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue().to_pybytes()
