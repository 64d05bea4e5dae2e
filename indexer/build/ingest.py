"""From folders to the catalogue: which photos are new, changed, moved, gone or as they were."""

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
from indexer.photos.file_name import from_name
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.metadata_table import MetadataTable
from indexer.photos.scan import ScannedFile, ScanResult, full_path, no_photos
from indexer.progress import Progress
from indexer.storage.catalogue import Catalogue
from indexer.storage.rows import FileRow, PhotoFacts
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
    before_changes: Callable[[], object] | None = None,
) -> Collected:
    """Bring the catalogue up to date with what was scanned.

    Args:
        before_changes: called where there may be something to do, before anything is written.

    Raises:
        IndexerError: over a fifth of the photos below one of the scanned folders would vanish, and not
            `prune`; or no photo that can be read would be left; or there is none and was none. Nothing is
            removed then.
    """
    unchanged = None if rehash or table else _all_unchanged(catalogue, scanned)
    if unchanged:
        return Collected(0, 0, 0, 0, 0, unchanged, 0, ())
    if before_changes is not None:
        before_changes()
    before = _Before(catalogue)
    if not scanned.files and not any(_below(path, scanned.roots) for path in before.files):
        raise no_photos(scanned.roots)
    suspects = [file for file in scanned.files if rehash or not before.has(file)]
    progress.stage("reading", len(suspects))
    outcomes = _Outcomes(before, scanned.files)
    for chunk in _chunks(_read_all(suspects, table, progress)):
        with catalogue.transaction() as db:
            for file, facts in chunk:
                outcomes.add(file, facts)
                if facts.sha256:
                    catalogue.put_photo(db, facts)
                    row = FileRow(file.size, file.mtime_ns, facts.id)
                    catalogue.put_file(db, *before.key(file), row)
    if table is not None:
        _apply_table(catalogue, before, scanned.files, table)
    gone = _gone(before, scanned)
    photo_of = {full_path(*key): row.photo for key, row in catalogue.files().items()}
    held = {photo for path, photo in photo_of.items() if path not in gone}
    held |= catalogue.stored().keys()  # POSTed photos never vanish
    vanished = _vanished(catalogue, before, gone, held)
    if not prune:
        _refuse_unmounted(before, scanned, vanished)
    if not held & catalogue.with_status("ok"):
        raise nothing_readable(catalogue, outcomes.unreadable)
    _forget(catalogue, before, gone)
    return outcomes.summary(catalogue, photo_of, len(vanished))


def _all_unchanged(catalogue: Catalogue, scanned: ScanResult) -> int | None:
    """How many photos the files hold, where they are the very files that are known, of their sizes and times.

    None where anything may be to do. To find out that there is nothing, this alone is looked at.
    """
    if catalogue.count("failed"):  # those are tried again
        return None
    if catalogue.file_stats() != scanned.files:  # in the same order
        return None
    return catalogue.count_in_files()


def nothing_readable(catalogue: Catalogue, unreadable: Sequence[tuple[Path, str]] = ()) -> IndexerError:
    """The error for a collection of which no photo can be read."""
    failures = [*catalogue.failures(), *((str(path), reason) for path, reason in unreadable)]
    if not failures:
        return IndexerError("no photo would be left in the index: nothing was changed")
    path, reason = failures[0]
    return IndexerError(f"none of the {len(failures)} photos can be read; the first is {path}: {reason}")


class _Before:
    """What the catalogue knew before this run. A file is its full path, whatever folder it was found from."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.files = {full_path(*key): (key, row) for key, row in catalogue.files().items()}
        self.statuses = catalogue.statuses()
        self.stored = catalogue.stored().keys()

    def key(self, file: ScannedFile) -> tuple[str, str]:
        """Under which root and relative path the catalogue has or gets this file."""
        path = file.name
        return self.files[path][0] if path in self.files else (str(file.root), file.relative)

    def photo(self, path: str) -> str | None:
        """The photo that a path held."""
        return self.files[path][1].photo if path in self.files else None

    def has(self, file: ScannedFile) -> bool:
        """Same size and time as before; what failed is tried again, since what it lacked may be there now."""
        _, row = self.files.get(file.name, (None, None))
        if row is None or (row.size, row.mtime_ns) != (file.size, file.mtime_ns):
            return False
        return self.statuses.get(row.photo) in ("ok", "removed")


class _Outcomes:
    """Counts what each file turned out to be."""

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
        held = self._before.photo(file.name)
        status = self._before.statuses.get(facts.id)
        if status == "removed":
            self._still_removed.add(facts.id)
        elif status == "vanished":
            self._returned.add(facts.id)
        elif held is not None and held != facts.id:
            self._changed.add(facts.id)
        elif status is None:
            self._added.add(facts.id)
        elif facts.id not in self._stayed and facts.id not in self._before.stored:  # else a copy
            self._moved.add(facts.id)

    def summary(self, catalogue: Catalogue, photo_of: Mapping[str, str], vanished: int) -> Collected:
        """In all; `photo_of` tells the photo of each path."""
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
    named = from_name(Path(file.relative).name)
    listed = table.for_photo(file.root, file.relative) if table else None
    metadata = (listed or PhotoMetadata()).merged_over(named)
    try:
        with open_photo(io.BytesIO(data)) as image:
            width, height = upright_size(image)
            return PhotoFacts(sha256, width, height, metadata.merged_over(from_exif(image)))
    except ImageError as error:
        return PhotoFacts(sha256, metadata=metadata, error="empty file" if not data else str(error))


def _apply_table(
    catalogue: Catalogue, before: _Before, files: Sequence[ScannedFile], table: MetadataTable
) -> None:
    """A table given now counts for photos that were known before, too."""
    known = catalogue.files()
    with catalogue.transaction() as db:
        for file in files:
            listed = table.for_photo(file.root, file.relative)
            row = known.get(before.key(file))
            if listed is not None and row is not None:
                catalogue.set_metadata(db, row.photo, listed)


def _gone(before: _Before, scanned: ScanResult) -> set[str]:
    """Paths below the scanned folders that are not there any more."""
    present = {file.name for file in scanned.files}
    blind = [path for path, _ in scanned.problems]  # what could not be looked into has not vanished
    return {
        path
        for path in before.files.keys() - present
        if _below(path, scanned.roots) and not _below(path, blind)
    }


def _vanished(catalogue: Catalogue, before: _Before, gone: set[str], held: set[str]) -> set[str]:
    """Photos that no path holds any more, since theirs are gone."""
    live = catalogue.with_status("ok") | catalogue.with_status("failed")
    return {before.files[path][1].photo for path in gone} & live - held


def _refuse_unmounted(before: _Before, scanned: ScanResult, vanished: set[str]) -> None:
    """Root by root: a small disk that is not mounted would not show among the photos of a large one."""
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
