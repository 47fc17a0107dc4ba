"""Looks into a packed set: documents with their blocks, targets and fill in colour; lengths."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.text import Text

from a2d_ray.data.packing.packed import PackedSet
from a2d_ray.data.sources.mixture import Split
from a2d_ray.diffusion.layout import LayoutSpec, PackedRow, build_layout
from a2d_ray.diffusion.noise import eos_tail_lengths
from a2d_ray.terminal.streams import console as terminal_console

STYLES = {"prompt": "cyan", "target": "bold green", "fill": "yellow"}
BORDER = ("│", "red")
_FILL_ID = -1
_BAR = 40  # characters of the longest bar


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token as training sees it.

    Attributes:
        id: token id.
        kind: ``prompt``, ``target`` or ``fill`` (EOS targets behind an answer).
        block: index of its block within the document.
    """

    id: int
    kind: str
    block: int


def document_tokens(document: PackedRow, spec: LayoutSpec, *, eos_tail: int = 0) -> list[Token]:
    """The tokens of one document, block after block, with the fill of its answers.

    Args:
        document: a row that holds one document.
        spec: objective, block size and grid.
        eos_tail: mdlm: the longest tail of EOS targets; the first epoch's is shown.
    """
    tails = None
    if spec.objective == "mdlm":
        epoch = torch.zeros(1, dtype=torch.int64)
        tails = eos_tail_lengths(document.doc_id_D, seed=0, epoch_D=epoch, longest=eos_tail)
    marked = replace(spec, eos_id=_FILL_ID, views=1)
    layout = build_layout([document], marked, eos_tail_D=tails)
    columns = (layout.ids_RT, layout.block_RT, layout.offset_RT, layout.is_target_RT)
    found: dict[tuple[int, int], Token] = {}
    # The clean copy comes first, so that the noised one, which knows targets, replaces it.
    for id_, block, offset, is_target in zip(*(c[0].tolist() for c in columns), strict=True):
        kind = "fill" if id_ == _FILL_ID else "target" if is_target else "prompt"
        token_id = spec.eos_id if kind == "fill" else id_
        found[block, offset] = Token(id=token_id, kind=kind, block=block)
    return [token for _, token in sorted(found.items())]


def documents_of(packed: PackedSet, split: Split, count: int) -> Iterator[PackedRow]:
    """`count` documents of a split, from rows spread over it."""
    rows = packed.num_rows(split)
    chosen = np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(np.int64))
    left = count
    for row in packed.read_rows(split, chosen) * count:
        if left == 0:
            return
        doc = (count - left) // max(len(chosen), 1) % int(row.doc_id_D.numel())
        yield _only(row, doc)
        left -= 1


def render(tokens: list[Token], tokenizer: Any) -> Text:
    """The document's text in colours, with a border between blocks."""
    text = Text()
    before = tokens[0].block if tokens else 0
    for token in tokens:
        if token.block != before:
            text.append(*BORDER)
            before = token.block
        text.append(tokenizer.decode([token.id]).replace("\n", "⏎\n"), style=STYLES[token.kind])
    return text


def print_examples(
    packed: PackedSet,
    tokenizer: Any,
    spec: LayoutSpec,
    *,
    split: Split,
    count: int,
    eos_tail: int,
    console: Console | None = None,
) -> None:
    """Prints documents of a split in colour."""
    console = console or terminal_console()
    legend = Text("\n").join(Text(f"{kind} token", style=style) for kind, style in STYLES.items())
    console.print(legend, Text("between blocks ") + Text(*BORDER), sep="\n")
    for document in documents_of(packed, split, count):
        tokens = document_tokens(document, spec, eos_tail=eos_tail)
        counts = ", ".join(f"{sum(t.kind == kind for t in tokens)} {kind}" for kind in STYLES)
        blocks = len({token.block for token in tokens})
        console.rule(f"document {int(document.doc_id_D[0])}: {counts}; {blocks} blocks")
        console.print(render(tokens, tokenizer), soft_wrap=True)


def print_lengths(counts: dict[str, Any], console: Console | None = None) -> None:
    """Prints the histogram of documents' lengths of a split of a manifest."""
    console = console or terminal_console()
    edges = counts["lengths"]["edges"]
    found = counts["lengths"]["counts"]
    most = max([*found, 1])
    console.rule("tokens per document")
    for low, high, count in zip(edges, edges[1:], found, strict=False):
        bar = "█" * round(_BAR * count / most)
        console.print(f"{low:>6}-{high - 1:<6} {bar} {count:,}", highlight=False)


def save_lengths(manifest: dict[str, Any], path: Path) -> None:
    """Writes the histogram of both splits as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for split, counts in manifest["splits"].items():
        edges = np.array(counts["lengths"]["edges"])
        axes.stairs(counts["lengths"]["counts"], edges, label=split, fill=True, alpha=0.6)
    axes.set(xlabel="tokens per document", ylabel="documents")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)


def _only(row: PackedRow, doc: int) -> PackedRow:
    """One document of a row, as a row of its own."""
    is_here = row.doc_C == doc
    return PackedRow(
        ids_C=row.ids_C[is_here],
        doc_C=torch.zeros_like(row.doc_C[is_here]),
        segment_C=row.segment_C[is_here],
        is_target_C=row.is_target_C[is_here],
        doc_id_D=row.doc_id_D[doc : doc + 1],
        is_complete_D=row.is_complete_D[doc : doc + 1],
    )
