"""Send a snapshot to Milvus as a collection, and keep the collection up to date.

The index's folder stays the truth. Collections are named after snapshots. A collection becomes current when
it is complete, and the previous one stays for those that opened it. The number of the last change in a
collection is written after the changes: if a run is killed in between, the next one sends them again.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from indexer.addresses import Address
from indexer.errors import IndexerError
from indexer.milvus.client import FLAT, GRAPH, INSERTED, UNSEALED, Milvus
from indexer.milvus.entities import Entity, entity
from indexer.places.neighbourhood import frame_ranks
from indexer.snapshots.compressed import CompressedStore, parted
from indexer.snapshots.manifest import Manifest, opened_store, read_manifest
from indexer.snapshots.shard_rows import Rows
from indexer.snapshots.store import sample_of
from indexer.snapshots.tuning import least_effort
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout, generation_of
from indexer.storage.local_shards import read_local
from indexer.storage.shards import read_slots

log = logging.getLogger(__name__)

COMPARED, BY_GRAPH = f"Milvus {FLAT}", f"Milvus {GRAPH}"
"""The name of a collection's HNSW index in its manifest."""


def send(layout: Layout, catalogue: Catalogue, manifest: Manifest, store: str, recall: float) -> None:
    """Make a snapshot current on Milvus; if it is already, send only the changes since.

    Args:
        recall: least recall of a search there.

    Raises:
        UsageError: the address is wrong, or pymilvus is not installed.
        IndexerError: the store cannot be reached, or refuses; the current collection stays.
    """
    milvus = Milvus(Address.parse(store))
    collection = collection_of(milvus, manifest)
    if milvus.current() != collection or not _is_of(milvus.said(f"{collection}/manifest"), manifest):
        _fill(milvus, layout, catalogue, manifest, collection, recall)
        before = milvus.current()
        milvus.point(collection)
        for other in milvus.collections():
            if other not in (collection, before):
                milvus.drop(other)
    follow(milvus, layout, catalogue)


def follow(milvus: Milvus, layout: Layout, catalogue: Catalogue) -> None:
    """Send the changes since the current collection was last updated.

    Raises:
        IndexerError: as in `send`.
    """
    manifest = read_manifest(layout, layout.current())
    collection = collection_of(milvus, manifest)
    if milvus.current() != collection:  # another run is sending
        return
    change = catalogue.last_change()
    sent = int(milvus.said(f"{collection}/change") or 0)
    if change <= sent:
        return
    rows = catalogue.searched_rows(generation_of(manifest.snapshot), sent)
    milvus.delete(collection, [row.id for row in rows if not row.live])
    for part in _entities(layout, catalogue, manifest, [row.id for row in rows if row.live]):
        milvus.put(collection, part)
    milvus.say(f"{collection}/change", str(change))
    if change // UNSEALED > sent // UNSEALED:
        milvus.seal(collection)


class Mirror:
    """Keeps the current collection up to date with an index to which photos are POSTed."""

    def __init__(self, layout: Layout, store: str) -> None:
        self._layout = layout
        self._address = Address.parse(store)
        self._milvus: Milvus | None = None

    def follow(self, catalogue: Catalogue) -> None:
        """Send changes; if the store cannot be reached, the next change or run sends them."""
        try:
            self._milvus = self._milvus or Milvus(self._address)
            follow(self._milvus, self._layout, catalogue)
        except IndexerError as error:
            self._milvus = None
            log.warning("%s; the next change, or run, sends it again", error)


def collection_of(milvus: Milvus, manifest: Manifest) -> str:
    """Return the name of a snapshot's collection."""
    return f"{milvus.address.name}_{manifest.snapshot.replace('/', '_')}"


def _is_of(words: str | None, manifest: Manifest) -> bool:
    """Whether a collection's stored manifest is this snapshot's."""
    if words is None:
        return False
    said = json.loads(words)
    own = dataclasses.asdict(manifest)
    search = {name: own[name] for name in ("factory", "recall", "probes", "depth")}  # on Milvus another
    return said["factory"] in (COMPARED, BY_GRAPH) and json.dumps(said | search) == json.dumps(own)


