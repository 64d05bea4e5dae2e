"""SQLite file of the catalogue: connections, transactions and errors."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from indexer.errors import DiskFull, FormatTooNew, IndexBusy, IndexerError, IndexMissing
from indexer.storage.schema import MIGRATIONS, migrate, version_of

FILE = "catalogue.sqlite"
MOST_VALUES = 10_000  # in one statement; SQLite allows 32,766

_KINDS = {sqlite3.SQLITE_FULL: DiskFull, sqlite3.SQLITE_BUSY: IndexBusy}


class Database:
    """SQLite file of an index. Any number of threads and processes may read while one writes.

    Args:
        folder: the index.
        create: open for writing, and create or migrate the file if needed.

    Raises:
        IndexMissing: there is no file, and `create` is False.
        FormatTooNew: a newer version wrote the file.
    """

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        self.path = folder / FILE
        self._local = threading.local()
        if not create and not self.path.is_file():
            raise IndexMissing(f"no index in {folder}: make one with 'loci index'")
        self._writable = create
        with self._explained("read"):
            version = version_of(self._db)
        if version > max(MIGRATIONS):
            self.close()
            raise FormatTooNew(
                f"the catalogue of {folder} has format {version}: a newer loci reads it, this one up to "
                f"{max(MIGRATIONS)}"
            )
        if create:
            with self._explained("written"):
                migrate(self._db)

    @property
    def _db(self) -> sqlite3.Connection:
        """Connection of this thread."""
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = self._connect()
        return db

    def _connect(self) -> sqlite3.Connection:
        try:
            if not self._writable:
                return _connect_to_read(self.path)
            db = sqlite3.connect(self.path, timeout=30)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA foreign_keys = ON")
            return db
        except sqlite3.Error as error:
            raise IndexerError(f"the catalogue {self.path} cannot be opened: {error}") from error

    @contextmanager
    def _explained(self, done: str) -> Iterator[None]:
        """Turn SQLite's errors into ours, with one sentence."""
        try:
            yield
        except sqlite3.Error as error:
            kind = _KINDS.get(getattr(error, "sqlite_errorcode", 0), IndexerError)
            raise kind(f"the catalogue {self.path} cannot be {done}: {error}") from error

    def _rows_among(self, query: str, among: Sequence[int], *before: Any) -> list[Any]:
        """Return the rows of a query that ends in `IN ({})`, by several statements for many values."""
        rows: list[Any] = []
        for start in range(0, len(among), MOST_VALUES):
            part = among[start : start + MOST_VALUES]
            rows += self._rows(query.format(", ".join("?" * len(part))), (*before, *part))
        return rows

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return all rows of a query. A damaged catalogue gives an error and no partial result."""
        with self._explained("read"):
            return self._db.execute(query, values).fetchall()

    def close(self) -> None:
        """Close this thread's connection."""
        db = getattr(self._local, "db", None)
        if db is not None:
            db.close()
            self._local.db = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run statements atomically; they are on disk at the end. Other writers wait meanwhile."""
        with self._explained("written"), self._db as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    def integrity(self) -> str:
        """Run SQLite's check of every page and return "ok" or the problems."""
        try:
            return str(self._db.execute("PRAGMA integrity_check").fetchone()[0])
        except sqlite3.Error as error:
            return str(error)


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a catalogue read-only, as immutable if the folder cannot be written.

    SQLite needs to write shared memory beside the file, except for an immutable file.

    Raises:
        sqlite3.Error: it is no catalogue, or the folder cannot be written and the last changes are still in a
            write-ahead log, which an immutable file would lack.
    """
    uri = path.resolve().as_uri()
    db = sqlite3.connect(f"{uri}?mode=ro", uri=True, timeout=30)
    try:
        db.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError:
        db.close()
        log = path.with_name(f"{path.name}-wal")
        if log.exists() and log.stat().st_size:
            raise
        db = sqlite3.connect(f"{uri}?immutable=1", uri=True)
        db.execute("SELECT count(*) FROM sqlite_master")
    return db
