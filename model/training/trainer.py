"""Train a model's later parts on photos of known places; a killed run resumes exactly.

Frozen layers run once for each photo: their output is kept (`Inputs`), and training starts from it.

An epoch is cut into rounds. At the start of each, the descriptors of all photos are computed again and the
random generators are seeded by (seed, epoch, round); at its end, the state is written. Nothing else passes
from one round to the next, so a resumed run equals an unbroken one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.errors import ModelError
from model.modelfile import PlaceModel, save_model
from model.training.checkpoint import load_checkpoint, save_checkpoint
from model.training.losses import PlaceClassifier, multi_similarity_loss, triplet_loss
from model.training.mining import Miner, Rows, TrainingSet, Triplets, recall_at

Floats = NDArray[np.float32]
EVALUATION_BATCH = 8
OPTIMIZERS = ("adamw", "sgd")
FINE = 0.01
"""Factor of the learning rate for parts with millions of numbers and a good start, with AdamW."""
CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class TrainOptions:
    """Training options. Mining, margin and batches are those of the NetVLAD paper; the optimiser is not.

    The paper's recipe is `optimizer="sgd", lr=0.04, average=0, crop=1`: its learning rate of 0.001 is for a
    loss summed over 4 queries of 10 negatives each, ours is their mean.
    """

    loss: str = "triplet"
    margin: float = 0.1
    negatives: int = 10
    sampled: int = 1000  # negatives drawn for a query, of which the hardest are kept
    refresh: int = 500  # queries between two computations of all descriptors
    epochs: int = 30
    patience: int = 5  # epochs without a better held-out recall
    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_epochs: int = 5  # epochs after which the learning rate is halved
    average: float = 0.98  # decay of the moving average of the weights, which is measured and kept; 0: none
    batch: int = 4  # queries; with softmax, photos
    accumulate: int = 1  # batches of a step
    crop: float | None = None
    """Least share of each side that training sees of a photo; 1 is all of it. None: 0.7, and 1 for DeepFace,
    whose layers depend on the position.
    """
    seed: int = 0


class Inputs(Protocol):
    """The start of training for a photo's row: a map (D H W) or an image (uint8, 3 H W)."""

    def __call__(self, row: int, /) -> NDArray[Any]: ...


class Reports(Protocol):
    """Progress of training."""

    def stage(self, name: str, total: int | None) -> None: ...

    def advance(self, n: int = 1) -> None: ...

    def epoch(self, history: Sequence[dict[str, Any]]) -> None:
        """Called after each epoch with all records so far; the first, number 0, is before training."""
        ...


@dataclass
class State:
    """The state that a round passes to the next, besides weights, momentum and remembered negatives."""

    epoch: int = 1
    round: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best(self) -> dict[str, Any]:
        """The record of the epoch whose model is kept: the first with the best recall."""
        return max(self.history, key=lambda record: (record["recall"], -record["epoch"]))


