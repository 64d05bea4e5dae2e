"""The place of a photo that joins an index, before the next snapshot assigns all places."""

from __future__ import annotations

import sqlite3

import numpy as np

from indexer.geo import band_degrees, chord_m, earth_points
from indexer.options import PlaceOptions
from indexer.places.assign import parse_mode, place_id
from indexer.storage.rows import PhotoFacts


def join_place(db: sqlite3.Connection, photo: PhotoFacts, options: PlaceOptions) -> None:
    """Give a recorded photo its place: an existing one, or a new one. Other places stay.

    By position: the nearest place within the radius. Without a position: the place of photos with the same
    place in their metadata. With `frames` and `photo` each is its own place. With `folder`, POSTed photos
    with one place name count as one folder.
    """
    kind = parse_mode(options.places).kind
    m = photo.metadata
    by_position = kind in ("auto", "gps")
    if by_position and m.lat is not None and m.lon is not None:
        place = _nearest(db, m.lat, m.lon, options.place_radius_m)
    elif by_position or kind == "folder":
        place = _named(db, photo, posted_only=not by_position)
    else:
        place = None
    if place is None:
        place = _found(db, photo)
    elif m.place:
        db.execute("UPDATE places SET name = ifnull(name, ?) WHERE id = ?", (m.place, place))
    db.execute("UPDATE photos SET place_id = ? WHERE id = ?", (place, photo.id))


def _nearest(db: sqlite3.Connection, lat: float, lon: float, radius_m: float) -> str | None:
    band = band_degrees(radius_m)
    query = "SELECT id, lat, lon FROM places WHERE lat BETWEEN ? AND ? ORDER BY id"
    rows = db.execute(query, (lat - band, lat + band)).fetchall()
    if not rows:
        return None
    centres = earth_points([row[1] for row in rows], [row[2] for row in rows])
    away = np.linalg.norm(centres - earth_points(lat, lon), axis=1)
    best = int(away.argmin())
    return str(rows[best][0]) if away[best] <= chord_m(radius_m) else None


def _named(db: sqlite3.Connection, photo: PhotoFacts, *, posted_only: bool) -> str | None:
    if not photo.metadata.place:
        return None
    others = "p.lat IS NULL"
    if posted_only:
        others = "p.id IN (SELECT photo FROM stored) AND p.id NOT IN (SELECT photo FROM files)"
    row = db.execute(
        "SELECT p.place_id FROM photos p JOIN places l ON l.id = p.place_id "
        f"WHERE p.place = ? AND p.status = 'ok' AND p.id != ? AND {others} ORDER BY p.id LIMIT 1",
        (photo.metadata.place, photo.id),
    ).fetchone()
    return row and str(row[0])


def _found(db: sqlite3.Connection, photo: PhotoFacts) -> str:
    """Return a new place for the photo; its previous place if that has no other photos."""
    taken: set[str] = set()
    while True:
        place = place_id(photo.id, taken)
        in_use = db.execute(
            "SELECT 1 FROM places l WHERE l.id = ? AND (l.medoid != ? OR EXISTS "
            "(SELECT 1 FROM photos p WHERE p.place_id = l.id AND p.status = 'ok' AND p.id != l.medoid))",
            (place, photo.id),
        ).fetchone()
        if not in_use:
            break
        taken.add(place)
    m = photo.metadata
    row = (place, m.place, photo.id, m.lat, m.lon)
    db.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?)", row)
    return place
