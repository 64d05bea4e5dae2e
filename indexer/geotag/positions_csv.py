"""A CSV of estimated positions, one line for each photo, which `loci index` reads as metadata."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Sequence
from pathlib import Path

from indexer.errors import IndexerError, UsageError
from indexer.storage.files import replace_text

COLUMNS = ("path", "lat", "lon", "radius_m", "confidence", "heading", "place", "photo")


class PositionsCsv:
    """A file that positions are added to; existing lines stay.

    A line is written at once. A stopped run leaves whole lines, or one that is cut off, which the next run
    removes.
    """

    def __init__(self, path: Path, *, anew: bool = False) -> None:
        """Read existing lines; with `anew`, they are dropped before the first new one.

        Raises:
            UsageError: the file is not such a table, or cannot be read.
        """
        self.path = path
        self._rows, self._sound = _read(path)
        if anew:
            self._rows, self._sound = [], False
        self._listed = {row[0] for row in self._rows}
        self._file: io.FileIO | None = None

    def has(self, path: str) -> bool:
        """Whether an earlier run wrote a position of this photo."""
        return path in self._listed

    def check_writable(self) -> None:
        """Check that the file can be written, before any work. Raises IndexerError."""
        place = (
            self.path if self.path.exists() else next(p for p in self.path.absolute().parents if p.exists())
        )
        if not os.access(place, os.W_OK):
            raise IndexerError(f"cannot write {self.path}: {place} is read-only")

    def begin(self) -> None:
        """Open the file for adding. Raises IndexerError if it cannot be written."""
        if self._file is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._sound:
                replace_text(self.path, _lines([COLUMNS, *self._rows]))
            self._file = io.FileIO(self.path, "a")
        except OSError as error:
            raise IndexerError(f"cannot write {self.path}: {error.strerror}") from error

    def add(self, row: Sequence[object]) -> None:
        """Add a photo's line, with None as an empty cell. Raises IndexerError if it cannot be written."""
        self.begin()
        line = _lines([row]).encode()
        try:
            if self._file is None or self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise IndexerError(f"cannot write {self.path}: {error.strerror}") from error

    def close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()


def _read(path: Path) -> tuple[list[list[str]], bool]:
    """Return the rows of a file without its header, and whether lines can be added to it."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return [], False
    except UnicodeDecodeError:
        raise UsageError(f"{path} exists and is not a table of positions: use another file") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if not text:
        return [], False
    try:
        header, *rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if tuple(header) != COLUMNS:
        raise UsageError(f"{path} exists with other columns than {','.join(COLUMNS)}: use another file")
    rows = [row for row in rows if row]
    sound = text.endswith(("\n", "\r"))
    if rows and (not sound or len(rows[-1]) < len(COLUMNS)):
        rows, sound = rows[:-1], False  # cut off
    for number, row in enumerate(rows, 2):
        if len(row) != len(COLUMNS):
            raise UsageError(f"{path}: row {number} has {len(row)} cells, not {len(COLUMNS)}")
    return rows, sound


def _lines(rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
