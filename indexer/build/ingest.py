"""Update of the catalogue from folders: new, changed, moved, vanished and unchanged photos."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from indexer.errors import IndexerError
from indexer.photos.exif import from_exif
from indexer.photos.metadata_table import MetadataTable
from indexer.photos.read_metadata import listed_metadata
from indexer.photos.scan import ScannedFile, ScanResult, full_path, no_photos
from indexer.progress import Progress
from indexer.storage.catalogue import Catalogue
from indexer.storage.rows import FileRow, PhotoFacts
from model.errors import ImageError
from model.images import open_photo, upright_size

T = TypeVar("T")

CHUNK = 256  # files in a transaction
VANISHED_SHARE = 0.2  # if more vanish at once, a disk is probably not mounted


@dataclass(frozen=True)
class Collected:
    """Changes of a collection; counts of photos."""

    added: int
    changed: int
    moved: int
    vanished: int
    returned: int
    unchanged: int
    still_removed: int
    unreadable: tuple[tuple[Path, str], ...]  # files whose bytes could not be read, and the reason


def collect(
    catalogue: Catalogue,
    scanned: ScanResult,
    table: MetadataTable | None,
    progress: Progress,
    *,
    rehash: bool = False,
    prune: bool = False,
    before_changes: Callable[[], object] | None = None,
) -> Collected:
    """Bring the catalogue up to date with a scan of folders.

    Args:
        table: metadata, which overwrites known values.
        rehash: read all files, even if their size and time are unchanged.
        prune: accept that many photos vanished.
        before_changes: called before anything is written, unless nothing has changed.

    Raises:
        IndexerError: over a fifth of the photos below a scanned folder would vanish without `prune`, or no
            readable photo would be left. Then nothing is removed.
    """
    unchanged = None if rehash or table else _all_unchanged(catalogue, scanned)
    if unchanged:
        return Collected(0, 0, 0, 0, 0, unchanged, 0, ())
    if before_changes is not None:
        before_changes()
    before = _Before(catalogue)
    if not scanned.files and not any(_below(path, scanned.roots) for path in before.files):
        raise no_photos(scanned.roots)
    outcomes = _Outcomes(before, scanned.files)
    suspects = [file for file in scanned.files if rehash or not before.has(file)]
    _record(catalogue, before, suspects, table, outcomes, progress)
    if table is not None:
        _apply_table(catalogue, before, scanned.files, table)
    gone = _gone(before, scanned)
    photo_of = {full_path(*key): row.photo for key, row in catalogue.files().items()}
    present = {photo for path, photo in photo_of.items() if path not in gone}
    present |= catalogue.stored().keys()  # POSTed photos never vanish
    vanished = _vanished(catalogue, before, gone, present)
    if not prune:
        _refuse_unmounted(before, scanned, vanished)
    if not present & catalogue.with_status("ok"):
        raise nothing_readable(catalogue, outcomes.unreadable)
    _forget(catalogue, before, gone)
    return outcomes.summary(catalogue, photo_of, len(vanished))


def _record(
    catalogue: Catalogue,
    before: _Before,
    files: Sequence[ScannedFile],
    table: MetadataTable | None,
    outcomes: _Outcomes,
    progress: Progress,
) -> None:
    """Read files, and record them with their photos."""
    progress.stage("reading", len(files))
    for chunk in _chunks(_read_all(files, table, progress)):
        with catalogue.transaction() as db:
            for file, facts in chunk:
                outcomes.add(file, facts)
                if facts.sha256:
                    catalogue.put_photo(db, facts)
                    row = FileRow(file.size, file.mtime_ns, facts.id)
                    catalogue.put_file(db, *before.key(file), row)


def _all_unchanged(catalogue: Catalogue, scanned: ScanResult) -> int | None:
    """Return the number of photos if all files have their known size and time; None if any may differ."""
    if catalogue.count("failed"):  # they are tried again
        return None
    if catalogue.file_stats() != scanned.files:  # both are sorted
        return None
    return catalogue.count_in_files()


def nothing_readable(catalogue: Catalogue, unreadable: Sequence[tuple[Path, str]] = ()) -> IndexerError:
    """Return the error for a collection without a readable photo."""
    failures = [*catalogue.failures(), *((str(path), reason) for path, reason in unreadable)]
    if not failures:
        return IndexerError("no photo would be left in the index: nothing was changed")
    path, reason = failures[0]
    return IndexerError(f"none of the {len(failures)} photos can be read; the first is {path}: {reason}")


class _Before:
    """State of the catalogue before this run. Files are identified by their absolute path."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.files = {full_path(*key): (key, row) for key, row in catalogue.files().items()}
        self.statuses = catalogue.statuses()
        self.stored = catalogue.stored().keys()

    def key(self, file: ScannedFile) -> tuple[str, str]:
        """Return the root and relative path under which the catalogue has or gets this file."""
        path = file.name
        return self.files[path][0] if path in self.files else (str(file.root), file.relative)

    def photo(self, path: str) -> str | None:
        """Return the photo that a path contained; None if the path is new."""
        return self.files[path][1].photo if path in self.files else None

    def has(self, file: ScannedFile) -> bool:
        """Whether a file has its known size and time. False for unreadable photos, which are tried again."""
        _, row = self.files.get(file.name, (None, None))
        if row is None or (row.size, row.mtime_ns) != (file.size, file.mtime_ns):
            return False
        return self.statuses.get(row.photo) in ("ok", "removed")


