"""Segments -> documents of bounded length: what is a target, what is cut. No Ray here."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

TOO_LONG = "longer than data.max_length"
NO_ROOM = "no room for the answer in data.max_length"


@dataclass(frozen=True, kw_only=True)
class Document:
    """What attends to itself: segments of token ids, some of them targets.

    Attributes:
        segments: token ids of each segment; none is empty.
        is_target: per segment, whether its tokens are learned; the last one's are.
        is_complete: whether the last segment is whole, so that stopping is learned too.
        answer: which answer (or chunk of text) of the row it ends with.
    """

    segments: tuple[Sequence[int], ...]
    is_target: tuple[bool, ...]
    is_complete: bool
    answer: int

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.segments))


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """How rows become documents.

    Attributes:
        max_length: longest document in tokens.
        truncation: ``right`` cuts the last answer that fits in part; ``filter`` drops.
        edge: answers are cut after a multiple of this number of tokens: the block size, where
            blocks start at the answer; 1 otherwise.
        targets: ``all`` answers, or the ``last``.
        is_split: one document per answer (mdlm), in place of one for all of them.
    """

    max_length: int
    truncation: Literal["right", "filter"] = "right"
    edge: int = 1
    targets: Literal["all", "last"] = "all"
    is_split: bool = False


def conversation_documents(
    segments: Sequence[Sequence[int]],
    is_answer: Sequence[bool],
    cutting: Cutting,
    *,
    unlearned: Collection[int] = (),
) -> tuple[list[Document], list[str]]:
    """Documents of one conversation, and why others were dropped.

    Args:
        segments: token ids per segment, from `chat.ChatRenderer` and `chat.encode_pieces`.
        is_answer: per segment.
        cutting: how rows become documents.
        unlearned: answers, by segment, that are no targets.

    Returns:
        Documents (one; with `is_split` up to one per answer), each ending with its last target,
        and one reason per document that was dropped.
    """
    answers = [i for i, flag in enumerate(is_answer) if flag]
    wanted = [i for i in answers if i not in unlearned]
    if cutting.targets == "last":
        learned = [wanted[-1:]]
    else:
        learned = [[i] for i in wanted] if cutting.is_split else [wanted]
    documents = []
    reasons = []
    for targets in learned:
        document = _document(segments, targets, answers, cutting)
        if isinstance(document, str):
            reasons.append(document)
        else:
            documents.append(document)
    return documents, reasons


def text_documents(ids: Sequence[int], eos_id: int | None, max_length: int) -> Iterator[Document]:
    """Documents of one plain text: cut every `max_length` tokens, nothing is lost.

    Args:
        ids: token ids of the text.
        eos_id: id that ends it; None: none is added, and stopping is not learned.
        max_length: longest document in tokens.
    """
    whole = [*ids, eos_id] if eos_id is not None else list(ids)
    for answer, start in enumerate(range(0, len(whole), max_length)):
        is_last = start + max_length >= len(whole)
        yield Document(
            segments=(whole[start : start + max_length],),
            is_target=(True,),
            is_complete=is_last and eos_id is not None,
            answer=answer,
        )


def _document(
    segments: Sequence[Sequence[int]],
    targets: Sequence[int],
    answers: Sequence[int],
    cutting: Cutting,
) -> Document | str:
    """The document of the answers `targets`, or why there is none."""
    end = targets[-1] + 1
    starts = [0]
    for segment in segments[:end]:
        starts.append(starts[-1] + len(segment))
    if starts[end] > cutting.max_length:
        if cutting.truncation == "filter":
            return TOO_LONG
        return _cut(segments, starts, targets, answers, cutting)
    return _build(segments[:end], targets, answers, is_complete=True)


def _cut(
    segments: Sequence[Sequence[int]],
    starts: Sequence[int],
    targets: Sequence[int],
    answers: Sequence[int],
    cutting: Cutting,
) -> Document | str:
    """Keeps the answers that fit, and of the first that does not what fits up to a block edge."""
    for position, target in reversed(list(enumerate(targets))):
        if starts[target + 1] <= cutting.max_length:
            return _build(
                segments[: target + 1], targets[: position + 1], answers, is_complete=True
            )
        room = (cutting.max_length - starts[target]) // cutting.edge * cutting.edge
        if room > 0:
            kept = [*segments[:target], segments[target][:room]]
            return _build(kept, targets[: position + 1], answers, is_complete=False)
    return NO_ROOM


def _build(
    segments: Sequence[Sequence[int]],
    targets: Sequence[int],
    answers: Sequence[int],
    *,
    is_complete: bool,
) -> Document:
    learned = set(targets)
    return Document(
        segments=tuple(segments),
        is_target=tuple(i in learned for i in range(len(segments))),
        is_complete=is_complete,
        answer=answers.index(targets[-1]),
    )
