"""The catalogue of an index: files, photos, descriptors and places, in SQLite.

A photo is identified by the SHA-256 of its file; several paths may contain the same photo. A row for a
descriptor is written only after the descriptor's bytes are on disk.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from indexer.storage.descriptor_queries import DescriptorQueries
from indexer.storage.place_queries import PlaceQueries


class Catalogue(PlaceQueries, DescriptorQueries):
    """Queries and changes of one index's catalogue."""

    def copy_to(self, path: Path, generation: int) -> None:
        """Write a consistent copy to a new file while others read and write.

        The copy contains the descriptors of one generation only.
        """
        with self._explained("copied"), closing(sqlite3.connect(path)) as copy:
            self._db.backup(copy)
            copy.execute("DELETE FROM descriptors WHERE generation != ?", (generation,))
            copy.commit()
