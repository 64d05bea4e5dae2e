"""The catalogue's SQLite file: connections, transactions, and what goes wrong with them in one sentence."""

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
ASKED_AT_ONCE = 10_000  # values a statement; SQLite allows 32,766

_KINDS = {sqlite3.SQLITE_FULL: DiskFull, sqlite3.SQLITE_BUSY: IndexBusy}


class Database:
    """An index's SQLite file. Any number of threads and processes read while one writes.

    Raises:
        IndexMissing: there is none, and it was not to be made.
        FormatTooNew: a newer version wrote it.
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
        """This thread's connection."""
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
        try:
            yield
        except sqlite3.Error as error:
            kind = _KINDS.get(getattr(error, "sqlite_errorcode", 0), IndexerError)
            raise kind(f"the catalogue {self.path} cannot be {done}: {error}") from error

    def _rows_among(self, query: str, among: Sequence[int], *before: Any) -> list[Any]:
        """The rows of a query that ends in `IN ({})`, asked in parts where there are very many values."""
        found: list[Any] = []
        for start in range(0, len(among), ASKED_AT_ONCE):
            part = among[start : start + ASKED_AT_ONCE]
            found += self._rows(query.format(", ".join("?" * len(part))), (*before, *part))
        return found

    def _rows(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of a query; none of a damaged catalogue is worth half an answer."""
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
        """All of it or nothing; on disk when it returns. What is read in it, no other writer changes."""
        with self._explained("written"), self._db as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    def integrity(self) -> str:
        """SQLite's own check of every page: "ok" or what is wrong."""
        try:
            return str(self._db.execute("PRAGMA integrity_check").fetchone()[0])
        except sqlite3.Error as error:
            return str(error)


def _connect_to_read(path: Path) -> sqlite3.Connection:
    """Read-only; where SQLite cannot even keep its shared memory, as a file that never changes.

    Raises:
        sqlite3.Error: no catalogue, or one whose last changes still wait in a log beside it: read as a file
            that never changes, it would lack them.
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
