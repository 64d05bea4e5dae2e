"""`loci index`: from folders of photos to an index that answers; run again, it brings the index up to date.

Killed at any moment, the next run goes on where it stopped: photos, spooled maps and descriptors count only
once they are whole on disk, and only the batch in flight is embedded again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from indexer.build import fit
from indexer.build.compact import compact
from indexer.build.ingest import Collected, collect, no_photos
from indexer.build.publish import publish, published
from indexer.build.ray_embedder import AnyEmbedder, RayEmbedder, check_address
from indexer.build.rebuild import republish
from indexer.build.spool import Spool
from indexer.errors import IndexerError, UsageError
from indexer.milvus.sync import send
from indexer.options import (
    BuildOptions,
    FitOptions,
    Options,
    PlaceOptions,
    SearchOptions,
    differences,
    load_options,
    save_options,
)
from indexer.photos.metadata_table import read_table, unused_rows
from indexer.photos.reader import Reader
from indexer.photos.scan import ScanResult, scan
from indexer.progress import Progress, Silent
from indexer.snapshots.choice import choose
from indexer.snapshots.manifest import Manifest, check_model, read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.folder import is_index, os_errors_explained, writable_folder
from indexer.storage.layout import Layout, generation_of
from indexer.storage.local_shards import write_local
from indexer.storage.lock import write_lock
from indexer.storage.path_finder import resolve
from indexer.storage.rows import Slot
from indexer.storage.shards import RUN, ShardWriter
from indexer.storage.stored_files import drop_files, sweep
from model.clusters import SAMPLE_PHOTOS
from model.embedder import Embedded, Embedder, Seen
from model.gpu_decoding import Read
from model.images import read_photo
from model.local_features import Packed
from model.modelfile import ModelConfig, PlaceModel, load_model, read_config
from model.weights import load_weights

SHORT = 0.01  # of the recall asked for: worth a note
GROWN = 4  # times as many photos as the model was fitted on: worth a note


@dataclass(frozen=True)
class Failure:
    """A photo that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class BuildReport:
    """What a run did; counts of photos."""

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


def build_index(
    sources: Sequence[Path], into: Path, options: BuildOptions | None = None, progress: Progress | None = None
) -> BuildReport:
    """Index the photos in `sources` (folders and files) into the folder `into`, or bring it up to date.

    Raises:
        UsageError: a bad option, or a bad column in the metadata table.
        IndexLocked: another run is writing to it.
        IndexerError: no photo, none readable, an unwritable target, a full disk; what was there stays.
    """
    options = options or BuildOptions()
    progress = progress or Silent()
    started = time.perf_counter()
    if options.workers is not None:
        check_address(options.workers)
    table = read_table(options.metadata) if options.metadata else None
    progress.stage("scanning", None)
    scanned = scan(sources)
    if not scanned.files and not is_index(into):
        raise no_photos(sources)
    with writable_folder(into):
        catalogue = Catalogue(into, create=True)
        try:
            sweep(catalogue)
            layout = Layout(into)
            collected = collect(
                catalogue,
                scanned,
                table,
                progress,
                rehash=options.rehash,
                prune=options.prune,
                before_changes=lambda: layout.set_unpublished(True),
            )
            with closing(_Run(layout, catalogue, options, progress)) as run:
                manifest, embedded, config = run.complete()
            layout.set_unpublished(False)
            search = load_options(layout.options(generation_of(manifest.snapshot))).search
            if search.store is not None:
                progress.stage(f"sending to {search.store}", None)
                send(layout, catalogue, manifest, search.store, search.recall)
            notes = _notes(collected, scanned, config, manifest)
            if table is not None and table.unused():
                notes.append(unused_rows(table))
            return _report(
                catalogue, collected, manifest, config, embedded, notes, time.perf_counter() - started
            )
        finally:
            catalogue.close()


def remove_photos(index: Path, paths: Sequence[str]) -> list[str]:
    """Take photos out of an index for good, by path or id; files stay, but those of POSTed photos.

    Returns the paths shown.

    Raises:
        IndexMissing, IndexLocked, FormatTooNew.
        NotFound: a path names no photo, or several; then none is removed.
    """
    layout = Layout(index)
    manifest = read_manifest(layout, layout.current())
    with os_errors_explained(index), write_lock(index):
        catalogue = Catalogue(index, create=True)
        try:
            photos = resolve(catalogue, paths)
            shown = [catalogue.photo(photo).path for photo in photos]
            if catalogue.count() == len(set(photos)):
                raise IndexerError("that would leave no photo in the index: delete its folder instead")
            with catalogue.transaction() as db:
                catalogue.set_status(db, photos, "removed")
                files = catalogue.drop_stored(db, photos)
            drop_files(catalogue, files)
            republish(layout, catalogue, manifest)
            return shown
        finally:
            catalogue.close()


