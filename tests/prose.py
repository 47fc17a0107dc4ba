"""Sentences and links of Markdown: python -m tests.prose [FILE.md ...] prints lengths per file.

A sentence ends at ``.``, ``!`` or ``?``, or with its paragraph or list item. Code blocks, tables,
headings, pictures and addresses of links do not count; an inline code span is one word.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

from tests.commands import ROOT

FENCE = re.compile(r"^[ \t]*```.*?^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[([^\]]*)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_NEW_ITEM = re.compile(r"^\s*(?:[-*+]|\d+\.)\s+")
_END = re.compile(r"(?<=[.!?])[)\"'*\]]*\s+")
_ABBREVIATION = re.compile(r"\b(e\.g|i\.e|vs|etc|eq|al|cf)\.", re.IGNORECASE)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_MIN_WORDS = 3  # shorter ones are labels, not sentences


@dataclass(frozen=True)
class Lengths:
    """Words per sentence."""

    num_sentences: int
    median: float
    p90: float

    def __str__(self) -> str:
        return f"{self.num_sentences:5} sentences, median {self.median:4.1f}, p90 {self.p90:4.1f}"


def sentences(text: str) -> Iterator[str]:
    """The sentences of a Markdown text, without its marks."""
    for paragraph in _paragraphs(_COMMENT.sub("", FENCE.sub("\n", text))):
        plain = LINK.sub(lambda m: "" if m[0].startswith("!") else m[1], paragraph)
        plain = _ABBREVIATION.sub(r"\1", _CODE.sub("CODE", plain)).replace("*", "")
        for sentence in _END.split(plain):
            if len(_words(sentence)) >= _MIN_WORDS:
                yield sentence.strip()


def lengths(texts: Iterable[str]) -> Lengths:
    """Median and 90th percentile over the sentences of all texts."""
    counts = [len(_words(sentence)) for text in texts for sentence in sentences(text)]
    if len(counts) < 2:
        return Lengths(len(counts), 0, 0)
    return Lengths(len(counts), median(counts), quantiles(counts, n=10, method="inclusive")[-1])


def links(text: str) -> list[str]:
    """Targets of links and pictures, outside code."""
    plain = _CODE.sub("", FENCE.sub("", text))
    pictures = re.findall(r'\b(?:src|srcset)="([^"]+)"', plain)
    return [match[2] for match in LINK.finditer(plain)] + pictures


def anchors(text: str) -> set[str]:
    """What links may point to behind ``#``, by GitHub's rule."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+)$", FENCE.sub("", text), re.MULTILINE):
        plain = LINK.sub(r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        same = sum(known == slug or known.startswith(f"{slug}-#") for known in found)
        found.add(f"{slug}-{same}" if same else slug)
    return found


def _words(sentence: str) -> list[str]:
    return re.findall(r"\w[\w'’.,:/%+-]*", sentence)


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs and list items; tables, headings and rules are left out."""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        is_code = not lines and line.startswith("    ")
        is_prose = line.strip() and not is_code and not re.match(r"\s*(\||#|---)", line)
        if not is_prose or _NEW_ITEM.match(line):
            if lines:
                yield " ".join(lines)
            lines = []
        if is_prose:
            lines.append(_NEW_ITEM.sub("", line).strip())


def main() -> None:
    """Prints lengths per file, and the longest sentences of a single one."""
    given = [Path(name) for name in sys.argv[1:]]
    paths = given or [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for path in paths:
        print(f"{lengths([path.read_text()])}  {path}")
    print(f"{lengths(path.read_text() for path in paths)}  all")
    if len(given) == 1:
        for sentence in sorted(sentences(given[0].read_text()), key=lambda s: -len(_words(s)))[:15]:
            print(len(_words(sentence)), sentence)


if __name__ == "__main__":
    main()
