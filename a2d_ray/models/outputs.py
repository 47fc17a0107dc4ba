"""Model directories that appear when they are complete, never in the place of something else."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def written_beside(output: Path, source: str, *, overwrite: bool) -> Iterator[Path]:
    """A temporary sibling of `output` that takes its place when the body is done.

    Args:
        output: directory to write.
        source: what it is made from.
        overwrite: whether a model directory may be replaced.

    Raises:
        ValueError: `output` cannot be written, or something would be destroyed; says the fix.
    """
    from safetensors import SafetensorError

    _check(output, source, overwrite)
    made = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
        try:
            yield directory
            _replace(output, directory)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors wraps "no space left"
        raise ValueError(f"output {output} cannot be written: {error}") from None
    finally:
        for parent in made:
            with suppress(OSError):  # something lies there
                parent.rmdir()


def _check(output: Path, source: str, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"output {output} is a file: give a directory")
    if output.resolve() == Path(source).expanduser().resolve():
        raise ValueError(f"output {output} is the source itself: give another directory")
    is_empty = not any(output.iterdir())
    if not is_empty and not overwrite:
        raise ValueError(f"output {output} exists: choose another, or set overwrite=true")
    if not is_empty and not (output / "config.json").is_file():
        raise ValueError(f"output {output} is not a model directory and will not be replaced")


def _replace(output: Path, directory: Path) -> None:
    """Puts `directory` in the place of `output`; what was there goes last."""
    directory.chmod(0o755)  # mkdtemp's 0o700 would hide the model from other users
    old = directory.with_name(directory.name + ".old")
    if output.exists():
        output.rename(old)
    directory.rename(output)
    shutil.rmtree(old, ignore_errors=True)
