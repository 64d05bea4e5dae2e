"""The catalogue: what is known about every photo, in SQLite; the index's memory of itself.

A photo is its content (the SHA-256 of its file); files are the paths that hold it. A descriptor exists when
its row says so, and a row says so only after its bytes are on disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from indexer.answers import Photo, Place
from indexer.errors import NotFound
from indexer.photos.metadata import PhotoMetadata
from indexer.places.assign import AssignedPlace
from indexer.storage.descriptor_queries import ROOT, SearchedRow, Slot, StoredPhotos


@dataclass(frozen=True)
class FileRow:
    """A path the catalogue knows, and the photo that it held."""

    size: int
    mtime_ns: int
    photo: str


@dataclass(frozen=True)
class PhotoFacts:
    """What a file's bytes and surroundings say of a photo, before the network sees it."""

    sha256: str
    width: int = 0
    height: int = 0
    metadata: PhotoMetadata = field(default_factory=PhotoMetadata)
    error: str | None = None

    @property
    def id(self) -> str:
        return self.sha256[:16]


@dataclass(frozen=True)
class Hit:
    """A descriptor's photo, as a search needs it."""

    photo: Photo
    place: Place | None
    """Without the number of its photos; None until the photo has been assigned to one."""
    yaw: float
    """Degrees that this view of a panorama looks right of the photo's middle."""

    def row(self, number: int) -> SearchedRow:
        """What filters look at, for the descriptor of this number."""
        photo = self.photo
        place = self.place.id if self.place else None
        where = (photo.lat, photo.lon, photo.heading)
        return SearchedRow(number, True, self.yaw, *where, photo.taken_at, place)


