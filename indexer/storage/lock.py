"""Locks on an index: one for a run, one for a backup, during which nothing is deleted."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from indexer.errors import IndexLocked

FILES = ("LOCK", "LOCK.holder")
BACKUP_FILES = ("BACKUP", "BACKUP.holder")
PATIENCE_S = 5  # `is_backed_up` holds the backup's lock for a moment

log = logging.getLogger(__name__)


@contextmanager
def write_lock(folder: Path, what: str = "index") -> Iterator[None]:
    """Hold a folder for writing. The system releases the lock when the process ends.

    Args:
        what: contents of the folder, for the error.

    Raises:
        IndexLocked: another run holds the lock.
    """
    with _held(folder, FILES, f"the {what} {folder} is being written by", 0):
        yield


@contextmanager
def backup_lock(folder: Path) -> Iterator[None]:
    """Keep all files of an index that its catalogue mentions now. Runs, POSTs and DELETEs continue.

    Raises:
        IndexLocked: another backup holds the lock.
    """
    with _held(folder, BACKUP_FILES, f"the index {folder} is being backed up by", PATIENCE_S):
        yield


def is_backed_up(folder: Path) -> bool:
    """Whether a backup is reading the index, so that no file may be deleted.

    Call it after the files were removed from the catalogue: a backup that starts later does not need them.
    """
    if not (folder / BACKUP_FILES[0]).exists():
        return False
    try:
        with FileLock(folder / BACKUP_FILES[0]).acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError as error:
        log.warning("nothing is deleted in %s, as a backup may be reading it: %s", folder, error.strerror)
        return True


@contextmanager
def _held(folder: Path, files: tuple[str, str], refusal: str, patience_s: float) -> Iterator[None]:
    lock, holder = FileLock(folder / files[0]), folder / files[1]
    try:
        lock.acquire(timeout=patience_s)
    except Timeout:
        raise IndexLocked(f"{refusal} {_name(holder)}: wait until it is done") from None
    try:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {now}\n", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _name(holder: Path) -> str:
    try:
        return holder.read_text(encoding="utf-8", errors="replace").strip() or "another run"
    except FileNotFoundError:  # the holder has only just started or ended
        return "another run"
