"""Files of an index: atomic texts and arrays, mapped arrays, digests."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.errors import IndexerError
from model.files import PARTIAL, atomic_write, sync_folder

__all__ = ["PARTIAL", "atomic_write", "map_array", "replace_text", "save_array", "sha256_of", "sync_folder"]

NPY_HEADERS = threading.Lock()
"""Lock for reading headers of .npy files. NumPy parses them with `ast`, which on Python 3.11 may fail if two
threads do so at the same time ("AST constructor recursion depth mismatch", CPython issue 106905)."""


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


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
