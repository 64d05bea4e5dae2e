"""Snapshots: what a search needs, made from the shards and the catalogue, published by a rename."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from indexer.answers import Photo
from indexer.calibration import VERSION, Calibration
from indexer.catalogue import Catalogue
from indexer.errors import FormatTooNew, IndexerError, ModelMismatch
from indexer.files import replace_file, replace_text, sha256_of, sync_folder
from indexer.layout import Layout, generation_of
from indexer.options import PlaceOptions
from indexer.places import AssignedPlace, PlacePhoto, assign_places
from indexer.self_queries import Collection, calibrate
from indexer.shards import Floats, read_slots
from indexer.stored import ROOT, Slot
from indexer.stores.faiss import FACTORY, FaissStore, Ids
from indexer.verification import OwnPhotos
from indexer.whereabouts import PlaceRule, frame_ranks

FORMAT = 1
NEARLY_THE_SAME = 0.05
"""Share of photos that may come or go before what is known of answers is found out anew."""

Live = tuple[int, str, Slot]  # a descriptor's id, its photo, and where its bytes are

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
    places_by: str
    """How photos became places: see `PlaceOptions.describe`."""
    factory: str
    recall: float
    """Of the search against exact search: 1.0, since this factory is exact."""
    calibration: dict[str, Any] | None
    """How sure answers are, as `indexer.calibration.Calibration` writes it; None from versions without."""
    content: str
    """Digest of what the snapshot was made from, to see whether another is due."""
    index_bytes: int
    index_sha256: str
    created_at: str
    format: int = FORMAT


def publish(
    layout: Layout,
    catalogue: Catalogue,
    generation: int,
    model: str,
    dim: int,
    options: PlaceOptions,
    settle: Callable[[], object] | None = None,
) -> Manifest:
    """Make the catalogue's descriptors of a generation searchable; does nothing when they are already.

    Photos may be POSTed and deleted meanwhile: readers find that beside the snapshot.

    Args:
        settle: embeds what is pending; called before a new generation takes over from one that photos were
            POSTed to meanwhile.

    Raises:
        IndexerError: there is no descriptor, or the disk cannot be written.
        FormatTooNew: a newer version wrote its snapshot.
    """
    live = catalogue.live_descriptors(generation)
    content = _content(catalogue, generation, options, live)
    previous = layout.last_finished()
    last = _manifest(layout, previous) if previous else None
    calibrated = last is not None and (last.calibration or {}).get("version") == VERSION
    if last is not None and last.content == content and calibrated and _is_sound(layout, last):
        layout.set_current(last.snapshot)  # which may have been damaged
        return last
    if not live:
        raise IndexerError(f"no photo would be left in {layout.folder}: nothing was published")
    made_at = catalogue.last_change()
    assigned = _assign(catalogue, options, last)
    name = layout.next_snapshot(generation)
    folder = layout.snapshot(name)
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.faiss"
    store = FaissStore.build(dim, _blocks(layout, generation, dim, live))
    replace_file(index, store.save)
    manifest = Manifest(
        snapshot=name,
        model=model,
        dim=dim,
        count=len(live),
        photos=len({photo for _, photo, _ in live}),
        places=len(assigned),
        places_by=options.describe(),
        factory=FACTORY,
        recall=1.0,
        calibration=_calibration(
            layout, catalogue, generation, last, store, live, assigned, options
        ).to_json(),
        content=content,
        index_bytes=index.stat().st_size,
        index_sha256=sha256_of(index),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    catalogue.replace_places(assigned, made_at)
    replace_text(layout.manifest(name), json.dumps(dataclasses.asdict(manifest), indent=1))
    sync_folder(folder.parent)
    _take_over(layout, catalogue, name, settle)
    # Readers that opened the last one may still be at it; what is older goes.
    catalogue.drop_generations(layout.drop_old({name, previous or name}))
    return manifest


def _take_over(layout: Layout, catalogue: Catalogue, name: str, settle: Callable[[], object] | None) -> None:
    """Let a snapshot answer, once every photo has a descriptor of its generation.

    The transaction holds off POSTs, which look in one of their own for the generation that answers.
    """
    while True:
        with catalogue.transaction():
            if settle is None or not catalogue.pending(generation_of(name)):
                layout.set_current(name)
                return
        settle()


def _assign(catalogue: Catalogue, options: PlaceOptions, last: Manifest | None) -> list[AssignedPlace]:
    # Places last from snapshot to snapshot, but not from one way of making them to another.
    remade = last is not None and last.places_by != options.describe()
    existing = [] if remade else catalogue.assigned_places()
    return assign_places(place_photos(catalogue), options.places, options.place_radius_m, existing)


def _calibration(
    layout: Layout,
    catalogue: Catalogue,
    generation: int,
    last: Manifest | None,
    store: FaissStore,
    live: Sequence[Live],
    assigned: Sequence[AssignedPlace],
    options: PlaceOptions,
) -> Calibration:
    """How sure answers are; as the last snapshot has it while the collection is nearly the same."""
    photos = len({photo for _, photo, _ in live})
    if (
        last is not None
        and last.places_by == options.describe()
        and generation_of(last.snapshot) == generation
    ):
        before = Calibration.from_json(last.calibration)
        # What could not be calibrated is tried again: the next photo may be the one that was missing.
        if before and before.model and abs(photos - before.of) <= NEARLY_THE_SAME * before.of:
            return before
    rule = PlaceRule.of(options.places, options.place_radius_m)
    ranks = frame_ranks(place_photos(catalogue), rule.frames) if rule.frames else None
    places = {photo: place.id for place in assigned for photo in place.members}
    known = {photo.id: photo for photo in catalogue.photos()}
    # What was deleted since the descriptors were listed stays in the store, and is asked nothing.
    collection = Collection.of(store, known, [photo for _, photo, _ in live], places, rule, ranks)
    return replace(calibrate(collection, _verifier(layout, generation, live)), of=photos)


def _verifier(layout: Layout, generation: int, live: Sequence[Live]) -> OwnPhotos | None:
    """What verifies the answers to an index's own photos; None where it keeps no local features."""
    folder = layout.local(generation)
    if not folder.is_dir():
        return None
    slots: dict[str, list[Slot]] = {}
    for _, photo, slot in live:
        slots.setdefault(photo, []).append(slot)
    return OwnPhotos(folder, slots)


