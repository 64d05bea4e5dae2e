"""The catalogue's part for what comes and goes one photo at a time: POSTed photos, and what changed since."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from indexer.storage.database import Database

FOLDER = "photos"
"""Of an index, where the files of POSTed photos are; catalogued by name, so that the index can be moved."""
ROOT = "posted"
"""What the paths of POSTed photos begin with, as answers show them."""


@dataclass(frozen=True)
class Slot:
    """Where a descriptor's bytes lie."""

    shard: int
    row: int


class SearchedRow(NamedTuple):
    """A descriptor as filters see it."""

    id: int
    live: bool
    yaw: float
    lat: float | None
    lon: float | None
    heading: float | None
    """Of the photo; where the descriptor looks is `yaw` to the right of it."""
    taken_at: str | None
    place: str | None
    """The place's id."""


_SEARCHED = "d.id, p.status = 'ok', d.yaw, p.lat, p.lon, p.heading, p.taken_at, p.place_id"
"""Columns of a `SearchedRow`, of a descriptor d and its photo p."""


class StoredPhotos(Database):
    """Questions and changes about POSTed photos and about changes, in SQL."""

    @property
    def folder(self) -> Path:
        """Where the files of POSTed photos are."""
        return self.path.parent / FOLDER

    # POSTed photos

    def stored(self) -> dict[str, str]:
        """The file of each POSTed photo, by name in `folder`."""
        return dict(self._rows("SELECT photo, file FROM stored"))

    def stored_file(self, photo: str) -> Path | None:
        """The file of a POSTed photo; None where it came from a folder."""
        rows = self._rows("SELECT file FROM stored WHERE photo = ?", (photo,))
        return self.folder / rows[0][0] if rows else None

    def is_embedded(self, photo: str, generation: int) -> bool:
        """Whether a photo has its descriptors of a generation."""
        query = "SELECT 1 FROM descriptors WHERE photo = ? AND generation = ? LIMIT 1"
        return bool(self._rows(query, (photo, generation)))

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

    # What changed

    def last_change(self) -> int:
        """The number of the last change to what a search sees; grows, and is asked before every search."""
        return int(self._rows("SELECT ifnull(max(number), 0) FROM changes")[0][0])

    def changed_after(self, number: int) -> set[str]:
        """The photos that changed after the change of this number."""
        return {photo for (photo,) in self._rows("SELECT photo FROM changes WHERE number > ?", (number,))}

    def live_ids(self, generation: int) -> list[int]:
        """Ids of the descriptors that are searched."""
        return [
            number
            for (number,) in self._rows(
                "SELECT d.id FROM descriptors d JOIN photos p ON p.id = d.photo "
                "WHERE d.generation = ? AND p.status = 'ok' ORDER BY d.id",
                (generation,),
            )
        ]

    def slots(self, generation: int, ids: Sequence[int]) -> list[tuple[int, Slot]]:
        """Where descriptors lie, by id, in id order; those that are gone are left out."""
        query = "SELECT id, shard, row FROM descriptors WHERE generation = ? AND id IN ({})"
        found = [(number, Slot(*slot)) for number, *slot in self._rows_among(query, ids, generation)]
        return sorted(found, key=lambda item: item[0])

    def slots_of(self, generation: int, photo: str) -> list[Slot]:
        """Where the descriptors of a photo's views lie, in their order."""
        query = "SELECT shard, row FROM descriptors WHERE generation = ? AND photo = ? ORDER BY view"
        return [Slot(*slot) for slot in self._rows(query, (generation, photo))]

    def shard_use(self, generation: int) -> list[tuple[int, int, int]]:
        """Each shard that rows name: its number, how many of its rows are searched, how many are written."""
        return self._rows(
            "SELECT d.shard, sum(p.status = 'ok'), max(d.row) + 1 FROM descriptors d "
            "JOIN photos p ON p.id = d.photo WHERE d.generation = ? GROUP BY d.shard ORDER BY d.shard",
            (generation,),
        )

    def move_descriptors(self, db: sqlite3.Connection, moved: Sequence[tuple[int, Slot]]) -> None:
        """Note where descriptors lie from now on; their bytes must be on disk there."""
        db.executemany(
            "UPDATE descriptors SET shard = ?, row = ? WHERE id = ?",
            [(slot.shard, slot.row, number) for number, slot in moved],
        )

    def drop_dead(self, db: sqlite3.Connection, generation: int, shard: int) -> None:
        """Forget the descriptors in a shard that are not searched."""
        db.execute(
            "DELETE FROM descriptors WHERE generation = ? AND shard = ? "
            "AND photo IN (SELECT id FROM photos WHERE status != 'ok')",
            (generation, shard),
        )

    def searched_rows(self, generation: int, after: int) -> list[SearchedRow]:
        """A generation's descriptors of photos changed after the change numbered `after`."""
        # CROSS JOIN has SQLite begin with the changes: from the descriptors on, a million take four seconds.
        rows = self._rows(
            f"SELECT {_SEARCHED} FROM changes c CROSS JOIN descriptors d ON d.photo = c.photo "
            "JOIN photos p ON p.id = d.photo WHERE c.number > ? AND d.generation = ?",
            (after, generation),
        )
        return list(map(SearchedRow._make, rows))

    def searched_parts(self, generation: int, most: int = 50_000) -> Iterator[list[SearchedRow]]:
        """A generation's descriptors that are searched, by id, at most so many at a time."""
        last = -1
        while True:
            rows = self._rows(
                f"SELECT {_SEARCHED} FROM descriptors d JOIN photos p ON p.id = d.photo "
                "WHERE d.generation = ? AND p.status = 'ok' AND d.id > ? "
                "ORDER BY d.id LIMIT ?",
                (generation, last, most),
            )
            if not rows:
                return
            yield list(map(SearchedRow._make, rows))
            last = rows[-1][0]

    def places_named(self, place: str) -> list[str]:
        """Ids of the places that have this id or this name."""
        return [
            id_ for (id_,) in self._rows("SELECT id FROM places WHERE id = ? OR name = ?", (place, place))
        ]
