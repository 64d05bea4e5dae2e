"""Metadata in a CSV: a header, and one line for each photo."""

import csv
import difflib
import io
import math
from collections.abc import Iterator, Mapping, Sequence

from indexer.errors import UsageError
from indexer.photos.metadata import PhotoMetadata, heading_or_none, in_range, position_or_none, time_or_none

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "path": ("path", "file"),
    "lat": ("lat", "latitude"),
    "lon": ("lon", "lng", "longitude"),
    "heading": ("heading", "img_direction_deg"),
    "taken_at": ("taken_at", "datetime"),
    "place": ("place",),
}
"""Accepted names of each column, the preferred one first; case does not matter."""

NEEDED = ("path", "lat", "lon")
"""Required columns; a table of places needs no position."""


def parse_csv(text: str, source: str) -> Iterator[tuple[str, PhotoMetadata]]:
    """Yield (path, metadata) for each line of a CSV with comma, semicolon or tab.

    Cells may be empty; lat and lon both or neither. Other columns are ignored. Raises UsageError with
    `source`, line and column if a required column is missing (lat and lon, unless there is place), or a value
    is invalid.
    """
    delimiter = _delimiter(text)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = _find_columns(next(rows, []), source)
        for cells in rows:
            if any(cell.strip() for cell in cells):
                yield _Line(source, rows.line_num, columns, cells, delimiter != ",").read()
    except csv.Error as error:
        raise UsageError(f"{source}, line {rows.line_num}: {error}") from error


def _delimiter(text: str) -> str:
    header = text.lstrip().split("\n", 1)[0]
    return max(",;\t", key=header.count)


def _find_columns(header: Sequence[str], source: str) -> dict[str, tuple[int, str]]:
    names = [name.strip().lower() for name in header]
    found: dict[str, tuple[int, str]] = {}
    for column, spellings in COLUMNS.items():
        spelling = next((s for s in spellings if s in names), None)
        if spelling is not None:
            found[column] = (names.index(spelling), header[names.index(spelling)].strip())
    places_only = "place" in found and found.keys().isdisjoint(("lat", "lon"))
    for column in ("path",) if places_only else NEEDED:
        if column not in found:
            raise UsageError(f"{source}, line 1: {_missing(column, names)}")
    return found


def _missing(column: str, names: Sequence[str]) -> str:
    expected = " or ".join(f"`{name}`" for name in COLUMNS[column])
    close = [hit for name in COLUMNS[column] for hit in difflib.get_close_matches(name, names, n=1)]
    there = (
        f"did you mean `{close[0]}`?"
        if close
        else f"there are {', '.join(f'`{n}`' for n in names if n) or 'none'}"
    )
    return f"no column {expected}; {there}"


class _Line:
    """One line of the CSV, whose errors name it."""

    def __init__(
        self,
        source: str,
        number: int,
        columns: Mapping[str, tuple[int, str]],
        cells: Sequence[str],
        decimal_comma: bool,
    ) -> None:
        self._at = f"{source}, line {number}"
        self._columns = columns
        self._cells = cells
        self._decimal_comma = decimal_comma

    def read(self) -> tuple[str, PhotoMetadata]:
        path = self._text("path")
        if not path:
            raise self._error("path", "is empty")
        lat, lon = self._position()
        heading, taken_at = self._number("heading"), self._text("taken_at")
        moment = time_or_none(taken_at)
        if taken_at and moment is None:
            raise self._error("taken_at", "is no time such as 2024-09-23T16:06:58 or 2024:09:23 16:06:58")
        return path, PhotoMetadata(
            lat=lat,
            lon=lon,
            heading=None if heading is None else heading_or_none(heading),
            taken_at=moment,
            place=self._text("place") or None,
        )

    def _position(self) -> tuple[float | None, float | None]:
        lat, lon = self._number("lat"), self._number("lon")
        if lat is None and lon is None:
            return None, None
        if lat is None or lon is None:
            raise self._error("lat" if lat is None else "lon", "is empty, though the other half is given")
        if not in_range(lat, 0):
            raise self._error("lat", "is outside -90 to 90")
        if not in_range(0, lon):
            raise self._error("lon", "is outside -180 to 180")
        return position_or_none(lat, lon) or (None, None)

    def _number(self, column: str) -> float | None:
        text = self._text(column)
        if not text:
            return None
        try:
            number = float(text.replace(",", ".") if self._decimal_comma else text)
        except ValueError:
            raise self._error(column, "is not a number") from None
        if not math.isfinite(number):
            raise self._error(column, "is not a number")
        return number

    def _text(self, column: str) -> str:
        index, _ = self._columns.get(column, (len(self._cells), ""))
        return self._cells[index].strip() if index < len(self._cells) else ""

    def _error(self, column: str, what: str) -> UsageError:
        value = self._text(column)
        return UsageError(
            f"{self._at}: column `{self._columns[column][1]}` {what}" + (f": {value!r}" if value else "")
        )
