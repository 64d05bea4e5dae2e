"""Queries about files, photos and their changes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

from indexer.answers import Photo
from indexer.errors import NotFound
from indexer.photos.metadata import PhotoMetadata
from indexer.storage.database import Database
from indexer.storage.rows import FileRow, PhotoFacts

FOLDER = "photos"
"""Of an index, where the files of POSTed photos are; catalogued by name, so that the index can be moved."""
ROOT = "posted"
"""What the paths of POSTed photos begin with, as answers show them."""


class PhotoQueries(Database):
    """Queries about files, photos and their changes."""

    # Files and photos

    def files(self) -> dict[tuple[str, str], FileRow]:
        """Every known path, by root and relative path."""
        rows = self._rows("SELECT root, relative, size, mtime_ns, photo FROM files")
        return {(root, relative): FileRow(size, mtime, photo) for root, relative, size, mtime, photo in rows}

    def file_stats(self) -> list[tuple[str, str, int, int]]:
        """Root, relative path, size and time of every known file, in this order."""
        return self._rows("SELECT root, relative, size, mtime_ns FROM files ORDER BY root, relative")

    def statuses(self) -> dict[str, str]:
        """Every photo's status."""
        return dict(self._rows("SELECT id, status FROM photos"))

    def with_status(self, status: str) -> set[str]:
        """The photos of a status."""
        return {photo for (photo,) in self._rows("SELECT id FROM photos WHERE status = ?", (status,))}

    def put_photo(self, db: sqlite3.Connection, facts: PhotoFacts) -> None:
        """Record a photo, or complete what is known of it; a removed photo stays removed."""
        m = facts.metadata
        db.execute(
            """
            INSERT INTO photos(id, sha256, width, height, lat, lon, heading, taken_at, place, status, error)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT(id) DO UPDATE SET
                status = CASE status WHEN 'removed' THEN status ELSE excluded.status END,
                error = excluded.error, width = excluded.width, height = excluded.height,
                lat = ifnull(lat, excluded.lat), lon = ifnull(lon, excluded.lon),
                heading = ifnull(heading, excluded.heading),
                taken_at = ifnull(taken_at, excluded.taken_at), place = ifnull(place, excluded.place)
            """,
            (
                *(facts.id, facts.sha256, facts.width, facts.height),
                *(m.lat, m.lon, m.heading, m.taken_at, m.place),
                *("failed" if facts.error else "ok", facts.error),
            ),
        )

    def put_file(self, db: sqlite3.Connection, root: str, relative: str, row: FileRow) -> None:
        """Record that a path holds a photo."""
        db.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
            (root, relative, row.size, row.mtime_ns, row.photo),
        )

    def set_metadata(self, db: sqlite3.Connection, photo: str, metadata: PhotoMetadata) -> None:
        """Lay what a metadata table says over what is known."""
        db.execute(
            "UPDATE photos SET lat = ifnull(?, lat), lon = ifnull(?, lon), heading = ifnull(?, heading), "
            "taken_at = ifnull(?, taken_at), place = ifnull(?, place) WHERE id = ?",
            (metadata.lat, metadata.lon, metadata.heading, metadata.taken_at, metadata.place, photo),
        )

    def renew_photo(self, db: sqlite3.Connection, facts: PhotoFacts) -> None:
        """Record a photo as if it had never been known: what was removed comes back, as it is given now."""
        m = facts.metadata
        self.put_photo(db, facts)
        db.execute(
            "UPDATE photos SET status = 'ok', error = NULL, lat = ?, lon = ?, heading = ?, taken_at = ?, "
            "place = ? WHERE id = ?",
            (m.lat, m.lon, m.heading, m.taken_at, m.place, facts.id),
        )

    def set_status(self, db: sqlite3.Connection, photos: Iterable[str], status: str) -> None:
        """Move photos to a status."""
        db.executemany(
            "UPDATE photos SET status = ?, error = NULL WHERE id = ?", [(status, p) for p in photos]
        )

    def set_failed(self, db: sqlite3.Connection, photo: str, error: str) -> None:
        """Note why a photo cannot be read, unless it was removed while that was tried."""
        db.execute(
            "UPDATE photos SET status = 'failed', error = ? WHERE id = ? AND status = 'ok'", (error, photo)
        )

    def forget_files(self, db: sqlite3.Connection, files: Iterable[tuple[str, str]]) -> None:
        """Drop paths that are gone."""
        db.executemany("DELETE FROM files WHERE root = ? AND relative = ?", files)

    def without_files(self) -> set[str]:
        """Photos that were there and that no path holds any more; POSTed ones are held for good."""
        query = (
            "SELECT id FROM photos WHERE status IN ('ok', 'failed') AND id NOT IN (SELECT photo FROM files) "
            "AND id NOT IN (SELECT photo FROM stored)"
        )
        return {photo for (photo,) in self._rows(query)}

    def failures(self) -> list[tuple[str, str]]:
        """Path and reason of every photo that could not be read."""
        return self._rows(
            "SELECT f.root || '/' || f.relative, p.error FROM photos p JOIN files f ON f.photo = p.id "
            "WHERE p.status = 'failed' UNION "
            "SELECT ? || '/' || s.name, p.error FROM photos p JOIN stored s ON s.photo = p.id "
            "WHERE p.status = 'failed' ORDER BY 1",
            (ROOT,),
        )

    def count(self, status: str = "ok") -> int:
        """How many photos have a status."""
        return int(self._rows("SELECT count(*) FROM photos WHERE status = ?", (status,))[0][0])

    def count_in_files(self) -> int:
        """How many photos of the index lie in files."""
        if not self.stored():  # then all do
            return self.count()
        query = "SELECT count(*) FROM photos WHERE status = 'ok' AND id IN (SELECT photo FROM files)"
        return int(self._rows(query)[0][0])

    def file_of(self, photo: str) -> list[Path]:
        """The paths that hold a photo, the index's own first."""
        rows = self._rows(
            "SELECT root, relative FROM files WHERE photo = ? ORDER BY root, relative", (photo,)
        )
        own = self.stored_file(photo)
        return [*([own] if own else []), *(Path(root) / relative for root, relative in rows)]

    def pending(self, generation: int) -> list[tuple[str, Path]]:
        """Photos to be embedded, by id and one of their paths, in id order."""
        rows = self._rows(
            """
            SELECT id, path FROM (
                SELECT p.id, ifnull(
                    (SELECT ? || '/' || file FROM stored WHERE photo = p.id),
                    (SELECT min(root || '/' || relative) FROM files WHERE photo = p.id)) AS path
                FROM photos p WHERE p.status = 'ok' AND NOT EXISTS (
                    SELECT 1 FROM descriptors d WHERE d.photo = p.id AND d.generation = ?))
            WHERE path IS NOT NULL ORDER BY id
            """,
            (str(self.folder), generation),
        )
        return [(photo, Path(path)) for photo, path in rows]

    def photo(self, photo: str) -> Photo:
        """One photo. Raises NotFound."""
        query = f"SELECT {PHOTO_COLUMNS} FROM photos p WHERE p.id = ? AND p.status = 'ok'"
        rows = self._rows(query, (photo,))
        if not rows:
            raise NotFound(f"no photo {photo!r} in this index")
        return photo_of(rows[0])

    def photos(self) -> list[Photo]:
        """All photos of the index, by path."""
        rows = self._rows(f"SELECT {PHOTO_COLUMNS} FROM photos p WHERE p.status = 'ok'")
        return sorted((photo_of(row) for row in rows), key=lambda photo: photo.path)

    def paths(self) -> list[tuple[str, str, str]]:
        """Root, relative path and photo of every file whose photo is in the index, POSTed ones as shown."""
        return self._rows(
            "SELECT f.root, f.relative, f.photo FROM files f JOIN photos p ON p.id = f.photo "
            "WHERE p.status = 'ok' UNION ALL "
            "SELECT ?, s.name, s.photo FROM stored s JOIN photos p ON p.id = s.photo "
            "WHERE p.status = 'ok' ORDER BY 1, 2",
            (ROOT,),
        )

    # POSTed photos

    @property
    def folder(self) -> Path:
        """Where the files of POSTed photos are."""
        return self.path.parent / FOLDER

    def stored(self) -> dict[str, str]:
        """The file of each POSTed photo, by name in `folder`."""
        return dict(self._rows("SELECT photo, file FROM stored"))

    def stored_file(self, photo: str) -> Path | None:
        """The file of a POSTed photo; None where it came from a folder."""
        rows = self._rows("SELECT file FROM stored WHERE photo = ?", (photo,))
        return self.folder / rows[0][0] if rows else None

    def status_of(self, photo: str) -> str | None:
        """A photo's status; None where it was never known."""
        rows = self._rows("SELECT status FROM photos WHERE id = ?", (photo,))
        return str(rows[0][0]) if rows else None

    def holds_file(self, name: str) -> bool:
        """Whether a photo's file has this name in `folder`."""
        return bool(self._rows("SELECT 1 FROM stored WHERE file = ?", (name,)))

    def put_stored(self, db: sqlite3.Connection, photo: str, file: str, name: str) -> None:
        """Record a POSTed photo's file, and its name, to which its id is added where another bears it."""
        if db.execute("SELECT 1 FROM stored WHERE photo = ?", (photo,)).fetchone():
            return
        path = PurePosixPath(name)
        names = chain([name], (f"{path.stem}-{photo}{'-' * n}{path.suffix}" for n in count()))
        taken = "SELECT 1 FROM stored WHERE name = ?"
        free = next(name for name in names if not db.execute(taken, (name,)).fetchone())
        db.execute("INSERT INTO stored VALUES (?, ?, ?)", (photo, file, free))

    def drop_stored(self, db: sqlite3.Connection, photos: Sequence[str]) -> list[str]:
        """Forget photos' files; the names of those there were."""
        files = [file.name for photo in photos if (file := self.stored_file(photo))]
        db.executemany("DELETE FROM stored WHERE photo = ?", [(photo,) for photo in photos])
        return files

    # Changes

    def last_change(self) -> int:
        """The number of the last change to what a search sees; grows, and is asked before every search."""
        return int(self._rows("SELECT ifnull(max(number), 0) FROM changes")[0][0])

    def changed_after(self, number: int) -> set[str]:
        """The photos that changed after the change of this number."""
        return {photo for (photo,) in self._rows("SELECT photo FROM changes WHERE number > ?", (number,))}


PHOTO_COLUMNS = f"""
    p.id, ifnull((SELECT min(root || char(31) || relative) FROM files WHERE photo = p.id),
        (SELECT '{ROOT}' || char(31) || name FROM stored WHERE photo = p.id)), p.place,
    p.lat, p.lon, p.heading, p.taken_at, p.width, p.height, p.status
"""


def photo_of(row: Sequence[Any]) -> Photo:
    root, _, relative = (row[1] or "").partition("\x1f")
    return Photo(row[0], display_path(root, relative), *row[2:])


def display_path(root: str, relative: str) -> str:
    """A photo's path as answers show it: from the folder that was indexed on."""
    name = _name_of(root)
    return f"{name}/{relative}" if name else relative


@lru_cache(maxsize=1024)
def _name_of(folder: str) -> str:
    return PurePosixPath(folder).name
