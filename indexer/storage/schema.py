"""The tables of the catalogue. A new migration at the end brings older indexes up to date."""

from __future__ import annotations

import sqlite3

_M002 = (
    """
    CREATE TABLE photos(
        id TEXT PRIMARY KEY,               -- first 16 hex digits of sha256
        sha256 TEXT NOT NULL UNIQUE,
        width INTEGER NOT NULL, height INTEGER NOT NULL,  -- pixels, upright
        lat REAL, lon REAL, heading REAL, taken_at TEXT, place TEXT,
        status TEXT NOT NULL CHECK (status IN ('ok', 'failed', 'removed', 'vanished')),
        error TEXT,
        place_id TEXT)
    """,
    "CREATE INDEX photos_place ON photos(place_id)",
    """
    CREATE TABLE files(
        root TEXT NOT NULL, relative TEXT NOT NULL,
        size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
        photo TEXT NOT NULL REFERENCES photos(id),
        PRIMARY KEY (root, relative)) WITHOUT ROWID
    """,
    "CREATE INDEX files_photo ON files(photo)",
    """
    CREATE TABLE descriptors(
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        photo TEXT NOT NULL REFERENCES photos(id),
        view INTEGER NOT NULL, yaw REAL NOT NULL,  -- of a panorama; else 0, 0
        generation INTEGER NOT NULL, shard INTEGER NOT NULL, row INTEGER NOT NULL,
        UNIQUE (photo, view, generation), UNIQUE (generation, shard, row))
    """,
    "CREATE TABLE places(id TEXT PRIMARY KEY, name TEXT, medoid TEXT NOT NULL, lat REAL, lon REAL)",
    """
    CREATE TABLE stored(                   -- photos that were POSTed
        photo TEXT PRIMARY KEY REFERENCES photos(id),
        file TEXT NOT NULL,                -- its name in the index's own folder photos/
        name TEXT NOT NULL UNIQUE) WITHOUT ROWID  -- as answers show it
    """,
    """
    CREATE TABLE changes(                  -- when what a search sees of a photo changed last
        photo TEXT PRIMARY KEY REFERENCES photos(id),
        number INTEGER NOT NULL UNIQUE) WITHOUT ROWID
    """,
    """
    CREATE TRIGGER descriptors_added AFTER INSERT ON descriptors BEGIN
        INSERT INTO changes SELECT NEW.photo, ifnull(max(number), 0) + 1 FROM changes WHERE true
        ON CONFLICT(photo) DO UPDATE SET number = excluded.number;
    END
    """,
    """
    CREATE TRIGGER photos_changed
    AFTER UPDATE OF status, lat, lon, heading, taken_at, place_id ON photos
    WHEN (OLD.status, OLD.lat, OLD.lon, OLD.heading, OLD.taken_at, OLD.place_id)
        IS NOT (NEW.status, NEW.lat, NEW.lon, NEW.heading, NEW.taken_at, NEW.place_id)
    BEGIN
        INSERT INTO changes SELECT NEW.id, ifnull(max(number), 0) + 1 FROM changes WHERE true
        ON CONFLICT(photo) DO UPDATE SET number = excluded.number;
    END
    """,
    "CREATE INDEX photos_named ON photos(place) WHERE place IS NOT NULL",
    "CREATE INDEX places_named ON places(name) WHERE name IS NOT NULL",
    "CREATE INDEX places_lat ON places(lat) WHERE lat IS NOT NULL",
)


def _m002_tables(db: sqlite3.Connection) -> None:
    for statement in _M002:
        db.execute(statement)


MIGRATIONS = {2: _m002_tables}
"""Migrations by the format that they lead to, oldest first. Format 1 was never released."""


def version_of(db: sqlite3.Connection) -> int:
    """Return the format of a catalogue; 0 before it has tables."""
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def migrate(db: sqlite3.Connection) -> None:
    """Bring a catalogue up to the newest format. Each migration is atomic."""
    for number, migration in MIGRATIONS.items():
        if number > version_of(db):
            with db:
                db.execute("BEGIN IMMEDIATE")  # otherwise each CREATE would be committed by itself
                migration(db)
                db.execute(f"PRAGMA user_version = {number}")
