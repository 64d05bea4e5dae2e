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
"""Folder of an index for the files of POSTed photos."""
ROOT = "posted"
"""First part of POSTed photos' paths in answers."""


class PhotoQueries(Database):
    """Queries about files, photos and their changes."""

    # Files and photos

    def files(self) -> dict[tuple[str, str], FileRow]:
        """Return all known files by root and relative path."""
        rows = self._rows("SELECT root, relative, size, mtime_ns, photo FROM files")
        return {(root, relative): FileRow(size, mtime, photo) for root, relative, size, mtime, photo in rows}

    def file_stats(self) -> list[tuple[str, str, int, int]]:
        """Return root, relative path, size and time of all known files, sorted."""
        return self._rows("SELECT root, relative, size, mtime_ns FROM files ORDER BY root, relative")

    def statuses(self) -> dict[str, str]:
        """Return the status of every photo."""
        return dict(self._rows("SELECT id, status FROM photos"))

    def with_status(self, status: str) -> set[str]:
        """Return the photos with a status."""
        return {photo for (photo,) in self._rows("SELECT id FROM photos WHERE status = ?", (status,))}

    def put_photo(self, db: sqlite3.Connection, facts: PhotoFacts) -> None:
        """Record a photo, or fill in its missing metadata. A removed photo stays removed."""
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
        """Record that a path contains a photo."""
        db.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
            (root, relative, row.size, row.mtime_ns, row.photo),
        )

    def set_metadata(self, db: sqlite3.Connection, photo: str, metadata: PhotoMetadata) -> None:
        """Overwrite a photo's metadata by the values of a table."""
        db.execute(
            "UPDATE photos SET lat = ifnull(?, lat), lon = ifnull(?, lon), heading = ifnull(?, heading), "
            "taken_at = ifnull(?, taken_at), place = ifnull(?, place) WHERE id = ?",
            (metadata.lat, metadata.lon, metadata.heading, metadata.taken_at, metadata.place, photo),
        )

    def renew_photo(self, db: sqlite3.Connection, facts: PhotoFacts) -> None:
        """Record a photo with new metadata only. A removed photo comes back."""
        m = facts.metadata
        self.put_photo(db, facts)
        db.execute(
            "UPDATE photos SET status = 'ok', error = NULL, lat = ?, lon = ?, heading = ?, taken_at = ?, "
            "place = ? WHERE id = ?",
            (m.lat, m.lon, m.heading, m.taken_at, m.place, facts.id),
        )

    def set_status(self, db: sqlite3.Connection, photos: Iterable[str], status: str) -> None:
        """Set the status of photos."""
        db.executemany(
            "UPDATE photos SET status = ?, error = NULL WHERE id = ?", [(status, p) for p in photos]
        )

    def set_failed(self, db: sqlite3.Connection, photo: str, error: str) -> None:
        """Record the reason that a photo cannot be read, unless the photo was removed meanwhile."""
        db.execute(
            "UPDATE photos SET status = 'failed', error = ? WHERE id = ? AND status = 'ok'", (error, photo)
        )

    def forget_files(self, db: sqlite3.Connection, files: Iterable[tuple[str, str]]) -> None:
        """Delete paths."""
        db.executemany("DELETE FROM files WHERE root = ? AND relative = ?", files)

    def without_files(self) -> set[str]:
        """Return the photos that are no longer in any file. POSTed photos always have one."""
        query = (
            "SELECT id FROM photos WHERE status IN ('ok', 'failed') AND id NOT IN (SELECT photo FROM files) "
            "AND id NOT IN (SELECT photo FROM stored)"
        )
        return {photo for (photo,) in self._rows(query)}

    def failures(self) -> list[tuple[str, str]]:
        """Return path and reason of every photo that could not be read."""
        return self._rows(
            "SELECT f.root || '/' || f.relative, p.error FROM photos p JOIN files f ON f.photo = p.id "
            "WHERE p.status = 'failed' UNION "
            "SELECT ? || '/' || s.name, p.error FROM photos p JOIN stored s ON s.photo = p.id "
            "WHERE p.status = 'failed' ORDER BY 1",
            (ROOT,),
        )

    def count(self, status: str = "ok") -> int:
        """Return the number of photos with a status."""
        return int(self._rows("SELECT count(*) FROM photos WHERE status = ?", (status,))[0][0])

    def count_in_files(self) -> int:
        """Return the number of photos that are in files of folders."""
        if not self.stored():  # then all are
            return self.count()
        query = "SELECT count(*) FROM photos WHERE status = 'ok' AND id IN (SELECT photo FROM files)"
        return int(self._rows(query)[0][0])

    def file_of(self, photo: str) -> list[Path]:
        """Return the paths of a photo's files, the POSTed one first."""
        rows = self._rows(
            "SELECT root, relative FROM files WHERE photo = ? ORDER BY root, relative", (photo,)
        )
        own = self.stored_file(photo)
        return [*([own] if own else []), *(Path(root) / relative for root, relative in rows)]

    def pending(self, generation: int) -> list[tuple[str, Path]]:
        """Return id and one path of every photo that has no descriptor yet, by id."""
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
        """Return a photo. Raises NotFound."""
        query = f"SELECT {PHOTO_COLUMNS} FROM photos p WHERE p.id = ? AND p.status = 'ok'"
        rows = self._rows(query, (photo,))
        if not rows:
            raise NotFound(f"no photo {photo!r} in this index")
        return photo_of(rows[0])

    def photos(self) -> list[Photo]:
        """Return all photos of the index by path."""
        rows = self._rows(f"SELECT {PHOTO_COLUMNS} FROM photos p WHERE p.status = 'ok'")
        return sorted((photo_of(row) for row in rows), key=lambda photo: photo.path)

    def paths(self) -> list[tuple[str, str, str]]:
        """Return root, relative path and photo of every file of the index, of POSTed photos as in answers."""
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
        """Folder with the files of POSTed photos."""
        return self.path.parent / FOLDER

    def stored(self) -> dict[str, str]:
        """Return the file name in `folder` of every POSTed photo."""
        return dict(self._rows("SELECT photo, file FROM stored"))

    def stored_file(self, photo: str) -> Path | None:
        """Return the file of a POSTed photo; None for another photo."""
        rows = self._rows("SELECT file FROM stored WHERE photo = ?", (photo,))
        return self.folder / rows[0][0] if rows else None

    def status_of(self, photo: str) -> str | None:
        """Return the status of a photo; None if it is unknown."""
        rows = self._rows("SELECT status FROM photos WHERE id = ?", (photo,))
        return str(rows[0][0]) if rows else None

    def holds_file(self, name: str) -> bool:
        """Whether a file in `folder` belongs to a photo."""
        return bool(self._rows("SELECT 1 FROM stored WHERE file = ?", (name,)))

    def put_stored(self, db: sqlite3.Connection, photo: str, file: str, name: str) -> None:
        """Record a POSTed photo's file and name. Its id is added to a name that is already in use."""
        if db.execute("SELECT 1 FROM stored WHERE photo = ?", (photo,)).fetchone():
            return
        path = PurePosixPath(name)
        names = chain([name], (f"{path.stem}-{photo}{'-' * n}{path.suffix}" for n in count()))
        taken = "SELECT 1 FROM stored WHERE name = ?"
        free = next(name for name in names if not db.execute(taken, (name,)).fetchone())
        db.execute("INSERT INTO stored VALUES (?, ?, ?)", (photo, file, free))

    def drop_stored(self, db: sqlite3.Connection, photos: Sequence[str]) -> list[str]:
        """Delete the records of photos' files, and return the files' names."""
        files = [file.name for photo in photos if (file := self.stored_file(photo))]
        db.executemany("DELETE FROM stored WHERE photo = ?", [(photo,) for photo in photos])
        return files

    # Changes

    def last_change(self) -> int:
        """Return the number of the last change that affects searches; read before every search."""
        return int(self._rows("SELECT ifnull(max(number), 0) FROM changes")[0][0])

    def changed_after(self, number: int) -> set[str]:
        """Return the photos that changed after the change with this number."""
        return {photo for (photo,) in self._rows("SELECT photo FROM changes WHERE number > ?", (number,))}


PHOTO_COLUMNS = f"""
    p.id, ifnull((SELECT min(root || char(31) || relative) FROM files WHERE photo = p.id),
        (SELECT '{ROOT}' || char(31) || name FROM stored WHERE photo = p.id)), p.place,
    p.lat, p.lon, p.heading, p.taken_at, p.width, p.height, p.status
"""


def photo_of(row: Sequence[Any]) -> Photo:
    """Make a photo of a row of PHOTO_COLUMNS."""
    root, _, relative = (row[1] or "").partition("\x1f")
    return Photo(row[0], display_path(root, relative), *row[2:])


def display_path(root: str, relative: str) -> str:
    """Return a photo's path as answers show it: starting with the indexed folder's name."""
    name = _name_of(root)
    return f"{name}/{relative}" if name else relative


@lru_cache(maxsize=1024)
def _name_of(folder: str) -> str:
    return PurePosixPath(folder).name
