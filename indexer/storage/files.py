"""Atomic writing of files; reading of arrays; digests."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError

NPY_HEADERS = threading.Lock()
"""Lock for reading headers of .npy files. NumPy parses them with `ast`, which on Python 3.11 may fail if two
threads do so at the same time ("AST constructor recursion depth mismatch", CPython issue 106905)."""


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, sync it, and rename it into place."""
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """`replace_file` with a text."""
    replace_file(path, lambda partial: _write_text(partial, text))


def save_array(path: Path, array: NDArray[np.floating]) -> None:
    """Write a .npy array atomically."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    replace_file(path, write)


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
    """Make renames in a folder last (no-op where folders cannot be synced)."""
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


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
