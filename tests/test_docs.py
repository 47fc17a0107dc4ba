"""README and docs: sentences that a stranger can read, links that lead somewhere, live commands."""

import ast
import re
import runpy
import shlex
import sys
from functools import cache
from pathlib import Path

import pytest

import a2d_ray
from tests.commands import ROOT
from tests.prose import FENCE, anchors, lengths, links, sentences

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BESIDE = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "cluster" / "README.md"]
MAX_MEDIAN = 15  # words per sentence
MAX_P90 = 28
RETIRED = re.compile(
    r"\bso (many|much)\b|\bas (it|they) stands?\b|\bwhoever\b|\bthe other ones\b"
    r"|\bwhat (it|they|(the |a )?\w+) knows?\b",
    re.IGNORECASE,
)
MADE_BEFORE = {"runs/rates/best.yaml"}  # configurations that an earlier command writes
NO_CONFIG = {"evaluate compare"}  # commands that read reports, not a configuration


def name(path):
    return str(path.relative_to(ROOT))


@cache
def text_of(path):
    return path.read_text()


def commands(path):
    """Job and arguments of every ``jobs/NAME.py ...`` in code, once each, split like a shell."""
    text = text_of(path).replace("\\\n", " ")
    blocks = "\n".join(FENCE.findall(text))
    spans = "\n".join(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)))
    form = r"(?:python |slurm\.sh |^)(?:\S*/)?jobs/([a-z]\w*)\.py\b(.*)"  # jobs/NAME.py is no job
    found = re.findall(form, f"{blocks}\n{spans}", re.M)
    return sorted({(job, tuple(_arguments(rest))) for job, rest in found})


def _arguments(text):
    lexer = shlex.shlex(text.replace("$PWD", "/somewhere"), posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    for word in lexer:
        if set(word) <= set("|&;<>"):
            return
        yield re.sub(r"^\[(.*)\]$", r"\1", word)  # what may be left out is given


COMMANDS = sorted({c for path in [*PAGES, *BESIDE] for c in commands(path)})


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join([c[0], *c[1]])[:80])
def test_commands_resolve(command, monkeypatch, capsys):
    """The job itself, in this process, as far as its configuration."""
    job, args = command
    script = ROOT / "jobs" / f"{job}.py"
    assert script.exists()
    if f"{job} {args[0] if args else ''}" in NO_CONFIG:
        return
    args = [arg for arg in args if arg not in MADE_BEFORE]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(script), *args, "--dry-run"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name="__main__")
    assert not stop.value.code, capsys.readouterr().err


def test_the_commands_are_found():
    jobs = {job for job, _ in COMMANDS}
    assert jobs == {path.stem for path in (ROOT / "jobs").glob("*.py")}
    assert ("serve", ("evaluations={}",)) in COMMANDS
    assert ("benchmark", ("quality", "threads=2")) in COMMANDS


def test_make_targets_and_python_are_what_there_is():
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.M))
    for path in [*PAGES, *BESIDE]:
        code = "\n".join([*FENCE.findall(text_of(path)), *re.findall(r"`[^`\n]+`", text_of(path))])
        assert set(re.findall(r"(?:^|[ `])make (?:[A-Z]+=\S+ )*([a-z-]+)", code)) <= targets
        for block in re.findall(r"^```python\n(.*?)^```", text_of(path), re.M | re.S):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and node.module == "a2d_ray":
                    assert {alias.name for alias in node.names} <= set(a2d_ray.__all__)


@pytest.mark.parametrize("path", [*PAGES, *BESIDE], ids=name)
def test_links_lead_somewhere(path):
    for link in links(text_of(path)):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        assert target.exists() and target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(text_of(target)), link


def test_every_page_is_reached_from_the_readme():
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        path = ahead.pop()
        if path in reached or path.suffix != ".md":
            continue
        reached.add(path)
        for link in links(text_of(path)):
            target = (path.parent / link.partition("#")[0]).resolve()
            ahead += sorted(target.glob("*.md")) if target.is_dir() else [target]
    assert set(PAGES) <= reached


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_sentences_are_short(path):
    found = lengths([text_of(path)])
    assert found.median <= MAX_MEDIAN and found.p90 <= MAX_P90, found


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_words_that_strangers_must_decode_are_gone(path):
    assert [s for s in sentences(text_of(path)) if RETIRED.search(s)] == []


def test_what_counts_as_a_sentence():
    text = """# A heading does not count

A sentence has five words. This one, e.g. a [link](docs/very/long.md) and `some code here`,
goes on! Not me.

| a | table does not count either |

- an item is one
- another item is one, too: yes

```shell
nor does code count here
```
"""
    assert list(sentences(text)) == [
        "A sentence has five words.",
        "This one, e.g a link and CODE, goes on!",
        "an item is one",
        "another item is one, too: yes",
    ]
    assert lengths([text]) == lengths([text, ""])
    assert (lengths([text]).median, lengths([text]).p90) == (5.5, 8.1)
    assert links(text) == ["docs/very/long.md"]
    assert links('[a](b) <source srcset="c.svg"> `src="d"`') == ["b", "c.svg"]
    assert anchors("# A `b` & c!\n## Same\n### Same\n") == {"a-b--c", "same", "same-1"}


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 180
    assert Path(ROOT / "docs/images/chat.gif").exists()
