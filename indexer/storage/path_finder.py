"""Search of photos by paths that people type."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import PurePosixPath

from indexer.errors import NotFound
from indexer.storage.catalogue import Catalogue


class PathFinder:
    """Finds photos by id, by full path, or by any ending of their path: `database/a.jpg`, `a.jpg`."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._ids: set[str] = set()
        self._by_path: dict[str, str] = {}
        self._by_name: dict[str, list[tuple[str, ...]]] = {}
        for root, relative, photo in catalogue.paths():
            path = PurePosixPath(root) / relative
            self._ids.add(photo)
            self._by_path[str(path)] = photo
            self._by_name.setdefault(path.name, []).append(path.parts)

    def find(self, path: str) -> str:
        """Return the id of the photo. Raises NotFound if no photo matches, or several do."""
        if path in self._ids:
            return path
        absolute = os.path.abspath(path)  # noqa: PTH100 - follows ".." but no links, as scanning does
        if absolute in self._by_path:
            return self._by_path[absolute]
        parts = PurePosixPath(path.removeprefix("./")).parts
        matches = [p for p in self._by_name.get(PurePosixPath(path).name, ()) if p[-len(parts) :] == parts]
        photos = {self._by_path[str(PurePosixPath(*match))] for match in matches}
        if len(photos) == 1:
            return photos.pop()
        if photos:
            raise NotFound(f"{path} matches {len(photos)} photos of the index: give more of its path")
        raise NotFound(f"{path} is not in the index")


def resolve(catalogue: Catalogue, paths: Sequence[str]) -> list[str]:
    """Return the ids of photos given by path or id. Raises NotFound for the first without a unique match."""
    finder = PathFinder(catalogue)
    return [finder.find(path) for path in paths]
