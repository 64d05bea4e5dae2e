"""Terminal output: results to stdout, notes and errors to stderr, safe for any file name."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

_UNLIMITED = 10_000
"""Columns if stdout is not a terminal, so that no line or path is cut."""


def stdout() -> Console:
    """Return the console for results."""
    return _console(stderr=False)


def stderr() -> Console:
    """Return the console for progress, notes and errors."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    # Not kept: it would hold on to the stream and its width. No markup or emoji: paths may contain both.
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _UNLIMITED
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)


def say(text: str) -> None:
    """Print one line of a result."""
    stdout().print(printable(text))


def note(text: str) -> None:
    """Print one line to stderr: a hint, a warning or an error."""
    stderr().print(printable(text))


def say_json(value: Any) -> None:
    """Print the result as JSON, in ASCII so that any terminal or pipe can carry it."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def printable(text: object) -> str:
    """Return the text with control characters and broken UTF-8 escaped: file names may hold anything."""
    return "".join(
        char
        if char.isprintable() or char == "\n"
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in str(text)
    )


def table(columns: Sequence[tuple[str, str]], rows: Iterable[Sequence[object]]) -> None:
    """Print a table of columns (heading, kind); a column without any value is left out.

    Kinds: "right" for numbers, "left" for text that stays on one line, "long" for text that is folded if the
    terminal is narrow.
    """
    cells = [["" if value is None else printable(value) for value in row] for row in rows]
    kept = [i for i in range(len(columns)) if any(row[i] for row in cells)]
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for i in kept:
        heading, kind = columns[i]
        justify: JustifyMethod = "right" if kind == "right" else "left"
        grid.add_column(heading, justify=justify, overflow="fold", no_wrap=kind != "long")
    for row in cells:
        grid.add_row(*(Text(row[i]) for i in kept))
    stdout().print(grid, soft_wrap=False)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """Print each name and value on a line, values aligned; pairs with the value None are left out."""
    kept = [(name, printable(value)) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in kept), default=0)
    for name, value in kept:
        say(f"{name:<{width}}  {value}")


def count(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun: `1 photo`, `1,204 photos`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """Return a time as text: `0.8 s`, `24 s`, `3 min 20 s`, `43 min`, `2 h 5 min`, `12 days`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 72:
        return f"{round(hours / 24):,} days"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes >= 10:
        return f"{minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def distance(metres: float) -> str:
    """Return a distance as text: `8.4 m`, `120 m`, `3.2 km`."""
    if metres < 10:
        return f"{metres:.1f} m"
    return f"{metres:.0f} m" if metres < 1000 else f"{metres / 1000:.1f} km"


def size(octets: int) -> str:
    """Return a size in bytes as text: `512 kB`, `29.8 MB`, `1.2 GB`, `3.6 TB`."""
    if octets >= 1e12:
        return f"{octets / 1e12:.1f} TB"
    if octets >= 1e9:
        return f"{octets / 1e9:.1f} GB"
    return f"{octets / 1e6:.1f} MB" if octets >= 1e6 else f"{octets / 1e3:.0f} kB"


def latlon(lat: float | None, lon: float | None, digits: int = 6) -> str | None:
    """Return a position to paste into any map: `52.203400,0.114000` (degrees; six digits are 0.1 m)."""
    return None if lat is None or lon is None else f"{lat:.{digits}f},{lon:.{digits}f}"