def _fill(
    milvus: Milvus, layout: Layout, catalogue: Catalogue, manifest: Manifest, collection: str, recall: float
) -> None:
    generation = generation_of(manifest.snapshot)
    change = catalogue.last_change()
    live = catalogue.live_descriptors(generation)
    numbers = [number for number, *_ in live]
    exact = milvus.is_exact(len(live), recall)
    first, last = parted(len(live))
    milvus.create(collection, manifest.dim, exact)
    for part in _entities(layout, catalogue, manifest, numbers if exact else [numbers[at] for at in first]):
        milvus.put(collection, part)
    sent = replace(manifest, factory=COMPARED, recall=1.0, probes=0, depth=0)
    if not exact:
        rows = Rows.of(layout.shards(generation), manifest.dim, numbers, [slot for *_, slot in live])
        effort, reached = _tuned(milvus, collection, rows, recall)
        sent = replace(sent, factory=BY_GRAPH, recall=round(reached, 4), probes=effort)
        for part in _entities(layout, catalogue, manifest, [numbers[at] for at in last]):
            milvus.put(collection, part)
    there = milvus.count(collection)
    if there < len(catalogue.live_ids(generation)) and there < len(numbers):
        raise IndexerError(
            f"only {there} of {len(numbers)} descriptors reached {milvus.address.uri}: run again"
        )
    milvus.say(f"{collection}/local", _local_format(layout, catalogue, generation, numbers[:1]))
    milvus.say(f"{collection}/sample", _sample(layout, catalogue, manifest))
    milvus.say(f"{collection}/ranks", json.dumps(_ranks(catalogue, manifest)))
    milvus.say(f"{collection}/change", str(change))
    milvus.say(f"{collection}/manifest", json.dumps(dataclasses.asdict(sent)))


def _tuned(milvus: Milvus, collection: str, rows: Rows, recall: float) -> tuple[int, float]:
    """Return the effort for HNSW without the held-out rows, and the recall it reaches."""
    milvus.settle(collection)
    effort, reached = least_effort(partial(milvus.nearest, collection), CompressedStore(rows), recall)
    if reached < recall:
        log.warning(
            "a search on %s finds %.1f %% of what an exact one finds, less than the %.1f %% wanted",
            *(milvus.address.uri, 100 * reached, 100 * recall),
        )
    return effort, reached


def _entities(
    layout: Layout, catalogue: Catalogue, manifest: Manifest, numbers: Sequence[int]
) -> Iterator[list[Entity]]:
    """Return descriptors as entities, in batches, without those removed meanwhile."""
    generation = generation_of(manifest.snapshot)
    for start in range(0, len(numbers), INSERTED):
        part = numbers[start : start + INSERTED]
        slots = catalogue.slots(generation, part)
        hits = catalogue.hits(part)
        places = [slot for _, slot in slots]
        blocks = list(read_slots(layout.shards(generation), places, manifest.dim))
        rows = np.concatenate(blocks) if blocks else np.empty((0, manifest.dim), np.float32)
        local = read_local(layout.local(generation), places)
        yield [
            entity(number, row, hits[number], None if packed is None else packed.tobytes())
            for (number, _), row, packed in zip(slots, rows, local, strict=True)
            if number in hits
        ]


def _local_format(layout: Layout, catalogue: Catalogue, generation: int, numbers: Sequence[int]) -> str:
    """Return the layout of packed local features, as NumPy describes it; empty if there are none."""
    slots = [slot for _, slot in catalogue.slots(generation, numbers)]
    packed = read_local(layout.local(generation), slots)
    return json.dumps(packed[0].dtype.descr) if packed and packed[0] is not None else ""


def _sample(layout: Layout, catalogue: Catalogue, manifest: Manifest) -> str:
    """Return the snapshot's sample of descriptors, which shows ordinary scores."""
    rows = sample_of(opened_store(layout, catalogue, manifest)).astype("<f2")
    return base64.b64encode(rows.tobytes()).decode()


def _ranks(catalogue: Catalogue, manifest: Manifest) -> dict[str, int]:
    """Return the photos' numbers in file order, if places are frames."""
    frames = manifest.calibration.get("frames")
    return frame_ranks(catalogue.place_photos(), int(frames)) if frames else {}
