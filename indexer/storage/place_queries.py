"""Queries about places and their photos."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import PurePosixPath

from indexer.answers import Place
from indexer.errors import NotFound
from indexer.photos.scan import full_path
from indexer.places.assign import AssignedPlace, PlacePhoto
from indexer.storage.photo_queries import PHOTO_COLUMNS, ROOT, PhotoQueries, photo_of


class PlaceQueries(PhotoQueries):
    """Queries about places."""

    def place_photos(self) -> list[PlacePhoto]:
        """Return the data that assigns photos to places, by id.

        Paths are absolute, so that folders with the same name stay distinct. A POSTed photo's path puts it
        with the photos of its place.
        """
        rows = self._rows(
            "SELECT p.id, p.lat, p.lon, p.place, f.root, f.relative, s.name FROM photos p "
            "LEFT JOIN files f ON f.photo = p.id LEFT JOIN stored s ON s.photo = p.id "
            "WHERE p.status = 'ok' ORDER BY p.id, f.root, f.relative"
        )
        photos: dict[str, PlacePhoto] = {}
        for photo, lat, lon, place, root, relative, posted in rows:
            path = full_path(root, relative) if root else _posted_path(photo, place, posted or "")
            photos.setdefault(photo, PlacePhoto(photo, path, lat, lon, place))  # the first file counts
        return list(photos.values())

    def replace_places(self, places: Iterable[AssignedPlace], made_at: int | None = None) -> int:
        """Replace the places. Photos that changed since the assignment was made keep their place.

        Args:
            made_at: number of the last change that the assignment contains; None: it contains all.

        Returns:
            The number of the last change that is contained now. It includes this replacement if no photo
            has changed since.
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
        """Return the places with their photos' ids, for the next assignment."""
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
        """Return all places with their number of photos, by id."""
        rows = self._rows(
            "SELECT l.id, l.name, l.lat, l.lon, count(p.id) FROM places l "
            "JOIN photos p ON p.place_id = l.id AND p.status = 'ok' GROUP BY l.id ORDER BY l.id"
        )
        return [Place(*row) for row in rows]

    def place(self, place: str) -> Place:
        """Return a place with its photos. Raises NotFound."""
        places = self._rows("SELECT id, name, lat, lon FROM places WHERE id = ?", (place,))
        rows = self._rows(
            f"SELECT {PHOTO_COLUMNS} FROM photos p WHERE p.place_id = ? AND p.status = 'ok'", (place,)
        )
        members = tuple(sorted((photo_of(r) for r in rows), key=lambda photo: photo.path))
        if not places or not members:
            raise NotFound(f"no place {place!r} in this index")
        id_, name, lat, lon = places[0]
        return Place(id_, name, lat, lon, len(members), members)

    def places_named(self, place: str) -> list[str]:
        """Return the ids of the places with this id or name."""
        return [
            id_ for (id_,) in self._rows("SELECT id FROM places WHERE id = ? OR name = ?", (place, place))
        ]


def _posted_path(photo: str, place: str | None, name: str) -> str:
    return f"{ROOT}/{place or photo}/{PurePosixPath(name).name}"
