"""A CSV of estimated positions, a line a photo, that `loci index --metadata` reads."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

from indexer.errors import IndexerError, UsageError
from indexer.files import replace_text

COLUMNS = ("path", "lat", "lon", "radius_m", "confidence", "heading", "place", "photo")


class PositionsCsv:
    """A file that positions are added to; what an earlier run wrote in it stays.

    A line is written at once, so that a run that is stopped leaves whole lines, or one that is cut off,
    which the next run takes away.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            UsageError: it is there and no such table, or cannot be read.
        """
        self.path = path
        self._rows, self._cut_off = _read(path)
        self._listed = {row[0] for row in self._rows}
        self._file: io.FileIO | None = None

    def has(self, path: str) -> bool:
        """Whether an earlier run wrote a position of this photo."""
        return path in self._listed

    def begin(self, *, anew: bool) -> None:
        """Open it for adding; `anew` drops what is there. Raises IndexerError where it cannot be written."""
        rows = [] if anew else self._rows
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if anew or self._cut_off or not self.path.exists():
                replace_text(self.path, _lines([COLUMNS, *rows]))
            self._file = io.FileIO(self.path, "a")
        except OSError as error:
            raise IndexerError(f"cannot write {self.path}: {error.strerror}") from error

    def add(self, row: Sequence[object]) -> None:
        """Add a photo's line, None as an empty cell. Raises IndexerError where the disk has no room."""
        if self._file is None:
            raise ValueError("begin() comes first")
        line = _lines([row]).encode()
        try:
            if self._file.write(line) != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise IndexerError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def _read(path: Path) -> tuple[list[list[str]], bool]:
    """The rows of a file without its header, and whether its last line was cut off."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file to add positions to")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return [], False
    except UnicodeDecodeError:
        raise UsageError(f"{path} is there, and no table of positions: name another file") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if not text:
        return [], True
    try:
        header, *rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if tuple(header) != COLUMNS:
        raise UsageError(
            f"{path} is there with other columns than {','.join(COLUMNS)}: name another file to write to"
        )
    rows = [row for row in rows if row]
    cut_off = not text.endswith(("\n", "\r"))
    if rows and (cut_off or len(rows[-1]) < len(COLUMNS)):
        rows, cut_off = rows[:-1], True
    for number, row in enumerate(rows, 2):
        if len(row) != len(COLUMNS):
            raise UsageError(f"{path}: row {number} has {len(row)} cells, not {len(COLUMNS)}")
    return rows, cut_off


def _lines(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
