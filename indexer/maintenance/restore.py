"""`loci restore`: a backup becomes an index again, once every byte of it is as it was; or nothing does."""

from __future__ import annotations

import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from indexer.errors import IndexerError
from indexer.maintenance.backup import BLOCK, SUMS, Hashed, Saved
from indexer.snapshots.manifest import read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.database import FILE
from indexer.storage.files import sync_folder
from indexer.storage.folder import os_errors_explained
from indexer.storage.layout import CURRENT, Layout
from indexer.storage.lock import FILES as LOCK_FILES
from indexer.storage.lock import write_lock

UNPACKED = "RESTORE.partial"
LAST = (FILE, CURRENT)  # to get their names: what lacks them is no index, or no whole one


def restore(source: Path | BinaryIO, into: Path) -> Saved:
    """Make the folder `into` the index that a backup was taken of.

    Args:
        source: the file, or a stream of it; compressed by gzip, bzip2 or xz it is taken, too.
        into: a folder that is empty or not there yet.

    Raises:
        IndexerError: the backup cannot be read, is none, is damaged or not whole; the folder is in use or
            cannot be written. It is left as it was.
        FormatTooNew: a newer version wrote what was backed up.
    """
    with _opened(source) as (stream, name), _target(into) as unpacked:
        found = _unpack(stream, unpacked, name)
        _check(unpacked, found, name)
        layout, catalogue = Layout(unpacked), Catalogue(unpacked)
        try:
            snapshot = read_manifest(layout, layout.current()).snapshot
            saved = Saved(snapshot, catalogue.count(), sum(size for _, size in found.values()))
        finally:
            catalogue.close()
        _publish(unpacked, into)
    return saved


Found = dict[str, tuple[str, int]]  # digest and size by name


def _unpack(stream: BinaryIO, unpacked: Path, name: str) -> Found:
    """Write the files of a backup below a folder."""
    found: Found = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|*", bufsize=BLOCK) as tar:
            for member in tar:
                if not _belongs(member):
                    raise IndexerError(f"{name} is no backup: an index has no {member.name!r}")
                content = tar.extractfile(member)
                if content is not None:
                    found[member.name] = _save(content, unpacked / member.name, member.mode)
                tar.members.clear()  # type: ignore[attr-defined]
    except (tarfile.TarError, EOFError, zlib.error, LZMAError) as error:
        raise IndexerError(f"{name} is no backup, or only part of one: {error}") from error
    return found


def _belongs(member: tarfile.TarInfo) -> bool:
    """Whether it is a file below the folder, and no other name for one elsewhere."""
    path = PurePosixPath(member.name)
    return member.isreg() and not path.is_absolute() and not {"..", "."} & set(path.parts)


def _save(content: IO[bytes], path: Path, mode: int) -> tuple[str, int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    hashed = Hashed(content)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode & 0o777)
    with os.fdopen(descriptor, "wb") as file:
        while data := hashed.read(BLOCK):
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
        return hashed.digest.hexdigest(), file.tell()


def _check(unpacked: Path, found: Found, name: str) -> None:
    """Refuse what is not, byte for byte, what was backed up."""
    if not {SUMS, *LAST} <= found.keys():
        raise IndexerError(f"{name} is only part of a backup: its end is missing")
    lines = (unpacked / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    expected = {line[66:]: line[:64] for line in lines}
    for file in sorted(expected.keys() | found.keys() - {SUMS}):
        if file not in found or found[file][0] != expected.get(file):
            raise IndexerError(f"{name} is damaged: {file!r} in it is not what was backed up")
    (unpacked / SUMS).unlink()


def _publish(unpacked: Path, into: Path) -> None:
    for folder, _, _ in os.walk(unpacked):
        sync_folder(Path(folder))
    for log in unpacked.glob(f"{FILE}-*"):  # empty, of the look at it
        log.unlink()
    names = {entry.name for entry in unpacked.iterdir()}
    for name in (*sorted(names - {*LAST}), *LAST):
        (unpacked / name).rename(into / name)
    sync_folder(into)


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    if not isinstance(source, Path):
        yield source, "the input"
        return
    try:
        file = source.open("rb")
    except OSError as error:
        raise IndexerError(f"{source} cannot be read: {error.strerror}") from error
    with file:
        yield file, str(source)


@contextmanager
def _target(into: Path) -> Iterator[Path]:
    """A folder to unpack in, which becomes the index or is gone again."""
    with os_errors_explained(into):
        if into.exists() and not (into.is_dir() and _is_free(into)):
            raise IndexerError(f"{into} is not empty: name a new folder, or move what is there away")
        made = not into.exists()
        into.mkdir(parents=True, exist_ok=True)
        with write_lock(into):
            unpacked = into / UNPACKED
            shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
            unpacked.mkdir()
            try:
                yield unpacked
            except BaseException:
                shutil.rmtree(into if made else unpacked, ignore_errors=True)
                raise
            unpacked.rmdir()


def _is_free(folder: Path) -> bool:
    return all(entry.name in (*LOCK_FILES, UNPACKED) for entry in folder.iterdir())
