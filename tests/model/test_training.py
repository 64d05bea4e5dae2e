"""Mining, and training a pooling on maps that a place decides."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from model.errors import ModelError
from model.fitting import fit_clusters
from model.layers.poolings import CLUSTERED, POOLINGS
from model.modelfile import ModelConfig, PlaceModel
from model.reduction import Reduction
from model.training.checkpoint import load_checkpoint, save_checkpoint
from model.training.losses import LOSSES
from model.training.mining import Miner, TrainingSet, recall_at
from model.training.trainer import Trainer, TrainOptions

PLACES, VIEWS, CHANNELS = 12, 4, 512


class Silent:
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def stage(self, name: str, total: int | None) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def epoch(self, history: Sequence[dict[str, Any]]) -> None:
        self.epochs.append(len(history))


def inputs(row: int) -> NDArray[np.float16]:
    """A map, 512 2 3 or 512 3 2: what the place shows, and what the light does to it."""
    shape = ((2, 3), (3, 2))[row % 2]
    place = np.random.default_rng(row // VIEWS).standard_normal((CHANNELS, 1, 1))
    light = np.random.default_rng([7, row % VIEWS]).standard_normal((CHANNELS, 1, 1))
    noise = np.random.default_rng([8, row]).standard_normal((CHANNELS, *shape))
    return (0.4 * place + 0.6 * light + 0.8 * noise).astype(np.float16)


def some_places(*, classify: bool = False) -> TrainingSet:
    rows = np.arange(PLACES * VIEWS)
    place = rows // VIEWS
    same = tuple(np.flatnonzero((place == place[row]) & (rows != row)) for row in rows)
    held = rows % VIEWS == 3 if classify else place >= 8
    return TrainingSet(
        ids=tuple(f"{row:04x}" for row in rows),
        queries=rows[~held],
        database=rows[~held],
        held_queries=rows[held],
        held_database=rows[~held] if classify else rows,
        positives=same,
        near=same,
        right=same,
        labels=np.where(held & (not classify), -1, place),
    )


def some_model(pooling: str) -> PlaceModel:
    config = ModelConfig(
        pooling=pooling,
        clusters=4 if pooling in CLUSTERED else 0,
        ghosts=2 if pooling == "ghostvlad" else 0,
    )
    if pooling not in CLUSTERED:
        return PlaceModel(config, nn.Sequential(), config.build_pooling(), None)

    def maps(photo: str) -> NDArray[np.float32]:
        local = inputs(int(photo, 16))[None].astype(np.float32)
        return np.asarray(local / np.linalg.norm(local, axis=1, keepdims=True), np.float32)

    layer, _ = fit_clusters(config, [f"{row:04x}" for row in range(32)], maps, seed=0)
    return PlaceModel(config, nn.Sequential(), layer, None)


def reduced(model: PlaceModel) -> PlaceModel:
    """With a reduction of random directions, which can learn what the light is."""
    reduction = Reduction(model.config.pooled_dim, 32)
    generator = torch.Generator().manual_seed(0)
    nn.init.orthogonal_(reduction.projection, generator=generator)
    return model.fitted(reduction=reduction, dim=32, power=0.0)


def trainer(
    folder: Path,
    pooling: str = "netvlad",
    *,
    data: TrainingSet | None = None,
    reduce: bool = True,
    **options: Any,
) -> Trainer:
    wanted = TrainOptions(
        **{"epochs": 3, "refresh": 10, "lr": 0.05, "negatives": 3, "sampled": 20, **options}
    )
    return Trainer(
        reduced(some_model(pooling)) if reduce else some_model(pooling),
        0,
        data or some_places(classify=options.get("loss") == "softmax"),
        inputs,
        wanted,
        into=folder / "model.safetensors",
        folder=folder,
        reports=Silent(),
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_falls_and_held_out_recall_rises(tmp_path: Path, loss: str) -> None:
    state = trainer(tmp_path, "average", loss=loss, epochs=5, lr=0.3).run()
    first, last = state.history[1], state.history[-1]
    assert last["loss"] < first["loss"]
    assert state.best["recall"][0] > state.history[0]["recall"][0]


def test_a_classifier_learns_its_places(tmp_path: Path) -> None:
    state = trainer(tmp_path, loss="softmax", epochs=4, reduce=False).run()
    assert state.history[0]["accuracy"] < 0.3
    assert state.history[-1]["accuracy"] > 0.6


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_pooling_trains(tmp_path: Path, pooling: str) -> None:
    run = trainer(tmp_path, pooling, epochs=1)
    before = run.descriptors()
    state = run.run()
    assert np.isfinite(state.history[1]["loss"])
    assert float(np.abs(run.descriptors() - before).max()) > 1e-6


def test_average_without_a_reduction_has_nothing_to_learn(tmp_path: Path) -> None:
    where: dict[str, Any] = {"into": tmp_path / "model", "folder": tmp_path, "reports": Silent()}
    with pytest.raises(ModelError, match="nothing that could learn"):
        Trainer(some_model("average"), 0, some_places(), inputs, TrainOptions(), **where)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_interrupted_training_ends_like_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, accumulate: int
) -> None:
    options: dict[str, Any] = {"loss": loss, "accumulate": accumulate, "refresh": 9, "epochs": 2}
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = trainer(tmp_path / "whole", **options)
    whole.run()
    steps = 0
    step = Trainer._step

    def dies(self: Trainer) -> None:
        nonlocal steps
        steps += 1
        if steps % 4 == 0:
            raise Killed
        step(self)

    monkeypatch.setattr(Trainer, "_step", dies)
    deaths = 0
    while True:
        cut = trainer(tmp_path / "cut", **options)
        try:
            state = cut.run()
            break
        except Killed:
            deaths += 1
            assert deaths < 50
    assert deaths > 0
    assert state.history == whole.run().history
    for name, tensor in whole._parts.state_dict().items():
        assert torch.equal(tensor, cut._parts.state_dict()[name]), name


@pytest.mark.parametrize(("backbone", "whole"), [("vgg16", False), ("deepface", True)])
def test_training_sees_cuts_but_of_images_that_are_aligned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str, whole: bool
) -> None:
    seen: set[tuple[int, ...]] = set()
    forward = Trainer._forward

    def watched(self: Trainer, batch: NDArray[Any]) -> torch.Tensor:
        if self._parts.training:
            seen.add(batch.shape[2:])
        return forward(self, batch)

    monkeypatch.setattr(Trainer, "_forward", watched)
    model = reduced(some_model("netvlad")).fitted(backbone=backbone)
    Trainer(
        *(model, 0, some_places(), inputs, TrainOptions(epochs=1)),
        into=tmp_path / "model.safetensors",
        folder=tmp_path,
        reports=Silent(),
    ).run()
    assert (seen == {(2, 3), (3, 2)}) is whole


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        run = trainer(tmp_path / name, seed=seed, epochs=1)
        run.run()
        weights.append(run._parts.state_dict()["1.centres"].clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_it_stops_early_and_keeps_the_best(tmp_path: Path) -> None:
    state = trainer(tmp_path, lr=1e-9, epochs=20, patience=2).run()
    assert len(state.history) == 3
    assert state.best["epoch"] == 0


def test_more_epochs_go_on_with_a_finished_run(tmp_path: Path) -> None:
    trainer(tmp_path, epochs=1).run()
    state = trainer(tmp_path, epochs=2).run()
    assert [record["epoch"] for record in state.history] == [0, 1, 2]


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, epochs=1).run()
    with pytest.raises(ModelError, match="belongs to a run with other options or photos"):
        trainer(tmp_path, epochs=1, margin=0.2).run()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, {"x": torch.zeros(1000)}, {"a": 1})
    assert load_checkpoint(path)[1] == {"a": 1}
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"cannot be read: .*set `restart` to start over"):
        load_checkpoint(path)


def test_nan_loss_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="the loss is not a number in epoch 1: use a lower `lr`"):
        trainer(tmp_path, loss="softmax", optimizer="sgd", lr=1e38, batch=2).run()


def test_mining_takes_the_best_positive_and_the_hardest_negatives_and_remembers() -> None:
    data = some_places()
    descriptors = np.random.default_rng(0).standard_normal((len(data.ids), 16)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    similar = descriptors @ descriptors[5]
    miner = Miner(data, negatives=3, sampled=10_000, margin=0.1)
    mined = miner.mine(5, descriptors, np.random.default_rng(0))
    assert mined.positive == max((4, 6, 7), key=lambda row: float(similar[row]))
    strangers = [row for row in data.database if row // VIEWS != 1]
    hardest = sorted(strangers, key=lambda row: -float(similar[row]))[:3]
    assert list(mined.negatives) == hardest
    miner._sampled = 1  # now only what is remembered can bring them back
    again = miner.mine(5, descriptors, np.random.default_rng(1))
    assert list(again.negatives) == hardest
    assert mined.violating


def test_recall_leaves_a_query_out_of_its_own_ranking() -> None:
    data = some_places()
    descriptors = np.repeat(np.eye(PLACES, dtype=np.float32), VIEWS, axis=0)
    assert recall_at(descriptors, data) == {1: 1.0, 5: 1.0, 10: 1.0}
    apart = np.eye(PLACES * VIEWS, dtype=np.float32)
    assert recall_at(apart, data)[1] < 0.5


def test_recall_leaves_out_photos_that_are_near_but_look_another_way() -> None:
    """Each place's first two views look one way, its last two the other; the other way is the more alike."""
    data = some_places()
    rows = np.arange(PLACES * VIEWS)
    right = tuple(
        same[same % VIEWS // 2 == row % VIEWS // 2] for row, same in zip(rows, data.near, strict=True)
    )
    descriptors = np.zeros((len(rows), 2 * PLACES), np.float32)
    descriptors[rows, rows // VIEWS] = 0.9  # the day
    descriptors[rows, PLACES + rows // VIEWS] = 0.1 * (rows % VIEWS // 2)  # the view
    assert recall_at(descriptors, replace(data, right=right))[1] == 1.0
    wrong = tuple(np.setdiff1d(near, own) for near, own in zip(data.near, right, strict=True))
    assert recall_at(descriptors, replace(data, right=wrong, near=wrong))[1] == 0.0
