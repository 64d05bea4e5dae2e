"""The folder that an indexing run writes to."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from indexer.errors import DiskFull, IndexerError
from indexer.storage.database import FILE
from indexer.storage.layout import Layout
from indexer.storage.lock import FILES as LOCK_FILES
from indexer.storage.lock import write_lock


@contextmanager
def writable_folder(into: Path) -> Iterator[None]:
    """Hold an index folder for writing. A new folder is created, and deleted again if the run fails early.

    Raises:
        IndexLocked: another run is writing to it.
        IndexerError: it is neither an index nor empty, or it cannot be written.
    """
    with os_errors_explained(into):
        if into.exists() and not (into.is_dir() and (is_index(into) or _is_blank(into))):
            raise IndexerError(f"{into} is neither an index nor an empty folder: use another folder")
        made = not into.exists()
        into.mkdir(parents=True, exist_ok=True)
        with write_lock(into):
            fresh = not is_index(into)
            try:
                yield
            except Exception:  # after an interruption, the photos read so far are kept
                if fresh and not Layout(into).newest_generation():
                    _delete_new(into, folder_too=made)
                raise


def _delete_new(into: Path, *, folder_too: bool) -> None:
    for file in into.glob(f"{FILE}*"):
        file.unlink(missing_ok=True)
    if folder_too:
        shutil.rmtree(into, ignore_errors=True)


@contextmanager
def os_errors_explained(folder: Path) -> Iterator[None]:
    """Turn an OSError into DiskFull or IndexerError, with one sentence."""
    try:
        yield
    except OSError as error:
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else IndexerError
        raise kind(f"cannot write to {folder}: {error.strerror or error}") from error


def is_index(folder: Path) -> bool:
    """Whether a folder contains an index, finished or not."""
    return (folder / FILE).is_file()


def _is_blank(folder: Path) -> bool:
    """Whether a folder is empty except for the lock files of a killed run."""
    return all(entry.name in LOCK_FILES for entry in folder.iterdir())
