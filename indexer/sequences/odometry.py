"""Odometry: the motion between frames, from a CSV, or from the frames' times and a speed."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from indexer.errors import UsageError
from indexer.filters import Moment, read_moment
from indexer.photos.exif import from_exif
from indexer.sequences.motion import Step
from model.errors import ImageError
from model.images import open_photo

CLOCK_S = 1.0
"""EXIF times are in whole seconds: two may be this much further apart."""


def read_odometry(path: Path, frames: Sequence[Path]) -> list[Step | None]:
    """Read the step to each of `frames`, None if the file has none; the first one is not used.

    The CSV has the column `frame` (path, file name or number from 0), and either `metres`, the distance from
    the previous frame, with an optional `heading` in degrees clockwise from north; or `dx` and `dy`, metres
    east and north. Cells except `frame` may be empty; other columns are ignored.

    Raises:
        UsageError: the file cannot be read, lacks a column, or has an impossible value or frame.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = [name.strip() for name in reader.fieldnames or ()]
    except OSError as error:
        raise UsageError(f"cannot read the odometry file {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"the odometry file {path} is no CSV in UTF-8: {error}") from error
    if "frame" not in columns or not ("metres" in columns or {"dx", "dy"} <= set(columns)):
        raise UsageError(
            f"the odometry file {path} needs the columns frame and metres, or frame, dx and dy; "
            f"it has {', '.join(columns) or 'none'}"
        )
    numbers = _numbers(frames)
    steps: list[Step | None] = [None] * len(frames)
    for line, cells in enumerate(rows, 2):
        row = _Row(f"{path}, line {line}", {k.strip(): v for k, v in cells.items() if isinstance(k, str)})
        steps[row.frame(numbers)] = row.step()
    return steps


def _numbers(frames: Sequence[Path]) -> dict[str, list[int]]:
    """Return the frames by each way to name them."""
    names: dict[str, list[int]] = {}
    for number, frame in enumerate(frames):
        for name in {str(frame), frame.name}:
            names.setdefault(name, []).append(number)
    for number in range(len(frames)):
        names.setdefault(str(number), [number])
    return names


class _Row:
    """One line of the CSV, whose errors name it."""

    def __init__(self, at: str, cells: Mapping[str, str | None]) -> None:
        self._at, self._cells = at, cells

    def frame(self, numbers: Mapping[str, Sequence[int]]) -> int:
        name = self._text("frame")
        found = numbers.get(name, ())
        if len(found) != 1:
            raise UsageError(f"{self._at}: the frame {name!r} names {len(found) or 'none'} of those given")
        return found[0]

    def step(self) -> Step | None:
        metres, heading = self._number("metres"), self._number("heading")
        dx, dy = self._number("dx"), self._number("dy")
        if dx is not None and dy is not None:
            return Step(offset_m=(dx, dy))
        if (dx is None) != (dy is None):
            raise UsageError(f"{self._at}: dx and dy go together, and one is empty")
        if metres is None:
            return None
        if metres < 0 and heading is None:
            raise UsageError(f"{self._at}: metres must not be less than 0: {metres:g}")
        if heading is None:
            return Step(metres=metres)
        angle = math.radians(heading)
        return Step(offset_m=(metres * math.sin(angle), metres * math.cos(angle)))

    def _number(self, column: str) -> float | None:
        text = self._text(column)
        if not text:
            return None
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"{self._at}: {column} is not a number: {text!r}")
        return number

    def _text(self, column: str) -> str:
        return (self._cells.get(column) or "").strip()


def steps_by_time(frames: Sequence[Path], max_speed: float) -> list[Step | None]:
    """Return the steps of a camera of at most `max_speed` metres a second, by the times in EXIF.

    Raises:
        UsageError: the speed is not positive, or no two consecutive frames have a time.
    """
    if not (math.isfinite(max_speed) and max_speed > 0):
        raise UsageError(f"the speed must be more than 0 metres a second, not {max_speed:g}")
    times = [_time(frame) for frame in frames]
    steps = [None, *(_step(*pair, max_speed) for pair in pairwise(times))]
    if len(frames) > 1 and not any(steps):
        raise UsageError("a speed needs times, and no two consecutive frames have one in their EXIF")
    return steps[: len(frames)]


def _step(before: Moment | None, now: Moment | None, max_speed: float) -> Step | None:
    if before is None or now is None:
        return None
    same = before.has_offset == now.has_offset
    seconds = now.seconds - before.seconds if same else now.clock - before.clock
    return Step(metres=max_speed * (abs(seconds) + CLOCK_S))


def _time(frame: Path) -> Moment | None:
    try:
        with open_photo(frame) as image:
            taken_at = from_exif(image).taken_at
    except ImageError:  # the query will report it
        return None
    moment = read_moment(taken_at) if taken_at else None
    return moment if moment is not None and not moment.lasts else None
