"""How often an index is right: recall@N of query photos whose places are known."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import IndexerError, NotFound, UsageError
from indexer.geo import haversine_m
from indexer.index import Index
from indexer.metadata import MetadataTable, PhotoMetadata, from_exif, from_name, read_table
from indexer.paths import PathFinder
from indexer.progress import Progress, Silent
from indexer.reading import Reader
from indexer.scan import ScannedFile, scan
from model.errors import ImageError
from model.images import open_photo

RADIUS_M = 25.0
AT = (1, 5, 10, 20)


@dataclass(frozen=True)
class Evaluation:
    """Recall over photos, as a fraction of the queries that have a right answer in the index."""

    queries: int
    """Queries that have a right answer and could be read."""
    database: int
    radius_m: float | None
    """Within which a photo is right; None where a truth file says it."""
    recall: dict[str, float]
    """By N: the fraction of queries with a right photo among the N nearest."""
    without_answer: int
    """Queries left out since no photo of the index is right for them."""
    failed: tuple[tuple[str, str], ...]
    """Query photos that could not be read, with the reason."""
    model: str
    snapshot: str

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        values["failed"] = [{"path": path, "reason": reason} for path, reason in self.failed]
        return values


def evaluate(
    index: Index,
    queries: Path,
    *,
    truth: Path | None = None,
    metadata: Path | None = None,
    radius_m: float = RADIUS_M,
    at: Sequence[int] = AT,
    progress: Progress | None = None,
) -> Evaluation:
    """Ask the index every photo in `queries` and count how often a right one is among the N nearest.

    Right is a photo within `radius_m` of the query's position (from its name, EXIF or `metadata`), or, with
    `truth`, one that this CSV names: `query,positives`, positives separated by spaces; or the frame-aligned
    form `query,reference_indices`, numbers of photos in the order of their paths.

    Raises:
        UsageError: the truth or metadata file is wrong.
        IndexerError: no query photo, none readable, or none with a right answer.
    """
    progress = progress or Silent()
    files = scan([queries]).files
    if not files:
        raise IndexerError(f"no photos in {queries}: nothing to evaluate")
    failed: list[tuple[str, str]] = []
    if truth is None:
        table = read_table(metadata) if metadata else None
        positives = _positives_by_distance(index, files, table, radius_m, failed)
    else:
        positives = read_truth(truth, files, index)
    ranks = _ranks(index, files, positives, max(at), failed, progress)
    if not ranks:
        raise IndexerError(_no_answer(files, failed, truth))
    found = np.array(ranks)
    return Evaluation(
        queries=len(ranks),
        database=index.counts().photos,
        radius_m=None if truth else radius_m,
        recall={str(n): float((found < n).mean()) for n in at},
        without_answer=len(files) - len(ranks) - len(failed),
        failed=tuple(sorted(failed)),
        model=index.model_fingerprint,
        snapshot=index.snapshot,
    )


def _ranks(
    index: Index,
    files: Sequence[ScannedFile],
    positives: Sequence[set[str]],
    deepest: int,
    failed: list[tuple[str, str]],
    progress: Progress,
) -> list[int]:
    """Rank (from 0) of each answerable query's best right photo, `deepest` where there is none."""
    asked = [(str(number), files[number].path) for number in range(len(files)) if positives[number]]
    progress.stage("querying", len(asked))
    ranks: list[int] = []
    for batch in index.embedder.stream(asked, Reader(index.image_size)):
        for embedded in batch:
            if embedded.error is not None:
                failed.append((str(embedded.item[1]), embedded.error))
                continue
            right = positives[int(embedded.item[0])]
            hits = index.nearest(embedded.outputs[0], deepest)
            ranks.append(next((rank for rank, hit in enumerate(hits) if hit.id in right), deepest))
        progress.advance(len(batch))
    return ranks


