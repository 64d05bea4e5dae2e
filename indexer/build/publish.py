"""Make a snapshot of the shards and the catalogue, and make it current."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from indexer.confidence.calibration import VERSION, Calibration
from indexer.confidence.self_queries import Collection, calibrate
from indexer.errors import IndexerError
from indexer.options import PlaceOptions, SearchOptions
from indexer.places.assign import AssignedPlace, PlacePhoto, assign_places
from indexer.places.neighbourhood import PlaceRule, frame_ranks
from indexer.search.filter_columns import save_columns
from indexer.search.verification import OwnPhotos
from indexer.snapshots.manifest import Manifest, whole_manifest
from indexer.snapshots.saved_store import Live, StoreFiles, make_store
from indexer.snapshots.store import Store
from indexer.storage.catalogue import Catalogue
from indexer.storage.files import atomic_write, replace_text, sync_folder
from indexer.storage.layout import COLUMNS, Layout, generation_of
from indexer.storage.rows import Slot

NEARLY_THE_SAME = 0.05
"""Share of photos that may come or go before answers are calibrated again."""


@dataclass(frozen=True)
class _State:
    """Contents of the catalogue for one generation, at one moment."""

    generation: int
    change: int
    """Number of the last change that is contained."""
    live: Sequence[Live]
    photos: Sequence[PlacePhoto]

    @classmethod
    def read(cls, catalogue: Catalogue, generation: int) -> _State:
        change = catalogue.last_change()
        return cls(generation, change, catalogue.live_descriptors(generation), catalogue.place_photos())

    def digest(self, options: PlaceOptions) -> str:
        """Return a digest of all that a snapshot is made from."""
        digest = hashlib.sha256(f"{self.generation} {options.describe()}".encode())
        for number, photo, _ in self.live:
            digest.update(f"{number} {photo}\n".encode())
        for place_photo in self.photos:
            digest.update(repr(place_photo).encode())
        return digest.hexdigest()

    def count(self) -> int:
        """Return how many photos have descriptors."""
        return len({photo for _, photo, _ in self.live})


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
    """Make a generation's descriptors searchable, unless the last snapshot already contains them.

    Photos may be POSTed and deleted meanwhile: readers find such changes in the catalogue.

    Args:
        model: fingerprint of the model that made the descriptors.
        dim: numbers in each descriptor.
        settle: embeds pending photos. It is called before a new generation becomes current, for photos that
            were POSTed to the previous one meanwhile.

    Raises:
        UsageError: the descriptors do not fit the memory that `search` allows.
        IndexerError: there is no descriptor, or the disk cannot be written.
        FormatTooNew: a newer version wrote the last snapshot.
    """
    search = search or SearchOptions()
    state = _State.read(catalogue, generation)
    previous = layout.last_finished()
    last = whole_manifest(layout, previous) if previous else None
    if last is not None and _made_already(layout, last, state.digest(options), search):
        layout.set_current(last.snapshot)  # CURRENT may be damaged
        return last
    if not state.live:
        raise IndexerError(f"no photo would be left in {layout.folder}: nothing was published")
    manifest = _make(layout, catalogue, state, last, model, dim, options, search)
    _take_over(layout, catalogue, manifest.snapshot, settle)
    # Readers may still use the previous snapshot. Older ones are deleted.
    catalogue.drop_generations(layout.drop_old({manifest.snapshot, previous or manifest.snapshot}))
    return manifest


def published(
    layout: Layout,
    catalogue: Catalogue,
    generation: int,
    model: str,
    options: PlaceOptions,
    search: SearchOptions,
) -> Manifest | None:
    """Return the manifest of the last snapshot if it is up to date; None if a new one may be needed.

    This is a quick check for runs without changes: of the snapshot's files only the sizes are read. A reader
    that finds a damaged file marks the index, so that the next run does not rely on this check.
    """
    name = layout.last_finished()
    last = whole_manifest(layout, name) if name and generation_of(name) == generation else None
    if last is None or layout.unpublished or last.change != catalogue.last_change():
        return None
    made_by = (last.model, last.places_by, last.search_by, last.calibration.get("version"))
    if made_by != (model, options.describe(), search.describe(), VERSION):
        return None
    if last.photos != catalogue.count() or not last.files.is_there(layout.snapshot(last.snapshot)):
        return None
    layout.set_current(last.snapshot)
    return last


def _made_already(layout: Layout, last: Manifest, content: str, search: SearchOptions) -> bool:
    """Whether the last snapshot has this content, was made by these options, and is undamaged."""
    made_from = (last.content, last.search_by, last.calibration.get("version"))
    if made_from != (content, search.describe(), VERSION):
        return False
    return not last.files.problems(layout.snapshot(last.snapshot))


def _make(
    layout: Layout,
    catalogue: Catalogue,
    state: _State,
    last: Manifest | None,
    model: str,
    dim: int,
    options: PlaceOptions,
    search: SearchOptions,
) -> Manifest:
    """Write the next snapshot. It is whole once its manifest, the last file, is there."""
    assigned = _assign(catalogue, state.photos, options, last)
    name = layout.next_snapshot(state.generation)
    folder = layout.snapshot(name)
    folder.mkdir(parents=True, exist_ok=True)
    store, kind = make_store(folder, layout.shards(state.generation), dim, state.live, search)
    calibration = _calibration(layout, catalogue, state, last, store, assigned, options)
    change = catalogue.replace_places(assigned, state.change)
    with atomic_write(folder / COLUMNS) as partial:
        save_columns(catalogue, state.generation, partial)
    manifest = Manifest(
        snapshot=name,
        model=model,
        dim=dim,
        count=len(state.live),
        photos=state.count(),
        places=len(assigned),
        places_by=options.describe(),
        **dataclasses.asdict(kind),
        calibration=calibration.to_json(),
        content=state.digest(options),
        **dataclasses.asdict(StoreFiles.of(folder)),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        change=change,
        search_by=search.describe(),
    )
    replace_text(layout.manifest(name), json.dumps(dataclasses.asdict(manifest), indent=1))
    sync_folder(folder.parent)
    return manifest


def _take_over(layout: Layout, catalogue: Catalogue, name: str, settle: Callable[[], object] | None) -> None:
    """Make a snapshot current once every photo has a descriptor of its generation.

    The transaction blocks POSTs, which check the current generation in a transaction of their own.
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
    # Places keep their ids from snapshot to snapshot, unless the options for places changed.
    remade = last is not None and last.places_by != options.describe()
    existing = [] if remade else catalogue.assigned_places()
    return assign_places(photos, options.places, options.place_radius_m, existing)


