"""What a snapshot is searched by: made of a generation's descriptors, kept beside its manifest, opened."""

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
from indexer.storage.files import replace_file, sha256_of
from indexer.storage.layout import COLUMNS
from indexer.storage.rows import Slot
from indexer.storage.shards import read_slots

INDEX = "index.faiss"
ROWS = "rows.npy"
"""Where the descriptors lie; only of an index that does not hold them itself."""

Live = tuple[int, str, Slot]  # a descriptor's id, its photo, and where its bytes are

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreFiles:
    """A snapshot's files, as its manifest says them."""

    index_bytes: int
    index_sha256: str
    rows_sha256: str
    """Of the table of rows, where there is one."""
    columns_sha256: str
    """Of the columns for filters."""

    @classmethod
    def of(cls, folder: Path) -> StoreFiles:
        """The files that are there."""
        index = folder / INDEX
        digests = [
            sha256_of(path) if path.exists() else "" for path in (index, folder / ROWS, folder / COLUMNS)
        ]
        return cls(index.stat().st_size if index.exists() else 0, *digests)

    def is_there(self, folder: Path) -> bool:
        """Whether a folder has these files, by their sizes alone."""
        index, rows = folder / INDEX, folder / ROWS
        size = index.stat().st_size if index.is_file() else 0
        whole = size == self.index_bytes and rows.is_file() == bool(self.rows_sha256)
        return whole and (folder / COLUMNS).is_file()

    def problems(self, folder: Path) -> list[str]:
        """What is wrong with their bytes, a sentence for each file."""
        found = []
        named = ((INDEX, self.index_sha256), (ROWS, self.rows_sha256), (COLUMNS, self.columns_sha256))
        for name, expected in named:
            path = folder / name
            if expected and not path.is_file():
                found.append(f"{path} is missing: 'loci index' makes it again")
            elif expected and sha256_of(path) != expected:
                found.append(f"{path} is damaged: 'loci index' makes it again")
        return found


@dataclass(frozen=True)
class StoreKind:
    """A store's kind, as its snapshot's manifest says it."""

    factory: str
    """FAISS's description of the index, or SHARDS: there is none."""
    recall: float
    """Share of the ten nearest that a search for ten finds, measured."""
    probes: int
    """Lists of an inverted file that are looked into, or nodes of a graph; 0 where there are none."""
    depth: int
    """Descriptors that are compared for each that is asked for; 0 where all are."""


def make_store(
    folder: Path, shards: Path, dim: int, live: Sequence[Live], options: SearchOptions
) -> tuple[Store, StoreKind]:
    """A store of descriptors, saved in a snapshot's folder.

    Raises:
        UsageError: it cannot be had in the memory that `options` allow.
        IndexerError: a shard cannot be read, or the disk not be written.
    """
    choice = choose(len(live), dim, options.memory_bytes(), options.recall, hnsw=options.hnsw)
    if not choice.compressed:
        store = ExactStore.build(dim, _blocks(shards, dim, live))
        replace_file(folder / INDEX, store.save)
        return store, StoreKind(FLAT, 1.0, 0, 0)
    rows = _rows(shards, dim, live)
    rows.open()
    replace_file(folder / ROWS, rows.save)
    return _compressed(folder, rows, choice, options.recall)


def _compressed(folder: Path, rows: Rows, choice: StoreChoice, recall: float) -> tuple[Store, StoreKind]:
    if choice.factory == SHARDS:
        return CompressedStore(rows), StoreKind(SHARDS, 1.0, 0, 0)
    built = CompressedStore.build(rows, choice.factory)
    setting, reached = tune(built, recall)
    built.completed()
    replace_file(folder / INDEX, built.save)
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
    """A snapshot's store, mapped where it can be.

    What is missing or damaged is done without: then all descriptors are compared, in memory where they
    had been, else in the shards.

    Args:
        size: bytes of the FAISS file.
        live: lists the generation's descriptors.
        damaged: called where something is missing or damaged.
    """
    try:
        found = (folder / INDEX).stat().st_size if size else 0
        if found != size:
            raise IndexerError(f"{folder / INDEX} has {found} bytes, not {size}")
        store = _opened(folder, shards, dim, kind)
        if (store.count, store.dim) != (count, dim):
            raise IndexerError(f"{folder / INDEX} holds other descriptors than its manifest says")
        return store
    except (OSError, IndexerError) as error:
        log.warning("%s; searching what the shards hold instead", error)
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
    """The shards that a snapshot's folder reads descriptors from; none where it holds them itself."""
    path = snapshot / ROWS
    try:
        return set(Rows.load(path, snapshot, 0, opened=False).shards) if path.exists() else set()
    except IndexerError:  # damaged: it is not read
        return set()


def _rows(shards: Path, dim: int, live: Sequence[Live]) -> Rows:
    return Rows.of(shards, dim, [number for number, *_ in live], [slot for *_, slot in live])


def _blocks(shards: Path, dim: int, live: Sequence[Live]) -> Iterator[tuple[Ids, Floats]]:
    ids = np.array([number for number, *_ in live], np.int64)
    start = 0
    for block in read_slots(shards, [slot for *_, slot in live], dim, block=8192):
        yield ids[start : start + len(block)], block
        start += len(block)
