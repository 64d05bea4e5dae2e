"""From folders to the catalogue: which photos are new, changed, moved, gone or as they were."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from indexer.catalogue import Catalogue, FileRow, PhotoFacts
from indexer.errors import IndexerError
from indexer.metadata import MetadataTable, PhotoMetadata, from_exif, from_name
from indexer.progress import Progress
from indexer.scan import ScannedFile, ScanResult
from model.errors import ImageError
from model.images import open_photo, upright_size

T = TypeVar("T")

CHUNK = 256  # files a transaction
VANISHED_SHARE = 0.2  # more than this at once looks like a disk that is not mounted


@dataclass(frozen=True)
class Collected:
    """How a collection differs from what the catalogue knew; counts of photos."""

    added: int
    changed: int
    moved: int
    vanished: int
    returned: int
    unchanged: int
    still_removed: int
    unreadable: tuple[tuple[Path, str], ...]  # files whose bytes could not be read at all


def collect(
    catalogue: Catalogue,
    scanned: ScanResult,
    table: MetadataTable | None,
    progress: Progress,
    *,
    rehash: bool = False,
    prune: bool = False,
) -> Collected:
    """Bring the catalogue up to date with what was scanned.

    Raises:
        IndexerError: over a fifth of the photos below the scanned folders would vanish, and not `prune`.
    """
    known = catalogue.files()
    statuses = catalogue.statuses()
    suspects = [file for file in scanned.files if rehash or not _as_known(file, known, statuses)]
    progress.stage("reading", len(suspects))
    outcomes = _Outcomes(known, statuses)
    for chunk in _chunks(_read_all(suspects, table, progress)):
        with catalogue.transaction() as db:
            for file, facts in chunk:
                outcomes.add(file, facts)
                if facts.sha256:
                    catalogue.put_photo(db, facts)
                    row = FileRow(file.size, file.mtime_ns, facts.id)
                    catalogue.put_file(db, str(file.root), file.relative, row)
    if table is not None:
        _apply_table(catalogue, scanned.files, table)
    vanished = _drop_vanished(catalogue, scanned, known, prune)
    return outcomes.summary(len(scanned.files), vanished)


def nothing_readable(catalogue: Catalogue, unreadable: Sequence[tuple[Path, str]] = ()) -> IndexerError:
    """The error for a collection of which no photo can be read."""
    failures = [*catalogue.failures(), *((str(path), reason) for path, reason in unreadable)]
    if not failures:
        return IndexerError("no photo would be left in the index: nothing was changed")
    path, reason = failures[0]
    return IndexerError(f"none of the {len(failures)} photos can be read; the first is {path}: {reason}")


class _Outcomes:
    """Counts what each file turned out to be."""

    def __init__(self, known: dict[tuple[str, str], FileRow], statuses: dict[str, str]) -> None:
        self._known = known
        self._statuses = statuses
        self._added: set[str] = set()
        self._changed: set[str] = set()
        self._moved: set[str] = set()
        self._returned: set[str] = set()
        self._still_removed: set[str] = set()
        self._unreadable: list[tuple[Path, str]] = []

    def add(self, file: ScannedFile, facts: PhotoFacts) -> None:
        if not facts.sha256:
            self._unreadable.append((file.path, facts.error or "cannot be read"))
            return
        before = self._known.get((str(file.root), file.relative))
        status = self._statuses.get(facts.id)
        if status == "removed":
            self._still_removed.add(facts.id)
        elif status == "vanished":
            self._returned.add(facts.id)
        elif before is not None and before.photo != facts.id:
            self._changed.add(facts.id)
        elif status is None:
            self._added.add(facts.id)
        elif before is None:
            self._moved.add(facts.id)

    def summary(self, files: int, vanished: int) -> Collected:
        new = self._added | self._changed | self._moved | self._returned | self._still_removed
        return Collected(
            added=len(self._added),
            changed=len(self._changed),
            moved=len(self._moved),
            vanished=vanished,
            returned=len(self._returned),
            unchanged=max(0, files - len(new) - len(self._unreadable)),
            still_removed=len(self._still_removed),
            unreadable=tuple(self._unreadable),
        )


def _as_known(file: ScannedFile, known: dict[tuple[str, str], FileRow], statuses: dict[str, str]) -> bool:
    """Same size and time as before; what failed is tried again, since what it lacked may be there now."""
    row = known.get((str(file.root), file.relative))
    if row is None or (row.size, row.mtime_ns) != (file.size, file.mtime_ns):
        return False
    return statuses.get(row.photo) in ("ok", "removed")


def _read_all(
    files: Sequence[ScannedFile], table: MetadataTable | None, progress: Progress
) -> Iterator[tuple[ScannedFile, PhotoFacts]]:
    with ThreadPoolExecutor(4, thread_name_prefix="read") as pool:
        for chunk in _chunks(files):
            for file, facts in zip(chunk, pool.map(lambda f: _read(f, table), chunk), strict=True):
                progress.advance()
                yield file, facts


def _read(file: ScannedFile, table: MetadataTable | None) -> PhotoFacts:
    try:
        data = file.path.read_bytes()
    except OSError as error:
        return PhotoFacts("", error=f"cannot be read: {error.strerror}")
    sha256 = hashlib.sha256(data).hexdigest()
    named = from_name(Path(file.relative).name)
    listed = table.for_photo(file.root, file.relative) if table else None
    metadata = (listed or PhotoMetadata()).merged_over(named)
    try:
        with open_photo(io.BytesIO(data)) as image:
            width, height = upright_size(image)
            return PhotoFacts(sha256, width, height, metadata.merged_over(from_exif(image)))
    except ImageError as error:
        return PhotoFacts(sha256, metadata=metadata, error="empty file" if not data else str(error))


def _apply_table(catalogue: Catalogue, files: Sequence[ScannedFile], table: MetadataTable) -> None:
    """A table given now counts for photos that were known before, too."""
    known = catalogue.files()
    with catalogue.transaction() as db:
        for file in files:
            listed = table.for_photo(file.root, file.relative)
            row = known.get((str(file.root), file.relative))
            if listed is not None and row is not None:
                catalogue.set_metadata(db, row.photo, listed)


def _drop_vanished(
    catalogue: Catalogue, scanned: ScanResult, before: dict[tuple[str, str], FileRow], prune: bool
) -> int:
    present = {(str(file.root), file.relative) for file in scanned.files}
    blind = [path for path, _ in scanned.problems]  # what could not be looked into has not vanished
    gone = {
        key for key in before if key not in present and _below(key, scanned.roots) and not _below(key, blind)
    }
    held = {row.photo for key, row in catalogue.files().items() if key not in gone}
    statuses = catalogue.statuses()
    vanished = {
        photo
        for photo in (before[key].photo for key in gone)
        if photo not in held and statuses.get(photo) in ("ok", "failed")
    }
    below = {row.photo for key, row in before.items() if _below(key, scanned.roots)}
    if not prune and len(vanished) > VANISHED_SHARE * len(below):
        raise IndexerError(
            f"{len(vanished)} of {len(below)} photos are gone from {', '.join(map(str, scanned.roots))}: "
            "if that is right, say --prune; if a disk is not mounted, mount it; nothing was removed"
        )
    with catalogue.transaction() as db:
        catalogue.forget_files(db, gone)
        catalogue.set_status(db, catalogue.without_files(), "vanished")
    return len(vanished)


def _below(key: tuple[str, str], folders: Sequence[Path]) -> bool:
    path = f"{key[0]}/{key[1]}"
    return any(path == str(folder) or path.startswith(f"{str(folder).rstrip('/')}/") for folder in folders)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
