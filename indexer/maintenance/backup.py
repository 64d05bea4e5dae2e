"""Backup of an index to one tar file, while the index is read, changed and rebuilt.

First the catalogue is copied, consistently. Every file that the copy mentions was on disk before, is only
appended to, and is not deleted while the backup's lock is held. So all of them can be read later. The last
two files are the digests of all others and CURRENT. A truncated backup is therefore no index, even if it is
unpacked by hand.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from indexer.errors import IndexerError
from indexer.snapshots.manifest import read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.database import FILE
from indexer.storage.files import PARTIAL, atomic_write
from indexer.storage.folder import os_errors_explained
from indexer.storage.layout import CURRENT, Layout, generation_of
from indexer.storage.lock import backup_lock
from indexer.storage.photo_queries import FOLDER
from indexer.storage.shards import shard_path
from indexer.storage.stored_files import sweep

SUMS = "SHA256SUMS"
"""File of a backup with the digests of the others, in the format of sha256sum; not in a restored index."""
COPY = "BACKUP.copy"
BLOCK = 2**20
MODE = 0o600  # a backup contains photos and API keys

Files = list[tuple[str, Path]]  # name in the backup, and path


@dataclass(frozen=True)
class Saved:
    """Contents of a backup."""

    snapshot: str
    photos: int
    bytes: int


def backup(index: Path, out: Path | BinaryIO, also: Sequence[str] = ()) -> Saved:
    """Write an index to a tar file, with all changes that were acknowledged before.

    The backup contains POSTed photos, but not the photos in folders. Runs, POSTs and DELETEs continue. Files
    that they would delete are kept until the backup is done.

    Args:
        out: a new file, which appears once it is complete; or a stream, such as a pipe.
        also: names of more files in the index's folder, which are included if they exist.

    Raises:
        IndexMissing: there is no index.
        FormatTooNew: a newer version wrote the index.
        IndexLocked: another backup is running.
        DiskFull, IndexerError: the file exists or cannot be written, or the index is damaged.
    """
    layout = Layout(index)
    layout.current()
    try:
        with _target(out) as (stream, name), os_errors_explained(index), backup_lock(index):
            return _write(layout, _Out(stream, name), also)
    finally:
        with suppress(IndexerError):  # the next run tries again
            _delete_kept(index)


def _write(layout: Layout, out: _Out, also: Sequence[str]) -> Saved:
    with _frozen(layout) as (snapshot, catalogue):
        read_manifest(layout, snapshot)
        photos = catalogue.count()
        files = _files(layout, catalogue, snapshot)
        files += [(name, layout.folder / name) for name in also if (layout.folder / name).is_file()]
        with tarfile.open(fileobj=out, mode="w|", bufsize=BLOCK, format=tarfile.PAX_FORMAT) as tar:
            archive = _Archive(tar)
            for name, path in (*files, (FILE, catalogue.path)):
                archive.add(name, path)
            archive.end(snapshot)
    out.flush()
    return Saved(snapshot, photos, out.bytes)


@contextmanager
def _frozen(layout: Layout) -> Iterator[tuple[str, Catalogue]]:
    """Yield the current snapshot, and a copy of the catalogue that was made after reading CURRENT.

    A snapshot that becomes current after the copy may contain descriptors that the copy lacks. A restored
    index would give their ids to other descriptors.
    """
    folder = layout.folder / COPY
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed backup
    folder.mkdir()
    try:
        snapshot = _copy_catalogue(layout, folder / FILE)
        catalogue = Catalogue(folder)
        try:
            integrity = catalogue.integrity()
            if integrity != "ok":
                raise IndexerError(f"the catalogue of {layout.folder} is damaged: {integrity}")
            yield snapshot, catalogue
        finally:
            catalogue.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_catalogue(layout: Layout, path: Path) -> str:
    catalogue = Catalogue(layout.folder)
    try:
        while True:
            snapshot = layout.current()
            path.unlink(missing_ok=True)
            catalogue.copy_to(path, generation_of(snapshot))
            # If another generation has become current, photos POSTed since lack descriptors of this one.
            if generation_of(layout.current()) == generation_of(snapshot):
                return snapshot
    finally:
        catalogue.close()


def _files(layout: Layout, catalogue: Catalogue, snapshot: str) -> Files:
    """Return all files but the catalogue: those that it mentions, and all others of the generation."""
    generation = generation_of(snapshot)
    used = [shard for shard, _, _ in catalogue.shard_use(generation)]
    paths = {shard_path(layout.shards(generation), shard) for shard in used} | set(_walk(layout, snapshot))
    stored = (f"{FOLDER}/{name}" for name in sorted(catalogue.stored().values()))
    files = [(path.relative_to(layout.folder).as_posix(), path) for path in sorted(paths)]
    return files + [(name, layout.folder / name) for name in stored]


def _walk(layout: Layout, snapshot: str) -> Iterator[Path]:
    """Yield the files of a snapshot's generation, without other snapshots and partial files."""
    spool, wanted = layout.spool(generation_of(snapshot)), layout.snapshot(snapshot)
    for at, folders, names in os.walk(layout.generation(generation_of(snapshot))):
        here = Path(at)
        if here == wanted.parent:
            folders[:] = [wanted.name]
        folders[:] = [name for name in folders if here / name != spool]
        yield from (here / name for name in names if not name.endswith(PARTIAL))