class Catalogue(StoredPhotos):
    """One index's catalogue: its questions and changes, in SQL."""

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

    # Descriptors

    def add_descriptors(self, generation: int, rows: Sequence[tuple[str, int, float, Slot]]) -> None:
        """Make descriptors (photo, view, yaw, slot) exist; their bytes must be on disk."""
        with self.transaction() as db:
            self.put_descriptors(db, generation, rows)

    def put_descriptors(
        self, db: sqlite3.Connection, generation: int, rows: Sequence[tuple[str, int, float, Slot]]
    ) -> None:
        """`add_descriptors` within a transaction; a photo that was POSTed meanwhile keeps those it has."""
        db.executemany(
            "INSERT INTO descriptors(photo, view, yaw, generation, shard, row) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT(photo, view, generation) DO NOTHING",
            [(photo, view, yaw, generation, slot.shard, slot.row) for photo, view, yaw, slot in rows],
        )

    def last_slot(self, generation: int, shards: range) -> Slot | None:
        """The last slot among `shards` that a row claims."""
        rows = self._rows(
            "SELECT shard, row FROM descriptors WHERE generation = ? AND shard >= ? AND shard < ? "
            "ORDER BY shard DESC, row DESC LIMIT 1",
            (generation, shards.start, shards.stop),
        )
        return Slot(*rows[0]) if rows else None

    def live_descriptors(self, generation: int) -> list[tuple[int, str, Slot]]:
        """Descriptor id, photo and slot of all that a snapshot holds, in id order."""
        rows = self._rows(
            "SELECT d.id, d.photo, d.shard, d.row FROM descriptors d JOIN photos p ON p.id = d.photo "
            "WHERE d.generation = ? AND p.status = 'ok' ORDER BY d.id",
            (generation,),
        )
        return [(number, photo, Slot(shard, row)) for number, photo, shard, row in rows]

    def drop_descriptors(self, generation: int) -> None:
        """Drop the descriptors of one generation."""
        with self.transaction() as db:
            db.execute("DELETE FROM descriptors WHERE generation = ?", (generation,))

    def drop_generations(self, keep: Iterable[int]) -> None:
        """Drop the descriptors of all other generations."""
        kept = list(keep)
        with self.transaction() as db:
            marks = ", ".join("?" * len(kept))
            db.execute(f"DELETE FROM descriptors WHERE generation NOT IN ({marks})", kept)

    def copy_to(self, path: Path, generation: int) -> None:
        """Write the catalogue, as it is at one moment, to a new file; others go on reading and writing.

        It has the same format, and the descriptors of one generation only.
        """
        with self._explained("copied"), closing(sqlite3.connect(path)) as copy:
            self._db.backup(copy)
            copy.execute("DELETE FROM descriptors WHERE generation != ?", (generation,))
            copy.commit()

    def hits(self, descriptors: Sequence[int]) -> dict[int, Hit]:
        """The photos behind descriptor ids, with their places; those removed meanwhile are left out."""
        rows = self._rows_among(
            f"SELECT d.id, d.yaw, l.id, l.name, l.lat, l.lon, {_PHOTO_COLUMNS} FROM descriptors d "
            "JOIN photos p ON p.id = d.photo LEFT JOIN places l ON l.id = p.place_id "
            "WHERE p.status = 'ok' AND d.id IN ({})",
            descriptors,
        )
        return {
            number: Hit(_photo(photo), Place(place, name, lat, lon, 0) if place else None, yaw)
            for number, yaw, place, name, lat, lon, *photo in rows
        }

    # Reading by id

    def photo(self, photo: str) -> Photo:
        """One photo. Raises NotFound."""
        query = f"SELECT {_PHOTO_COLUMNS} FROM photos p WHERE p.id = ? AND p.status = 'ok'"
        rows = self._rows(query, (photo,))
        if not rows:
            raise NotFound(f"no photo {photo!r} in this index")
        return _photo(rows[0])

    def photos(self) -> list[Photo]:
        """All photos of the index, by path."""
        rows = self._rows(f"SELECT {_PHOTO_COLUMNS} FROM photos p WHERE p.status = 'ok'")
        return sorted((_photo(row) for row in rows), key=lambda photo: photo.path)

    def paths(self) -> list[tuple[str, str, str]]:
        """Root, relative path and photo of every file whose photo is in the index, POSTed ones as shown."""
        return self._rows(
            "SELECT f.root, f.relative, f.photo FROM files f JOIN photos p ON p.id = f.photo "
            "WHERE p.status = 'ok' UNION ALL "
            "SELECT ?, s.name, s.photo FROM stored s JOIN photos p ON p.id = s.photo "
            "WHERE p.status = 'ok' ORDER BY 1, 2",
            (ROOT,),
        )

    # Places

    def placed(self) -> list[tuple[Any, ...]]:
        """Each photo's id, lat, lon, place's name, root and relative path of a file, POSTed name; by these.

        A photo of several files comes as often.
        """
        return self._rows(
            "SELECT p.id, p.lat, p.lon, p.place, f.root, f.relative, s.name FROM photos p "
            "LEFT JOIN files f ON f.photo = p.id LEFT JOIN stored s ON s.photo = p.id "
            "WHERE p.status = 'ok' ORDER BY p.id, f.root, f.relative"
        )

    def replace_places(self, places: Iterable[AssignedPlace], made_at: int | None = None) -> int:
        """Put a new assignment in the old one's place; photos changed since it was made keep theirs.

        `made_at` is the number of the last change that it takes in; None for all there are. Returns the
        number of the last change that is taken in now: its own, where no photo has changed since.
        """
        places = list(places)
        with self.transaction() as db:
            later = self.changed_after(self.last_change() if made_at is None else made_at)
            home = {m: place.id for place in places for m in place.members if m not in later}
            before = dict(db.execute("SELECT id, place_id FROM photos"))
            db.executemany(
                "UPDATE photos SET place_id = ? WHERE id = ?",
                [(place, photo) for photo, place in home.items() if before.get(photo) != place],
            )
            db.executemany(
                "UPDATE photos SET place_id = NULL WHERE id = ? AND status != 'ok'",
                [(photo,) for photo, place in before.items() if place and photo not in home],
            )
            db.execute(
                "DELETE FROM places WHERE id NOT IN (SELECT place_id FROM photos WHERE place_id NOTNULL)"
            )
            db.executemany(
                "INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?)",
                [(p.id, p.name, p.medoid, p.lat, p.lon) for p in places],
            )
            return made_at if later and made_at is not None else self.last_change()

    def assigned_places(self) -> list[AssignedPlace]:
        """The places with their members' ids, as the next assignment needs them."""
        members: dict[str, list[str]] = {}
        for place, photo in self._rows(
            "SELECT place_id, id FROM photos WHERE place_id IS NOT NULL ORDER BY id"
        ):
            members.setdefault(place, []).append(photo)
        rows = self._rows("SELECT id, name, medoid, lat, lon FROM places ORDER BY id")
        return [
            AssignedPlace(id_, name, medoid, lat, lon, tuple(members.get(id_, ())))
            for id_, name, medoid, lat, lon in rows
        ]

    def places(self) -> list[Place]:
        """All places with the number of their photos, by id."""
        rows = self._rows(
            "SELECT l.id, l.name, l.lat, l.lon, count(p.id) FROM places l "
            "JOIN photos p ON p.place_id = l.id AND p.status = 'ok' GROUP BY l.id ORDER BY l.id"
        )
        return [Place(*row) for row in rows]

    def place(self, place: str) -> Place:
        """One place with its photos. Raises NotFound."""
        places = self._rows("SELECT id, name, lat, lon FROM places WHERE id = ?", (place,))
        rows = self._rows(
            f"SELECT {_PHOTO_COLUMNS} FROM photos p WHERE p.place_id = ? AND p.status = 'ok'", (place,)
        )
        members = tuple(sorted((_photo(r) for r in rows), key=lambda photo: photo.path))
        if not places or not members:
            raise NotFound(f"no place {place!r} in this index")
        id_, name, lat, lon = places[0]
        return Place(id_, name, lat, lon, len(members), members)


_PHOTO_COLUMNS = f"""
    p.id, ifnull((SELECT min(root || char(31) || relative) FROM files WHERE photo = p.id),
        (SELECT '{ROOT}' || char(31) || name FROM stored WHERE photo = p.id)), p.place,
    p.lat, p.lon, p.heading, p.taken_at, p.width, p.height, p.status
"""


def _photo(row: Sequence[Any]) -> Photo:
    root, _, relative = (row[1] or "").partition("\x1f")
    return Photo(row[0], display_path(root, relative), *row[2:])


def display_path(root: str, relative: str) -> str:
    """A photo's path as answers show it: from the folder that was indexed on."""
    name = _name_of(root)
    return f"{name}/{relative}" if name else relative


@lru_cache(maxsize=1024)
def _name_of(folder: str) -> str:
    return PurePosixPath(folder).name
