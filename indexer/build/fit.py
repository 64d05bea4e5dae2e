"""Resumable fitting of a generation's model on the collection: first the clusters, then the reduction.

Trained and published weights come with their pooling, some also with a reduction. These are kept.

Each photo goes through the network once. Until all photos are embedded, the spool keeps the maps of photos
that the clusters are fitted on, and the unreduced descriptors of photos that the reduction is fitted on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from indexer.build.ingest import nothing_readable
from indexer.build.ray_embedder import AnyEmbedder
from indexer.build.spool import Spool
from indexer.options import IMAGENET, FitOptions
from indexer.photos.reader import Reader
from indexer.progress import Progress
from indexer.storage.catalogue import Catalogue
from indexer.storage.files import sync_folder
from indexer.storage.layout import Layout
from model.clusters import SAMPLE_PHOTOS
from model.embedder import Embedded, with_ranges
from model.errors import ImageError
from model.fitting import fit_clusters
from model.layers.poolings import CLUSTERED, TWO_LAYERS, apart, joined
from model.modelfile import ModelConfig, PlaceModel, load_model, save_model
from model.reduction import choose_reduction, fit_reduction

REDUCTION_VIEWS = 4096
RANGE_PHOTOS = 40
RANGE_SIDE = 320  # longest side in pixels; the range of activations does not depend on it

Floats = NDArray[np.float32]
Pending = tuple[str, Path]  # id and one file of a photo


@dataclass(frozen=True)
class GenerationRun:
    """A run's work on one generation."""

    layout: Layout
    generation: int
    options: FitOptions
    catalogue: Catalogue
    embedder: AnyEmbedder
    reader: Reader
    progress: Progress

    @property
    def spool(self) -> Spool:
        return Spool(self.layout.spool(self.generation))


def measured(
    model: PlaceModel, spool: Spool, photos: Sequence[Pending], reader: Reader, device: str
) -> PlaceModel:
    """Return the model with activation ranges for int8, measured unless an unfinished run did so."""
    if spool.model_path.exists():
        ranges = load_model(spool.model_path).config.activation_ranges
        return model.fitted(activation_ranges=ranges)
    read = replace(reader, image_size=min(reader.image_size, RANGE_SIDE))
    images = []
    for photo in photos[:RANGE_PHOTOS]:
        with suppress(ImageError):  # reported when the photo is embedded
            images += read(photo)
    return with_ranges(model, images, device)


def fit_model(run: GenerationRun) -> PlaceModel:
    """Fit the missing parts of the generation's model, save it, and set the embedder to it."""
    path = run.layout.model(run.generation)
    if not path.exists():
        if run.embedder.model.reduction is None:
            _fit_pooling(run)
            _save(_fit_reduction(run), path)
        else:
            _save(run.embedder.model, path)
    model = load_model(path)
    run.embedder.set_model(model)
    return model


def sample_order(photos: Sequence[Pending], seed: int) -> list[Pending]:
    """Return photos in a random order that depends only on the seed and each photo's content."""
    return sorted(photos, key=lambda photo: hashlib.sha256(f"{seed}:{photo[0]}".encode()).digest())


def _sample(run: GenerationRun, count: int) -> list[Pending]:
    pending = run.catalogue.pending(run.generation)
    if not pending:
        raise nothing_readable(run.catalogue)
    return sample_order(pending, run.options.seed)[:count]


def _fit_pooling(run: GenerationRun) -> None:
    """Spool the maps of a sample, and fit the clusters on them if the pooling has unfitted ones."""
    if run.spool.model_path.exists():
        run.embedder.set_model(load_model(run.spool.model_path))
        return
    photos = [photo for photo, _ in _spooled_sample(run, "maps", SAMPLE_PHOTOS)]
    model = run.embedder.model
    if model.config.weights == IMAGENET and model.config.pooling in CLUSTERED:
        run.progress.stage("fitting clusters", None)
        pooling, provenance = fit_clusters(
            model.config, photos, lambda photo: run.spool.get("maps", photo), seed=run.options.seed
        )
        model = model.fitted(pooling, provenance=provenance)
    _save(model, run.spool.model_path)
    run.embedder.set_model(load_model(run.spool.model_path))


def _save(model: PlaceModel, path: Path) -> None:
    save_model(model, path)
    sync_folder(path.parent)  # before any descriptor of this model is recorded


