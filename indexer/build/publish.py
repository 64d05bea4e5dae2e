"""Snapshots: what a search needs, made from the shards and the catalogue, published by a rename."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from indexer.confidence.calibration import VERSION, Calibration
from indexer.confidence.self_queries import Collection, calibrate
from indexer.errors import IndexerError
from indexer.options import PlaceOptions, SearchOptions
from indexer.places.assign import AssignedPlace, PlacePhoto, assign_places
from indexer.places.neighbourhood import PlaceRule, frame_ranks
from indexer.search.filter_columns import save_columns
from indexer.search.verification import OwnPhotos
from indexer.snapshots.manifest import Manifest, whole_manifest
from indexer.snapshots.saved_store import Live, Saved, make_store
from indexer.snapshots.store import Store
from indexer.storage.catalogue import Catalogue
from indexer.storage.files import replace_file, replace_text, sync_folder
from indexer.storage.layout import COLUMNS, Layout, generation_of
from indexer.storage.rows import Slot

NEARLY_THE_SAME = 0.05
"""Share of photos that may come or go before what is known of answers is found out anew."""


def publish(
    layout: Layout,
    catalogue: Catalogue,
    generation: int,
    model: str,
    dim: int,
    options: PlaceOptions,
    settle: Callable[[], object] | None = None,
    search: SearchOptions | None = None,
) -> Manifest:
    """Make the catalogue's descriptors of a generation searchable; does nothing when they are already.

    Photos may be POSTed and deleted meanwhile: readers find that beside the snapshot.

    Args:
        settle: embeds what is pending; called before a new generation takes over from one that photos were
            POSTed to meanwhile.
        search: what is asked of the search.

    Raises:
        UsageError: it cannot be had.
        IndexerError: there is no descriptor, or the disk cannot be written.
        FormatTooNew: a newer version wrote its snapshot.
    """
    search = search or SearchOptions()
    made_at = catalogue.last_change()
    live = catalogue.live_descriptors(generation)
    photos = catalogue.place_photos()
    content = _content(generation, options, live, photos)
    previous = layout.last_finished()
    last = whole_manifest(layout, previous) if previous else None
    calibrated = last is not None and last.calibration.get("version") == VERSION
    same = last is not None and (last.content, last.search_by) == (content, search.describe())
    if last is not None and same and calibrated and not last.saved.problems(layout.snapshot(last.snapshot)):
        layout.set_current(last.snapshot)  # which may have been damaged
        return last
    if not live:
        raise IndexerError(f"no photo would be left in {layout.folder}: nothing was published")
    assigned = _assign(catalogue, photos, options, last)
    name = layout.next_snapshot(generation)
    folder = layout.snapshot(name)
    folder.mkdir(parents=True, exist_ok=True)
    store, described = make_store(folder, layout.shards(generation), dim, live, search)
    calibration = _calibration(layout, catalogue, generation, last, store, live, assigned, options)
    change = catalogue.replace_places(assigned, made_at)
    replace_file(folder / COLUMNS, partial(save_columns, catalogue, generation))
    manifest = Manifest(
        snapshot=name,
        model=model,
        dim=dim,
        count=len(live),
        photos=len({photo for _, photo, _ in live}),
        places=len(assigned),
        places_by=options.describe(),
        **dataclasses.asdict(described),
        calibration=calibration.to_json(),
        content=content,
        **dataclasses.asdict(Saved.of(folder)),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        change=change,
        search_by=search.describe(),
    )
    replace_text(layout.manifest(name), json.dumps(dataclasses.asdict(manifest), indent=1))
    sync_folder(folder.parent)
    _take_over(layout, catalogue, name, settle)
    # Readers that opened the last one may still be at it; what is older goes.
    catalogue.drop_generations(layout.drop_old({name, previous or name}))
    return manifest


def published(
    layout: Layout,
    catalogue: Catalogue,
    generation: int,
    model: str,
    options: PlaceOptions,
    search: SearchOptions,
) -> Manifest | None:
    """The manifest of the snapshot that takes in all there is; None where one may have to be made.

    Nothing is read but what says so. Of the snapshot's files that is their sizes: who opens one that is
    damaged, or checks it, notes that it is to be made again.
    """
    name = layout.last_finished()
    last = whole_manifest(layout, name) if name and generation_of(name) == generation else None
    if last is None or layout.unpublished or last.change != catalogue.last_change():
        return None
    made_by = (last.model, last.places_by, last.search_by, last.calibration.get("version"))
    if made_by != (model, options.describe(), search.describe(), VERSION):
        return None
    if last.photos != catalogue.count() or not last.saved.is_there(layout.snapshot(last.snapshot)):
        return None
    layout.set_current(last.snapshot)
    return last


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


def _assign(
    catalogue: Catalogue, photos: Sequence[PlacePhoto], options: PlaceOptions, last: Manifest | None
) -> list[AssignedPlace]:
    # Places last from snapshot to snapshot, but not from one way of making them to another.
    remade = last is not None and last.places_by != options.describe()
    existing = [] if remade else catalogue.assigned_places()
    return assign_places(photos, options.places, options.place_radius_m, existing)


def _calibration(
    layout: Layout,
    catalogue: Catalogue,
    generation: int,
    last: Manifest | None,
    store: Store,
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
    ranks = frame_ranks(catalogue.place_photos(), rule.frames) if rule.frames else None
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


def _content(
    generation: int, options: PlaceOptions, live: Sequence[Live], photos: Sequence[PlacePhoto]
) -> str:
    digest = hashlib.sha256(f"{generation} {options.describe()}".encode())
    for number, photo, _ in live:
        digest.update(f"{number} {photo}\n".encode())
    for place_photo in photos:
        digest.update(repr(place_photo).encode())
    return digest.hexdigest()
