"""Which lines of a job are ours: all that a terminal may show."""

import re

_PROGRESS = (
    r"[\w-]+: [\d,]+( of [\d,]+)? \w+s(, [\w/]+ [\d.]+)*, [\d:]+ so far(, [\d:]+ left)?"  # a pipe's
    r"|[\w-]+: +\d+%\|.*\| \d+/\d+ \[[\d:]+<.*"  # a terminal's, cut at its width
    r"|[\w-]+: \d+\w+ \[[\d:]+, .*"
)
OURS = [
    r"starting Ray|joining Ray at \S+",
    r"packing into \S+|packed in [\d.]+ s|packed set \S+ is reused|the new set .*",
    r"[\w-]+: \d+ steps of \d+ rows; workers: \d+",
    _PROGRESS,
    r"\d+ steps(, (held-out NELBO|accepted draft length) [\d.]+)*",
    r"checkpoint: \S+",
    r"saving and stopping after this step; Ctrl-C again ends at once",
    r"stopped at step \d+ of \d+; (no checkpoint|checkpoint: \S+)",
    r"go on with the same command and run\.resume=true",
    r"interrupted(; to go on: the same command( with [\w.]+=true)?)?",
    r"serving \w+ at http://\S+|chat: http://\S+|try: curl .*|Ctrl-C stops it|stopping",
    r"log: \S+",
    r"",
]
_OURS = re.compile("|".join(f"(?:{line})" for line in OURS))
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\^C")


def not_ours(text: str) -> list[str]:
    """Lines of a job's output that no pattern of ours fits; terminal control aside."""
    lines = re.split(r"[\r\n]+", _CONTROL.sub("", text))
    return [line for line in lines if not _OURS.fullmatch(line.strip())]
