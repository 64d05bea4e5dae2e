"""Manifest of a snapshot."""

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
    """Contents of a snapshot, and the options that it was made by."""

    snapshot: str
    model: str
    """Fingerprint of the model that made the descriptors."""
    dim: int
    count: int
    """Number of descriptors; several for a panorama that was cut into views."""
    photos: int
    places: int
    places_by: str
    """Options for places: see `PlaceOptions.describe`."""
    factory: str
    """See `StoreKind`, also for the next three."""
    recall: float
    probes: int
    depth: int
    calibration: dict[str, Any]
    """Calibration of confidence, as `Calibration.to_json` writes it."""
    content: str
    """Digest of the data that the snapshot was made from, to detect changes."""
    index_bytes: int
    """See `StoreFiles`, also for the next three."""
    index_sha256: str
    rows_sha256: str
    columns_sha256: str
    created_at: str
    change: int
    """Number of the catalogue's last change that the snapshot contains."""
    search_by: str
    """Options for the search: see `SearchOptions.describe`."""
    format: int = FORMAT

    @property
    def kind(self) -> StoreKind:
        """Kind of the store."""
        return StoreKind(self.factory, self.recall, self.probes, self.depth)

    @property
    def files(self) -> StoreFiles:
        """Files of the store."""
        return StoreFiles(self.index_bytes, self.index_sha256, self.rows_sha256, self.columns_sha256)


def read_manifest(layout: Layout, name: str) -> Manifest:
    """Read a snapshot's manifest.

    Raises:
        IndexerError: the manifest is missing or damaged.
        FormatTooNew: a newer version wrote the manifest.
    """
    path = layout.manifest(name)
    try:
        return manifest_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IndexerError(f"{path} is damaged ({error}): run 'loci index' again to rebuild it") from error


def manifest_of(values: dict[str, Any]) -> Manifest:
    """Make a manifest of JSON values. Raises FormatTooNew, KeyError or TypeError."""
    if values["format"] > FORMAT:
        raise FormatTooNew(
            f"the snapshot {values['snapshot']} has format {values['format']}: a newer loci reads it, "
            f"this one up to {FORMAT}"
        )
    return Manifest(**values)


def opened_store(layout: Layout, catalogue: Catalogue, manifest: Manifest) -> Store:
    """Open a snapshot's store; see `indexer.snapshots.saved_store.open_store`."""
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
    """Check that a model made a generation's descriptors.

    Raises:
        ModelMismatch: another model made them.
    """
    name = layout.last_finished()
    if name is None or generation_of(name) != generation:
        return
    manifest = whole_manifest(layout, name)
    if manifest is not None and manifest.model != fingerprint:
        raise other_model(manifest, fingerprint)


def other_model(manifest: Manifest, fingerprint: str) -> ModelMismatch:
    """Return the error for a model file that did not make a snapshot."""
    return ModelMismatch(
        f"the snapshot {manifest.snapshot} was made by the model {manifest.model}, but the model file is "
        f"{fingerprint}: restore the right file, or run 'loci index' with `refit`"
    )


def whole_manifest(layout: Layout, name: str) -> Manifest | None:
    """Return a snapshot's manifest; None if it is damaged, so that the next run replaces it."""
    try:
        return read_manifest(layout, name)
    except FormatTooNew:
        raise
    except IndexerError:
        return None
