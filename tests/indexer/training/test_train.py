"""`train_model` from photos to a model that indexes, on walls painted in changing light."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import model.layers.backbone
from indexer.build.run import build_index
from indexer.errors import IndexerError, IndexLocked, UsageError
from indexer.index import Index
from indexer.options import BuildOptions
from indexer.storage.lock import write_lock
from indexer.training.dataset import Supervision
from indexer.training.options import TrainingOptions, TrainReport
from indexer.training.train import train_model
from model.errors import ModelError
from model.modelfile import PlaceModel, load_model
from model.training.trainer import TrainOptions

WALLS, VIEWS = 8, 4


def paint_in_light(path: Path, wall: int, view: int, *, gps: bool = True, light: float = 0.5) -> Path:
    """A wall's squares, and over them a light that is the same on every wall."""
    squares = np.random.default_rng(wall).integers(0, 256, (3, 4, 3))
    shine = np.random.default_rng([1, view]).integers(0, 256, (3, 4, 3))
    noise = np.random.default_rng([wall, view]).integers(-15, 15, (48, 64, 3))
    seen = ((1 - light) * squares + light * shine).repeat(16, axis=0).repeat(16, axis=1)
    exif = Image.Exif()
    if gps:
        exif.get_ifd(0x8825).update({1: "N", 2: (52 + wall / 100, 0.0, 0.0), 3: "E", 4: (0.25, 0.0, 0.0)})
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((seen + noise).clip(0, 255).astype(np.uint8)).save(path, quality=95, exif=exif)
    return path


class Heard:
    """What a run tells while it works."""

    def __init__(self, stop: Callable[[str], bool] = lambda _: False) -> None:
        self.stages: list[tuple[str, int | None]] = []
        self.done: list[int] = []
        self.lines: list[str] = []
        self._stop = stop

    def stage(self, name: str, total: int | None) -> None:
        if self._stop(name):
            raise KeyboardInterrupt
        self.stages.append((name, total))
        self.done.append(0)

    def advance(self, n: int = 1) -> None:
        self.done[-1] += n

    def note(self, text: str) -> None:
        raise AssertionError(text)

    def epoch(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests read it only."""
    folder = tmp_path_factory.mktemp("walls") / "photos"
    for wall in range(WALLS):
        for view in range(VIEWS):
            paint_in_light(folder / f"wall{wall}" / f"view{view}.jpg", wall, view)
    return folder


@pytest.fixture(scope="module")
def few(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of the walls, for networks that take long."""
    folder = tmp_path_factory.mktemp("few") / "photos"
    for wall in range(4):
        shutil.copytree(photos / f"wall{wall}", folder / f"wall{wall}")
    return folder


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "street.safetensors"


@pytest.fixture
def better_and_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is found of the photos held out, each epoch counts as better than the one before."""
    found = iter(range(1, 100))
    monkeypatch.setattr(
        "model.training.trainer.recall_at", lambda *_: dict.fromkeys((1, 5, 10), next(found) / 100)
    )


@pytest.fixture
def real_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG16 and not the tiny stand-in."""
    for name in ("imagenet_backbone", "vgg16_conv5"):
        monkeypatch.setattr(f"model.modelfile.{name}", getattr(model.layers.backbone, name))


def options(*, train: dict[str, Any] | None = None, **more: Any) -> TrainingOptions:
    learning = {"epochs": 2, "patience": 9, "negatives": 4, "lr": 0.02, **(train or {})}
    given = {"fit": BuildOptions(clusters=4, image_size=64), "device": "cpu", "precision": "fp32", **more}
    return TrainingOptions(train=TrainOptions(**learning), **given)


def run(photos: Path, into: Path, told: TrainingOptions, heard: Heard | None = None) -> TrainReport:
    return train_model([photos], into, told, heard or Heard())


def beside(into: Path) -> Path:
    return into.with_name(f"{into.name}.training")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(path).state_dict())


