"""The house stays one that people can live in: names mean one thing, files and bodies are small."""

import ast
import re
from collections import defaultdict

import pytest

from tests.test_imports import PLACES, SOURCES

PACKAGE_PLACES = {p: path for p, path in PLACES.items() if not p.startswith("benchmarks")}
ENTRY_POINTS = {"main"}
PROGRAM = re.compile(r"\bjobs/\w+\.py\b")


def parsed(path):
    return ast.parse(path.read_text())


def public_definitions(tree):
    """Names of functions, classes and constants of a module; what it imports is not its own."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_a_public_name_is_defined_in_one_module():
    homes = defaultdict(set)
    for place, path in PACKAGE_PLACES.items():
        for name in public_definitions(parsed(path)):
            if not name.startswith("_") and name not in ENTRY_POINTS:
                homes[name].add(place)
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_files_and_bodies_are_small(path):
    assert path.read_text().count("\n") <= 400
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            if body:
                assert node.end_lineno - body[0].lineno < 60, node.name


def test_one_statement_a_line():
    """`a, b = x, y` packs two statements into one; few are worth it (a swap is)."""
    assigned = packed = 0
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Assign):
                assigned += 1
                is_tuple = isinstance(node.targets[0], ast.Tuple)
                packed += is_tuple and isinstance(node.value, ast.Tuple)
    assert packed <= 0.01 * assigned


def test_texts_take_the_command_of_a_job_from_one_place():
    """Who came through `a2d` is told `a2d NAME`: see `a2d_ray.config.commands`."""
    for path in PACKAGE_PLACES.values():
        tree = parsed(path)
        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                is_shown = not isinstance(parents[node], ast.Expr)  # docstrings are for readers
                assert not (is_shown and PROGRAM.search(node.value)), (path, node.value)
