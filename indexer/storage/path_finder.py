"""From a path as a person writes it to the photo it means."""

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
        """The photo's id. Raises NotFound when no photo, or more than one, is meant."""
        if path in self._ids:
            return path
        absolute = os.path.abspath(path)  # noqa: PTH100 - as photos are listed: "..", but no link, followed
        if absolute in self._by_path:
            return self._by_path[absolute]
        parts = PurePosixPath(path.removeprefix("./")).parts
        matches = [p for p in self._by_name.get(PurePosixPath(path).name, ()) if p[-len(parts) :] == parts]
        photos = {self._by_path[str(PurePosixPath(*match))] for match in matches}
        if len(photos) == 1:
            return photos.pop()
        if photos:
            raise NotFound(f"{path} means {len(photos)} photos of the index: give more of its path")
        raise NotFound(f"{path} is not in the index")


def resolve(catalogue: Catalogue, paths: Sequence[str]) -> list[str]:
    """The ids of photos named by path or id; raises NotFound for the first that means none or several."""
    finder = PathFinder(catalogue)
    return [finder.find(path) for path in paths]
