"""`loci index`: from folders of photos to an index that answers; run again, it brings the index up to date.

Killed at any moment, the next run goes on where it stopped: photos, spooled maps and descriptors count only
once they are whole on disk, and only the batch in flight is embedded again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from indexer import fit
from indexer.catalogue import FILE, Catalogue, Slot
from indexer.collect import Collected, collect, nothing_readable
from indexer.errors import IndexerError
from indexer.layout import Layout, generation_of
from indexer.lock import write_lock
from indexer.metadata import read_table
from indexer.options import (
    BuildOptions,
    FitOptions,
    PlaceOptions,
    differences,
    load_options,
    save_options,
)
from indexer.paths import resolve
from indexer.progress import Progress, Silent
from indexer.reading import Reader
from indexer.scan import ScanResult, scan
from indexer.shards import ShardWriter
from indexer.snapshot import Manifest, publish
from indexer.spool import Spool
from model.clusters import SAMPLE_PHOTOS
from model.embedder import Embedded, Embedder
from model.modelfile import PlaceModel, load_model, read_header

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
    table = read_table(options.metadata) if options.metadata else None
    progress.stage("scanning", None)
    scanned = scan(sources)
    if not scanned.files and not _is_index(into):
        raise IndexerError(f"no photos in {', '.join(map(str, sources))}: nothing was indexed")
    with _target(into), write_lock(into):
        catalogue = Catalogue(into, create=True)
        try:
            collected = collect(
                catalogue, scanned, table, progress, rehash=options.rehash, prune=options.prune
            )
            if not catalogue.count():
                raise nothing_readable(catalogue, collected.unreadable)
            run = _Run(Layout(into), catalogue, options, progress)
            manifest, embedded, model = run.complete()
            notes = _notes(collected, scanned, model, manifest)
            if table is not None and table.unused():
                notes.append(_unused(table.unused(), options.metadata))
            return _report(
                catalogue, collected, manifest, model, embedded, notes, time.perf_counter() - started
            )
        finally:
            catalogue.close()


def remove_photos(index: Path, paths: Sequence[str]) -> list[str]:
    """Take photos out of an index for good, by path or id; their files stay. Returns the paths shown.

    Raises:
        IndexMissing, IndexLocked.
        NotFound: a path names no photo, or several; then none is removed.
    """
    layout = Layout(index)
    current = layout.current()
    with _translated(index), write_lock(index):
        catalogue = Catalogue(index, create=True)
        try:
            photos = resolve(catalogue, paths)
            shown = [catalogue.photo(photo).path for photo in photos]
            if catalogue.count() == len(set(photos)):
                raise IndexerError("that would leave no photo in the index: delete its folder instead")
            with catalogue.transaction() as db:
                catalogue.set_status(db, photos, "removed")
            generation = generation_of(current)
            header = read_header(layout.model(generation))
            _, places = load_options(layout.options(generation))
            publish(layout, catalogue, generation, header["fingerprint"], _dim(layout, generation), places)
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

    def complete(self) -> tuple[Manifest, int, PlaceModel]:
        """The snapshot, how many photos were embedded for it, and the model."""
        generation, options, places = self._generation()
        path = self._layout.model(generation)
        pending = len(self._catalogue.pending(generation))
        embedder: Embedder | None = None
        if not path.exists():
            embedder = self._embedder(fit.unfitted_model(options))
            model = fit.fit_model(self._fit_run(generation, options, embedder))
        else:
            model = load_model(path)
        if pending:
            embedder = embedder or self._embedder(model)
            self._embed(generation, options, embedder)
        self._progress.stage("publishing", None)
        manifest = publish(
            self._layout, self._catalogue, generation, model.fingerprint, model.config.output_dim, places
        )
        Spool(self._layout.spool(generation)).clear()
        left = len(self._catalogue.pending(generation))
        return manifest, pending - left, model

    def _generation(self) -> tuple[int, FitOptions, PlaceOptions]:
        """The generation this run works on, begun where it must be, with its options."""
        newest = self._layout.newest_generation()
        current = self._layout.current_or_none()
        published = current is not None and generation_of(current) == newest
        path = self._layout.options(newest)
        if newest and path.exists():
            fitted, places = load_options(path)
            wanted = self._options.fit_over(fitted)
            if published and not self._options.refit and wanted != fitted:
                raise IndexerError(
                    f"this index was made with {differences(fitted, wanted)}: leave that out, "
                    "or say --refit to make it anew"
                )
            number = newest + 1 if published and self._options.refit else newest
            if not published and wanted != fitted:
                self._progress.note("starting over with other options than the unfinished run's")
                self._discard(newest)
        else:
            number, wanted, places = max(newest, 1), self._options.fit_over(FitOptions()), PlaceOptions()
        places = self._options.places_over(places)
        save_options(self._layout.options(number), wanted, places)
        return number, wanted, places

    def _discard(self, generation: int) -> None:
        shutil.rmtree(self._layout.generation(generation))
        self._catalogue.drop_generations(range(1, generation))

    def _embedder(self, model: PlaceModel) -> Embedder:
        options = self._options
        return Embedder(
            model, device=options.device, precision=options.precision, batch_size=options.batch_size
        )

    def _fit_run(self, generation: int, options: FitOptions, embedder: Embedder) -> fit.FitRun:
        return fit.FitRun(
            self._layout, generation, options, self._catalogue, embedder, _reader(options), self._progress
        )

    def _embed(self, generation: int, options: FitOptions, embedder: Embedder) -> None:
        """Descriptors of all pending photos into the shards, first those whose unreduced ones are spooled."""
        writer = ShardWriter(
            self._layout.shards(generation),
            embedder.model.config.output_dim,
            self._catalogue.last_slot(generation),
        )
        spool = Spool(self._layout.spool(generation))
        pending = fit.sample_order(self._catalogue.pending(generation), options.seed)
        spooled = [item for item in pending if spool.has("pooled", item[0])]
        for batch in _reduced(spooled, spool, embedder):
            self._store(generation, writer, batch, _reader(options))
        rest = [item for item in pending if not spool.has("pooled", item[0])]
        self._progress.stage("embedding", len(rest))
        for batch in embedder.stream(rest, _reader(options)):
            self._store(generation, writer, batch, _reader(options))
            self._progress.advance(len(batch))

    def _store(
        self, generation: int, writer: ShardWriter, batch: Sequence[Embedded[fit.Pending]], reader: Reader
    ) -> None:
        rows = [
            (embedded.item[0], view, yaw, descriptor)
            for embedded in batch
            for view, (descriptor, yaw) in enumerate(
                zip(embedded.outputs, reader.yaws(len(embedded.outputs)), strict=True)
            )
        ]
        if rows:
            slots: list[Slot] = writer.append(np.stack([row[3] for row in rows]))
            self._catalogue.add_descriptors(
                generation, [(*row[:3], slot) for row, slot in zip(rows, slots, strict=True)]
            )
        for embedded in batch:
            if embedded.error is not None:
                with self._catalogue.transaction() as db:
                    self._catalogue.set_status(db, [embedded.item[0]], "failed", embedded.error)


def _reduced(
    items: Sequence[fit.Pending], spool: Spool, embedder: Embedder
) -> Iterator[list[Embedded[fit.Pending]]]:
    for start in range(0, len(items), 64):
        batch = []
        for item in items[start : start + 64]:
            whole = torch.from_numpy(spool.get("pooled", item[0])[:, 0]).to(embedder.device)  # V K·D
            with torch.inference_mode():
                batch.append(Embedded(item, tuple(embedder.model.reduce(whole).cpu().numpy())))
        yield batch


def _reader(options: FitOptions) -> Reader:
    return Reader(options.image_size, options.panoramas)


@contextmanager
def _target(into: Path) -> Iterator[None]:
    """The index folder, made where it is not there, and removed again when nothing came of it."""
    fresh = not into.exists()
    with _translated(into):
        if not fresh and not _is_index(into) and (not into.is_dir() or any(into.iterdir())):
            raise IndexerError(
                f"{into} is neither an index nor an empty folder: name another folder by --into"
            )
        into.mkdir(parents=True, exist_ok=True)
        try:
            yield
        except BaseException:
            if fresh and not Layout(into).newest_generation():
                shutil.rmtree(into, ignore_errors=True)
            raise


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise IndexerError(f"cannot write to {folder}: {error.strerror or error}") from error


def _is_index(folder: Path) -> bool:
    return (folder / FILE).is_file()


def _dim(layout: Layout, generation: int) -> int:
    return load_model(layout.model(generation)).config.output_dim


def _notes(collected: Collected, scanned: ScanResult, model: PlaceModel, manifest: Manifest) -> list[str]:
    notes = [f"{path}: {reason}" for path, reason in scanned.problems]
    if collected.still_removed:
        notes.append(f"{collected.still_removed} photos were removed earlier and stay out")
    fitted_on = int(model.config.provenance.get("cluster_photos", 0))
    if 0 < fitted_on < SAMPLE_PHOTOS and manifest.photos >= GROWN * fitted_on:
        notes.append(
            f"the model was fitted on {fitted_on} photos and the index has {manifest.photos} by now: "
            "--refit would fit it again"
        )
    return notes


def _unused(paths: Sequence[str], table: Path | None) -> str:
    shown = ", ".join(paths[:3]) + (", …" if len(paths) > 3 else "")
    return f"{len(paths)} rows of {table} name no photo that was given: {shown}"


def _report(
    catalogue: Catalogue,
    collected: Collected,
    manifest: Manifest,
    model: PlaceModel,
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
        reduction=describe_reduction(model),
        seconds=seconds,
        photos_per_second=embedded / seconds if seconds > 0 else 0.0,
        notes=tuple(notes),
    )


def describe_reduction(model: PlaceModel) -> str:
    """A model's reduction in a few words."""
    config = model.config
    if config.dim is None:
        return f"none, {config.output_dim}-D"
    whitening = f"whitened by λ^-{config.power / 2:g}" if config.power else "not whitened"
    return f"PCA to {config.dim}-D, {whitening}"
