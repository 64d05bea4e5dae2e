"""`loci train`: photos whose places are known → a model that tells those places, and others, better apart.

Beside the model lies the run's folder: what the frozen layers made of each photo, the model that training
starts from, checkpoints, log and curve. The same command, given again, goes on from there.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from indexer.collect import no_photos
from indexer.errors import IndexerError, UsageError
from indexer.files import replace_text, save_array
from indexer.fit import IMAGENET, unfitted_model
from indexer.lock import write_lock
from indexer.metadata import read_table
from indexer.options import FitOptions
from indexer.progress import Progress
from indexer.scan import scan
from indexer.training_set import Supervision, TrainingPhoto, find_photos, training_set
from model.clusters import SAMPLE_PHOTOS
from model.embedder import Embedder
from model.errors import ImageError, ModelError
from model.fitting import fit_clusters, halves
from model.images import read_photo
from model.modelfile import ModelConfig, PlaceModel, load_model, read_header, save_model
from model.poolings import CLUSTERED, build_pooling
from model.reduction import choose_reduction, fit_reduction
from model.training.losses import LOSSES
from model.training.mining import TrainingSet
from model.training.record import log_line, write_record
from model.training.trainer import State, Trainer, TrainOptions
from model.weights import load_weights

PARTS = ("head", "conv5", "all")
CONV5 = 24  # VGG16's layers before conv5_1
REDUCTION_PHOTOS = 2000  # whose unreduced descriptors the reduction is fitted on
FP16_MAX = 65504.0


@dataclass(frozen=True)
class TrainingOptions:
    """What `train_model` may be told."""

    fit: FitOptions = field(default_factory=FitOptions)
    backbone: str = "vgg16"
    connection: str = "local"
    tile: int = 2
    parts: str | None = (
        None  # which learn: head (pooling and reduction), conv5 too, all; None: as the backbone
    )
    supervision: Supervision = field(default_factory=Supervision)
    train: TrainOptions = field(default_factory=TrainOptions)
    metadata: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    restart: bool = False

    def __post_init__(self) -> None:
        if self.backbone == "deepface" and self.parts not in (None, "all"):
            raise UsageError("--backbone deepface starts from nothing and is trained whole, by --parts all")
        for name, known, value in (
            ("--backbone", ("vgg16", "deepface"), self.backbone),
            ("--parts", PARTS, self.learning),
            ("--loss", LOSSES, self.train.loss),
        ):
            if value not in known:
                raise UsageError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}")
        how = self.supervision
        if not 0 < how.held_out < 1:
            raise UsageError(f"--held-out must be between 0 and 1, got {how.held_out:g}")
        if not 0 < how.positive_radius_m <= how.negative_radius_m:
            raise UsageError(
                f"--positive-radius must be above 0 m and at most --negative-radius, "
                f"got {how.positive_radius_m:g} and {how.negative_radius_m:g}"
            )
        for flag, number in (("--lr", self.train.lr), ("--margin", self.train.margin)):
            if not 0 < number < float("inf"):
                raise UsageError(f"{flag} must be above 0, got {number:g}")

    @property
    def learning(self) -> str:
        """Which parts learn."""
        return self.parts or ("all" if self.backbone == "deepface" else "head")

    def identity(self) -> dict[str, Any]:
        """What must stay the same for a run to be gone on with."""
        said = asdict(self)
        for name in ("restart", "device"):
            del said[name]
        for name in ("epochs", "patience"):
            del said["train"][name]
        said["metadata"] = None if self.metadata is None else str(self.metadata)
        return said


class TrainProgress(Progress, Protocol):
    """How far training is."""

    def epoch(self, line: str) -> None:
        """One epoch is done, in words."""
        ...


@dataclass(frozen=True)
class TrainReport:
    """What a run did; recall@1/5/10 of held-out photos as fractions."""

    model: str
    photos: int
    trained_on: int
    held_out: int
    epochs: int
    best_epoch: int
    recall_before: list[float]
    recall_after: list[float]
    accuracy: float | None
    seconds: float
    failed: list[tuple[str, str]]
    finished_before: bool = False


def train_model(
    sources: Sequence[Path], into: Path, options: TrainingOptions, progress: TrainProgress
) -> TrainReport:
    """Train on the photos in `sources` and write the best epoch's model to `into`.

    Raises:
        UsageError: a bad option, or a bad column in the metadata table.
        IndexLocked: another run is training it.
        IndexerError, ModelError: nothing to train on, a run of other options there, an unwritable target.
    """
    started = time.perf_counter()
    _check_target(into)
    scanned = scan(sources)
    if not scanned.files:
        raise no_photos(sources)
    folder = into.with_name(f"{into.name}.training")
    folder.mkdir(parents=True, exist_ok=True)
    with write_lock(folder, "training run"):
        _begin(folder, [str(Path(source).absolute()) for source in sources], options)
        finished = _finished(folder, options)
        if finished is not None and into.exists():
            return finished
        table = read_table(options.metadata) if options.metadata else None
        photos, failed = find_photos(scanned, table)
        run = _Run(folder, into, options, progress)
        failed += run.keep_inputs(photos)
        unreadable = {path for path, _ in failed}
        photos = [photo for photo in photos if str(photo.path) not in unreadable]
        data = training_set(photos, options.supervision)
        state, model = run.train(data, [photo.id for photo in photos])
        report = TrainReport(
            model=model.fingerprint,
            photos=len(photos),
            trained_on=len(np.union1d(data.queries, data.database)),
            held_out=len(data.held_queries),
            epochs=state.history[-1]["epoch"],
            best_epoch=state.best["epoch"],
            recall_before=state.history[0]["recall"],
            recall_after=state.best["recall"],
            accuracy=state.best.get("accuracy"),
            seconds=time.perf_counter() - started,
            failed=failed,
        )
        replace_text(folder / "finished.json", json.dumps({"report": asdict(report), **_length(options)}))
        shutil.rmtree(run.inputs_folder, ignore_errors=True)
        return report


def _check_target(into: Path) -> None:
    if into.is_dir():
        raise UsageError(f"--into names the model's file, but {into} is a folder")
    if into.exists():
        try:
            read_header(into)
        except ModelError:
            raise IndexerError(f"{into} is there already and is no model: name another") from None
    into.parent.mkdir(parents=True, exist_ok=True)


def _begin(folder: Path, sources: list[str], options: TrainingOptions) -> None:
    """Note what is trained on and how; refuse to go on with a run of other options."""
    path = folder / "options.json"
    wanted = json.loads(json.dumps({"sources": sources, **options.identity()}))
    if options.restart:
        for child in folder.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
            elif not child.name.startswith("LOCK"):
                child.unlink()
    elif path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if found != wanted:
            raise IndexerError(
                f"{folder} holds a run with other options ({_differences(found, wanted)}): say the same "
                "again to go on with it, or --restart to begin anew"
            )
    replace_text(path, json.dumps(wanted, indent=1))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = []
    for name in new:
        if isinstance(new[name], dict) and isinstance(old.get(name), dict):
            names += [key for key in new[name] if old[name].get(key) != new[name][key]]
        elif old.get(name) != new[name]:
            names.append(name)
    return ", ".join(name.replace("_m", "").replace("_", " ") for name in names) or "unreadable"


def _length(options: TrainingOptions) -> dict[str, int]:
    return {"epochs": options.train.epochs, "patience": options.train.patience}


def _finished(folder: Path, options: TrainingOptions) -> TrainReport | None:
    path = folder / "finished.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if {name: found[name] for name in ("epochs", "patience")} != _length(options):
        return None
    report = found["report"] | {"finished_before": True}
    report["failed"] = [(path, reason) for path, reason in report["failed"]]
    return TrainReport(**report)


class _Run:
    """One run's folder and what is made in it."""

    def __init__(self, folder: Path, into: Path, options: TrainingOptions, progress: TrainProgress) -> None:
        self._folder = folder
        self._into = into
        self._options = options
        self._progress = progress
        self.inputs_folder = folder / "inputs"
        self._start = _starting_model(options)
        backbone = self._start.backbone
        layers = len(backbone) if isinstance(backbone, nn.Sequential) else 0
        self._cut = {"head": layers, "conv5": CONV5, "all": 0}[options.learning]

    def keep_inputs(self, photos: Sequence[TrainingPhoto]) -> list[tuple[str, str]]:
        """Compute what the frozen layers make of each photo, where it is not there; those that fail."""
        self.inputs_folder.mkdir(exist_ok=True)
        missing = [photo for photo in photos if not self._input(photo.id).exists()]
        self._progress.stage("embedding (frozen layers)" if self._cut else "reading", len(missing))
        failed = []
        if self._cut:
            for batch in self._stem().stream(missing, self._read, "maps"):
                for embedded in batch:
                    if embedded.error is None:
                        kept = np.clip(embedded.outputs[0], -FP16_MAX, FP16_MAX).astype(np.float16)
                        save_array(self._input(embedded.item.id), kept)
                    else:
                        failed.append((str(embedded.item.path), embedded.error))
                    self._progress.advance()
            return failed
        for photo in missing:
            try:
                image = self._read(photo)[0].transpose(2, 0, 1)
                save_array(self._input(photo.id), np.ascontiguousarray(image))
            except ImageError as error:
                failed.append((str(photo.path), str(error)))
            self._progress.advance()
        return failed

    def train(self, data: TrainingSet, ids: Sequence[str]) -> tuple[State, PlaceModel]:
        """Fit what training starts from, train, and give the state and the best model."""

        def inputs(row: int) -> NDArray[Any]:
            loaded: NDArray[Any] = np.load(self._input(ids[row]))
            return loaded

        embedder = Embedder(self._start, device=self._options.device, precision=self._options.precision)
        trainer = Trainer(
            self._initial(data, ids, inputs),
            self._cut,
            data,
            inputs,
            self._options.train,
            into=self._into,
            folder=self._folder,
            reports=_Reports(self._folder, self._progress),
            device=embedder.device,
            autocast=None if embedder.dtype == torch.float32 else embedder.dtype,
        )
        state = trainer.run()
        return state, self._label(state, data)

    def _label(self, state: State, data: TrainingSet) -> PlaceModel:
        """Write into the best model what it was trained on."""
        model = load_model(self._into)
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
        """What training starts from, with clusters and reduction fitted on the photos that are trained on."""
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
                whole = torch.from_numpy(maps(photo))
                for side, part in enumerate((whole, *halves(whole))):
                    pooled[side, i] = model.pool(part)[0].numpy()
        choice = choose_reduction(
            pooled[0], pooled[1], pooled[2], np.arange(len(views)), max_dim=options.fit.dim
        )
        if choice.kept is None:
            return model.fitted(weights=self._into.stem)
        dim, power = choice.kept.dim, choice.kept.power
        reduction = fit_reduction(pooled[0], dim, power)
        return model.fitted(reduction=reduction, dim=dim, power=power, weights=self._into.stem)

    def _stem(self) -> Embedder:
        """The frozen layers by themselves."""
        start = self._start
        layers = list(start.backbone.children())[: self._cut]
        config = dataclasses.replace(start.config, pooling="average", clusters=0, dim=None)
        stem = PlaceModel(config, nn.Sequential(*layers), build_pooling("average"), None)
        return Embedder(stem, device=self._options.device, precision=self._options.precision)

    def _read(self, photo: TrainingPhoto) -> list[NDArray[np.uint8]]:
        return [read_photo(photo.path, self._start.config.image_size)]

    def _input(self, photo: str) -> Path:
        return self.inputs_folder / f"{photo}.npy"


def _starting_model(options: TrainingOptions) -> PlaceModel:
    if options.backbone == "deepface":
        from model.deepface import INPUT_SIZE

        torch.manual_seed(options.train.seed)
        config = ModelConfig(
            weights="untrained",
            backbone="deepface",
            connection=options.connection,
            tile=options.tile,
            pooling="average",
            clusters=0,
            image_size=INPUT_SIZE,
            std=(64.0, 64.0, 64.0),
        )
        return PlaceModel.untrained(config)
    if options.fit.weights == IMAGENET:
        return unfitted_model(options.fit)
    return load_weights(options.fit.weights)


@dataclass
class _Reports:
    """Passes progress on, and keeps log and curve."""

    folder: Path
    progress: TrainProgress

    def stage(self, name: str, total: int | None) -> None:
        self.progress.stage(name, total)

    def advance(self, n: int = 1) -> None:
        self.progress.advance(n)

    def epoch(self, history: Sequence[dict[str, Any]]) -> None:
        write_record(self.folder, history)
        self.progress.epoch(log_line(history[-1]))
