"""Mapping of arrays: by several threads, and of other files."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from indexer.errors import IndexerError
from indexer.storage.files import map_array

ROW = np.dtype([("size", "<u2", (2,)), ("codes", "<f2", (8, 64)), ("positions", "<f4", (8, 2))])


class Finalised:
    """A reference cycle with a finaliser, so that threads switch during allocations."""

    def __init__(self) -> None:
        self.own = self

    def __del__(self) -> None:
        sum(range(50))


@pytest.fixture
def restless() -> Iterator[None]:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*thresholds)


@pytest.mark.usefixtures("restless")
def test_threads_map_arrays_concurrently(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    np.save(path, np.zeros(4, ROW))

    def work(_: int) -> set[object]:
        seen: set[object] = set()
        for _ in range(150):
            Finalised()
            seen.add(map_array(path, "rows").dtype)
        return seen

    with ThreadPoolExecutor(6) as pool:
        assert set.union(*pool.map(work, range(6))) == {ROW}


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array", b"PK\x03\x04"])
def test_other_files_are_no_arrays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.npy"
    path.write_bytes(content)
    with pytest.raises(IndexerError, match=r"rows .*rows\.npy cannot be read: "):
        map_array(path, "rows")
