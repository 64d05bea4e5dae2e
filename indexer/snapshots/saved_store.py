"""Stores of descriptors in a snapshot's folder: making, checking and opening them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer.errors import IndexerError
from indexer.options import SearchOptions
from indexer.snapshots.choice import SHARDS, StoreChoice, choose
from indexer.snapshots.compressed import CompressedStore, Setting
from indexer.snapshots.exact import FLAT, ExactStore
from indexer.snapshots.shard_rows import Rows
from indexer.snapshots.store import Floats, Ids, Store
from indexer.snapshots.tuning import tune
from indexer.storage.files import atomic_write, sha256_of
from indexer.storage.layout import COLUMNS
from indexer.storage.rows import Slot
from indexer.storage.shards import read_slots

INDEX = "index.faiss"
ROWS = "rows.npy"
"""Table of the descriptors' slots, for a store that does not contain the descriptors."""

Live = tuple[int, str, Slot]  # id, photo and slot of a searched descriptor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreFiles:
    """Size and digests of a snapshot's files, as in the manifest."""

    index_bytes: int
    index_sha256: str
    rows_sha256: str
    """Digest of the table of slots; empty if there is none."""
    columns_sha256: str
    """Digest of the columns for filters."""

    @classmethod
    def of(cls, folder: Path) -> StoreFiles:
        """Measure the files in a folder."""
        index = folder / INDEX
        digests = [
            sha256_of(path) if path.exists() else "" for path in (index, folder / ROWS, folder / COLUMNS)
        ]
        return cls(index.stat().st_size if index.exists() else 0, *digests)

    def is_there(self, folder: Path) -> bool:
        """Whether a folder has these files. Their bytes are not read."""
        index, rows = folder / INDEX, folder / ROWS
        size = index.stat().st_size if index.is_file() else 0
        complete = size == self.index_bytes and rows.is_file() == bool(self.rows_sha256)
        return complete and (folder / COLUMNS).is_file()

    def problems(self, folder: Path) -> list[str]:
        """Read the files and return their problems, one sentence for each file."""
        problems = []
        expected_digests = (
            (INDEX, self.index_sha256),
            (ROWS, self.rows_sha256),
            (COLUMNS, self.columns_sha256),
        )
        for name, expected in expected_digests:
            path = folder / name
            if expected and not path.is_file():
                problems.append(f"{path} is missing: 'loci index' makes it again")
            elif expected and sha256_of(path) != expected:
                problems.append(f"{path} is damaged: 'loci index' makes it again")
        return problems


@dataclass(frozen=True)
class StoreKind:
    """Kind of a store, as in the manifest."""

    factory: str
    """FAISS's description of the index, or SHARDS if there is none."""
    recall: float
    """Measured share of the ten nearest descriptors that a search for ten finds."""
    probes: int
    """Inverted lists that a search reads, or candidates that HNSW keeps; 0 for an exact search."""
    depth: int
    """Descriptors that are compared for each requested answer; 0 for an exact search."""


def make_store(
    folder: Path, shards: Path, dim: int, live: Sequence[Live], options: SearchOptions
) -> tuple[Store, StoreKind]:
    """Make a store of descriptors, and save it in a snapshot's folder.

    Raises:
        UsageError: the descriptors do not fit the memory that `options` allow.
        IndexerError: a shard cannot be read, or the disk cannot be written.
    """
    choice = choose(len(live), dim, options.memory_bytes(), options.recall, hnsw=options.hnsw)
    if not choice.compressed:
        store = ExactStore.build(dim, _blocks(shards, dim, live))
        with atomic_write(folder / INDEX) as partial:
            store.save(partial)
        return store, StoreKind(FLAT, 1.0, 0, 0)
    rows = _rows(shards, dim, live)
    rows.open()
    with atomic_write(folder / ROWS) as partial:
        rows.save(partial)
    return _compressed(folder, rows, choice, options.recall)


def _compressed(folder: Path, rows: Rows, choice: StoreChoice, recall: float) -> tuple[Store, StoreKind]:
    if choice.factory == SHARDS:
        return CompressedStore(rows), StoreKind(SHARDS, 1.0, 0, 0)
    built = CompressedStore.build(rows, choice.factory)
    setting, reached = tune(built, recall)
    built.completed()
    with atomic_write(folder / INDEX) as partial:
        built.save(partial)
    return built.tuned(setting), StoreKind(choice.factory, round(reached, 4), setting.probes, setting.depth)


def open_store(
    folder: Path,
    shards: Path,
    dim: int,
    count: int,
    size: int,
    kind: StoreKind,
    live: Callable[[], Sequence[Live]],
    damaged: Callable[[], object],
) -> Store:
    """Open a snapshot's store.

    If a file is missing or damaged, all descriptors are compared instead: in memory for an exact store,
    otherwise in the shards.

    Args:
        size: expected bytes of the FAISS file.
        live: lists the searched descriptors of the generation.
        damaged: called if a file is missing or damaged.
    """
    try:
        actual = (folder / INDEX).stat().st_size if size else 0
        if actual != size:
            raise IndexerError(f"{folder / INDEX} has {actual} bytes, not {size}")
        store = _opened(folder, shards, dim, kind)
        if (store.count, store.dim) != (count, dim):
            raise IndexerError(f"{folder / INDEX} contains other descriptors than its manifest says")
        return store
    except (OSError, IndexerError) as error:
        log.warning("%s; searching the shards instead", error)
        damaged()
    if kind.factory == FLAT:
        return ExactStore.build(dim, _blocks(shards, dim, live()))
    return CompressedStore(_rows(shards, dim, live()))


def _opened(folder: Path, shards: Path, dim: int, kind: StoreKind) -> Store:
    if kind.factory == FLAT:
        return ExactStore.load(folder / INDEX)
    rows = Rows.load(folder / ROWS, shards, dim)
    if kind.factory == SHARDS:
        return CompressedStore(rows)
    return CompressedStore.load(folder / INDEX, rows, Setting(kind.probes, kind.depth))


def shards_named(snapshot: Path) -> set[int]:
    """Return the shards that a snapshot reads descriptors from; none if it contains the descriptors."""
    path = snapshot / ROWS
    try:
        return set(Rows.load(path, snapshot, 0, opened=False).shards) if path.exists() else set()
    except IndexerError:  # damaged, so it is not used
        return set()


def _rows(shards: Path, dim: int, live: Sequence[Live]) -> Rows:
    return Rows.of(shards, dim, [number for number, *_ in live], [slot for *_, slot in live])


def _blocks(shards: Path, dim: int, live: Sequence[Live]) -> Iterator[tuple[Ids, Floats]]:
    ids = np.array([number for number, *_ in live], np.int64)
    start = 0
    for block in read_slots(shards, [slot for *_, slot in live], dim, block=8192):
        yield ids[start : start + len(block)], block
        start += len(block)
