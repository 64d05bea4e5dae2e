"""The folder of a training run: outputs of frozen layers, the start, the best model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from indexer.errors import IndexerError, UsageError
from indexer.options import IMAGENET, FitOptions
from indexer.storage.files import map_array, replace_text, save_array
from indexer.training.dataset import TrainingPhoto
from indexer.training.options import TrainingOptions, TrainProgress
from indexer.training.record import log_line, write_record
from model.clusters import SAMPLE_PHOTOS
from model.embedder import DTYPES, Embedded, Embedder
from model.errors import ImageError
from model.fitting import fit_clusters
from model.images import read_photo
from model.layers.deepface import INPUT_SIZE
from model.layers.poolings import CLUSTERED, ONE_LAYER, build_pooling
from model.modelfile import ModelConfig, PlaceModel, load_model, save_model
from model.reduction import choose_reduction, fit_reduction
from model.training.mining import TrainingSet
from model.training.trainer import CHECKPOINT, State, Trainer
from model.weights import load_weights

CONV5 = 24  # VGG16's layers before conv5_1
REDUCTION_PHOTOS = 2000  # photos whose unreduced descriptors the reduction is fitted on
FP16_MAX = 65504.0

TRAINED = FitOptions(local_features=0, layers=ONE_LAYER)  # an index adds local features


class TrainingRun:
    """The folder of a run, and its contents."""

    def __init__(self, folder: Path, into: Path, options: TrainingOptions, progress: TrainProgress) -> None:
        self._folder = folder
        self._into = into
        self._options = options
        self._progress = progress
        self.inputs_folder = folder / "inputs"
        self._best = folder / "best.safetensors"
        progress.stage("loading weights", None)
        self._start = _starting_model(options)
        backbone = self._start.backbone
        layers = len(backbone) if isinstance(backbone, nn.Sequential) else 0
        self._cut = {"head": layers, "conv5": CONV5, "all": 0}[options.learning]

    def keep_inputs(self, photos: Sequence[TrainingPhoto]) -> list[tuple[str, str]]:
        """Compute the frozen layers' outputs of photos that lack them; return the photos that fail."""
        self.inputs_folder.mkdir(exist_ok=True)
        self._drop_half_a_batch()
        missing = [photo for photo in photos if not self._input(photo.id).exists()]
        self._progress.stage("embedding (frozen layers)" if self._cut else "reading", len(missing))
        return self._embed(missing) if self._cut else self._decode(missing)

    def _embed(self, photos: Sequence[TrainingPhoto]) -> list[tuple[str, str]]:
        failed = []
        for batch in self._stem().stream(photos, self._read, "maps"):
            self._keep([embedded for embedded in batch if embedded.error is None])
            failed += [(str(e.item.path), e.error) for e in batch if e.error is not None]
            self._progress.advance(len(batch))
        return failed

    def _keep(self, batch: Sequence[Embedded[TrainingPhoto]]) -> None:
        """Write a batch's maps, so that a kill leaves all or none.

        A photo's last bits depend on the size of its batch. So a killed run only ends like an unbroken one if
        missing photos come in the same batches again.
        """
        if not batch:
            return
        ids = [embedded.item.id for embedded in batch]
        replace_text(self._batch_file, json.dumps(ids))
        for photo, embedded in zip(ids, batch, strict=True):
            save_array(
                self._input(photo), np.clip(embedded.outputs[0], -FP16_MAX, FP16_MAX).astype(np.float16)
            )

    def _drop_half_a_batch(self) -> None:
        if not self._batch_file.exists():
            return
        paths = [self._input(photo) for photo in json.loads(self._batch_file.read_text(encoding="utf-8"))]
        if not all(path.exists() for path in paths):
            for path in paths:
                path.unlink(missing_ok=True)

    def _decode(self, photos: Sequence[TrainingPhoto]) -> list[tuple[str, str]]:
        failed = []
        for photo in photos:
            try:
                image = self._read(photo)[0].transpose(2, 0, 1)
                save_array(self._input(photo.id), np.ascontiguousarray(image))
            except ImageError as error:
                failed.append((str(photo.path), str(error)))
            self._progress.advance()
        return failed

    def train(self, data: TrainingSet, ids: Sequence[str]) -> tuple[State, PlaceModel]:
        """Fit the start, train, and return the state and the best model."""

        def inputs(row: int) -> NDArray[Any]:
            return np.array(map_array(self._input(ids[row]), "training photo"))

        embedder = Embedder(self._start, device=self._options.device, precision=self._options.precision)
        if (self._folder / CHECKPOINT).exists() and not self._best.exists():
            raise IndexerError(f"{self._best}, the run's best model, is missing: set `restart` to start over")
        trainer = Trainer(
            self._initial(data, ids, inputs),
            self._cut,
            data,
            inputs,
            self._options.train,
            into=self._best,
            folder=self._folder,
            reports=_Reports(self._folder, self._progress),
            device=embedder.device,
            autocast=None if embedder.precision == "fp32" else DTYPES[embedder.precision],
        )
        state = trainer.run()
        return state, self._label(state, data)

    def _label(self, state: State, data: TrainingSet) -> PlaceModel:
        """Write the best model to its target, with the data it was trained on."""
        model = load_model(self._best)
        provenance = model.config.provenance | {
            "trained": {
                "loss": self._options.train.loss,
                "parts": self._options.learning,
                "photos": len(np.union1d(data.queries, data.database)),
                "epoch": state.best["epoch"],
                "seed": self._options.train.seed,
                "held_out_recall": [state.history[0]["recall"], state.best["recall"]],
            }
        }
        model = model.fitted(provenance=provenance)
        save_model(model, self._into)
        return model

    def _initial(self, data: TrainingSet, ids: Sequence[str], inputs: Any) -> PlaceModel:
        """Return the start of training: clusters and reduction fitted on the training photos."""
        path = self._folder / "initial.safetensors"
        if not path.exists():
            save_model(self._fit(data, ids, inputs), path)
        return load_model(path)

    def _fit(self, data: TrainingSet, ids: Sequence[str], inputs: Any) -> PlaceModel:
        options, model = self._options, self._start
        torch.manual_seed(options.train.seed)
        if options.backbone == "deepface" or model.config.weights != IMAGENET:
            return model.fitted(weights=self._into.stem)
        rng = np.random.default_rng(options.train.seed)
        rows = rng.permutation(np.union1d(data.queries, data.database))
        row_of = {ids[row]: int(row) for row in rows}
        tail = nn.Sequential(*list(model.backbone.children())[self._cut :]).eval()

        def maps(photo: str) -> NDArray[np.float32]:
            x = torch.from_numpy(inputs(row_of[photo]))[None].float()
            with torch.inference_mode():
                out: NDArray[np.float32] = tail(x if self._cut else (x - model.mean) / model.std).numpy()
            return out

        sample = [ids[row] for row in rows[:SAMPLE_PHOTOS]]
        if model.config.pooling in CLUSTERED:
            self._progress.stage("fitting clusters", None)
            pooling, provenance = fit_clusters(model.config, sample, maps, seed=options.train.seed)
            model = model.fitted(pooling, provenance=provenance)
        self._progress.stage("fitting the reduction", None)
        views = [ids[row] for row in rows[:REDUCTION_PHOTOS]]
        pooled = np.empty((3, len(views), model.config.pooled_dim), np.float32)
        with torch.inference_mode():
            for i, photo in enumerate(views):
                pooled[:, i] = model.pooling.whole_and_halves(torch.from_numpy(maps(photo)))[0].numpy()
        choice = choose_reduction(
            pooled[0], pooled[1], pooled[2], np.arange(len(views)), max_dim=options.fit.dim or FitOptions.dim
        )
        if choice.kept is None:
            return model.fitted(weights=self._into.stem)
        dim, power = choice.kept.dim, choice.kept.power
        reduction = fit_reduction(pooled[0], dim, power)
        return model.fitted(reduction=reduction, dim=dim, power=power, weights=self._into.stem)

    def _stem(self) -> Embedder:
        """The frozen layers."""
        start = self._start
        layers = list(start.backbone.children())[: self._cut]
        config = dataclasses.replace(start.config, pooling="average", clusters=0, dim=None)
        stem = PlaceModel(config, nn.Sequential(*layers), build_pooling("average"), None)
        return Embedder(stem, device=self._options.device, precision=self._options.precision)

    def _read(self, photo: TrainingPhoto) -> list[NDArray[np.uint8]]:
        config = self._start.config
        return [read_photo(photo.path, config.image_size, config.min_image_size)]

    @property
    def _batch_file(self) -> Path:
        return self.inputs_folder / "batch.json"

    def _input(self, photo: str) -> Path:
        return self.inputs_folder / f"{photo}.npy"


