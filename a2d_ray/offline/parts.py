"""Offline generation, what is to be done: prompts cut into parts, which a resumed job finds again.

The output directory holds ``plan.json`` (what was asked, and how many parts there are),
``model.json`` (which model answers), and ``prompts/`` and ``answers/`` with a file per part. The
answers of a part appear all at once, so a part either is done or is done again.
"""

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from a2d_ray import __version__
from a2d_ray.config import GenerateConfig, OptionError
from a2d_ray.data.sources.adapters import MalformedRowError
from a2d_ray.data.sources.files import file_format, read_file
from a2d_ray.data.sources.storage import DataFile, list_files
from a2d_ray.models.checkpoint import check_checkpoint
from a2d_ray.models.directories import file_stamps

PLAN_FILE = "plan.json"
MODEL_FILE = "model.json"


@dataclass(frozen=True)
class BatchFolder:
    """The output directory, on a disk that all nodes share or in an object store.

    Attributes:
        uri: absolute path or URI.
    """

    uri: str

    @classmethod
    def of(cls, output: str) -> "BatchFolder":
        """The folder that `output` names, relative to here."""
        return cls(output if "://" in output else str(Path(output).expanduser().absolute()))

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        filesystem, root = self._open()
        try:
            with filesystem.open_input_stream(f"{root}/{name}") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file that is there as a whole or not at all.

        Raises:
            ValueError: the directory cannot be written.
        """
        filesystem, root = self._open()
        path = f"{root}/{name}"
        draft = f"{root}/.{uuid.uuid4().hex}"
        try:
            filesystem.create_dir(str(Path(path).parent), recursive=True)
            with filesystem.open_output_stream(draft) as file:
                file.write(content)
            filesystem.move(draft, path)
        except OSError as error:
            raise ValueError(f"output={self.uri} cannot be written: {error}") from None

    def names(self, directory: str) -> set[str]:
        """File names in a directory of the folder."""
        filesystem, root = self._open()
        selector = pafs.FileSelector(f"{root}/{directory}", allow_not_found=True)
        return {info.base_name for info in filesystem.get_file_info(selector)}

    def _open(self) -> tuple[pafs.FileSystem, str]:
        if "://" not in self.uri:
            return pafs.LocalFileSystem(), self.uri
        try:
            filesystem, root = pafs.FileSystem.from_uri(self.uri)
        except ValueError as error:  # pyarrow's ArrowInvalid is one
            raise ValueError(f"output={self.uri} cannot be opened: {error}") from None
        return filesystem, root.rstrip("/")


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The parts of a job.

    Attributes:
        folder: where they are.
        num_rows: prompts in all.
        num_parts: parts in all.
        missing: indices of the parts without answers.
    """

    folder: BatchFolder
    num_rows: int
    num_parts: int
    missing: tuple[int, ...]


def read_prompts(folder: BatchFolder, part: int) -> list[dict[str, Any]]:
    """Rows of a part: ``index``, ``row``, and ``error``: what is wrong with it, or None."""
    return [json.loads(line) for line in (folder.read(_prompts(part)) or b"").splitlines()]


def write_answers(folder: BatchFolder, part: int, format: str, rows: list[dict[str, Any]]) -> None:
    """Keeps the answers of a part; from then on it is done."""
    folder.write(answers_file(part, format), _encode(rows, format))


def plan_batch(config: GenerateConfig) -> BatchPlan:
    """Checks the job, cuts its prompts into parts if that was not done, and finds what is missing.

    Raises:
        ValueError: no such model or input, nothing in it, an unwritable output, or an output
            that holds the answers to something else.
    """
    check_checkpoint(**_checked_model(config))
    folder = BatchFolder.of(config.output)
    files = _input_files(config.input)
    asked = _asked(config, files)
    content = folder.read(PLAN_FILE)
    if content is None:
        num_rows, num_parts = _cut(config, files, folder)
        plan: dict[str, Any] = {"num_rows": num_rows, "num_parts": num_parts, "asked": asked}
        folder.write(PLAN_FILE, json.dumps(plan, indent=2).encode())
    else:
        plan = json.loads(content)
        _check_same(config.output, plan["asked"], json.loads(json.dumps(asked)))
    done = folder.names("answers")
    parts = range(plan["num_parts"])
    missing = [p for p in parts if Path(answers_file(p, config.format)).name not in done]
    return BatchPlan(
        folder=folder,
        num_rows=plan["num_rows"],
        num_parts=plan["num_parts"],
        missing=tuple(missing),
    )


def answers_file(part: int, format: str) -> str:
    """Name of a part's answers within the output directory."""
    return f"answers/part-{part:06d}.{format}"


def _prompts(part: int) -> str:
    return f"prompts/part-{part:06d}.jsonl"


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


def _check_same(output: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = _changed(before, now)
    if "model.files" in changed:
        files = _changed(before.get("model.files", {}), now["model.files"])
        changed[changed.index("model.files")] = f"model.files: {', '.join(files)}"
    if changed:
        raise ValueError(
            f"output={output} holds answers that were asked for differently ({', '.join(changed)}):"
            " choose another output, or ask as before to go on"
        )


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def record_model(folder: BatchFolder, fingerprint: dict[str, Any]) -> None:
    """Notes which model answers; every replica calls it before it does.

    Args:
        folder: of the job.
        fingerprint: of the model that was loaded.

    Raises:
        ValueError: other weights have answered here.
    """
    known = folder.read(MODEL_FILE)
    if known is None:
        folder.write(MODEL_FILE, json.dumps(fingerprint, indent=2).encode())
    elif json.loads(known)["weights"] != fingerprint["weights"]:
        raise ValueError(
            f"output={folder.uri} holds answers of other weights (see {MODEL_FILE}): the model was "
            "replaced while the job ran; choose another output"
        )


def _cut(config: GenerateConfig, files: list[DataFile], folder: BatchFolder) -> tuple[int, int]:
    """Writes the prompts of every part; returns the numbers of rows and parts."""
    rows = _rows(files)
    num_rows = 0
    num_parts = 0
    while part := list(islice(rows, config.rows_per_part)):
        numbered = [{"index": num_rows + i, **row} for i, row in enumerate(part)]
        folder.write(_prompts(num_parts), _encode(numbered, "jsonl"))
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


def _encode(rows: list[dict[str, Any]], format: str) -> bytes:
    if format == "jsonl":
        lines = (json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
        return "".join(lines).encode()
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA), sink)
    return sink.getvalue().to_pybytes()


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
            }
        ),
        "logprobs": pa.list_(pa.float64()),
        "top_logprobs": pa.list_(
            pa.list_(pa.struct({"token_id": pa.int64(), "logprob": pa.float64()}))
        ),
        "error": pa.string(),
    }
)