class _Run:
    """One run's generation: chosen, fitted where it must be, its photos embedded, its snapshot published."""

    def __init__(
        self, layout: Layout, catalogue: Catalogue, options: BuildOptions, progress: Progress
    ) -> None:
        self._layout = layout
        self._catalogue = catalogue
        self._options = options
        self._progress = progress
        self._brought: PlaceModel | None = None
        self._workers: RayEmbedder | None = None

    def complete(self) -> tuple[Manifest, int, ModelConfig]:
        """The snapshot, how many photos were embedded for it, and what the model is."""
        generation, (options, places, search) = self._generation()
        path = self._layout.model(generation)
        if path.exists() and self._brought is None:
            config, fingerprint = read_config(path)
            check_model(self._layout, generation, fingerprint)
            manifest = published(self._layout, self._catalogue, generation, fingerprint, places, search)
            if manifest is not None:
                return manifest, 0, config
        embedder: AnyEmbedder | None = None
        if not path.exists():
            embedder = self._embedder(self._measured(generation, options))
            model = fit.fit_model(self._fit_run(generation, options, embedder))
        else:
            model = load_model(path)
            check_model(self._layout, generation, model.fingerprint)
        embedded = 0
        if self._catalogue.pending(generation):
            embedded = self._embed(generation, options, embedder or self._embedder(model))
        self._progress.stage("publishing", None)

        def settle() -> None:
            self._embed(generation, options, embedder or self._embedder(model))

        compact(self._layout, self._catalogue, generation, model.config.output_dim)
        manifest = publish(
            self._layout,
            self._catalogue,
            generation,
            model.fingerprint,
            model.config.output_dim,
            places,
            settle,
            search,
        )
        if manifest.recall < search.recall - SHORT:
            self._progress.note(
                f"a search finds {manifest.recall:.1%} of the nearest photos, not {search.recall:.1%}: "
                "set a larger `memory`"
            )
        Spool(self._layout.spool(generation)).clear()
        return manifest, embedded, model.config

    def _generation(self) -> tuple[int, Options]:
        """The generation this run works on, begun where it must be, with its options."""
        finished = generation_of(self._layout.last_finished() or "0")
        number = max(self._layout.newest_generation(), finished)
        fitted, places, search = FitOptions(), PlaceOptions(), SearchOptions()
        if number:
            fitted, places, search = load_options(self._layout.options(number))
        self._brought = self._bring()
        wanted = self._options.fit_over(fitted, self._brought.config if self._brought else None)
        if number and number == finished:
            number = self._go_on(number, fitted, wanted)
        elif number and (wanted != fitted or self._lost_model(number)):
            self._progress.note("starting over: the unfinished run had other options, or lost its model")
            self._catalogue.drop_descriptors(number)
            self._layout.discard(number)
        number = max(number, 1)
        said = self._options
        options = Options(wanted, said.places_over(places), said.search_over(search))
        # What cannot be had in the memory allowed is said before anything is embedded, or remembered.
        views = self._catalogue.count() * (wanted.panoramas or 1)
        searched = options.search
        choose(max(views, 1), wanted.dim, searched.memory_bytes(), searched.recall, hnsw=searched.hnsw)
        save_options(self._layout.options(number), options)
        return number, options

    def _bring(self) -> PlaceModel | None:
        """The model that --weights names, where it is more than ImageNet's convolutions."""
        if self._options.weights in (None, fit.IMAGENET):
            return None
        self._progress.stage("loading weights", None)
        return load_weights(str(self._options.weights))

    def _unfitted(self, options: FitOptions) -> PlaceModel:
        if options.weights == fit.IMAGENET:
            return fit.unfitted_model(options)
        if self._brought is None:
            raise UsageError(
                f"the interrupted run was started with `weights` {options.weights}: set `weights` again"
            )
        return self._brought.fitted(
            image_size=options.image_size,
            min_image_size=options.min_image_size,
            local_features=options.local_features,
            activation_ranges=(),  # on other photos; this collection's are measured
        )

    def _measured(self, generation: int, options: FitOptions) -> PlaceModel:
        """The unfitted model, with what it needs to run in int8."""
        pending = fit.sample_order(self._catalogue.pending(generation), options.seed)
        spool = Spool(self._layout.spool(generation))
        reader = _reader(options, read_photo)
        return fit.measured(self._unfitted(options), spool, pending, reader, self._options.device)

    def _go_on(self, finished: int, fitted: FitOptions, wanted: FitOptions) -> int:
        """The generation after a finished one: itself, or where it is to be fitted again, the next."""
        if self._options.refit:
            return finished + 1
        if wanted != fitted:
            raise IndexerError(
                f"this index was made with {differences(fitted, wanted)}: leave that out, "
                "or set `refit` to make the index again"
            )
        if self._lost_model(finished):
            raise IndexerError(
                f"the model file {self._layout.model(finished)} is missing: restore it, "
                "or set `refit` to make the index again"
            )
        return finished

    def _lost_model(self, generation: int) -> bool:
        made = self._catalogue.last_slot(generation, RUN) is not None
        return made and not self._layout.model(generation).exists()

    def _embedder(self, model: PlaceModel) -> AnyEmbedder:
        said = self._options
        settings: dict[str, Any] = {
            "device": said.device,
            "precision": said.precision,
            "batch_size": said.batch_size,
        }
        if said.workers is None:
            return Embedder(model, **settings)
        if self._workers is None:
            self._progress.stage("looking for workers", None)
            self._workers = RayEmbedder(model, said.workers, **settings)
        else:
            self._workers.set_model(model)
        return self._workers

    def close(self) -> None:
        """Let workers go, where there are some."""
        if self._workers is not None:
            self._workers.close()

    def _fit_run(self, generation: int, options: FitOptions, embedder: AnyEmbedder) -> fit.FitRun:
        reader = _reader(options, embedder.read)
        return fit.FitRun(
            self._layout, generation, options, self._catalogue, embedder, reader, self._progress
        )

    def _embed(self, generation: int, options: FitOptions, embedder: AnyEmbedder) -> int:
        """Descriptors of all pending photos into the shards, first those whose unreduced ones are spooled.

        Returns how many photos have one now.
        """
        writer = ShardWriter(
            self._layout.shards(generation),
            embedder.model.config.output_dim,
            self._catalogue.last_slot(generation, RUN),
        )
        spool = Spool(self._layout.spool(generation))
        pending = fit.sample_order(self._catalogue.pending(generation), options.seed)
        spooled = [item for item in pending if spool.has("pooled", item[0])]
        reader, stored = _reader(options, embedder.read), 0
        for batch in _reduced(spooled, spool, embedder):
            stored += self._store(generation, writer, batch, reader)
        rest = [item for item in pending if not spool.has("pooled", item[0])]
        self._progress.stage("embedding", len(rest))
        for batch in embedder.stream(rest, reader):
            stored += self._store(generation, writer, batch, reader)
            self._progress.advance(len(batch))
        return stored

    def _store(
        self, generation: int, writer: ShardWriter, batch: Sequence[Embedded[fit.Pending]], reader: Reader
    ) -> int:
        rows = [
            (embedded.item[0], view, yaw, seen)
            for embedded in batch
            for view, (seen, yaw) in enumerate(
                zip(embedded.seen, reader.yaws(len(embedded.seen)), strict=True)
            )
        ]
        if rows:
            slots: list[Slot] = writer.append(np.stack([row[3].descriptor for row in rows]))
            write_local(self._layout.local(generation), slots, [row[3].local for row in rows])
            self._catalogue.add_descriptors(
                generation, [(*row[:3], slot) for row, slot in zip(rows, slots, strict=True)]
            )
        failed = [embedded for embedded in batch if embedded.error is not None]
        with self._catalogue.transaction() as db:
            for embedded in failed:
                self._catalogue.set_failed(db, embedded.item[0], str(embedded.error))
        return len(batch) - len(failed)