def _delete_kept(index: Path) -> None:
    """Delete the files that were kept for the backup."""
    catalogue = Catalogue(index, create=True)
    try:
        with os_errors_explained(index):
            sweep(catalogue)
    finally:
        catalogue.close()


@contextmanager
def _target(out: Path | BinaryIO) -> Iterator[tuple[BinaryIO, Path]]:
    """Yield the stream to write to, and its name. A file gets its name when it is complete on disk."""
    if not isinstance(out, Path):
        yield out, Path("the output")
        return
    if out.exists():
        raise IndexerError(f"{out} exists already: choose a new file")
    with os_errors_explained(out), atomic_write(out, MODE) as partial, partial.open("wb") as file:
        yield file, out


class _Archive:
    """A tar file that is being written, with the digests of its files."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._sums: list[str] = []

    def add(self, name: str, path: Path) -> None:
        """Add a file with its current size. The copied catalogue does not refer to bytes appended later.

        Raises:
            IndexerError: the file is missing or cannot be read.
        """
        try:
            with path.open("rb") as file:
                stat = os.fstat(file.fileno())
                self._put(name, file, stat.st_size, stat.st_mode & 0o777, int(stat.st_mtime))
        except OSError as error:
            raise IndexerError(
                f"{path} cannot be read ({error.strerror or error}): 'loci check' shows what is damaged"
            ) from error

    def end(self, snapshot: str) -> None:
        """Add the digests, and last CURRENT, which makes the files an index."""
        current = f"{snapshot}\n".encode()
        sums = "".join((*self._sums, _sum(hashlib.sha256(current).hexdigest(), CURRENT))).encode()
        for name, data in ((SUMS, sums), (CURRENT, current)):
            self._put(name, io.BytesIO(data), len(data), 0o644, 0)

    def _put(self, name: str, file: BinaryIO, size: int, mode: int, mtime: int) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode, info.mtime = size, mode, mtime
        hashed = Hashed(file)
        self._tar.addfile(info, hashed)
        self._tar.members.clear()  # type: ignore[attr-defined]  # otherwise it keeps a record of every photo
        self._sums.append(_sum(hashed.digest.hexdigest(), name))


class Hashed:
    """A file that is read once, with the digest of the bytes read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


class _Out(io.RawIOBase):
    """A stream that counts bytes, and raises IndexerError or DiskFull for an OSError."""

    def __init__(self, stream: BinaryIO, where: Path) -> None:
        self._stream = stream
        self._where = where
        self.bytes = 0

    def write(self, data: Any, /) -> int:
        with os_errors_explained(self._where):
            self._stream.write(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        with os_errors_explained(self._where):
            self._stream.flush()


def _sum(digest: str, name: str) -> str:
    return f"{digest}  {name}\n"
