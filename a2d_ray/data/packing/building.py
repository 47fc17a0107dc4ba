"""The place where a packed set is made: beside its final one, renamed when it is whole. No Ray.

A process that makes a set holds a lock in its place. When it dies the system drops the lock, and
the next run clears the place away. What has its final name is complete.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from a2d_ray.data.packing.packed import MANIFEST

_log = logging.getLogger(__name__)

LOCK = "lock"
DOCUMENTS = "documents"
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def built_beside(target: Path) -> Iterator[Path]:
    """A temporary sibling that takes the place of `target` when all went well.

    Raises:
        ValueError: it cannot be written to, or the disk is full.
    """
    remove_leftovers(target.parent)
    directory = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        (directory / DOCUMENTS).mkdir(parents=True)
        lock = (directory / LOCK).open("w")
    except OSError as error:
        raise ValueError(f"data.packed_path: cannot write to {target.parent}: {error}") from error
    try:
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
            shutil.rmtree(directory / DOCUMENTS)
            (directory / LOCK).unlink()
            with contextlib.suppress(FileExistsError, OSError):  # another run was faster
                os.rename(directory, target)
    except OSError as error:
        raise disk_error(error, target.parent) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def disk_error(error: OSError, place: Path) -> Exception:
    """A full disk as an error that says what to do; any other error as it is."""
    if error.errno not in _DISK_IS_FULL:
        return error
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(place).free / 2**20
        return ValueError(
            f"data.packed_path: {place} is full ({free:,.0f} MiB free): tokens take four bytes "
            "each there while a set is made, and about half of that afterwards. Nothing was kept; "
            "make room or choose another data.packed_path"
        )
    return error


def remove_leftovers(parent: Path) -> None:
    """Clears away what jobs that were killed left: places whose lock nobody holds."""
    for place in parent.glob(".*-*") if parent.is_dir() else ():
        if not (place / LOCK).is_file():
            continue
        with contextlib.suppress(OSError), (place / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _log.info("removing %s, which a killed job left", place)
            shutil.rmtree(place, ignore_errors=True)


def explain_change(options: dict[str, Any], parent: Path) -> str | None:
    """What differs from the most similar finished set in a folder; None if there is none."""
    nearest: tuple[int, str, list[str]] | None = None
    ours = _flat(options)
    for manifest in sorted(parent.glob(f"[!.]*/{MANIFEST}")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            theirs = _flat(json.loads(manifest.read_text())["options"])
            changed = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))
            if nearest is None or len(changed) < nearest[0]:
                lines = [f"{key}: {_short(theirs, key)} -> {_short(ours, key)}" for key in changed]
                nearest = (len(changed), manifest.parent.name, lines)
    if nearest is None:
        return None
    return f"differs from {nearest[1]} in {'; '.join(nearest[2])}"


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}, "c": [2]} -> {"a.b": 1, "c.0": 2}."""
    if not isinstance(values, dict | list) or not values:
        return {prefix: values}
    items = values.items() if isinstance(values, dict) else enumerate(values)
    return {
        key: value
        for name, inner in items
        for key, value in _flat(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _short(values: dict[str, Any], key: str) -> str:
    text = json.dumps(values[key]) if key in values else "(nothing)"
    return text if len(text) <= 40 else f"{text[:37]}..."