def _reduced(
    items: Sequence[fit.Pending], spool: Spool, embedder: AnyEmbedder
) -> Iterator[list[Embedded[fit.Pending]]]:
    for start in range(0, len(items), 64):
        batch = []
        for item in items[start : start + 64]:
            whole = torch.from_numpy(spool.get("pooled", item[0])[:, 0])  # V K·D
            with torch.inference_mode():
                descriptors = embedder.model.reduce(whole).numpy()
            local: Sequence[Packed | None] = [None] * len(descriptors)
            if spool.has("local", item[0]):
                local = spool.get_local(item[0])
            batch.append(Embedded(item, tuple(map(Seen, descriptors, local))))
        yield batch


def _reader(options: FitOptions, read: Read) -> Reader:
    return Reader(options.image_size, options.panoramas, options.min_image_size, read)


def _notes(collected: Collected, scanned: ScanResult, config: ModelConfig, manifest: Manifest) -> list[str]:
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


def _report(
    catalogue: Catalogue,
    collected: Collected,
    manifest: Manifest,
    config: ModelConfig,
    embedded: int,
    notes: Sequence[str],
    seconds: float,
) -> BuildReport:
    failed = [Failure(path, reason) for path, reason in catalogue.failures()]
    failed += [Failure(str(path), reason) for path, reason in collected.unreadable]
    return BuildReport(
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


def describe_reduction(config: ModelConfig) -> str:
    """A model's reduction in a few words."""
    if config.dim is None:
        return f"none, {config.output_dim}-D"
    whitening = f"whitened by λ^-{config.power / 2:g}" if config.power else "not whitened"
    return f"PCA to {config.dim}-D, {whitening}"
