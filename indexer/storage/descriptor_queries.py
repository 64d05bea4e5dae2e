"""Queries about descriptors: their slots in shards, and which of them are searched."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from indexer.answers import Place
from indexer.storage.photo_queries import PHOTO_COLUMNS, PhotoQueries, photo_of
from indexer.storage.rows import Hit, SearchedRow, Slot

_SEARCHED = "d.id, p.status = 'ok', d.yaw, p.lat, p.lon, p.heading, p.taken_at, p.place_id"
"""Columns of a `SearchedRow` for a descriptor d and its photo p."""


class DescriptorQueries(PhotoQueries):
    """Queries about descriptors."""

    def add_descriptors(self, generation: int, rows: Sequence[tuple[str, int, float, Slot]]) -> None:
        """Record descriptors (photo, view, yaw, slot). Their bytes must be on disk."""
        with self.transaction() as db:
            self.put_descriptors(db, generation, rows)

    def put_descriptors(
        self, db: sqlite3.Connection, generation: int, rows: Sequence[tuple[str, int, float, Slot]]
    ) -> None:
        """Record descriptors within a transaction. A photo that was POSTed meanwhile keeps its own."""
        db.executemany(
            "INSERT INTO descriptors(photo, view, yaw, generation, shard, row) VALUES (?, ?, ?, ?, ?, ?) "
            "ON CONFLICT(photo, view, generation) DO NOTHING",
            [(photo, view, yaw, generation, slot.shard, slot.row) for photo, view, yaw, slot in rows],
        )

    def last_slot(self, generation: int, shards: range) -> Slot | None:
        """Return the last used slot among `shards`; None if all are free."""
        rows = self._rows(
            "SELECT shard, row FROM descriptors WHERE generation = ? AND shard >= ? AND shard < ? "
            "ORDER BY shard DESC, row DESC LIMIT 1",
            (generation, shards.start, shards.stop),
        )
        return Slot(*rows[0]) if rows else None

    def live_descriptors(self, generation: int) -> list[tuple[int, str, Slot]]:
        """Return id, photo and slot of every searched descriptor, by id."""
        rows = self._rows(
            "SELECT d.id, d.photo, d.shard, d.row FROM descriptors d JOIN photos p ON p.id = d.photo "
            "WHERE d.generation = ? AND p.status = 'ok' ORDER BY d.id",
            (generation,),
        )
        return [(number, photo, Slot(shard, row)) for number, photo, shard, row in rows]

    def drop_descriptors(self, generation: int) -> None:
        """Delete the descriptors of one generation."""
        with self.transaction() as db:
            db.execute("DELETE FROM descriptors WHERE generation = ?", (generation,))

    def drop_generations(self, keep: Iterable[int]) -> None:
        """Delete the descriptors of all other generations."""
        kept = list(keep)
        with self.transaction() as db:
            marks = ", ".join("?" * len(kept))
            db.execute(f"DELETE FROM descriptors WHERE generation NOT IN ({marks})", kept)

    def hits(self, descriptors: Sequence[int]) -> dict[int, Hit]:
        """Return the photos and places of descriptor ids, without photos that were removed."""
        rows = self._rows_among(
            f"SELECT d.id, d.yaw, l.id, l.name, l.lat, l.lon, {PHOTO_COLUMNS} FROM descriptors d "
            "JOIN photos p ON p.id = d.photo LEFT JOIN places l ON l.id = p.place_id "
            "WHERE p.status = 'ok' AND d.id IN ({})",
            descriptors,
        )
        return {
            number: Hit(photo_of(photo), Place(place, name, lat, lon, 0) if place else None, yaw)
            for number, yaw, place, name, lat, lon, *photo in rows
        }

    def is_embedded(self, photo: str, generation: int) -> bool:
        """Whether a photo has descriptors of a generation."""
        query = "SELECT 1 FROM descriptors WHERE photo = ? AND generation = ? LIMIT 1"
        return bool(self._rows(query, (photo, generation)))

    def live_ids(self, generation: int) -> list[int]:
        """Return the ids of all searched descriptors."""
        return [
            number
            for (number,) in self._rows(
                "SELECT d.id FROM descriptors d JOIN photos p ON p.id = d.photo "
                "WHERE d.generation = ? AND p.status = 'ok' ORDER BY d.id",
                (generation,),
            )
        ]

    def slots(self, generation: int, ids: Sequence[int]) -> list[tuple[int, Slot]]:
        """Return ids and slots of descriptors, by id, without deleted ones."""
        query = "SELECT id, shard, row FROM descriptors WHERE generation = ? AND id IN ({})"
        rows = self._rows_among(query, ids, generation)
        return sorted(((number, Slot(*slot)) for number, *slot in rows), key=lambda item: item[0])

    def slots_of(self, generation: int, photo: str) -> list[Slot]:
        """Return the slots of a photo's descriptors, in the order of its views."""
        query = "SELECT shard, row FROM descriptors WHERE generation = ? AND photo = ? ORDER BY view"
        return [Slot(*slot) for slot in self._rows(query, (generation, photo))]

    def shard_use(self, generation: int) -> list[tuple[int, int, int]]:
        """Return number, searched rows and written rows of each shard in use."""
        return self._rows(
            "SELECT d.shard, sum(p.status = 'ok'), max(d.row) + 1 FROM descriptors d "
            "JOIN photos p ON p.id = d.photo WHERE d.generation = ? GROUP BY d.shard ORDER BY d.shard",
            (generation,),
        )

    def move_descriptors(self, db: sqlite3.Connection, moved: Sequence[tuple[int, Slot]]) -> None:
        """Record new slots of descriptors. Their bytes must be on disk there."""
        db.executemany(
            "UPDATE descriptors SET shard = ?, row = ? WHERE id = ?",
            [(slot.shard, slot.row, number) for number, slot in moved],
        )

    def drop_dead(self, db: sqlite3.Connection, generation: int, shard: int) -> None:
        """Delete the descriptors in a shard that are not searched."""
        db.execute(
            "DELETE FROM descriptors WHERE generation = ? AND shard = ? "
            "AND photo IN (SELECT id FROM photos WHERE status != 'ok')",
            (generation, shard),
        )

    def searched_rows(self, generation: int, after: int) -> list[SearchedRow]:
        """Return the descriptors of photos that changed after the change with number `after`."""
        # CROSS JOIN makes SQLite start with the changes. Starting with a million descriptors takes 4 seconds.
        rows = self._rows(
            f"SELECT {_SEARCHED} FROM changes c CROSS JOIN descriptors d ON d.photo = c.photo "
            "JOIN photos p ON p.id = d.photo WHERE c.number > ? AND d.generation = ?",
            (after, generation),
        )
        return list(map(SearchedRow._make, rows))

    def searched_parts(self, generation: int, most: int = 50_000) -> Iterator[list[SearchedRow]]:
        """Yield the searched descriptors by id, at most `most` at a time."""
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
