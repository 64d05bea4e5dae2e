"""The catalogue: what is known about every photo, in SQLite; the index's memory of itself.

A photo is its content (the SHA-256 of its file); files are the paths that hold it. A descriptor exists when
its row says so, and a row says so only after its bytes are on disk.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from indexer.storage.descriptor_queries import DescriptorQueries
from indexer.storage.place_queries import PlaceQueries


class Catalogue(PlaceQueries, DescriptorQueries):
    """One index's catalogue: its questions and changes, in SQL."""

    def copy_to(self, path: Path, generation: int) -> None:
        """Write the catalogue, as it is at one moment, to a new file; others go on reading and writing.

        It has the same format, and the descriptors of one generation only.
        """
        with self._explained("copied"), closing(sqlite3.connect(path)) as copy:
            self._db.backup(copy)
            copy.execute("DELETE FROM descriptors WHERE generation != ?", (generation,))
            copy.commit()