def changed(before: Path, after: Path) -> set[str]:
    """Names of the tensors that differ between two model files."""
    old, new = tensors(before), tensors(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def history(into: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (beside(into) / "log.jsonl").read_text().splitlines()]


def test_output_and_files_of_a_run(photos: Path, into: Path) -> None:
    heard = Heard()
    report = run(photos, into, options(train={"epochs": 4}), heard)
    trained = load_model(into)
    assert (report.photos, report.trained_on, report.held_out, report.left_out) == (32, 24, 8, 0)
    assert report.model == trained.fingerprint
    assert (report.epochs, report.failed, report.notes, report.accuracy) == (4, [], [], None)
    assert not report.finished_before
    assert sorted(path.name for path in beside(into).iterdir()) == [
        *("LOCK", "best.safetensors", "checkpoint.safetensors", "curve.svg", "finished.json"),
        *("initial.safetensors", "log.jsonl", "log.txt", "options.json"),
    ]
    records = history(into)
    assert [record["epoch"] for record in records] == [0, 1, 2, 3, 4]
    assert records[0]["loss"] is None
    assert all(record["loss"] > 0 for record in records[1:])
    assert records[0]["recall"] == report.recall_before
    assert records[report.best_epoch]["recall"] == report.recall_after
    assert max(record["recall"] for record in records) == report.recall_after
    assert (beside(into) / "log.txt").read_text().splitlines() == [
        f"{line}  best so far" if number == report.best_epoch else line
        for number, line in enumerate(heard.lines)
    ]
    assert "recall@10" in (beside(into) / "curve.svg").read_text()
    assert heard.stages == [
        *(("scanning", None), ("loading weights", None), ("embedding (frozen layers)", 32)),
        *(("fitting clusters", None), ("fitting the reduction", None), ("held-out recall", None)),
        *(
            stage
            for epoch in range(1, 5)
            for stage in ((f"training, epoch {epoch}", 24), ("held-out recall", None))
        ),
    ]
    assert heard.done == [0, 0, 32, 0, 0, 0, *([24, 0] * 4)]


@pytest.mark.usefixtures("better_and_better")
def test_only_the_head_is_trained_by_default(photos: Path, into: Path) -> None:
    report = run(photos, into, options(train={"epochs": 1}))
    assert (report.recall_before, report.recall_after) == ([0.01] * 3, [0.02] * 3)
    assert report.best_epoch == 1
    assert changed(beside(into) / "initial.safetensors", into) == {"pooling.weight", "pooling.centres"}


def test_model_has_provenance(photos: Path, into: Path) -> None:
    report = run(photos, into, options(train={"epochs": 1, "seed": 7}))
    config = load_model(into).config
    assert (config.weights, config.pooling, config.clusters, config.image_size) == (
        "street",
        "netvlad",
        4,
        64,
    )
    assert config.provenance["cluster_photos"] == report.trained_on  # held-out photos have no part in it
    assert config.provenance["trained"] == {
        "loss": "triplet",
        "parts": "head",
        "photos": report.trained_on,
        "epoch": report.best_epoch,
        "seed": 7,
        "held_out_recall": [report.recall_before, report.recall_after],
    }


def test_the_model_indexes_and_answers(photos: Path, into: Path, tmp_path: Path) -> None:
    run(photos, into, options(train={"epochs": 1}))
    told = BuildOptions(weights=str(into), device="cpu", precision="fp32")
    report = build_index([photos], tmp_path / "index", told)
    index = Index.open(tmp_path / "index", device="cpu", precision="fp32")
    assert (report.photos, index.manifest.dim, index.image_size) == (32, 4 * 512, 64)
    for name, tensor in index.embedder.model.pooling.state_dict().items():
        assert torch.equal(tensor, tensors(into)[f"pooling.{name}"])
    question = photos / "wall3/view2.jpg"
    assert index.nearest(index.embed([question])[0], 1)[0].path.endswith("wall3/view2.jpg")


def test_a_run_of_other_options_is_refused_and_left_alone(photos: Path, into: Path) -> None:
    run(photos, into, options(train={"epochs": 1}))
    before = {path.name: path.read_bytes() for path in beside(into).iterdir()}
    told = options(
        train={"epochs": 1, "loss": "softmax", "margin": 0.2, "seed": 3},
        fit=BuildOptions(clusters=5, image_size=64),
        supervision=Supervision(positive_radius_m=5, seed=3, classify=True),
    )
    sentence = (
        f"{beside(into)} holds a run with other options (clusters, positive radius, seed, loss, margin): "
        "use the same options to resume it, or set `restart` to start over"
    )
    with pytest.raises(IndexerError, match=f"^{re.escape(sentence)}$"):
        run(photos, into, told)
    with pytest.raises(IndexerError, match=r"other options \(sources, metadata\): use"):
        run(photos / "wall1", into, options(train={"epochs": 1}, metadata=Path("m.csv")))
    assert {path.name: path.read_bytes() for path in beside(into).iterdir()} == before
    (beside(into) / "options.json").write_text("{")
    with pytest.raises(IndexerError, match=r"other options \(unreadable\): use"):
        run(photos, into, options(train={"epochs": 1}))


def test_restart_forgets_the_run_before(photos: Path, into: Path) -> None:
    run(photos, into, options(train={"epochs": 3}))
    (beside(into) / "inputs").mkdir()
    (beside(into) / "inputs/left.npy").touch()
    report = run(photos, into, options(train={"epochs": 1, "margin": 0.3}, restart=True))
    assert report.epochs == 1
    assert not report.finished_before
    assert len(history(into)) == 2
    assert not (beside(into) / "inputs").exists()


def test_a_finished_run_is_not_run_again(photos: Path, into: Path) -> None:
    first = run(photos, into, options())
    written = into.stat().st_mtime_ns
    heard = Heard()
    assert run(photos, into, options(), heard) == replace(first, finished_before=True)
    assert heard.stages == [("scanning", None)]
    assert into.stat().st_mtime_ns == written
    into.unlink()
    again = run(photos, into, options(), heard)
    assert again.model == first.model == load_model(into).fingerprint
    assert len(heard.lines) == 1  # how far it was, and no epoch more


def test_more_epochs_go_on_with_a_finished_run(photos: Path, into: Path, tmp_path: Path) -> None:
    run(photos, into, options(train={"epochs": 1}))
    longer = run(photos, into, options(train={"epochs": 3}))
    (tmp_path / "other").mkdir()
    whole = tmp_path / "other" / into.name
    assert run(photos, whole, options(train={"epochs": 3})).model == longer.model
    assert history(whole) == history(into)
    assert changed(whole, into) == set()


def test_a_run_that_is_stopped_leaves_an_older_model_alone(photos: Path, into: Path) -> None:
    older = run(photos, into, options(train={"epochs": 1}))
    stopped = Heard(stop=lambda stage: stage == "training, epoch 2")
    told = options(train={"epochs": 2, "seed": 5, "lr": 0.1}, restart=True)
    with pytest.raises(KeyboardInterrupt):
        run(photos, into, told, stopped)
    assert len(stopped.lines) == 2
    assert load_model(into).fingerprint == older.model
    (beside(into) / "best.safetensors").unlink()
    with pytest.raises(
        IndexerError,
        match=r"best\.safetensors, the run's best model, is missing: set `restart` to start over$",
    ):
        run(photos, into, replace(told, restart=False))


def test_photos_that_cannot_be_read_are_named(photos: Path, into: Path, tmp_path: Path) -> None:
    """Whether it shows when they are opened or, as of a table no EXIF is needed, when they are decoded."""
    folder = Path(shutil.copytree(photos, tmp_path / "photos"))
    whole = (folder / "wall1/view0.jpg").read_bytes()
    (folder / "wall1/cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "wall1/text.jpg").write_text("no photo")
    report = run(folder, into, options(train={"epochs": 1}))
    assert [path for path, _ in report.failed] == [str(folder / f"wall1/{n}.jpg") for n in ("cut", "text")]
    assert report.failed[1][1] == "not an image that can be read"
    assert "truncated" in report.failed[0][1]
    assert report.photos == 32
    assert report.to_json()["failed"][1] == {
        "path": str(folder / "wall1/text.jpg"),
        "reason": "not an image that can be read",
    }


def test_a_table_of_places_and_nothing_else(into: Path, tmp_path: Path) -> None:
    lines = ["path,place"]
    for wall in range(WALLS):
        for view in range(VIEWS):
            paint_in_light(tmp_path / f"photos/{wall}{view}.jpg", wall, view, gps=False)
            lines.append(f"{wall}{view}.jpg,room {wall}")
    table = tmp_path / "places.csv"
    table.write_text("\n".join([*lines, "gone.jpg,room 3"]))
    report = run(tmp_path / "photos", into, options(metadata=table))
    assert (report.trained_on, report.held_out) == (24, 8)
    assert report.notes == [f"1 rows of {table} name no photo that was given: gone.jpg"]
    assert report.recall_before[2] > 0


@pytest.mark.usefixtures("better_and_better")
def test_multi_similarity(photos: Path, into: Path) -> None:
    losses = []
    for loss in ("triplet", "multi-similarity"):
        run(photos, into, options(train={"loss": loss, "epochs": 1}, restart=True))
        losses.append(history(into)[1]["loss"])
        assert load_model(into).config.provenance["trained"]["loss"] == loss
        assert changed(beside(into) / "initial.safetensors", into) == {"pooling.weight", "pooling.centres"}
    assert all(np.isfinite(losses))
    assert losses[0] != losses[1]


def test_softmax_holds_out_photos_and_gives_an_accuracy(into: Path, tmp_path: Path) -> None:
    for wall in range(WALLS):
        for view in range(VIEWS):
            paint_in_light(tmp_path / f"photos/{wall}{view}.jpg", wall, view, light=0.1)
    told = options(train={"loss": "softmax", "epochs": 4}, supervision=Supervision(classify=True))
    report = run(tmp_path / "photos", into, told)
    assert (report.trained_on, report.held_out) == (24, 8)  # one of each wall
    accuracies = [record["accuracy"] for record in history(into)]
    assert accuracies[0] < 0.5
    assert max(accuracies) >= 0.5
    assert report.accuracy == accuracies[report.best_epoch]
    assert "accuracy" in (beside(into) / "log.txt").read_text()
    # The classifier is not in the model; what it needs of places is in the checkpoint alone.
    assert {name.partition(".")[0] for name in tensors(into)} == {"backbone", "pooling"}


@pytest.mark.slow
@pytest.mark.usefixtures("real_network", "better_and_better")
@pytest.mark.parametrize(
    ("parts", "first", "kept"), [("conv5", 24, ("float16", (512, 3, 4))), ("all", 0, ("uint8", (3, 48, 64)))]
)
def test_convolutions_that_learn(
    few: Path, into: Path, parts: str, first: int, kept: tuple[str, tuple[int, ...]]
) -> None:
    """Those before the first are frozen and run once a photo; what they made is kept while it is needed."""
    kinds: set[tuple[str, tuple[int, ...]]] = set()

    def look(_: str) -> bool:
        for path in beside(into).glob("inputs/*.npy"):
            array = np.load(path)
            kinds.add((str(array.dtype), array.shape))
        return False

    heard = Heard(look)
    run(few, into, options(parts=parts, train={"epochs": 1, "lr": 1e-3}), heard)
    assert kinds == {kept}
    assert heard.stages[2] == ("embedding (frozen layers)" if parts == "conv5" else "reading", 16)
    layers = {int(name.split(".")[1]) for name in tensors(into) if name.startswith("backbone")}
    differ = changed(beside(into) / "initial.safetensors", into)
    moved = {int(name.split(".")[1]) for name in differ if name.startswith("backbone")}
    assert moved <= {layer for layer in layers if layer >= first}
    assert 28 in moved
    assert "pooling.centres" in differ
    assert load_model(into).config.provenance["trained"]["parts"] == parts


@pytest.mark.slow
@pytest.mark.usefixtures("real_network", "better_and_better")
def test_bf16_runs_the_convolutions_and_leaves_the_rest_in_fp32(
    few: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats: set[tuple[torch.dtype, torch.dtype]] = set()
    forward = PlaceModel.pool

    def pool(self: PlaceModel, maps: torch.Tensor) -> torch.Tensor:
        out = forward(self, maps)
        if torch.is_grad_enabled():
            formats.add((maps.dtype, out.dtype))
        return out

    monkeypatch.setattr(PlaceModel, "pool", pool)
    histories = []
    for precision in ("fp32", "bf16"):
        told = options(parts="conv5", precision=precision, train={"epochs": 1, "lr": 1e-3}, restart=True)
        run(few, into, told)
        histories.append(history(into)[1]["loss"])
        assert tensors(into)["pooling.centres"].dtype == torch.float32
    assert formats == {(torch.float32, torch.float32)}
    assert histories[0] != histories[1]  # rounded otherwise, and not far from it
    assert histories[1] == pytest.approx(histories[0], rel=0.1)


@pytest.mark.slow
def test_of_another_backbone(into: Path, tmp_path: Path) -> None:
    """DeepFace from nothing, on images that are its own size or not."""
    folder = tmp_path / "photos"
    for wall in range(3):
        for view in range(2):
            paint_in_light(folder / f"wall{wall}/{view}.jpg", wall, view)
    told = TrainingOptions(
        backbone="deepface",
        connection="convolution",
        supervision=Supervision(classify=True),
        train=TrainOptions(loss="softmax", epochs=1, lr=0.001),
        device="cpu",
        precision="fp32",
    )
    report = run(folder, into, told)
    config = load_model(into).config
    assert (config.backbone, config.connection, config.pooling) == ("deepface", "convolution", "average")
    assert (report.trained_on, report.held_out) == (3, 3)
    assert config.provenance["trained"]["parts"] == "all"
    assert report.accuracy is not None
    index = tmp_path / "index"
    build_index([folder], index, BuildOptions(weights=str(into), device="cpu", precision="fp32"))
    opened = Index.open(index, device="cpu", precision="fp32")
    assert opened.nearest(opened.embed([folder / "wall1/0.jpg"])[0], 1)[0].path.endswith("wall1/0.jpg")


@pytest.mark.parametrize("connection", ["local", "tiled"])
def test_the_connection_reaches_the_network(
    photos: Path, into: Path, connection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the network: two of these are some hundred megabytes each, too much for a test of options."""
    built: list[tuple[str, int]] = []

    def untrained(config: Any) -> None:
        built.append((config.connection, config.tile))
        raise ModelError("seen")

    monkeypatch.setattr(PlaceModel, "untrained", untrained)
    with pytest.raises(ModelError, match="seen"):
        run(photos, into, TrainingOptions(backbone="deepface", connection=connection, tile=3))
    assert built == [(connection, 3)]


def test_given_weights_keep_their_settings(photos: Path, into: Path, tmp_path: Path) -> None:
    run(photos, into, options(train={"epochs": 1}))
    brought = BuildOptions(weights=str(into), image_size=32)
    told = options(train={"epochs": 1}, fit=brought)
    again = tmp_path / "again.safetensors"
    heard = Heard()
    run(photos, again, told, heard)
    assert ("fitting clusters", None) not in heard.stages
    config = load_model(again).config
    assert (config.weights, config.clusters, config.image_size) == ("again", 4, 32)
    assert changed(into, beside(again) / "initial.safetensors") == set()
    name = f"street@{load_model(into).fingerprint}"
    for said, sentence in (
        ({"clusters": 8}, f"`clusters` 8 is impossible: the weights {name} have 4"),
        ({"pooling": "gem"}, f"`pooling` gem is impossible: the weights {name} have netvlad"),
        ({"dim": 64}, f"`dim` 64 is impossible: the weights {name} have no reduction"),
    ):
        with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
            run(photos, tmp_path / "third", replace(told, fit=replace(brought, **said)))
    with pytest.raises(ModelError, match=r"^no weights and no file 'pits30k': did you mean pitts30k\?$"):
        run(photos, tmp_path / "third", replace(told, fit=BuildOptions(weights="pits30k")))
    assert not beside(tmp_path / "third").exists()


def test_refused_run_leaves_nothing(photos: Path, into: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(IndexerError, match="no photos"):
        run(tmp_path / "empty", into, options())
    heard = Heard()
    with pytest.raises(IndexerError, match="training needs photos of several places, got 1"):
        run(photos / "wall1/view1.jpg", into, options(), heard)
    with pytest.raises(IndexerError, match="all photos are in one square of 100 m"):
        run(photos / "wall1", into, options(), heard)
    with pytest.raises(UsageError, match="cannot read the metadata file"):
        run(photos, into, options(metadata=tmp_path / "none.csv"), heard)
    assert heard.stages == [("scanning", None)] * 3  # nothing was embedded first
    assert not beside(into).exists()


def test_invalid_target_is_refused(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"^`into` must be a model file, but {tmp_path} is a folder$"):
        run(photos, tmp_path, options())
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(IndexerError, match=r"notes\.txt exists and is not a model: use another file$"):
        run(photos, tmp_path / "notes.txt", options())
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_two_runs_into_one_model(photos: Path, into: Path) -> None:
    beside(into).mkdir()
    with (
        write_lock(beside(into), "training run"),
        pytest.raises(IndexLocked, match=f"^the training run {beside(into)} is being written by process"),
    ):
        run(photos, into, options())


def test_a_full_disk(photos: Path, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("model.modelfile.save_file", full)
        with pytest.raises(ModelError, match=r"^cannot write .*initial\.safetensors: .*No space left"):
            run(photos, into, options())
    assert run(photos, into, options(train={"epochs": 2})).photos == 32


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ({"backbone": "vgg19"}, "`backbone` must be vgg16 or deepface, got 'vgg19'"),
        ({"parts": "tail"}, "`parts` must be head, conv5 or all, got 'tail'"),
        (
            {"train": TrainOptions(loss="hinge")},
            "`loss` must be triplet, multi-similarity or softmax, got 'hinge'",
        ),
        (
            {"backbone": "deepface", "parts": "head"},
            "`backbone` deepface has no pretrained weights and needs `parts` all",
        ),
        (
            {"backbone": "deepface", "fit": BuildOptions(image_size=224)},
            "`image_size` needs `backbone` vgg16: deepface has its own sizes",
        ),
        ({"connection": "tiled"}, "`connection` needs `backbone` deepface: vgg16 has convolutions only"),
        ({"supervision": Supervision(held_out=1)}, "`held_out` must be between 0 and 1, got 1"),
        (
            {"supervision": Supervision(positive_radius_m=30)},
            "`positive_radius_m` must be above 0 and at most `negative_radius_m`, got 30 and 25",
        ),
        ({"train": TrainOptions(lr=0)}, "`lr` must be above 0 and at most 1000, got 0"),
        ({"train": TrainOptions(margin=float("nan"))}, "`margin` must be above 0 and at most 1000, got nan"),
    ],
)
def test_invalid_options_are_refused(told: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=f"^{re.escape(sentence)}$"):
        TrainingOptions(**told)
