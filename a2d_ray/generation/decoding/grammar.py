"""What a grammar must offer to constrain an answer (rule ``prefix``)."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class GrammarError(ValueError):
    """A grammar that no text fulfils which begins as the answer does, or that is too complex."""


class Grammar(Protocol):
    """The state of one answer under a grammar; kept grammar libraries fit behind it.

    Rule ``prefix`` commits from the left only, so the tokens accepted so far are always exactly
    the answer so far: the first open position is chosen among the allowed tokens, the ones behind
    it are committed only while the grammar accepts them. One object per answer: it is changed.
    """

    def allowed(self) -> Tensor:
        """bool [V]: the tokens that may come next.

        It holds an end-of-turn id where the text may end, and nothing else once it has to. Where
        it holds nothing at all, the answer ends there.

        Raises:
            GrammarError: the text is not complete, and nothing can come next.
        """

    def allowed_after(self, token_ids: Sequence[int]) -> list[Tensor]:
        """bool [V] each: what may come after each of these tokens; the grammar does not change.

        It ends before the first token that is not allowed. Drafts are verified by it.
        """

    def accept(self, token_id: int) -> bool:
        """Takes the next token; False, and no change, if it is not allowed."""
