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
from indexer.metadata import MetadataTable, read_table, unused_rows
from indexer.options import BuildOptions, FitOptions
from indexer.progress import Progress
from indexer.scan import ScanResult, scan
from indexer.training_set import Supervision, TrainingPhoto, find_photos, training_set
from model.clusters import SAMPLE_PHOTOS
from model.deepface import INPUT_SIZE
from model.embedder import Embedded, Embedder
from model.errors import ImageError, ModelError
from model.fitting import fit_clusters, halves
from model.images import read_photo
from model.modelfile import ModelConfig, PlaceModel, load_model, read_header, save_model
from model.poolings import CLUSTERED, build_pooling
from model.reduction import choose_reduction, fit_reduction
from model.training.losses import LOSSES
from model.training.mining import TrainingSet
from model.training.record import log_line, write_record
from model.training.trainer import CHECKPOINT, OPTIMIZERS, State, Trainer, TrainOptions
from model.weights import load_weights

PARTS = ("head", "conv5", "all")
CONV5 = 24  # VGG16's layers before conv5_1
REDUCTION_PHOTOS = 2000  # whose unreduced descriptors the reduction is fitted on
MOST = 1000  # for --lr and --margin
FP16_MAX = 65504.0


@dataclass(frozen=True)
class TrainingOptions:
    """What `train_model` may be told."""

    fit: BuildOptions = field(default_factory=BuildOptions)
    """What was said of the model, --clusters and the like; of an index's other options none counts."""
    backbone: str = "vgg16"
    connection: str | None = None  # of deepface's L4 to L6; None: local
    tile: int = 2
    parts: str | None = None
    """Which learn: head (pooling and reduction), conv5 too, all; None: as the backbone."""
    supervision: Supervision = field(default_factory=Supervision)
    train: TrainOptions = field(default_factory=TrainOptions)
    metadata: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    restart: bool = False

    def __post_init__(self) -> None:
        if self.backbone == "deepface" and self.parts not in (None, "all"):
            raise UsageError("--backbone deepface starts from nothing and is trained whole, by --parts all")
        if self.backbone == "deepface" and self._said_of_the_model():
            flag = next(iter(self._said_of_the_model())).replace("_", "-")
            raise UsageError(f"--{flag} is for --backbone vgg16: deepface has its own sizes")
        if self.backbone != "deepface" and self.connection is not None:
            raise UsageError("--connection is of --backbone deepface: vgg16 is made of convolutions")
        for name, known, value in (
            ("--backbone", ("vgg16", "deepface"), self.backbone),
            ("--parts", PARTS, self.learning),
            ("--loss", LOSSES, self.train.loss),
            ("--optimizer", OPTIMIZERS, self.train.optimizer),
        ):
            if value not in known:
                raise UsageError(f"{name} must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}")
        how = self.supervision
        if not 0 < how.held_out < 1:
            raise UsageError(f"--held-out must be between 0 and 1, got {how.held_out:g}")
        if not 0 < how.reach_m <= how.negative_radius_m:
            raise UsageError(
                f"--positive-radius must be above 0 m and at most --negative-radius, "
                f"got {how.reach_m:g} and {how.negative_radius_m:g}"
            )
        for flag, number in (("--lr", self.train.lr), ("--margin", self.train.margin)):
            if not 0 < number <= MOST:
                raise UsageError(f"{flag} must be above 0 and at most {MOST}, got {number:g}")
        if not 0 < self.train.crop <= 1:
            raise UsageError(f"--crop must be above 0 and at most 1, got {self.train.crop:g}")
        if not 0 <= self.train.average < 1:
            raise UsageError(f"--average must be at least 0 and below 1, got {self.train.average:g}")

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
        said["parts"] = self.learning
        said["connection"] = self.connection or "local"
        said["fit"] = self._said_of_the_model()
        if self.fit.weights in (None, IMAGENET):
            said["fit"] = asdict(self.fit.fit_over(FitOptions())) | {"seed": None}
        return said

    def _said_of_the_model(self) -> dict[str, Any]:
        names = [known.name for known in dataclasses.fields(FitOptions) if known.name != "seed"]
        return {name: getattr(self.fit, name) for name in names if getattr(self.fit, name) is not None}


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
    left_out: int
    """Photos used for neither: too near to a held-out place, or of a position that nobody knows."""
    epochs: int
    best_epoch: int
    recall_before: list[float]
    recall_after: list[float]
    accuracy: float | None
    seconds: float
    failed: list[tuple[str, str]]
    notes: list[str]
    finished_before: bool = False

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(self)
        values["failed"] = [{"path": path, "reason": reason} for path, reason in self.failed]
        return values


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
    progress.stage("scanning", None)
    scanned = scan(sources)
    if not scanned.files:
        raise no_photos(sources)
    folder = into.with_name(f"{into.name}.training")
    wanted = _wanted(sources, options)
    if not options.restart:
        _refuse_another(folder, wanted)
        finished = _finished(folder, options)
        if finished is not None and into.exists():
            return finished
    # All that can be refused is, before anything is written that another try would have to agree with.
    table = read_table(options.metadata) if options.metadata else None
    photos, unreadable = find_photos(scanned, table)
    data = training_set(photos, options.supervision)
    run = _Run(folder, into, options, progress)
    folder.mkdir(parents=True, exist_ok=True)
    with write_lock(folder, "training run"):
        _begin(folder, wanted, restart=options.restart)
        failed = run.keep_inputs(photos)
        if failed:
            without = {path for path, _ in failed}
            photos = [photo for photo in photos if str(photo.path) not in without]
            data = training_set(photos, options.supervision)
        state, model = run.train(data, [photo.id for photo in photos])
        trained_on = len(np.union1d(data.queries, data.database))
        report = TrainReport(
            model=model.fingerprint,
            photos=len(photos),
            trained_on=trained_on,
            held_out=len(data.held_queries),
            left_out=len(photos) - trained_on - len(data.held_queries),
            epochs=state.history[-1]["epoch"],
            best_epoch=state.best["epoch"],
            recall_before=state.history[0]["recall"],
            recall_after=state.best["recall"],
            accuracy=state.best.get("accuracy"),
            seconds=time.perf_counter() - started,
            failed=sorted(unreadable + failed),
            notes=_notes(scanned, table),
        )
        replace_text(folder / "finished.json", json.dumps({"report": asdict(report), **_length(options)}))
        shutil.rmtree(run.inputs_folder, ignore_errors=True)
        return report


