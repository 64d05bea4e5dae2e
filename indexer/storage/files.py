"""Atomic writing of files; reading of arrays; digests."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError

PARTIAL = ".partial"
"""Ending of the names of files that are not complete yet."""
NPY_HEADERS = threading.Lock()
"""Lock for reading headers of .npy files. NumPy parses them with `ast`, which on Python 3.11 may fail if two
threads do so at the same time ("AST constructor recursion depth mismatch", CPython issue 106905)."""


@contextmanager
def atomic_write(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Yield a temporary path to write to; then sync the file and rename it to `path`.

    If an exception is raised, the temporary file is deleted and `path` stays as it was.

    Args:
        mode: permissions of the file; None: the usual ones.
    """
    partial = path.with_name(f"{path.name}{PARTIAL}")
    try:
        if mode is not None:
            os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode))
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_array(path: Path, array: NDArray[np.floating]) -> None:
    """Write a .npy array atomically."""
    with atomic_write(path) as partial, partial.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def map_array(path: Path, what: str) -> np.memmap[Any, np.dtype[Any]]:
    """Map a .npy file read-only. Safe for several threads.

    Args:
        what: contents of the file, for the error.

    Raises:
        IndexerError: the file is missing or damaged.
    """
    try:
        with NPY_HEADERS:
            return np.lib.format.open_memmap(path, "r")
    except (OSError, ValueError) as error:
        raise IndexerError(f"{what} {path} cannot be read: {error}") from error


def sync_folder(folder: Path) -> None:
    """Write renames in a folder to disk; does nothing if folders cannot be synced."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some network file systems refuse; the rename itself stays atomic
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
