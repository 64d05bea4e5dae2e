"""One whole-folder run at a time: a second one is told who holds the index."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from indexer.errors import IndexLocked

FILES = ("LOCK", "LOCK.holder")


@contextmanager
def write_lock(folder: Path, what: str = "index") -> Iterator[None]:
    """Hold the index (or `what` it is) in `folder` for writing; the system lets go when the process ends.

    Raises:
        IndexLocked: another run holds it.
    """
    lock, holder = FileLock(folder / FILES[0]), folder / FILES[1]
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise IndexLocked(
            f"the {what} {folder} is being written by {_name(holder)}: wait until it is done"
        ) from None
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
    except FileNotFoundError:  # it is only just starting, or done this moment
        return "another run"