def _positives_by_distance(
    index: Index,
    files: Sequence[ScannedFile],
    table: MetadataTable | None,
    radius_m: float,
    failed: list[tuple[str, str]],
) -> list[set[str]]:
    located = [photo for photo in index.photos() if photo.lat is not None and photo.lon is not None]
    if not located:
        raise IndexerError("the index has no positions: name the right answers with --truth FILE")
    lat = np.array([photo.lat for photo in located], np.float64)
    lon = np.array([photo.lon for photo in located], np.float64)
    positives: list[set[str]] = []
    for file in files:
        try:
            where = query_metadata(file, table)
        except ImageError as error:
            failed.append((str(file.path), str(error)))
            where = PhotoMetadata()
        if where.lat is None or where.lon is None:
            positives.append(set())
            continue
        near = np.flatnonzero(haversine_m(where.lat, where.lon, lat, lon) <= radius_m)
        positives.append({located[i].id for i in near})
    return positives


def query_metadata(file: ScannedFile, table: MetadataTable | None = None) -> PhotoMetadata:
    """What a table, its name and its EXIF say of a photo, in that order of trust.

    Raises:
        ImageError: neither of the first two gives a position, and the photo cannot be opened.
    """
    listed = (table.for_photo(file.root, file.relative) if table else None) or PhotoMetadata()
    named = listed.merged_over(from_name(Path(file.relative).name))
    if named.lat is not None:
        return named
    with open_photo(file.path) as image:
        return named.merged_over(from_exif(image))


def read_truth(path: Path, files: Sequence[ScannedFile], index: Index) -> list[set[str]]:
    """The ids of the right photos for each query file, from a truth CSV (see `evaluate`).

    Raises:
        UsageError: a column is missing, or a row names a query or a photo that is not there.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), set(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"the truth file {path} cannot be read: {error}") from error
    form = next((c for c in ("positives", "reference_indices") if c in columns), None)
    if "query" not in columns or form is None:
        raise UsageError(
            f"the truth file {path} needs the columns query and positives, it has {_list(columns)}"
        )
    names = _QueryNames(files)
    finder = PathFinder(index.catalogue)
    # Photos that could not be read count too, else all after them would be taken for others.
    ordered = [row.photo for _, row in sorted(index.catalogue.files().items())]
    positives: list[set[str]] = [set() for _ in files]
    for line, row in enumerate(rows, 2):
        try:
            if form == "positives":
                right = {finder.find(name) for name in (row[form] or "").split()}
                number = names.find(row["query"] or "")
            else:
                right = {ordered[_at(n, len(ordered), "index")] for n in (row[form] or "").split()}
                number = _at(row["query"] or "", len(files), "folder")
        except (NotFound, ValueError) as error:
            raise UsageError(f"{path}, line {line}: {error}") from error
        positives[number] |= right
    return positives


class _QueryNames:
    """Finds a query by its path, as a truth file may write it: relative, absolute, or only its end."""

    def __init__(self, files: Sequence[ScannedFile]) -> None:
        self._numbers: dict[str, list[int]] = {}
        for number, file in enumerate(files):
            parts = file.path.parts
            for start in range(len(parts)):
                self._numbers.setdefault("/".join(parts[start:]).replace("//", "/"), []).append(number)

    def find(self, name: str) -> int:
        found = self._numbers.get(name.removeprefix("./"), [])
        if len(found) != 1:
            raise ValueError(f"the query {name!r} names {len(found) or 'no'} photos of the folder")
        return found[0]


def _at(text: str, count: int, where: str) -> int:
    number = int(text)
    if not 0 <= number < count:
        raise ValueError(f"photo number {number} is not among the {count} of the {where}")
    return number


def _no_answer(files: Sequence[ScannedFile], failed: Sequence[tuple[str, str]], truth: Path | None) -> str:
    if failed:
        return f"none of the query photos can be read; the first is {failed[0][0]}: {failed[0][1]}"
    if truth:
        return f"none of the {len(files)} query photos has a right answer in {truth}"
    return f"none of the {len(files)} query photos has a position near a photo of the index"


def _list(columns: set[str]) -> str:
    return ", ".join(sorted(map(str, columns))) or "none"
