"""A command in a terminal as an SVG that moves: python -m benchmarks.recording OUT.svg COMMAND ...

Needs pyte (``pip install "a2d-ray[pictures]"``). It writes OUT.svg and OUT-dark.svg. OUT.txt gets
the whole text that stands there at the end instead: the transcript of a command.

What the terminal shows is recorded with its times, and moves ``--slower`` times as slow. Waits are
cut to two seconds, so the picture says nothing about speed. Each line of ``--type FILE`` is typed
when the command waits for a line.
"""

import argparse
import html
import os
import pty
import select
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from itertools import pairwise
from pathlib import Path
from termios import TIOCSWINSZ

COLUMNS = 100
LINES = 24
LONGEST_TRANSCRIPT = 2000  # lines
FONT_PX = 14
CELL_PX = (8.43, 19)  # of a monospace font of that size
LONGEST_WAIT_S = 2.0
FRAME_S = 0.08  # changes that follow each other faster are one frame
LAST_S = 6.0  # the last frame stays
WHERE = "\x1b[6n"  # a program asks for the place of the cursor: it waits for a line


@dataclass(frozen=True)
class Theme:
    """Colours of a picture: its background, text, and the terminal's names."""

    back: str
    text: str
    names: dict[str, str]


THEMES = {
    "": Theme(
        "#ffffff",
        "#1f2328",
        {"red": "#cf222e", "green": "#1a7f37", "brown": "#9a6700", "blue": "#0969da",
         "magenta": "#8250df", "cyan": "#1b7c83"},
    ),
    "-dark": Theme(
        "#0d1117",
        "#e6edf3",
        {"red": "#ff7b72", "green": "#3fb950", "brown": "#d29922", "blue": "#58a6ff",
         "magenta": "#bc8cff", "cyan": "#39c5cf"},
    ),
}  # fmt: skip


def record(command: Sequence[str], typed: Sequence[str]) -> Iterator[tuple[float, str]]:
    """Runs a command in a terminal; yields what it shows with the seconds since it began."""
    import pyte

    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.Stream(screen)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", COLUMNS=str(COLUMNS))
        os.execvp(command[0], list(command))
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    began = time.monotonic()
    to_type = list(typed)
    is_waiting = False
    while True:
        if not select.select([terminal], [], [], 0.1)[0]:
            if to_type and is_waiting:
                os.write(terminal, f"{to_type.pop(0)}\r".encode())
                is_waiting = False
            continue
        try:
            shown = os.read(terminal, 65536).decode(errors="replace")
        except OSError:  # the command ended
            break
        stream.feed(shown)
        if WHERE in shown:
            is_waiting = True
            os.write(terminal, f"\x1b[{screen.cursor.y + 1};{screen.cursor.x + 1}R".encode())
        yield time.monotonic() - began, shown
    os.waitpid(pid, 0)


def frames(shown: Iterator[tuple[float, str]]) -> list[tuple[float, list[list[object]]]]:
    """Screens and how long each stays, in seconds."""
    import pyte

    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.Stream(screen)
    found: list[tuple[float, list[list[object]]]] = []
    for at, text in shown:
        stream.feed(text)
        cells = [[screen.buffer[y][x] for x in range(COLUMNS)] for y in range(LINES)]
        if found and at - found[-1][0] < FRAME_S:
            found[-1] = (found[-1][0], cells)
        elif not found or cells != found[-1][1]:
            found.append((at, cells))
    times = [at for at, _ in found]
    stays = [min(b - a, LONGEST_WAIT_S) for a, b in pairwise(times)]
    return [(stay, cells) for stay, (_, cells) in zip([*stays, LAST_S], found, strict=True)]


def transcript(shown: Iterator[tuple[float, str]]) -> str:
    """All lines that stand there at the end; paths below this directory are relative."""
    import pyte

    screen = pyte.Screen(COLUMNS, LONGEST_TRANSCRIPT)
    stream = pyte.Stream(screen)
    for _, text in shown:
        stream.feed(text)
    text = "\n".join(line.rstrip() for line in screen.display).rstrip() + "\n"
    return text.replace(f"{Path.cwd()}/", "")


