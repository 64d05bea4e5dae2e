"""The query photos of an evaluation, and their metadata."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import IndexerError
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.metadata_table import MetadataTable
from indexer.photos.read_metadata import read_metadata
from indexer.photos.scan import DATABASE, QUERIES, ScannedFile, scan
from model.errors import ImageError

_BELOW = ("", "test", "images/test")
"""Subfolders in which a data set may have its parts: published sets separate training and test."""


@dataclass(frozen=True)
class Query:
    """A query photo and its metadata."""

    file: ScannedFile
    known: PhotoMetadata

    @property
    def path(self) -> Path:
        return self.file.path


def find_queries(folder: Path) -> list[ScannedFile]:
    """Return the query photos: those in the folder, or those of its queries if it is a data set.

    A data set has a folder `database` (or `ref`, `reference`) beside `queries` (or `query`), at its top or in
    `test` or `images/test`.

    Raises:
        IndexerError: it does not exist, or has no photo.
    """
    folder = queries_of(folder)
    files = scan([folder]).files
    if not files:
        raise IndexerError(f"no photos in {folder}: nothing to evaluate")
    return files


def queries_of(folder: Path) -> Path:
    """Return the folder of queries of a data set; any other folder itself."""
    for below in _BELOW:
        queries = [folder / below / name for name in QUERIES if (folder / below / name).is_dir()]
        if len(queries) == 1 and any((folder / below / name).is_dir() for name in DATABASE):
            return queries[0]
    return folder


def read_queries(
    files: Iterable[ScannedFile], table: MetadataTable | None, failed: dict[str, str]
) -> list[Query]:
    """Return the queries with their metadata; unreadable photos go into `failed` with the reason."""
    queries = []
    for file in files:
        try:
            known = read_metadata(file, table)
        except ImageError as error:
            failed[str(file.path)] = str(error)
            known = PhotoMetadata()
        queries.append(Query(file, known))
    return queries
