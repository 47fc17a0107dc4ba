"""Where one request's keys and values are, and which of its blocks are stored already."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise

from a2d_ray.generation.engine.cache import join_runs, split_runs
from a2d_ray.generation.engine.pages import Page, PageTable, page_key


@dataclass(frozen=True, kw_only=True)
class StoredBlocks:
    """Finished blocks that a round stores.

    Attributes:
        start, stop: canvas positions.
        pages: theirs, in order.
    """

    start: int
    stop: int
    pages: tuple[Page, ...]


class SequenceStorage:
    """Pages of a request's finished blocks, and slots for the rest of its canvas.

    Args:
        table: gives slots and pages.
        root: see `pages.root_key`.
        prompt_blocks: token ids of the blocks that are known already.
    """

    def __init__(self, table: PageTable, root: bytes, prompt_blocks: list[tuple[int, ...]]) -> None:
        self._table = table
        self._key = root
        self._prompt_pages: list[tuple[int, bytes]] = []  # tokens and key of each
        for ids in prompt_blocks:
            self._key = page_key(self._key, ids)
            self._prompt_pages.append((len(ids), self._key))
        self._pages: list[Page] = []
        self._own_runs: list[tuple[int, int]] = []
        self._stored_runs: list[tuple[int, int]] = []
        self._num_stored_pages = 0
        self.num_stored = self.num_cached_tokens = 0

    def admit(self, canvas_length: int, *, is_sharing: bool = True) -> bool:
        """Reserves slots for the whole canvas; False if they cannot be had now.

        Args:
            canvas_length: tokens of prompt and answer.
            is_sharing: use pages of the prompt that are there already.
        """
        keys = [key for _, key in self._prompt_pages]
        found = self._table.find(keys) if is_sharing else []
        num_found = sum(page.num_tokens for page in found)
        if canvas_length - num_found > self._table.num_free:
            self._table.release(found)
            return False
        self.num_cached_tokens = sum(page.num_tokens for page in found if page.is_filled)
        self._own_runs = self._table.allocate(canvas_length - num_found)
        self._pages = found
        for num_tokens, key in self._prompt_pages[len(found) :]:
            self._append_page(num_tokens, key)
        return True

    def append_block(self, ids: tuple[int, ...]) -> None:
        """A block of the answer is finished: the next round stores it."""
        self._key = page_key(self._key, ids)
        self._append_page(len(ids), self._key)

    def next_chunk(self, budget: int, in_flight: Collection[Page]) -> StoredBlocks:
        """The blocks to store in this round: as many as the budget allows, but never none.

        Blocks that are stored, or that another request stores in this round, are skipped. The
        chunk counts as stored from now on.
        """
        while self._is_there(in_flight):
            self._advance()
        start = self.num_stored
        pages: list[Page] = []
        while self._num_stored_pages < len(self._pages) and not self._is_there(in_flight):
            page = self._pages[self._num_stored_pages]
            if pages and self.num_stored + page.num_tokens - start > budget:
                break
            pages.append(page)
            self._advance()
        return StoredBlocks(start=start, stop=self.num_stored, pages=tuple(pages))

    @property
    def is_stored(self) -> bool:
        """Whether every finished block is stored."""
        return self._num_stored_pages == len(self._pages)

    @property
    def last_page(self) -> Page | None:
        """The last finished block; it may be that this round stores it."""
        return self._pages[-1] if self._pages else None

    def fill_page(self, ids: tuple[int, ...]) -> None:
        """The first of the own slots hold these tokens: they become a page that can be found."""
        self.append_block(ids)
        self._pages[-1].is_filled = True
        self._advance()

    def runs(
        self, chunk: StoredBlocks, num_kept: int, num_new: int
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Slots of a round's new tokens, and of all keys: stored, chunk and own.

        Args:
            chunk: pages among the new tokens.
            num_kept: own slots that hold tokens from earlier rounds.
            num_new: new tokens that go to own slots, behind those.
        """
        own, _ = split_runs(self._own_runs, num_kept + num_new)
        _, active = split_runs(own, num_kept)
        new = join_runs([run for page in chunk.pages for run in page.runs] + active)
        return new, join_runs(self._stored_runs + own)

    def release(self) -> None:
        """Gives everything back."""
        self._table.release(self._pages, self._own_runs)
        self._pages = []
        self._own_runs = []

    def _append_page(self, num_tokens: int, key: bytes) -> None:
        runs, self._own_runs = split_runs(self._own_runs, num_tokens)
        page = Page(runs=runs, num_tokens=num_tokens)
        self._table.register(page, key)
        self._pages.append(page)

    def _is_there(self, in_flight: Collection[Page]) -> bool:
        if self.is_stored:
            return False
        page = self._pages[self._num_stored_pages]
        return page.is_filled or page in in_flight

    def _advance(self) -> None:
        page = self._pages[self._num_stored_pages]
        self._stored_runs[-1:] = join_runs([*self._stored_runs[-1:], *page.runs])
        self._num_stored_pages += 1
        self.num_stored += page.num_tokens


def block_edges(blocks: tuple[int, ...], stop: int) -> list[tuple[int, int]]:
    """(start, stop) of each block among the first `stop` canvas positions."""
    starts = [i for i in range(stop) if i == 0 or blocks[i] != blocks[i - 1]]
    return list(pairwise([*starts, stop])) if starts else []
