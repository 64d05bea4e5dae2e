"""Options and report of `loci train`."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from indexer.errors import UsageError
from indexer.options import IMAGENET, BuildOptions, FitOptions
from indexer.progress import Progress
from indexer.training.dataset import Supervision
from model.training.losses import LOSSES
from model.training.trainer import OPTIMIZERS, TrainOptions

PARTS = ("head", "conv5", "all")
MOST = 1000  # of lr and margin


@dataclass(frozen=True)
class TrainingOptions:
    """Options of `train_model`."""

    fit: BuildOptions = field(default_factory=BuildOptions)
    """Options of the model, such as `clusters`; other options of an index are ignored."""
    backbone: str = "vgg16"
    connection: str | None = None  # of deepface's L4 to L6; None: local
    tile: int = 2
    parts: str | None = None
    """Trained parts: head (pooling and reduction), conv5 as well, all; None: by backbone."""
    supervision: Supervision = field(default_factory=Supervision)
    train: TrainOptions = field(default_factory=TrainOptions)
    metadata: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    restart: bool = False

    def __post_init__(self) -> None:
        if self.backbone == "deepface" and self.parts not in (None, "all"):
            raise UsageError("`backbone` deepface has no pretrained weights and needs `parts` all")
        if self.backbone == "deepface" and self._said_of_the_model():
            name = next(iter(self._said_of_the_model()))
            raise UsageError(f"`{name}` needs `backbone` vgg16: deepface has its own sizes")
        if self.backbone != "deepface" and self.connection is not None:
            raise UsageError("`connection` needs `backbone` deepface: vgg16 has convolutions only")
        for name, known, value in (
            ("backbone", ("vgg16", "deepface"), self.backbone),
            ("parts", PARTS, self.learning),
            ("loss", LOSSES, self.train.loss),
            ("optimizer", OPTIMIZERS, self.train.optimizer),
        ):
            if value not in known:
                raise UsageError(f"`{name}` must be {', '.join(known[:-1])} or {known[-1]}, got {value!r}")
        how = self.supervision
        if not 0 < how.held_out < 1:
            raise UsageError(f"`held_out` must be between 0 and 1, got {how.held_out:g}")
        if not 0 < how.reach_m <= how.negative_radius_m:
            raise UsageError(
                f"`positive_radius_m` must be above 0 and at most `negative_radius_m`, "
                f"got {how.reach_m:g} and {how.negative_radius_m:g}"
            )
        for name, number in (("lr", self.train.lr), ("margin", self.train.margin)):
            if not 0 < number <= MOST:
                raise UsageError(f"`{name}` must be above 0 and at most {MOST}, got {number:g}")
        if self.train.crop is not None and not 0 < self.train.crop <= 1:
            raise UsageError(f"`crop` must be above 0 and at most 1, got {self.train.crop:g}")
        if not 0 <= self.train.average < 1:
            raise UsageError(f"`average` must be at least 0 and below 1, got {self.train.average:g}")

    @property
    def learning(self) -> str:
        """The trained parts."""
        return self.parts or ("all" if self.backbone == "deepface" else "head")

    def identity(self) -> dict[str, Any]:
        """Return what must stay the same for a run to be resumed."""
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
    """Progress of a training run."""

    def epoch(self, line: str) -> None:
        """Report the line of a finished epoch."""
        ...


@dataclass(frozen=True)
class TrainReport:
    """The result of a run; recall@1/5/10 of held-out photos as fractions."""

    model: str
    photos: int
    trained_on: int
    held_out: int
    left_out: int
    """Photos used for neither: too near to a held-out place, or without a position."""
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
        """Return JSON values."""
        values = asdict(self)
        values["failed"] = [{"path": path, "reason": reason} for path, reason in self.failed]
        return values
