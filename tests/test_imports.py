"""Imports go one way, Ray is glue, and the package is light."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.commands import ROOT, run_python

PACKAGE = ROOT / "a2d_ray"
HEAVY = {"torch", "transformers", "ray", "deepspeed", "fastapi", "lm_eval"}
SOURCES = sorted(path for top in (PACKAGE, ROOT / "benchmarks") for path in top.rglob("*.py"))


def rooms() -> dict[str, set[str]]:
    """The table of docs/architecture.md: room -> what it may import."""
    table = (ROOT / "docs" / "architecture.md").read_text().split("## Rooms")[1].split("\n## ")[0]
    lines = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `")]
    return {
        name.strip(" `"): {word.strip(" `") for word in allowed.split(",")} - {""}
        for name, _, allowed in lines
    }


ROOMS = rooms()


def place_of(path: Path) -> str:
    """``serving/openai/tokens`` for its file, ``benchmarks/data`` for one beside the package."""
    top = PACKAGE if path.is_relative_to(PACKAGE) else ROOT
    return str(path.relative_to(top).with_suffix("")).removesuffix("/__init__")


def is_in(place: str, room: str) -> bool:
    return place == room or place.startswith(f"{room}/")


def room_of(place: str) -> str:
    return max((room for room in ROOMS if is_in(place, room)), key=len)


def is_docstring_only(path: Path) -> bool:
    return path.name == "__init__.py" and len(ast.parse(path.read_text()).body) <= 1


PLACES = {
    place_of(path): path
    for path in SOURCES
    if path != PACKAGE / "__init__.py" and not is_docstring_only(path)
}


def imported_modules(path: Path) -> set[str]:
    """Dotted names that a file imports: of ours the files, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            of_ours = {name for name in submodules if place_of_module(name) in PLACES}
            is_whole = len(of_ours) == len(node.names)
            found |= of_ours if is_whole else of_ours | {node.module}
    return found


def place_of_module(module: str) -> str:
    return module.removeprefix("a2d_ray.").replace(".", "/")


@pytest.mark.parametrize("place", PLACES)
def test_a_file_imports_what_its_room_may(place):
    room = room_of(place)
    for module in imported_modules(PLACES[place]):
        top, target = module.split(".")[0], place_of_module(module)
        assert top not in ("jobs", "tests"), module
        if "everything" in ROOMS[room]:
            continue
        assert top not in HEAVY or top in ROOMS[room], f"{room} may not import {module}"
        if top == "a2d_ray" and module != "a2d_ray":
            may = any(is_in(target, other) for other in ROOMS[room] | {room})
            assert may, f"{room} may not import {module}"
        if room == "diffusion":
            is_light = top in sys.stdlib_module_names or top in ("torch", "a2d_ray")
            assert is_light, module


def test_the_table_names_rooms_that_are_there():
    assert all(any(is_in(place, room) for place in PLACES) for room in ROOMS)
    assert {room_of(place) for place in PLACES} == ROOMS.keys()


def test_no_two_files_import_each_other():
    graph = {
        place: {place_of_module(m) for m in imported_modules(path)} & PLACES.keys() - {place}
        for place, path in PLACES.items()
    }
    TopologicalSorter(graph).prepare()  # CycleError names a cycle


def test_serving_is_a_few_rooms_with_few_arrows():
    arrows = {
        (room_of(place), room_of(place_of_module(module)))
        for place, path in PLACES.items()
        for module in imported_modules(path)
        if is_in(place, "serving") and is_in(place_of_module(module), "serving")
    }
    arrows = {(a, b) for a, b in arrows if a != b}
    assert len({room for arrow in arrows for room in arrow}) <= 7 and len(arrows) <= 10


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
        ("a2d_ray.training.controller", "torch transformers deepspeed"),  # Ray Train's controller
        ("a2d_ray.data.pipeline", "torch transformers deepspeed"),  # every task of Ray Data
        ("a2d_ray.training.curves", "matplotlib torch"),  # every worker
        ("a2d_ray.models.checkpoint, a2d_ray.generation.engine.engine", "ray deepspeed"),
        ("a2d_ray.generation.reference, a2d_ray.text.language_model", "ray deepspeed"),
    ],
)
def test_what_a_fresh_process_loads(modules, unwanted):
    code = f"import sys, {modules}; print(*(set({unwanted.split()}) & sys.modules.keys()))"
    done = run_python("-c", code)
    assert (done.code, done.out.split()) == (0, []), done.err


def test_import_takes_under_a_second_of_cpu_time():
    done = run_python("-c", "import a2d_ray")
    assert done.code == 0 and done.cpu_s < 1


def test_public_names_exist():
    import a2d_ray

    for name in a2d_ray.__all__:
        assert callable(getattr(a2d_ray, name))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = a2d_ray.nonsense
