"""Who holds which slots of the KV store, and which prompts are stored already.

A page is one block of the grid (blocks may be short): its tokens see each other and what is before
them, so its keys and values are a function of its tokens and of the pages before it. Its key says
just that: hash(key of the page before, tokens). The first key covers what else they depend on:
the block size, the grid and the request's salt. Pages with equal keys are one page.
"""

import hashlib
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from a2d_ray.generation.engine.cache import Runs, join_runs, split_runs


@dataclass(eq=False)
class Page:
    """Slots of one block.

    Attributes:
        runs: where its keys and values lie.
        num_tokens: of the block.
        key: what it holds; None: not to be shared.
        is_filled: whether keys and values are there; until then any of its users may write them.
        last_hidden_H: final hidden state of its last token, where the next block needs it.
        num_users: requests that hold it.
    """

    runs: list[tuple[int, int]]
    num_tokens: int
    key: bytes | None = None
    is_filled: bool = False
    last_hidden_H: Tensor | None = None
    num_users: int = 1


def root_key(*parts: object) -> bytes:
    """Key before the first page: what the keys and values depend on besides the tokens."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def page_key(parent: bytes, token_ids: Iterable[int]) -> bytes:
    """Key of a page from the key of the page before it."""
    ids = array("q", token_ids).tobytes()
    return hashlib.blake2b(parent + ids, digest_size=16).digest()


@dataclass(eq=False)
class PageTable:
    """Hands out slots, and finds pages that are stored already (the prefix cache).

    Args:
        capacity: slots of the store.
        is_caching: keep filled pages when nobody uses them, until their slots are needed.

    Attributes:
        num_free: slots that can be had, those of unused cached pages included.
    """

    capacity: int
    is_caching: bool = True
    num_free: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_free = self.capacity
        self._free = [(0, self.capacity)]  # sorted, never adjacent
        self._pages: dict[bytes, Page] = {}
        self._unused: OrderedDict[bytes, Page] = OrderedDict()  # least recently used first

    def find(self, keys: Sequence[bytes]) -> list[Page]:
        """The pages of the longest stored prefix of `keys`; the caller now uses them."""
        found: list[Page] = []
        for key in keys if self.is_caching else ():
            page = self._pages.get(key)
            if page is None:
                break
            if page.num_users == 0:
                del self._unused[key]
                self.num_free -= page.num_tokens
            page.num_users += 1
            found.append(page)
        return found

    def allocate(self, num_tokens: int) -> list[tuple[int, int]]:
        """Slots for `num_tokens` <= `num_free` tokens, in as few runs as possible."""
        assert num_tokens <= self.num_free, "allocate() needs free slots"
        while sum(stop - start for start, stop in self._free) < num_tokens:
            self._evict()
        self.num_free -= num_tokens
        fitting = [run for run in self._free if run[1] - run[0] >= num_tokens]
        runs = fitting[:1] or sorted(self._free, key=lambda run: run[0] - run[1])
        taken, _ = split_runs(runs, num_tokens)
        for run in taken:
            self._take(run)
        return taken

    def register(self, page: Page, key: bytes) -> None:
        """Makes a page findable; does nothing if there is one with this key."""
        if self.is_caching and key not in self._pages:
            page.key = key
            self._pages[key] = page

    def release(self, pages: Sequence[Page], runs: Runs = ()) -> None:
        """Gives up a request's pages, and slots that belong to no page.

        Later pages go first: without the ones before them they could not be found.
        """
        self._give_back(runs)
        for page in reversed(pages):
            page.num_users -= 1
            if page.num_users:
                continue
            if page.key is not None and page.is_filled:
                self._unused[page.key] = page
                self.num_free += page.num_tokens
            else:
                if page.key is not None:
                    del self._pages[page.key]
                self._give_back(page.runs)

    def _evict(self) -> None:
        key, page = self._unused.popitem(last=False)
        del self._pages[key]
        self.num_free -= page.num_tokens
        self._give_back(page.runs)

    def _take(self, taken: tuple[int, int]) -> None:
        index = bisect_left(self._free, (taken[0] + 1,)) - 1
        start, stop = self._free[index]
        rest = [(start, taken[0]), (taken[1], stop)]
        self._free[index : index + 1] = [run for run in rest if run[1] > run[0]]

    def _give_back(self, runs: Runs) -> None:
        for run in runs:
            index = bisect_left(self._free, run)
            around = [*self._free[max(index - 1, 0) : index], run, *self._free[index : index + 1]]
            self._free[max(index - 1, 0) : index + 1] = join_runs(around)
            self.num_free += run[1] - run[0]
