"""Progress of a long run: a bar with speed and time left on a terminal, a line every half minute in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from loci.console import duration, note, printable, stderr
from loci.flags import with_flags

LINE_EVERY_S = 30.0
"""Seconds between two lines of a stage in a log."""


@contextlib.contextmanager
def showing_progress() -> Iterator["Bars | Lines"]:
    """Return an `indexer.progress.Progress` that writes to stderr: bars on a terminal, otherwise lines."""
    console = stderr()
    if not console.is_terminal or console.is_dumb_terminal:
        yield Lines()
        return
    bars = Bars(console)
    with bars.shown:
        yield bars
        bars.finish()


class Bars:
    """A bar for each stage. Finished stages stay on the screen, with their duration."""

    def __init__(self, console: Console) -> None:
        self.shown = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            _Count(),
            _Pace(),
            console=console,
        )
        self._console = console
        self._task: TaskID | None = None

    def stage(self, name: str, total: int | None, unit: str = "photos") -> None:
        """Finish the current stage and begin another; `total` is its number of photos, or None."""
        self.finish()
        if total != 0:
            self._task = self.shown.add_task(printable(name), total=total, unit=unit)

    def advance(self, n: int = 1) -> None:
        """Count `n` more photos of this stage as done."""
        if self._task is not None:
            self.shown.advance(self._task, n)

    def note(self, text: str) -> None:
        """Print a note above the bars."""
        self._console.print(printable(with_flags(text)))

    def finish(self) -> None:
        """End the current stage."""
        if self._task is not None:
            done = self.shown.tasks[-1].completed
            self.shown.update(self._task, total=done, completed=done)
            self._task = None


class _Count(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(_done_of(int(task.completed), None if task.total is None else int(task.total)))


class _Pace(ProgressColumn):
    """Photos per second and time left; for a finished stage its duration."""

    def render(self, task: Task) -> Text:
        speed = (task.finished_speed or task.speed) if task.completed else None
        left = None if task.finished else task.time_remaining
        parts = [
            pace(speed, task.fields["unit"]) if speed else "",
            f"{duration(left)} left" if left is not None else "",
            duration(task.finished_time or 0.0) if task.finished else "",
        ]
        return Text(", ".join(part for part in parts if part))


class Lines:
    """A line at the start of each stage and one every half minute, for logs."""

    def __init__(
        self, write: Callable[[str], None] = note, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._write = write
        self._clock = clock
        self._name, self._unit = "", ""
        self._total: int | None = None
        self._done = 0
        self._began = self._told = clock()

    def stage(self, name: str, total: int | None, unit: str = "photos") -> None:
        """Begin another stage; `total` is its number of photos, or None."""
        self._name, self._unit, self._total, self._done = name, unit, total, 0
        self._began = self._told = self._clock()
        if total != 0:
            self._write(f"{name}: {total:,}" if total else name)

    def advance(self, n: int = 1) -> None:
        """Count `n` more photos of this stage as done."""
        self._done += n
        now = self._clock()
        if now - self._told >= LINE_EVERY_S and self._done:
            self._told = now
            self._write(f"{self._name}: {self._so_far(now - self._began)}")

    def note(self, text: str) -> None:
        """Print a note."""
        self._write(with_flags(text))

    def _so_far(self, seconds: float) -> str:
        speed = self._done / seconds
        text = f"{_done_of(self._done, self._total)}, {pace(speed, self._unit)}"
        return text if self._total is None else f"{text}, {duration((self._total - self._done) / speed)} left"


def pace(per_second: float, unit: str = "photos") -> str:
    """Return a speed as text: `0.4 photos/s`, `210 photos/s`."""
    digits = 1 if per_second < 100 else 0
    return f"{per_second:,.{digits}f} {unit}/s"


def _done_of(done: int, total: int | None) -> str:
    if not total:
        return f"{done:,}" if done else ""
    return f"{done:,}/{total:,}"