def read_manifest(layout: Layout, name: str) -> Manifest:
    """Read a snapshot's manifest.

    Raises:
        IndexerError: it is missing or damaged.
        FormatTooNew: a newer version wrote it.
    """
    path = layout.manifest(name)
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
    return FaissStore.build(dim, _blocks(layout, generation, dim, catalogue.live_descriptors(generation)))


def _blocks(layout: Layout, generation: int, dim: int, live: Sequence[Live]) -> Iterator[tuple[Ids, Floats]]:
    ids = np.array([number for number, _, _ in live], np.int64)
    start = 0
    for block in read_slots(layout.shards(generation), [slot for _, _, slot in live], dim, block=8192):
        yield ids[start : start + len(block)], block
        start += len(block)


def _content(catalogue: Catalogue, generation: int, options: PlaceOptions, live: Sequence[Live]) -> str:
    digest = hashlib.sha256(f"{generation} {options.describe()}".encode())
    for number, photo, _ in live:
        digest.update(f"{number} {photo}\n".encode())
    for place_photo in place_photos(catalogue):
        digest.update(repr(place_photo).encode())
    return digest.hexdigest()


def place_photos(catalogue: Catalogue) -> list[PlacePhoto]:
    """What decides photos' places.

    In full paths, so that two folders of one name stay two; POSTed ones lie with those of their place.
    """
    paths: dict[str, str] = {}
    for root, relative, photo in catalogue.paths():
        if root != ROOT:
            paths.setdefault(photo, str(Path(root) / relative))
    return [
        PlacePhoto(photo.id, paths.get(photo.id) or _posted_path(photo), photo.lat, photo.lon, photo.place)
        for photo in catalogue.photos()
    ]


def _posted_path(photo: Photo) -> str:
    return f"{ROOT}/{photo.place or photo.id}/{PurePosixPath(photo.path).name}"


def check_model(layout: Layout, generation: int, fingerprint: str) -> None:
    """Refuse another model than the one that made a generation's descriptors.

    Raises:
        ModelMismatch: `fingerprint` is not its.
    """
    name = layout.last_finished()
    if name is None or generation_of(name) != generation:
        return
    manifest = _manifest(layout, name)
    if manifest is not None and manifest.model != fingerprint:
        raise other_model(manifest, fingerprint)


def other_model(manifest: Manifest, fingerprint: str) -> ModelMismatch:
    """The error for a model file that is not the one a snapshot was made by."""
    return ModelMismatch(
        f"the snapshot {manifest.snapshot} was made by the model {manifest.model}, but the model file is "
        f"{fingerprint}: put its own back, or run 'loci index' with --refit"
    )


def _manifest(layout: Layout, name: str) -> Manifest | None:
    """A snapshot's manifest; None where it is damaged, since it is made anew then."""
    try:
        return read_manifest(layout, name)
    except FormatTooNew:
        raise
    except IndexerError:
        return None


def _is_sound(layout: Layout, manifest: Manifest) -> bool:
    """Whether every byte of a snapshot is as it was written."""
    try:
        return sha256_of(layout.snapshot(manifest.snapshot) / "index.faiss") == manifest.index_sha256
    except OSError:
        return False