def _calibration(
    layout: Layout,
    catalogue: Catalogue,
    state: _State,
    last: Manifest | None,
    store: Store,
    assigned: Sequence[AssignedPlace],
    options: PlaceOptions,
) -> Calibration:
    """Calibrate answers, or keep the last snapshot's calibration while the photos are nearly the same."""
    photos = state.count()
    if (
        last is not None
        and last.places_by == options.describe()
        and generation_of(last.snapshot) == state.generation
    ):
        before = Calibration.from_json(last.calibration)
        # A calibration that failed is tried again: there may be enough photos now.
        if before and before.model and abs(photos - before.of) <= NEARLY_THE_SAME * before.of:
            return before
    rule = PlaceRule.of(options.places, options.place_radius_m)
    ranks = frame_ranks(catalogue.place_photos(), rule.frames) if rule.frames else None
    places = {photo: place.id for place in assigned for photo in place.members}
    known = {photo.id: photo for photo in catalogue.photos()}
    # A photo deleted meanwhile is still in the store, but is no query of the calibration.
    collection = Collection.of(store, known, [photo for _, photo, _ in state.live], places, rule, ranks)
    return replace(calibrate(collection, _verifier(layout, state)), of=photos)


def _verifier(layout: Layout, state: _State) -> OwnPhotos | None:
    """Return a verifier of answers to the index's own photos; None if it has no local features."""
    folder = layout.local(state.generation)
    if not folder.is_dir():
        return None
    slots: dict[str, list[Slot]] = {}
    for _, photo, slot in state.live:
        slots.setdefault(photo, []).append(slot)
    return OwnPhotos(folder, slots)
