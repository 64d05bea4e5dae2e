"""Report of an indexing run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from indexer.build.ingest import Collected
from indexer.photos.scan import ScanResult
from indexer.snapshots.manifest import Manifest
from indexer.storage.catalogue import Catalogue
from model.clusters import SAMPLE_PHOTOS
from model.modelfile import ModelConfig

GROWN = 4
"""Times as many photos as the model was fitted on: from here on a note suggests to fit it again."""


@dataclass(frozen=True)
class Failure:
    """A photo that could not be read, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class BuildReport:
    """Result of a run; counts of photos."""

    photos: int
    added: int
    changed: int
    moved: int
    removed: int
    unchanged: int
    embedded: int
    failed: tuple[Failure, ...]
    snapshot: str
    model: str
    places: int
    dim: int
    reduction: str
    seconds: float
    photos_per_second: float
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        collected: Collected,
        manifest: Manifest,
        config: ModelConfig,
        embedded: int,
        notes: Sequence[str],
        seconds: float,
    ) -> BuildReport:
        """Gather the results of a run's stages."""
        failed = [Failure(path, reason) for path, reason in catalogue.failures()]
        failed += [Failure(str(path), reason) for path, reason in collected.unreadable]
        return cls(
            photos=manifest.photos,
            added=collected.added + collected.returned,
            changed=collected.changed,
            moved=collected.moved,
            removed=collected.vanished,
            unchanged=collected.unchanged,
            embedded=embedded,
            failed=tuple(failed),
            snapshot=manifest.snapshot,
            model=manifest.model,
            places=manifest.places,
            dim=manifest.dim,
            reduction=describe_reduction(config),
            seconds=seconds,
            photos_per_second=embedded / seconds if seconds > 0 else 0.0,
            notes=tuple(notes),
        )


def notes_on(collected: Collected, scanned: ScanResult, config: ModelConfig, manifest: Manifest) -> list[str]:
    """Return remarks on a run, one sentence each."""
    notes = [f"{path}: {reason}" for path, reason in scanned.problems]
    if collected.still_removed:
        notes.append(f"{collected.still_removed} photos were removed earlier and stay out")
    fitted_on = int(config.provenance.get("cluster_photos", 0))
    if 0 < fitted_on < SAMPLE_PHOTOS and manifest.photos >= GROWN * fitted_on:
        notes.append(
            f"the model was fitted on {fitted_on} photos, and the index now has {manifest.photos}: "
            "set `refit` to fit it again"
        )
    return notes


def describe_reduction(config: ModelConfig) -> str:
    """Return a model's reduction in a few words."""
    if config.dim is None:
        return f"none, {config.output_dim}-D"
    whitening = f"whitened by λ^-{config.power / 2:g}" if config.power else "not whitened"
    return f"PCA to {config.dim}-D, {whitening}"