def _spooled_sample(run: GenerationRun, stage: str, count: int) -> list[Pending]:
    """Return a sample whose outputs of `stage` are in the spool. Unreadable photos are replaced by others."""
    while True:
        photos = _sample(run, count)
        missing = [p for p in photos if not run.spool.has("maps", p[0]) and not run.spool.has("pooled", p[0])]
        if not missing:
            return photos
        run.progress.stage("embedding (to fit)", len(missing))
        for batch in run.embedder.stream(missing, run.reader, stage):
            for embedded in batch:
                _spool(run, embedded, stage)


def _spool(run: GenerationRun, embedded: Embedded[Pending], stage: str) -> None:
    photo = embedded.item[0]
    if embedded.error is not None:
        with run.catalogue.transaction() as db:
            run.catalogue.set_failed(db, photo, embedded.error)
        run.progress.advance()
        return
    if embedded.seen[0].local is not None:  # written first: a photo with other outputs has its local features
        run.spool.put_local(photo, [seen.local for seen in embedded.seen if seen.local is not None])
    if stage == "maps":
        maps = torch.from_numpy(np.stack(embedded.outputs))
        run.spool.put("maps", photo, _scaled(maps, run.embedder.model.config).numpy())  # V D H W
    else:
        run.spool.put("pooled", photo, np.stack(embedded.outputs)[:, None])  # V 1 K·D
    run.progress.advance()


def _scaled(maps: Tensor, config: ModelConfig) -> Tensor:
    """Scale maps (V D H W) to the range of fp16: each local descriptor, or only the longest, to length 1."""
    if config.layers == TWO_LAYERS:
        return joined(*(F.normalize(layer, dim=1, eps=1e-12) for layer in apart(maps)))
    lengths = torch.linalg.vector_norm(maps, dim=1, keepdim=True)  # V 1 H W
    if config.pooling not in CLUSTERED:
        lengths = lengths.amax((2, 3), keepdim=True)
    scaled: Tensor = maps / lengths.clamp_min(1e-12)
    return scaled


def _fit_reduction(run: GenerationRun) -> PlaceModel:
    count = max(SAMPLE_PHOTOS, REDUCTION_VIEWS // (run.options.panoramas or 1))
    photos = [photo for photo, _ in _spooled_sample(run, "pooled", count)]
    for photo in photos:
        if run.spool.has("maps", photo):
            _pool_maps(run, photo)
    run.progress.stage("fitting the reduction", None)
    whole, left, right, rows = _load_pooled(run, photos)
    choice = choose_reduction(whole, left, right, rows, max_dim=run.options.dim)
    model = run.embedder.model
    if choice.kept is None:
        return model
    dim, power = choice.kept.dim, choice.kept.power
    reduction = fit_reduction(whole, dim, power)
    tried = [[c.dim, c.power, round(c.reciprocal_rank, 4)] for c in choice.tried]
    provenance = model.config.provenance | {"reduction_photos": len(photos), "reductions_tried": tried}
    return model.fitted(reduction=reduction, dim=dim, power=power, provenance=provenance)


def _pool_maps(run: GenerationRun, photo: str) -> None:
    """Pool maps into descriptors of the whole photo and of its halves, which select the reduction."""
    maps = torch.from_numpy(run.spool.get("maps", photo))  # V D H W
    with torch.inference_mode():
        parts = run.embedder.model.pooling.whole_and_halves(maps)  # V 3 K·D
    run.spool.put("pooled", photo, parts.numpy())
    run.spool.drop("maps", photo)


def _load_pooled(
    run: GenerationRun, photos: Sequence[str]
) -> tuple[Floats, Floats, Floats, NDArray[np.int64]]:
    """Return descriptors of whole views (n C) and of halves (m C each), and the views (m) of the halves."""
    shapes = [run.spool.shape("pooled", photo) for photo in photos]  # V 1|3 C
    channels = shapes[0][2]
    whole = np.empty((sum(shape[0] for shape in shapes), channels), np.float32)
    halves = np.empty((2, sum(shape[0] for shape in shapes if shape[1] == 3), channels), np.float32)
    rows: list[int] = []
    row = 0
    for photo in photos:
        for view in run.spool.get("pooled", photo):
            whole[row] = view[0]
            if len(view) == 3:
                halves[:, len(rows)] = view[1:]
                rows.append(row)
            row += 1
    return whole, halves[0], halves[1], np.array(rows, np.int64)
