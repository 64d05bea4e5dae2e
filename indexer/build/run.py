"""`loci index`: make an index of folders of photos, or bring it up to date.

A run that was killed at any moment is resumed by the next one. Photos, spooled maps and descriptors count
only once they are complete on disk. Only the batch that was being embedded is embedded again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from indexer.addresses import check_ray_address
from indexer.build.compact import compact
from indexer.build.embed import embed_pending
from indexer.build.fit import GenerationRun, fit_model, measured, sample_order
from indexer.build.ingest import collect
from indexer.build.publish import publish, published
from indexer.build.ray_embedder import AnyEmbedder, RayEmbedder
from indexer.build.rebuild import republish
from indexer.build.report import BuildReport, notes_on
from indexer.build.spool import Spool
from indexer.errors import IndexerError, UsageError
from indexer.milvus.sync import send
from indexer.options import (
    IMAGENET,
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
from indexer.photos.scan import no_photos, scan
from indexer.progress import Progress, Silent
from indexer.snapshots.choice import choose
from indexer.snapshots.manifest import Manifest, check_model, read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.folder import is_index, os_errors_explained, writable_folder
from indexer.storage.layout import Layout, generation_of
from indexer.storage.lock import write_lock
from indexer.storage.path_finder import resolve
from indexer.storage.shards import RUN
from indexer.storage.stored_files import drop_files, sweep
from model.embedder import Embedder
from model.gpu_decoding import Read
from model.images import read_photo
from model.modelfile import ModelConfig, PlaceModel, load_model, read_config
from model.weights import load_weights

SHORT = 0.01
"""Recall below the requested recall from which a note is worth it."""


def build_index(
    sources: Sequence[Path], into: Path, options: BuildOptions | None = None, progress: Progress | None = None
) -> BuildReport:
    """Index the photos in `sources` (folders and files) into the folder `into`, or bring it up to date.

    Raises:
        UsageError: an option or a column of the metadata table is invalid.
        IndexLocked: another run is writing to the index.
        IndexerError: there is no readable photo, `into` cannot be written, or the disk is full. An existing
            index keeps answering.
    """
    options = options or BuildOptions()
    progress = progress or Silent()
    started = time.perf_counter()
    if options.workers is not None:
        check_ray_address(options.workers)
    table = read_table(options.metadata) if options.metadata else None
    progress.stage("scanning", None)
    scanned = scan(sources)
    if not scanned.files and not is_index(into):
        raise no_photos(sources)
    with writable_folder(into), closing(Catalogue(into, create=True)) as catalogue:
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
        _send(layout, catalogue, manifest, progress)
        notes = notes_on(collected, scanned, config, manifest)
        if table is not None and table.unused():
            notes.append(unused_rows(table))
        seconds = time.perf_counter() - started
        return BuildReport.of(catalogue, collected, manifest, config, embedded, notes, seconds)


def _send(layout: Layout, catalogue: Catalogue, manifest: Manifest, progress: Progress) -> None:
    search = load_options(layout.options(generation_of(manifest.snapshot))).search
    if search.store is not None:
        progress.stage(f"sending to {search.store}", None)
        send(layout, catalogue, manifest, search.store, search.recall)


def remove_photos(index: Path, paths: Sequence[str]) -> list[str]:
    """Remove photos, by path or id, from an index. Later runs do not add them again.

    The photos' files stay, except those of POSTed photos. Returns the paths of the photos as answers show
    them.

    Raises:
        IndexMissing, IndexLocked, FormatTooNew.
        NotFound: a path matches no photo, or several. Then no photo is removed.
    """
    layout = Layout(index)
    manifest = read_manifest(layout, layout.current())
    with (
        os_errors_explained(index),
        write_lock(index),
        closing(Catalogue(index, create=True)) as catalogue,
    ):
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


class _Run:
    """The stages of a run: choose a generation, fit its model, embed its photos, publish its snapshot."""

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
        """Return the snapshot, how many photos were embedded for it, and the model's configuration."""
        generation, options = self._generation()
        unchanged = self._unchanged(generation, options)
        if unchanged is not None:
            return unchanged
        path = self._layout.model(generation)
        embedder: AnyEmbedder | None = None
        if path.exists():
            model = load_model(path)
            check_model(self._layout, generation, model.fingerprint)
        else:
            embedder = self._embedder(self._measured(generation, options.fit))
            model = fit_model(self._generation_run(generation, options.fit, embedder))

        def embed() -> int:
            return embed_pending(
                self._generation_run(generation, options.fit, embedder or self._embedder(model))
            )

        embedded = embed() if self._catalogue.pending(generation) else 0
        self._progress.stage("publishing", None)
        dim, places, search = model.config.output_dim, options.places, options.search
        compact(self._layout, self._catalogue, generation, dim)
        manifest = publish(
            self._layout, self._catalogue, generation, model.fingerprint, dim, places, embed, search
        )
        if manifest.recall < search.recall - SHORT:
            self._progress.note(
                f"a search finds {manifest.recall:.1%} of the nearest photos, not {search.recall:.1%}: "
                "set a larger `memory`"
            )
        Spool(self._layout.spool(generation)).clear()
        return manifest, embedded, model.config

    def _unchanged(self, generation: int, options: Options) -> tuple[Manifest, int, ModelConfig] | None:
        """Return the result of a run that has nothing to do; None if there may be something."""
        path = self._layout.model(generation)
        if self._brought is not None or not path.exists():
            return None
        config, fingerprint = read_config(path)
        check_model(self._layout, generation, fingerprint)
        manifest = published(
            self._layout, self._catalogue, generation, fingerprint, options.places, options.search
        )
        return None if manifest is None else (manifest, 0, config)

    def _generation(self) -> tuple[int, Options]:
        """Return the generation that this run works on, a new one if needed, and its options."""
        finished = generation_of(self._layout.last_finished() or "0")
        number = max(self._layout.newest_generation(), finished)
        fitted, places, search = FitOptions(), PlaceOptions(), SearchOptions()
        if number:
            fitted, places, search = load_options(self._layout.options(number))
        self._brought = self._bring()
        wanted = self._options.fit_over(fitted, self._brought.config if self._brought else None)
        if number and number == finished:
            number = self._after_finished(number, fitted, wanted)
        elif number and (wanted != fitted or self._lost_model(number)):
            self._progress.note("starting over: the unfinished run had other options, or its model is gone")
            self._catalogue.drop_descriptors(number)
            self._layout.discard(number)
        number = max(number, 1)
        options = Options(wanted, self._options.places_over(places), self._options.search_over(search))
        # Too little memory must be an error before anything is embedded or saved.
        views = self._catalogue.count() * (wanted.panoramas or 1)
        searched = options.search
        choose(max(views, 1), wanted.dim, searched.memory_bytes(), searched.recall, hnsw=searched.hnsw)
        save_options(self._layout.options(number), options)
        return number, options

    def _bring(self) -> PlaceModel | None:
        """Load the model that `weights` names; None for ImageNet, whose clusters are still to be fitted."""
        if self._options.weights in (None, IMAGENET):
            return None
        self._progress.stage("loading weights", None)
        return load_weights(str(self._options.weights))

    def _unfitted(self, options: FitOptions) -> PlaceModel:
        if options.weights == IMAGENET:
            return PlaceModel.unfitted(options.model_config())
        if self._brought is None:
            raise UsageError(
                f"the interrupted run was started with `weights` {options.weights}: set `weights` again"
            )
        return self._brought.fitted(
            image_size=options.image_size,
            min_image_size=options.min_image_size,
            local_features=options.local_features,
            activation_ranges=(),  # they are measured again on this collection
        )

    def _measured(self, generation: int, options: FitOptions) -> PlaceModel:
        """Return the unfitted model with activation ranges for int8."""
        pending = sample_order(self._catalogue.pending(generation), options.seed)
        spool = Spool(self._layout.spool(generation))
        reader = _reader(options, read_photo)
        return measured(self._unfitted(options), spool, pending, reader, self._options.device)

    def _after_finished(self, finished: int, fitted: FitOptions, wanted: FitOptions) -> int:
        """Return the generation to work on after a finished one: the same, or the next if it is refitted."""
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
        options = self._options
        settings: dict[str, Any] = {
            "device": options.device,
            "precision": options.precision,
            "batch_size": options.batch_size,
        }
        if options.workers is None:
            return Embedder(model, **settings)
        if self._workers is None:
            self._progress.stage("looking for workers", None)
            self._workers = RayEmbedder(model, options.workers, **settings)
        else:
            self._workers.set_model(model)
        return self._workers

    def close(self) -> None:
        """Stop the workers, if there are any."""
        if self._workers is not None:
            self._workers.close()

    def _generation_run(self, generation: int, options: FitOptions, embedder: AnyEmbedder) -> GenerationRun:
        reader = _reader(options, embedder.read)
        return GenerationRun(
            self._layout, generation, options, self._catalogue, embedder, reader, self._progress
        )


def _reader(options: FitOptions, read: Read) -> Reader:
    return Reader(options.image_size, options.panoramas, options.min_image_size, read)
