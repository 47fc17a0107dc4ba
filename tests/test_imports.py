"""Imports go one way, Ray is glue, and the package is light."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "a2d_ray"

# What each part may import from the rest of the package; itself is always allowed.
LIGHT = {"config", "cli", "text"}
ALLOWED = {
    "config": set(),
    "cli": set(),
    "text": set(),
    "http": {"config"},
    "diffusion": set(),
    "models": {"config", "diffusion"},
    "data": {"config", "diffusion", "models"},
    "generation": {"config", "diffusion", "models"},
    "answers": LIGHT | {"generation"},
    "api": LIGHT | {"answers"} | {"diffusion", "models", "data", "generation"},
    "live_view": LIGHT | {"answers", "api", "generation"},
    "chat": LIGHT | {"live_view"} | {"api", "answers", "models", "data", "generation"},
    "training": LIGHT | {"diffusion", "models", "data", "generation"},
    "serving": LIGHT | {"http", "answers", "api", "diffusion", "models", "data", "generation"},
    "evaluation": LIGHT | {"http", "api", "diffusion", "models", "data", "generation"},
    "benchmarks": LIGHT
    | {"api", "diffusion", "models", "data", "generation", "training", "tuning", "serving"}
    | {"evaluation", "quickstart"},
    "tuning": LIGHT
    | {"api", "diffusion", "models", "data", "generation", "training", "evaluation"},
    "quickstart": LIGHT
    | {"api", "models", "data", "generation", "training", "serving", "evaluation"},
}
RAY_PARTS = {"training", "serving", "evaluation", "tuning", "quickstart"}


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_direction(path):
    part = part_of(path)
    for module in imported_modules(path):
        top = module.split(".")
        if top[0] == "ray":
            assert part in RAY_PARTS or path == PACKAGE / "data" / "pipeline.py", module
        if top[0] == "deepspeed":
            assert part == "training", module
        if part == "diffusion":
            is_own = module.startswith("a2d_ray.diffusion")
            assert is_own or top[0] == "torch" or top[0] in sys.stdlib_module_names, module
        if top[0] == "a2d_ray" and len(top) > 1:
            assert top[1] in ALLOWED[part] | {part}, f"{part} may not import {module}"
        assert top[0] not in ("jobs", "tests"), module


def run_fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("modules", "unwanted"),
    [
        ("a2d_ray", "torch ray transformers deepspeed"),
        (
            "a2d_ray.config, a2d_ray.cli, a2d_ray.data.sources.mixture",
            "torch ray transformers deepspeed",
        ),
        (
            "a2d_ray.diffusion.objectives, a2d_ray.diffusion.likelihood",
            "ray transformers deepspeed",
        ),
        ("a2d_ray.diffusion.decoding, a2d_ray.models.conversion", "ray deepspeed"),
        ("a2d_ray.models.checkpoint, a2d_ray.generation.engine.engine", "ray deepspeed"),
        ("a2d_ray.generation.reference, a2d_ray.text.language_model", "ray deepspeed"),
    ],
)
def test_what_a_fresh_process_loads(modules, unwanted):
    code = f"import sys, {modules}; print(*(set({unwanted.split()}) & sys.modules.keys()))"
    loaded = run_fresh(code)
    assert loaded.split() == []


def test_import_takes_under_a_second():
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        run_fresh("import a2d_ray")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 1


def test_public_names_exist():
    import a2d_ray

    for name in a2d_ray.__all__:
        assert callable(getattr(a2d_ray, name))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = a2d_ray.nonsense
