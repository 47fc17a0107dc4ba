"""Lines among a library's chatter that the user can act on, and our own from Ray's workers."""

import logging
import re
import sys

MARK = "a2d-ray says: "  # in front of our lines in a worker's output

# What Ray prints when a run waits or dies for want of something, or begins anew; and what to say
# (None: the line itself).
ACTIONABLE: dict[str, str | None] = {
    r"cannot be scheduled right now": None,
    r"No available node types can fulfill": None,
    r"killed due to memory pressure": None,
    r"% full, available space": None,
    r"out of disk": None,
    r"\[FailurePolicy\] RETRY": "workers failed; the run goes on from its last checkpoint",
}
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_SENDER = re.compile(r"^\([^)]*(?:pid=\d+|raylet|autoscaler)[^)]*\)\s*")
_NUMBERS = re.compile(r"[\d.,:]+")


class Notices:
    """Picks the lines that the user is shown, each once: numbers and senders aside."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def find(self, line: str) -> str | None:
        """What the user is told about a line of chatter; None: nothing."""
        plain = _COLOURS.sub("", line).strip()
        _, mark, ours = plain.partition(MARK)
        if mark:
            notice = ours
        else:
            found = [text for form, text in ACTIONABLE.items() if re.search(form, plain)]
            if not found:
                return None
            notice = found[0] or f"Ray: {_SENDER.sub('', plain)}"
        kind = _NUMBERS.sub("", notice)
        if kind in self._seen:
            return None
        self._seen.add(kind)
        return notice


def mark_warnings() -> None:
    """In a Ray worker: our warnings come out marked, so that the driver's terminal shows them."""
    logger = logging.getLogger("a2d_ray")
    if not any(isinstance(handler, _MarkedHandler) for handler in logger.handlers):
        logger.addHandler(_MarkedHandler())
        logger.propagate = False


class _MarkedHandler(logging.StreamHandler):
    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.setLevel(logging.WARNING)
        self.setFormatter(logging.Formatter(f"{MARK}%(message)s"))