def _starting_model(options: TrainingOptions) -> PlaceModel:
    if options.backbone == "deepface":
        return _untrained_deepface(options)
    if options.fit.weights in (None, IMAGENET):
        return PlaceModel.unfitted(options.fit.fit_over(TRAINED).model_config())
    model = load_weights(str(options.fit.weights))
    config = model.config
    if config.layers != ONE_LAYER:
        raise UsageError(
            f"the weights {config.weights} pool {config.layers}, and training needs {ONE_LAYER}: "
            f"leave `weights` out, or use those of an index made with layers {ONE_LAYER}"
        )
    fit = options.fit.fit_over(TRAINED, config)  # refuses options that the weights contradict
    if options.fit.dim not in (None, config.dim):
        raise UsageError(
            f"`dim` {options.fit.dim} is impossible: the weights {config.weights} have no reduction"
        )
    return model.fitted(
        image_size=fit.image_size,
        min_image_size=fit.min_image_size,
        local_features=0,
        activation_ranges=(),  # training changes them
    )


def _untrained_deepface(options: TrainingOptions) -> PlaceModel:
    torch.manual_seed(options.train.seed)
    config = ModelConfig(
        weights="untrained",
        backbone="deepface",
        connection=options.connection or "local",
        tile=options.tile,
        pooling="average",
        clusters=0,
        image_size=INPUT_SIZE,
        std=(64.0, 64.0, 64.0),
    )
    return PlaceModel.untrained(config)


@dataclass
class _Reports:
    """Reports progress, and writes log and curve."""

    folder: Path
    progress: TrainProgress

    def stage(self, name: str, total: int | None) -> None:
        self.progress.stage(name, total)

    def advance(self, n: int = 1) -> None:
        self.progress.advance(n)

    def epoch(self, history: Sequence[dict[str, Any]]) -> None:
        write_record(self.folder, history)
        self.progress.epoch(log_line(history[-1]))