class Trainer:
    """Trains `model` from layer `cut` of its backbone on, and keeps the best epoch's model at `into`.

    Args:
        model: fitted; its trained parts are changed in place.
        cut: number of the backbone's layers that `inputs` has passed already.
        folder: for checkpoints.
        autocast: format of the backbone's products, or None for fp32.

    Raises:
        ModelError: nothing to train on, a loss that is not a number, a checkpoint of something else.
    """

    def __init__(
        self,
        model: PlaceModel,
        cut: int,
        data: TrainingSet,
        inputs: Inputs,
        options: TrainOptions,
        *,
        into: Path,
        folder: Path,
        reports: Reports,
        device: torch.device | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._device = device or torch.device("cpu")
        self._model = model.to(self._device)
        self._data = data
        self._inputs = inputs
        self._options = options
        self._into = into
        self._checkpoint = folder / CHECKPOINT
        self._reports = reports
        self._autocast = autocast
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=autocast is torch.float16)
        self._tail = _layers(model.backbone, cut)
        self._crop = options.crop or (1.0 if model.config.backbone == "deepface" else 0.7)
        self._miner = Miner(data, negatives=options.negatives, sampled=options.sampled, margin=options.margin)
        self._queries = self._trainable()
        torch.manual_seed(options.seed)
        self._classifier = (
            PlaceClassifier(model.config.output_dim, data.classes).to(self._device)
            if options.loss == "softmax"
            else None
        )
        learning = [self._tail, model.pooling, *filter(None, (model.reduction, self._classifier))]
        model.requires_grad_(False)
        for part in learning:
            part.requires_grad_(True)
        self._parts = nn.ModuleList(learning)
        if not any(True for _ in self._parts.parameters()):
            raise ModelError(
                "nothing that could learn: average pooling without a reduction has no parameters"
            )
        self._learning: list[Tensor] = list(self._parts.parameters())
        self._mean = [parameter.detach().clone() for parameter in self._learning]
        self._optimizer = self._build_optimizer()
        self._state = State()

    def _build_optimizer(self) -> torch.optim.Optimizer:
        """AdamW moves the fitted reduction and pretrained convolutions by `FINE` of the learning rate."""
        options = self._options
        if options.optimizer == "sgd":
            sgd = {"lr": options.lr, "first_lr": options.lr, "momentum": 0.9, "weight_decay": 1e-3}
            return torch.optim.SGD([{"params": self._learning, **sgd}], lr=options.lr)
        started_well = [self._model.reduction, self._tail if self._model.config.backbone == "vgg16" else None]
        chosen = {id(p) for part in started_well if part is not None for p in part.parameters()}
        groups = [
            {"params": params, "lr": options.lr * share, "first_lr": options.lr * share}
            for share, params in (
                (FINE, [p for p in self._learning if id(p) in chosen]),
                (1.0, [p for p in self._learning if id(p) not in chosen]),
            )
            if params
        ]
        return torch.optim.AdamW(groups, weight_decay=1e-3)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with the moving average of its weights, which is measured and kept (Polyak, 1992)."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for parameter, mean in zip(self._learning, self._mean, strict=True):
            parameter.data, mean.data = mean.data, parameter.data

    def run(self) -> State:
        """Train until the epochs or the patience end; resume a killed run."""
        if self._checkpoint.exists():
            self._restore()
            self._reports.epoch(self._state.history)
        else:
            self._validate(epoch=0, loss=None)
        while not self._done():
            self._epoch()
        return self._state

    def _done(self) -> bool:
        state, options = self._state, self._options
        waited = state.epoch - 1 - state.best["epoch"]
        return state.epoch > options.epochs or waited >= options.patience

    def _epoch(self) -> None:
        state, options = self._state, self._options
        for group in self._optimizer.param_groups:
            group["lr"] = group["first_lr"] * 0.5 ** ((state.epoch - 1) // options.lr_epochs)
        order = np.random.default_rng([options.seed, state.epoch]).permutation(self._queries)
        self._reports.stage(f"training, epoch {state.epoch}", len(order))
        self._reports.advance(min(len(order), state.round * options.refresh))
        rounds = math.ceil(len(order) / options.refresh)
        while state.round < rounds:
            start = state.round * options.refresh
            self._round(order[start : start + options.refresh])
            state.round += 1
            if state.round < rounds:
                self._save()
        loss = state.loss_sum / max(state.loss_count, 1)
        epoch = state.epoch
        state.epoch, state.round, state.loss_sum, state.loss_count = epoch + 1, 0, 0.0, 0
        self._validate(epoch=epoch, loss=loss)

    def _round(self, queries: Rows) -> None:
        options, state = self._options, self._state
        torch.manual_seed(
            int(np.random.default_rng([options.seed, state.epoch, state.round]).integers(2**62))
        )
        self._parts.train()
        self._optimizer.zero_grad()
        batches = 0
        for loss, count in self._losses(queries):
            if loss is not None:
                if not torch.isfinite(loss):
                    raise ModelError(f"the loss is not a number in epoch {state.epoch}: use a lower `lr`")
                torch.autograd.backward(self._scaler.scale(loss / options.accumulate))
                state.loss_sum += float(loss.detach()) * count
                batches += 1
                if batches % options.accumulate == 0:
                    self._step()
            state.loss_count += count
            self._reports.advance(count)
        if batches % options.accumulate:
            self._step()

    def _step(self) -> None:
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(self._mean, self._learning, 1 - self._options.average)

    def _losses(self, queries: Rows) -> Iterator[tuple[Tensor | None, int]]:
        """Yield each batch's loss, None if nothing violates it, and its number of queries."""
        options = self._options
        if self._classifier is not None:
            for rows in _chunks(queries, options.batch):
                logits = self._classifier(self._embed(rows))
                labels = torch.from_numpy(self._data.labels[rows]).to(self._device)
                yield F.cross_entropy(logits, labels), len(rows)
            return
        cached = self.descriptors()
        self._parts.train()
        rng = np.random.default_rng([options.seed, self._state.epoch, self._state.round])
        for rows in _chunks(queries, options.batch):
            mined = [self._miner.mine(int(query), cached, rng) for query in rows]
            violating = [triplets for triplets in mined if triplets.violating]
            yield (
                (self._ranking_loss(violating) * (len(violating) / len(rows)) if violating else None),
                len(rows),
            )

    def _ranking_loss(self, mined: Sequence[Triplets]) -> Tensor:
        """The mean over the mined queries."""
        rows = np.unique(np.concatenate([[t.query, t.positive, *t.negatives] for t in mined]))
        at = {int(row): i for i, row in enumerate(rows)}
        descriptors = self._embed(rows)
        if self._options.loss == "multi-similarity":
            return multi_similarity_loss(descriptors, *self._pairs(rows))
        losses = []
        for triplets in mined:
            query, positive = descriptors[at[triplets.query]], descriptors[at[triplets.positive]]
            negatives = descriptors[[at[int(row)] for row in triplets.negatives]]
            losses.append(
                triplet_loss(query[None], positive[None], negatives[None], margin=self._options.margin)
            )
        return torch.stack(losses).mean()

    def _pairs(self, rows: Rows) -> tuple[Tensor, Tensor]:
        positive = np.stack([np.isin(rows, self._data.positives[row]) for row in rows])
        near = np.stack([np.isin(rows, self._data.near[row]) for row in rows])
        return torch.from_numpy(positive).to(self._device), torch.from_numpy(~near).to(self._device)

    def descriptors(self) -> Floats:
        """Descriptors of all photos with the current model, n d."""
        self._parts.eval()
        out = np.zeros((len(self._data.ids), self._model.config.output_dim), np.float32)
        with torch.no_grad():
            for rows in _chunks(np.arange(len(out)), EVALUATION_BATCH):
                out[rows] = self._embed(rows).cpu().numpy()
        return out

    def _embed(self, rows: Rows) -> Tensor:
        """Return descriptors of photos, in order; inputs of one shape run together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        arrays = [self._inputs(int(row)) for row in rows]
        for i, array in enumerate(arrays):
            groups.setdefault(array.shape, []).append(i)
        order = [i for group in groups.values() for i in group]
        parts = [self._forward(self._stack([arrays[i] for i in group])) for group in groups.values()]
        return torch.cat(parts)[torch.tensor(order, device=self._device).argsort()]

    def _stack(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return inputs of one shape as a batch; in training, random crops of one size.

        Crops keep a small collection from being memorised, and imitate other viewpoints. The map is cropped
        if layers are frozen, otherwise the image.
        """
        height, width = arrays[0].shape[1:]
        if not self._parts.training or self._crop >= 1:
            return np.stack(arrays)
        shares = self._crop + (1 - self._crop) * torch.rand(2)
        h, w = (
            max(1, round(float(share) * side)) for share, side in zip(shares, (height, width), strict=True)
        )
        tops = torch.randint(height - h + 1, (len(arrays),)).tolist()
        lefts = torch.randint(width - w + 1, (len(arrays),)).tolist()
        cuts = zip(arrays, tops, lefts, strict=True)
        return np.stack([array[:, top : top + h, left : left + w] for array, top, left in cuts])

    def _forward(self, inputs: NDArray[Any]) -> Tensor:
        x = torch.from_numpy(inputs).to(self._device)
        if x.dtype == torch.uint8:
            x = (x - self._model.mean) / self._model.std
        x = x.float()
        if len(self._tail):
            with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
                x = self._tail(x.contiguous(memory_format=torch.channels_last))
        return self._model.reduce(self._model.pool(x.float()))

    def _validate(self, *, epoch: int, loss: float | None) -> None:
        self._reports.stage("held-out recall", None)
        with self._averaged():
            descriptors = self.descriptors()
            recall = recall_at(descriptors, self._data)
            record: dict[str, Any] = {
                "epoch": epoch,
                "loss": loss,
                "recall": [recall[1], recall[5], recall[10]],
            }
            if self._classifier is not None:
                record["accuracy"] = self._accuracy(descriptors)
            self._state.history.append(record)
            if self._state.best is record:
                save_model(self._model, self._into)
        self._save()
        self._reports.epoch(self._state.history)

    def _accuracy(self, descriptors: Floats) -> float:
        """Share of the held-out photos of trained places that the classifier assigns correctly."""
        rows = self._data.held_queries[self._data.labels[self._data.held_queries] >= 0]
        if self._classifier is None or not len(rows):
            return 0.0
        with torch.no_grad():
            found = self._classifier(torch.from_numpy(descriptors[rows]).to(self._device)).argmax(1)
        return float((found.cpu().numpy() == self._data.labels[rows]).mean())

    def _trainable(self) -> Rows:
        if self._options.loss == "softmax":
            queries = self._data.queries[self._data.labels[self._data.queries] >= 0]
        else:
            queries = self._miner.trainable(self._data.queries)
        if not len(queries):
            raise ModelError(
                "no photo to train on has both another of the same place and one of another place"
            )
        return queries

    def _identity(self) -> str:
        """What a checkpoint and the run that resumes it must have in common."""
        settings = asdict(self._options) | {"epochs": None, "patience": None}
        digest = hashlib.sha256(json.dumps([settings, self._data.ids, str(self._autocast)]).encode())
        for rows in (self._queries, self._data.database, self._data.held_queries, self._data.held_database):
            digest.update(rows.tobytes())
        return digest.hexdigest()

    def _save(self) -> None:
        tensors = {f"weights.{name}": tensor for name, tensor in self._parts.state_dict().items()}
        for number, buffers in self._optimizer.state_dict()["state"].items():
            for name, tensor in buffers.items():
                if tensor is not None:
                    tensors[f"optimizer.{number}.{name}"] = tensor
        tensors |= {f"mean.{number}": tensor for number, tensor in enumerate(self._mean)}
        tensors["hardest"] = torch.from_numpy(self._miner.hardest)
        state = {
            "state": asdict(self._state),
            "identity": self._identity(),
            "scaler": self._scaler.state_dict(),
        }
        save_checkpoint(self._checkpoint, tensors, state)

    def _restore(self) -> None:
        tensors, state = load_checkpoint(self._checkpoint)
        if state["identity"] != self._identity():
            raise ModelError(
                f"{self._checkpoint} belongs to a run with other options or photos: use the same ones, "
                "or set `restart` to start over"
            )
        self._parts.load_state_dict(
            {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
        )
        optimizer = self._optimizer.state_dict()
        for key, tensor in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                number, _, name = rest.partition(".")
                optimizer["state"].setdefault(int(number), {})[name] = tensor
            elif kind == "mean":
                self._mean[int(rest)].copy_(tensor)
        self._optimizer.load_state_dict(optimizer)
        self._miner.hardest = tensors["hardest"].numpy()
        self._scaler.load_state_dict(state["scaler"])
        self._state = State(**state["state"])


def _layers(backbone: nn.Module, cut: int) -> nn.Sequential:
    """The backbone from layer `cut` on."""
    if isinstance(backbone, nn.Sequential):
        return backbone[cut:]
    if cut:
        raise ModelError(f"{type(backbone).__name__} can only be trained whole")
    return nn.Sequential(backbone)


def _chunks(rows: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