def _notes(scanned: ScanResult, table: MetadataTable | None) -> list[str]:
    notes = [f"{path}: {reason}" for path, reason in scanned.problems]
    if table is not None and table.unused():
        notes.append(unused_rows(table))
    return notes


def _check_target(into: Path) -> None:
    if into.is_dir():
        raise UsageError(f"--into names the model's file, but {into} is a folder")
    if into.exists():
        try:
            read_header(into)
        except ModelError:
            raise IndexerError(f"{into} is there already and is no model: name another") from None
    into.parent.mkdir(parents=True, exist_ok=True)


def _wanted(sources: Sequence[Path], options: TrainingOptions) -> dict[str, Any]:
    """What is trained on and how, as `options.json` has it."""
    paths = [str(Path(source).absolute()) for source in sources]
    wanted: dict[str, Any] = json.loads(json.dumps({"sources": paths, **options.identity()}))
    return wanted


def _refuse_another(folder: Path, wanted: dict[str, Any]) -> None:
    path = folder / "options.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    if found != wanted:
        raise IndexerError(
            f"{folder} holds a run with other options ({_differences(found, wanted)}): say the same "
            "again to go on with it, or --restart to begin anew"
        )


def _begin(folder: Path, wanted: dict[str, Any], *, restart: bool) -> None:
    """Note what is trained on and how; forget, or refuse to go on with, a run of other options."""
    if restart:
        for child in folder.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
            elif not child.name.startswith("LOCK"):
                child.unlink()
    _refuse_another(folder, wanted)
    replace_text(folder / "options.json", json.dumps(wanted, indent=1))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Names of what differs, each once; how photos are held out follows from the loss."""
    names: list[str] = []
    for name in new if old else ():
        if isinstance(new[name], dict) and isinstance(old.get(name), dict):
            keys = [*new[name], *old[name]]
            names += [key for key in keys if old[name].get(key) != new[name].get(key) and key != "classify"]
        elif old.get(name) != new[name]:
            names.append(name)
    words = dict.fromkeys(name.removesuffix("_m").replace("_", " ") for name in names)
    return ", ".join(words) or "unreadable"


def _length(options: TrainingOptions) -> dict[str, int]:
    return {"epochs": options.train.epochs, "patience": options.train.patience}


def _finished(folder: Path, options: TrainingOptions) -> TrainReport | None:
    path = folder / "finished.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        report = TrainReport(**found["report"] | {"finished_before": True})
    except (ValueError, KeyError, TypeError):  # damaged: what it says of is made again
        return None
    if {name: found.get(name) for name in ("epochs", "patience")} != _length(options):
        return None
    return dataclasses.replace(report, failed=[(path, reason) for path, reason in report.failed])


class _Run:
    """One run's folder and what is made in it."""

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
        """Compute what the frozen layers make of each photo, where it is not there; those that fail."""
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
        """Write a batch's maps, so that after a kill there are all of them or none.

        A photo's last bits depend on how many go through with it: only where those that are missing come in
        the same batches again does a run that was killed end like an unbroken one.
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
        """Fit what training starts from, train, and give the state and the best model."""

        def inputs(row: int) -> NDArray[Any]:
            loaded: NDArray[Any] = np.load(self._input(ids[row]))
            return loaded

        embedder = Embedder(self._start, device=self._options.device, precision=self._options.precision)
        if (self._folder / CHECKPOINT).exists() and not self._best.exists():
            raise IndexerError(f"{self._best} is gone, the run's best model so far: --restart begins anew")
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
            autocast=None if embedder.dtype == torch.float32 else embedder.dtype,
        )
        state = trainer.run()
        return state, self._label(state, data)

    def _label(self, state: State, data: TrainingSet) -> PlaceModel:
        """Write the best model where it was asked for, with what it was trained on."""
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
            pooled[0], pooled[1], pooled[2], np.arange(len(views)), max_dim=options.fit.dim or FitOptions.dim
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

    @property
    def _batch_file(self) -> Path:
        return self.inputs_folder / "batch.json"

    def _input(self, photo: str) -> Path:
        return self.inputs_folder / f"{photo}.npy"


def _starting_model(options: TrainingOptions) -> PlaceModel:
    if options.backbone == "deepface":
        return _untrained_deepface(options)
    if options.fit.weights in (None, IMAGENET):
        return unfitted_model(options.fit.fit_over(FitOptions()))
    model = load_weights(str(options.fit.weights))
    config = model.config
    fit = options.fit.fit_over(FitOptions(), config)  # refuses what the weights have otherwise
    if options.fit.dim not in (None, config.dim):
        raise UsageError(f"--dim {options.fit.dim} cannot be: the weights {config.weights} are not reduced")
    return model.fitted(image_size=fit.image_size)


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
