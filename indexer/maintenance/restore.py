"""`loci restore`: make an index of a backup after checking every byte."""

from __future__ import annotations

import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
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
LAST = (FILE, CURRENT)  # moved last, so that an interrupted restore leaves no index


def restore(source: Path | BinaryIO, into: Path) -> Saved:
    """Restore a backup to the folder `into`.

    Args:
        source: a backup file or stream, which may be compressed by gzip, bzip2 or xz.
        into: a new or empty folder.

    Raises:
        IndexerError: the source is unreadable, damaged, truncated or no backup; or the folder is in use or
            cannot be written. The folder is then unchanged.
        FormatTooNew: a newer version wrote the index.
    """
    with _opened(source) as (stream, name), _target(into) as unpacked:
        files = _unpack(stream, unpacked, name)
        _check(unpacked, files, name)
        layout = Layout(unpacked)
        with closing(Catalogue(unpacked)) as catalogue:
            snapshot = read_manifest(layout, layout.current()).snapshot
            saved = Saved(snapshot, catalogue.count(), sum(size for _, size in files.values()))
        _publish(unpacked, into)
    return saved


Unpacked = dict[str, tuple[str, int]]  # digest and size by name


def _unpack(stream: BinaryIO, unpacked: Path, name: str) -> Unpacked:
    """Write the files of a backup to a folder."""
    files: Unpacked = {}
    try:
        with tarfile.open(fileobj=stream, mode="r|*", bufsize=BLOCK) as tar:
            for member in tar:
                if not _belongs(member):
                    raise IndexerError(f"{name} is no backup: an index has no file {member.name!r}")
                content = tar.extractfile(member)
                if content is not None:
                    files[member.name] = _save(content, unpacked / member.name, member.mode)
                tar.members.clear()  # type: ignore[attr-defined]
    except (tarfile.TarError, EOFError, zlib.error, LZMAError) as error:
        raise IndexerError(f"{name} is no backup, or is truncated: {error}") from error
    return files


def _belongs(member: tarfile.TarInfo) -> bool:
    """Whether a member is a plain file with a path below the folder."""
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


def _check(unpacked: Path, files: Unpacked, name: str) -> None:
    """Check that all files are complete and unchanged."""
    if not {SUMS, *LAST} <= files.keys():
        raise IndexerError(f"{name} is truncated: the end of the backup is missing")
    lines = (unpacked / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    expected = {line[66:]: line[:64] for line in lines}
    for file in sorted(expected.keys() | files.keys() - {SUMS}):
        if file not in files or files[file][0] != expected.get(file):
            raise IndexerError(f"{name} is damaged: {file!r} differs from the file that was backed up")
    (unpacked / SUMS).unlink()


def _publish(unpacked: Path, into: Path) -> None:
    for folder, _, _ in os.walk(unpacked):
        sync_folder(Path(folder))
    for log in unpacked.glob(f"{FILE}-*"):  # empty; SQLite made them when the catalogue was opened
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
    """Yield a folder to unpack to, which is deleted if the restore fails."""
    with os_errors_explained(into):
        if into.exists() and not (into.is_dir() and _is_free(into)):
            raise IndexerError(f"{into} is not empty: choose a new folder, or move its contents away")
        made = not into.exists()
        into.mkdir(parents=True, exist_ok=True)
        with write_lock(into):
            unpacked = into / UNPACKED
            shutil.rmtree(unpacked, ignore_errors=True)  # left by a killed run
            unpacked.mkdir()
            try:
                yield unpacked
            except BaseException:
                shutil.rmtree(into if made else unpacked, ignore_errors=True)
                raise
            unpacked.rmdir()


def _is_free(folder: Path) -> bool:
    return all(entry.name in (*LOCK_FILES, UNPACKED) for entry in folder.iterdir())
