"""Snapshots: what a search needs, made from the shards and the catalogue, published by a rename."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from indexer.catalogue import Catalogue
from indexer.errors import FormatTooNew, IndexerError
from indexer.files import replace_file, replace_text, sha256_of, sync_folder
from indexer.layout import Layout, generation_of
from indexer.options import PlaceOptions
from indexer.places import PlacePhoto, assign_places
from indexer.shards import Floats, read_slots
from indexer.stores.faiss import FACTORY, FaissStore, Ids

FORMAT = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Manifest:
    """What a snapshot is."""

    snapshot: str
    model: str
    """Fingerprint of the model that made the descriptors."""
    dim: int
    count: int
    """Descriptors; more than photos where panoramas were cut."""
    photos: int
    places: int
    factory: str
    recall: float
    """Of the search against exact search: 1.0, since this factory is exact."""
    calibration: dict[str, Any] | None
    """None: confidence is not calibrated by this version."""
    content: str
    """Digest of what the snapshot was made from, to see whether another is due."""
    index_bytes: int
    index_sha256: str
    created_at: str
    format: int = FORMAT


def publish(
    layout: Layout, catalogue: Catalogue, generation: int, model: str, dim: int, options: PlaceOptions
) -> Manifest:
    """Make the catalogue's descriptors of a generation searchable; does nothing when they are already.

    Raises:
        IndexerError: there is no descriptor, or the disk cannot be written.
    """
    content = _content(catalogue, generation, options)
    current = _current(layout, generation)
    if current is not None and current.content == content and current.model == model:
        return current
    live = catalogue.live_descriptors(generation)
    if not live:
        raise IndexerError(f"no photo would be left in {layout.folder}: nothing was published")
    assigned = assign_places(
        _place_photos(catalogue), options.places, options.place_radius_m, catalogue.assigned_places()
    )
    name = layout.next_snapshot(generation)
    folder = layout.snapshot(name)
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.faiss"
    replace_file(index, store_from_shards(layout, catalogue, generation, dim).save)
    manifest = Manifest(
        snapshot=name,
        model=model,
        dim=dim,
        count=len(live),
        photos=len({photo for _, photo, _ in live}),
        places=len(assigned),
        factory=FACTORY,
        recall=1.0,
        calibration=None,
        content=content,
        index_bytes=index.stat().st_size,
        index_sha256=sha256_of(index),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    replace_text(folder / "manifest.json", json.dumps(dataclasses.asdict(manifest), indent=1))
    sync_folder(folder.parent)
    catalogue.replace_places(assigned)
    layout.set_current(name)
    # Readers that opened the last one may still be at it; what is older goes.
    kept = layout.drop_old({name} | ({current.snapshot} if current else set()) | _previous(layout, name))
    catalogue.drop_generations(kept)
    return manifest


def read_manifest(layout: Layout, name: str) -> Manifest:
    """Read a snapshot's manifest.

    Raises:
        IndexerError: it is missing or damaged.
        FormatTooNew: a newer version wrote it.
    """
    path = layout.snapshot(name) / "manifest.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] > FORMAT:
            raise FormatTooNew(
                f"the snapshot {name} has format {values['format']}: a newer loci reads it, "
                f"this one up to {FORMAT}"
            )
        return Manifest(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexerError(
            f"{path} is damaged ({error}): run 'loci index PHOTOS --into {layout.folder}' again to rebuild it"
        ) from error


def open_store(layout: Layout, catalogue: Catalogue, manifest: Manifest) -> FaissStore:
    """A snapshot's store; a missing or damaged file is made again, in memory, from the shards."""
    path = layout.snapshot(manifest.snapshot) / "index.faiss"
    try:
        if path.stat().st_size != manifest.index_bytes:
            raise IndexerError(f"{path} has {path.stat().st_size} bytes, not {manifest.index_bytes}")
        store = FaissStore.load(path)
        if (store.count, store.dim) != (manifest.count, manifest.dim):
            raise IndexerError(f"{path} holds other descriptors than its manifest says")
        return store
    except (OSError, IndexerError) as error:
        log.warning("%s; searching what the shards hold instead", error)
        return store_from_shards(layout, catalogue, generation_of(manifest.snapshot), manifest.dim)


def store_from_shards(layout: Layout, catalogue: Catalogue, generation: int, dim: int) -> FaissStore:
    """A store of a generation's live descriptors."""
    return FaissStore.build(dim, _blocks(layout, catalogue, generation, dim))


def _blocks(layout: Layout, catalogue: Catalogue, generation: int, dim: int) -> Iterator[tuple[Ids, Floats]]:
    live = catalogue.live_descriptors(generation)
    ids = np.array([number for number, _, _ in live], np.int64)
    start = 0
    for block in read_slots(layout.shards(generation), [slot for _, _, slot in live], dim, block=8192):
        yield ids[start : start + len(block)], block
        start += len(block)


def _content(catalogue: Catalogue, generation: int, options: PlaceOptions) -> str:
    digest = hashlib.sha256(f"{generation} {options.places} {options.place_radius_m}".encode())
    for number, photo, _ in catalogue.live_descriptors(generation):
        digest.update(f"{number} {photo}\n".encode())
    for place_photo in _place_photos(catalogue):
        digest.update(repr(place_photo).encode())
    return digest.hexdigest()


def _place_photos(catalogue: Catalogue) -> list[PlacePhoto]:
    """In full paths, so that two folders of one name stay two."""
    paths: dict[str, str] = {}
    for root, relative, photo in catalogue.paths():
        paths.setdefault(photo, str(Path(root) / relative))
    return [
        PlacePhoto(photo.id, paths.get(photo.id, photo.path), photo.lat, photo.lon, photo.place)
        for photo in catalogue.photos()
    ]


def _current(layout: Layout, generation: int) -> Manifest | None:
    name = layout.current_or_none()
    if name is None or generation_of(name) != generation:
        return None
    path = layout.snapshot(name) / "index.faiss"
    try:
        manifest = read_manifest(layout, name)
        whole = path.is_file() and path.stat().st_size == manifest.index_bytes
    except IndexerError:
        return None
    return manifest if whole else None


def _previous(layout: Layout, name: str) -> set[str]:
    """The last snapshot of the generation before, kept for one more round after a refit."""
    before = generation_of(name) - 1
    if before < 1 or not name.endswith("/000001"):
        return set()
    last = layout.next_snapshot(before).partition("/")[2]
    return {f"{before:02}/{int(last) - 1:06}"}
