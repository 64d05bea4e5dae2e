"""A snapshot's manifest: what the snapshot is, and how it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from indexer.errors import FormatTooNew, IndexerError, ModelMismatch
from indexer.snapshots.saved_store import StoreFiles, StoreKind, open_store
from indexer.snapshots.store import Store
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout, generation_of

FORMAT = 2


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
    """As `StoreKind`, like the next three."""
    recall: float
    probes: int
    depth: int
    calibration: dict[str, Any]
    """How sure answers are, as `Calibration.to_json` writes it."""
    content: str
    """Digest of what the snapshot was made from, to see whether another is due."""
    index_bytes: int
    """As `StoreFiles`, like the next three."""
    index_sha256: str
    rows_sha256: str
    columns_sha256: str
    created_at: str
    change: int
    """Number of the catalogue's last change that the snapshot contains."""
    search_by: str
    """How descriptors are searched: see `SearchOptions.describe`."""
    format: int = FORMAT

    @property
    def kind(self) -> StoreKind:
        """Its store."""
        return StoreKind(self.factory, self.recall, self.probes, self.depth)

    @property
    def files(self) -> StoreFiles:
        """Its store's files."""
        return StoreFiles(self.index_bytes, self.index_sha256, self.rows_sha256, self.columns_sha256)


def read_manifest(layout: Layout, name: str) -> Manifest:
    """Read a snapshot's manifest.

    Raises:
        IndexerError: it is missing or damaged.
        FormatTooNew: a newer version wrote it.
    """
    path = layout.manifest(name)
    try:
        return manifest_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexerError(f"{path} is damaged ({error}): run 'loci index' again to rebuild it") from error


def manifest_of(values: dict[str, Any]) -> Manifest:
    """A manifest from its JSON. Raises FormatTooNew, KeyError or TypeError."""
    if values["format"] > FORMAT:
        raise FormatTooNew(
            f"the snapshot {values['snapshot']} has format {values['format']}: a newer loci reads it, "
            f"this one up to {FORMAT}"
        )
    return Manifest(**values)


def opened_store(layout: Layout, catalogue: Catalogue, manifest: Manifest) -> Store:
    """A snapshot's store; see `indexer.snapshots.saved_store.open_store`."""
    generation = generation_of(manifest.snapshot)
    return open_store(
        layout.snapshot(manifest.snapshot),
        layout.shards(generation),
        manifest.dim,
        manifest.count,
        manifest.index_bytes,
        manifest.kind,
        lambda: catalogue.live_descriptors(generation),
        layout.mark_damaged,
    )


def check_model(layout: Layout, generation: int, fingerprint: str) -> None:
    """Refuse another model than the one that made a generation's descriptors.

    Raises:
        ModelMismatch: `fingerprint` is not its.
    """
    name = layout.last_finished()
    if name is None or generation_of(name) != generation:
        return
    manifest = whole_manifest(layout, name)
    if manifest is not None and manifest.model != fingerprint:
        raise other_model(manifest, fingerprint)


def other_model(manifest: Manifest, fingerprint: str) -> ModelMismatch:
    """The error for a model file that is not the one a snapshot was made by."""
    return ModelMismatch(
        f"the snapshot {manifest.snapshot} was made by the model {manifest.model}, but the model file is "
        f"{fingerprint}: restore the right file, or run 'loci index' with `refit`"
    )


def whole_manifest(layout: Layout, name: str) -> Manifest | None:
    """A snapshot's manifest; None where it is damaged, since it is made anew then."""
    try:
        return read_manifest(layout, name)
    except FormatTooNew:
        raise
    except IndexerError:
        return None