def svg(screens: list[tuple[float, list[list[object]]]], theme: Theme, title: str) -> str:
    """The animation: a group per screen, shown in its turn."""
    total = sum(stay for stay, _ in screens)
    width = COLUMNS * CELL_PX[0] + 24
    height = (1 + max(map(_last_line, screens))) * CELL_PX[1] + 24
    rules = []
    groups = []
    since = 0.0
    for number, (stay, cells) in enumerate(screens):
        begin, end = 100 * since / total, 100 * (since + stay) / total
        since += stay
        hidden = f"0%,{max(begin - 0.001, 0):.3f}%{{visibility:hidden}}" if number else ""
        last = "" if number == len(screens) - 1 else f"{end:.3f}%,100%{{visibility:hidden}}"
        show = f"{begin:.3f}%,{max(end - 0.001, begin):.3f}%{{visibility:visible}}"
        rules.append(f"@keyframes f{number}{{{hidden}{show}{last}}}")
        rules.append(f"#g{number}{{animation:f{number} {total:.2f}s step-end infinite}}")
        lines = "".join(_line(y, row, theme) for y, row in enumerate(cells))
        groups.append(f'<g id="g{number}" visibility="hidden">{lines}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" role="img"><title>{html.escape(title)}</title><style>'
        f"text{{font:{FONT_PX}px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;"
        f"white-space:pre;fill:{theme.text}}}{''.join(rules)}</style>"
        f'<rect width="100%" height="100%" rx="8" fill="{theme.back}" stroke="#8886"/>'
        f"{''.join(groups)}</svg>\n"
    )


def _last_line(screen: tuple[float, list[list[object]]]) -> int:
    """The last line that says something."""
    _, cells = screen
    said = [y for y, row in enumerate(cells) if any(c.data != " " for c in row)]  # type: ignore[attr-defined]
    return max(said, default=0)


def _line(y: int, row: list[object], theme: Theme) -> str:
    """A line of the screen: a ``tspan`` per stretch of one style."""
    spans = []
    stretch = ""
    style = None
    for cell in row:
        found = _style(cell, theme)
        if found != style and stretch:
            spans.append(f"<tspan{style}>{html.escape(stretch)}</tspan>")
            stretch = ""
        style = found
        stretch += cell.data  # type: ignore[attr-defined]
    if stretch.strip():
        spans.append(f"<tspan{style}>{html.escape(stretch.rstrip())}</tspan>")
    text = "".join(spans)
    if not text.replace("<tspan>", "").replace("</tspan>", "").strip():
        return ""
    top = 12 + (y + 0.75) * CELL_PX[1]
    return f'<text x="12" y="{top:.1f}" xml:space="preserve">{text}</text>'


def _style(cell: object, theme: Theme) -> str:
    """Attributes of a cell's stretch."""
    colour = cell.fg  # type: ignore[attr-defined]
    parts = []
    if colour != "default":
        parts.append(f'fill="{theme.names.get(colour, f"#{colour}" if len(colour) == 6 else "")}"')
    if cell.bold:  # type: ignore[attr-defined]
        parts.append('font-weight="bold"')
    if cell.italics:  # type: ignore[attr-defined]
        parts.append('font-style="italic"')
    if cell.strikethrough:  # type: ignore[attr-defined]
        parts.append('text-decoration="line-through"')
    return "".join(f" {part}" for part in parts)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--type", type=Path, help="file of lines to type")
    parser.add_argument("--slower", type=float, default=1.0, help="how many times as slow")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    shown = record(args.command, args.type.read_text().splitlines() if args.type else [])
    if args.output.suffix == ".txt":
        args.output.write_text(transcript(shown))
        return
    screens = frames((at * args.slower, text) for at, text in shown)
    for suffix, theme in THEMES.items():
        path = args.output.with_name(f"{args.output.stem}{suffix}{args.output.suffix}")
        path.write_text(svg(screens, theme, " ".join(args.command)))
        sys.stdout.write(f"{path}: {len(screens)} frames, {path.stat().st_size:,} bytes\n")


if __name__ == "__main__":
    main()