class _Outcomes:
    """Counter of new, changed, moved, returned and removed photos."""

    def __init__(self, before: _Before, files: Sequence[ScannedFile]) -> None:
        self._before = before
        self._paths = {file.name for file in files}
        self._stayed = {before.photo(path) for path in self._paths}
        self._added: set[str] = set()
        self._changed: set[str] = set()
        self._moved: set[str] = set()
        self._returned: set[str] = set()
        self._still_removed: set[str] = set()
        self.unreadable: list[tuple[Path, str]] = []

    def add(self, file: ScannedFile, facts: PhotoFacts) -> None:
        if not facts.sha256:
            self.unreadable.append((file.path, facts.error or "cannot be read"))
            return
        former = self._before.photo(file.name)
        status = self._before.statuses.get(facts.id)
        if status == "removed":
            self._still_removed.add(facts.id)
        elif status == "vanished":
            self._returned.add(facts.id)
        elif former is not None and former != facts.id:
            self._changed.add(facts.id)
        elif status is None:
            self._added.add(facts.id)
        elif facts.id not in self._stayed and facts.id not in self._before.stored:  # otherwise it is a copy
            self._moved.add(facts.id)

    def summary(self, catalogue: Catalogue, photo_of: Mapping[str, str], vanished: int) -> Collected:
        """Return the counts. `photo_of` has the photo of each path."""
        present = {photo for path, photo in photo_of.items() if path in self._paths}
        counted = self._added | self._changed | self._moved | self._returned
        live = catalogue.with_status("ok") | catalogue.with_status("failed")
        return Collected(
            added=len(self._added),
            changed=len(self._changed - self._added),
            moved=len(self._moved),
            vanished=vanished,
            returned=len(self._returned),
            unchanged=len((present & live) - counted),
            still_removed=len(self._still_removed),
            unreadable=tuple(self.unreadable),
        )


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
        return PhotoFacts("", error=f"cannot be read: {error.strerror or error}")
    sha256 = hashlib.sha256(data).hexdigest()
    metadata = listed_metadata(file, table)
    try:
        with open_photo(io.BytesIO(data)) as image:
            width, height = upright_size(image)
            return PhotoFacts(sha256, width, height, metadata.merged_over(from_exif(image)))
    except ImageError as error:
        return PhotoFacts(sha256, metadata=metadata, error="empty file" if not data else str(error))


def _apply_table(
    catalogue: Catalogue, before: _Before, files: Sequence[ScannedFile], table: MetadataTable
) -> None:
    """Apply a metadata table to all photos, also to those that were known before."""
    known = catalogue.files()
    with catalogue.transaction() as db:
        for file in files:
            listed = table.for_photo(file.root, file.relative)
            row = known.get(before.key(file))
            if listed is not None and row is not None:
                catalogue.set_metadata(db, row.photo, listed)


def _gone(before: _Before, scanned: ScanResult) -> set[str]:
    """Return the known paths below the scanned folders that no longer exist."""
    present = {file.name for file in scanned.files}
    blind = [path for path, _ in scanned.problems]  # photos in unreadable folders have not vanished
    return {
        path
        for path in before.files.keys() - present
        if _below(path, scanned.roots) and not _below(path, blind)
    }


def _vanished(catalogue: Catalogue, before: _Before, gone: set[str], present: set[str]) -> set[str]:
    """Return the photos whose last path is gone."""
    live = catalogue.with_status("ok") | catalogue.with_status("failed")
    return {before.files[path][1].photo for path in gone} & live - present


def _refuse_unmounted(before: _Before, scanned: ScanResult, vanished: set[str]) -> None:
    """Refuse if many photos of one root vanished. All roots together could hide a small unmounted disk."""
    for root in scanned.roots:
        below = {
            row.photo
            for path, (_, row) in before.files.items()
            if _below(path, [root]) and before.statuses.get(row.photo) != "removed"
        }
        lost = below & vanished
        if len(lost) > VANISHED_SHARE * len(below):
            raise IndexerError(
                f"{len(lost)} of {len(below)} photos are gone from {root}; nothing was removed. "
                "If a disk is not mounted, mount it. If the photos were deleted, set `prune`"
            )


def _forget(catalogue: Catalogue, before: _Before, gone: set[str]) -> None:
    with catalogue.transaction() as db:
        catalogue.forget_files(db, [before.files[path][0] for path in gone])
        catalogue.set_status(db, catalogue.without_files(), "vanished")


def _below(path: str, folders: Sequence[Path]) -> bool:
    return any(path == str(folder) or path.startswith(f"{str(folder).rstrip('/')}/") for folder in folders)


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
