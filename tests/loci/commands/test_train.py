"""`loci train`."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from indexer.options import BuildOptions
from indexer.training.dataset import Supervision
from indexer.training.options import TrainingOptions, TrainReport
from model.modelfile import load_model
from model.training.trainer import TrainOptions

Loci = Callable[..., Result]
Photograph = Callable[..., Path]
ROOT = Path(__file__).parents[3]
SMALL = ("--image-size", 64, "--clusters", 4, "--device", "cpu", "--precision", "fp32", "--refresh", 6)

REPORT = TrainReport(
    model="f00d",
    photos=1_250,
    trained_on=1_000,
    held_out=200,
    left_out=50,
    epochs=7,
    best_epoch=4,
    recall_before=[0.5, 0.75, 0.875],
    recall_after=[0.625, 0.75, 1.0],
    accuracy=None,
    seconds=200.0,
    failed=[],
    notes=[],
)
LINES = [
    "m s.safetensors: recall@1/5/10 62.5 / 75.0 / 100.0 % of held-out photos found",
    "  before      recall@1/5/10 50.0 / 75.0 / 87.5 %",
    "  kept        epoch 4 of 7",
    "  trained on  1,000 photos, 200 held out, 50 left out",
    "  model       f00d",
    "  time        3 min 20 s",
    "  see         m s.safetensors.training/curve.svg",
    "  To use it: loci index PHOTOS --into INDEX --weights 'm s.safetensors'",
]


class Trained:
    """Stands in for `train_model`: remembers what it was told and gives a report."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.report = REPORT

    def __call__(
        self, sources: list[Path], into: Path, options: TrainingOptions, progress: Any
    ) -> TrainReport:
        self.told = [sources, into, options]
        progress.stage("training, epoch 1", 3)
        progress.advance(3)
        progress.epoch("epoch   1: in words")
        return self.report


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    stand_in = Trained()
    monkeypatch.setattr("indexer.training.train.train_model", stand_in)
    return stand_in


@pytest.mark.usefixtures("trained")
def test_demo_output(loci: Loci) -> None:
    result = loci("train", "photos", "--into", "m s.safetensors")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == LINES
    assert result.stderr.splitlines() == ["training, epoch 1: 3", "epoch   1: in words"]


def test_training_without_gain_is_reported(loci: Loci, trained: Trained) -> None:
    trained.report = replace(REPORT, best_epoch=0, left_out=0, recall_after=REPORT.recall_before)
    lines = loci("train", "photos", "--into", "m.safetensors").stdout.splitlines()
    assert lines[0] == "m.safetensors: recall@1/5/10 50.0 / 75.0 / 87.5 % of held-out photos found"
    assert lines[2] == "  kept        the start (no epoch was better)"
    assert lines[3] == "  trained on  1,000 photos, 200 held out"
    assert lines[-2] == "  Training did not improve recall: the file holds the starting model."


def test_report_of_a_finished_run_has_notes(loci: Loci, trained: Trained) -> None:
    trained.report = replace(
        REPORT, accuracy=0.8125, notes=["2 rows of m.csv name no photo"], finished_before=True
    )
    result = loci("train", "photos", "--into", "m s.safetensors")
    assert result.stdout.splitlines() == [
        *LINES[:3],
        "  accuracy    81.2%",
        *LINES[3:],
        "  2 rows of m.csv name no photo",
    ]
    assert result.stderr.splitlines()[-1] == (
        "this run is already finished: more --epochs continue it, --restart starts over"
    )


def test_unreadable_photos_are_named_and_give_exit_code_3(loci: Loci, trained: Trained) -> None:
    trained.report = replace(REPORT, failed=[("p/a.jpg", "truncated image"), ("p/b.jpg", "empty file")])
    result = loci("train", "photos", "--into", "m s.safetensors")
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        *LINES,
        "2 photos could not be read:",
        "  p/a.jpg: truncated image",
        "  p/b.jpg: empty file",
    ]


def test_json(loci: Loci, trained: Trained) -> None:
    trained.report = replace(REPORT, failed=[("p/a.jpg", "truncated image")])
    result = loci("train", "photos", "--into", "m.safetensors", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {
        "into": "m.safetensors",
        "model": "f00d",
        "photos": 1250,
        "trained_on": 1000,
        "held_out": 200,
        "left_out": 50,
        "epochs": 7,
        "best_epoch": 4,
        "recall_before": [0.5, 0.75, 0.875],
        "recall_after": [0.625, 0.75, 1.0],
        "accuracy": None,
        "seconds": 200.0,
        "failed": [{"path": "p/a.jpg", "reason": "truncated image"}],
        "notes": [],
        "finished_before": False,
    }


def test_options_reach_the_run(loci: Loci, trained: Trained) -> None:
    given = "a b --into m --metadata m.csv --places folder --positive-radius 5 --negative-radius 15 "
    given += "--held-out 0.3 --weights pitts30k --pooling ghostvlad --clusters 8 --ghosts 2 "
    given += "--netvlad-version 2 --dim 64 --image-size 320 --parts conv5 --loss multi-similarity "
    given += "--margin 0.2 --negatives 5 --sampled 50 --refresh 100 --epochs 3 --patience 2 --lr 0.01 "
    given += "--batch 2 --accumulate 4 --seed 9 --restart --device cpu --precision bf16"
    assert loci("train", *given.split()).exit_code == 0
    sources, into, options = trained.told
    assert (sources, into) == ([Path("a"), Path("b")], Path("m"))
    assert replace(options, train=TrainOptions()) == TrainingOptions(
        fit=BuildOptions(
            dim=64,
            clusters=8,
            image_size=320,
            weights="pitts30k",
            pooling="ghostvlad",
            netvlad_version=2,
            ghosts=2,
            places="folder",
        ),
        parts="conv5",
        supervision=Supervision(
            positive_radius_m=5, negative_radius_m=15, held_out=0.3, places="folder", seed=9
        ),
        metadata=Path("m.csv"),
        device="cpu",
        precision="bf16",
        restart=True,
    )
    assert options.train == replace(
        options.train,
        **{"loss": "multi-similarity", "margin": 0.2, "negatives": 5, "sampled": 50, "refresh": 100},
        **{"epochs": 3, "patience": 2, "lr": 0.01, "batch": 2, "accumulate": 4, "seed": 9},
    )
    loci("train", "a", "--into", "m", "--backbone", "deepface", "--connection", "tiled", "--loss", "softmax")
    options = trained.told[2]
    assert (options.backbone, options.connection, options.learning) == ("deepface", "tiled", "all")
    assert options.supervision.classify


def test_unset_options_are_the_library_defaults(loci: Loci, trained: Trained) -> None:
    loci("train", "a", "--into", "m")
    assert trained.told[2] == TrainingOptions(fit=BuildOptions(places="auto"))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--into", "m"], "Missing argument 'PHOTOS'; see loci train --help"),
        (["a"], "Missing option '--into'; see loci train --help"),
        (
            ["a", "--into", "m", "--loss", "hinge"],
            "Invalid value for '--loss': 'hinge' is not one of 'triplet', 'multi-similarity', 'softmax'; "
            "see loci train --help",
        ),
        (
            ["a", "--into", "m", "--batch", "0"],
            "Invalid value for '--batch': it must be at least 1, not 0; see loci train --help",
        ),
        (
            ["a", "--into", "m", "--held-out", "1.5"],
            "--held-out must be between 0 and 1, got 1.5",
        ),
        (
            ["a", "--into", "m", "--positive-radius", "30"],
            "--positive-radius must be above 0 and at most --negative-radius, got 30 and 25",
        ),
        (["a", "--into", "m", "--lr", "-1"], "--lr must be above 0 and at most 1000, got -1"),
        (["a", "--into", "m", "--image-size", "8"], "--image-size must be at least 16, got 8"),
        (
            ["a", "--into", "m", "--pooling", "max"],
            "--pooling must be netvlad or vlad or ghostvlad or average or gem, got 'max'",
        ),
        (
            ["a", "--into", "m", "--places", "rooms"],
            "places are auto, gps, folder, photo or frames:N with N from 1, not 'rooms'",
        ),
        (
            ["a", "--into", "m", "--connection", "tiled"],
            "--connection needs --backbone deepface: vgg16 has convolutions only",
        ),
        (
            ["a", "--into", "m", "--backbone", "deepface", "--clusters", "8"],
            "--clusters needs --backbone vgg16: deepface has its own sizes",
        ),
        (
            ["a", "--into", "m", "--backbone", "deepface", "--parts", "conv5"],
            "--backbone deepface has no pretrained weights and needs --parts all",
        ),
    ],
)
def test_wrong_usage(loci: Loci, arguments: list[str], sentence: str) -> None:
    result = loci("train", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"loci: {sentence}"


def test_ghosts_without_ghostvlad_are_refused(loci: Loci, photos: Path, tmp_path: Path) -> None:
    result = loci("train", photos, "--into", tmp_path / "m.safetensors", "--ghosts", 3)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == "loci: --ghosts is for ghostvlad, not for netvlad"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_reported(loci: Loci, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("indexer.training.train.train_model", interrupted)
    result = loci("train", "photos", "--into", "m.safetensors")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "loci: interrupted; run the same command again to resume\n"


def test_help_names_what_people_ask_for(loci: Loci) -> None:
    text = " ".join(loci("train", "--help").stdout.split())
    for words in (
        "MODEL.training holds log.txt, log.jsonl, curve.svg",
        "loci index PHOTOS --into INDEX --weights MODEL",
        "run the same command again to resume",
        "Photos:",
        "Model:",
        "Training:",
    ):
        assert words in text


def test_from_photos_to_answers(loci: Loci, photos: Path, tmp_path: Path) -> None:
    """All that a person would type, one after the other."""
    into = tmp_path / "walls.safetensors"
    command = ("train", photos, "--into", into, *SMALL, "--epochs", 1, "--held-out", 0.3)
    result = loci(*command)
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert re.fullmatch(rf"{into}: recall@1/5/10 [\d. /]+ % of held-out photos found", lines[0])
    assert "  trained on  12 photos, 4 held out" in lines
    assert f"  model       {load_model(into).fingerprint}" in lines
    assert lines[-1] == f"  To use it: loci index PHOTOS --into INDEX --weights {into}"
    said = result.stderr.splitlines()
    assert said[:3] == ["scanning", "loading weights", "embedding (frozen layers): 16"]
    epochs = [line for line in said if line.startswith("epoch ")]
    assert [line[:10] for line in epochs] == ["epoch   0:", "epoch   1:"]
    log = (tmp_path / "walls.safetensors.training/log.txt").read_text().splitlines()
    assert [line.removesuffix("  best so far") for line in log] == epochs

    again = loci(*command)
    assert again.stdout.splitlines()[0] == lines[0]
    assert "this run is already finished" in again.stderr
    other = loci(*command, "--margin", 0.3)
    assert (other.exit_code, other.stdout) == (1, "")
    assert other.stderr.splitlines()[-1] == (
        f"loci: {into}.training holds a run with other options (margin): use the same options to "
        "resume it, or set --restart to start over"
    )

    index = tmp_path / "index"
    assert loci("index", photos, "--into", index, "--weights", into, "--precision", "fp32").exit_code == 0
    (answer,) = json.loads(loci("query", photos / "wall2/view1.jpg", "--index", index, "--json").stdout)
    assert answer["places"][0]["photos"][0]["path"] == "photos/wall2/view1.jpg"


def test_photos_without_positions_get_advice(loci: Loci, photograph: Photograph, tmp_path: Path) -> None:
    for wall in range(5):
        photograph(tmp_path / f"photos/{wall}.jpg", wall, 0, gps=False)
    result = loci("train", tmp_path / "photos", "--into", tmp_path / "m.safetensors", *SMALL)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines() == [
        "scanning",
        "loci: no two training photos show the same place: training needs photos with positions (in EXIF, "
        "names or --metadata) within 25 m of each other that look the same way, or places (in --metadata or "
        "by --places)",
    ]
    assert not (tmp_path / "m.safetensors.training").exists()


@pytest.mark.slow
def test_killed_training_ends_with_the_same_model(photos: Path, tmp_path: Path) -> None:
    """Real processes, real SIGKILL, moments drawn at random; once Ctrl-C."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen[str]:
        (tmp_path / name).mkdir(exist_ok=True)
        into = tmp_path / name / "walls.safetensors"
        command = [sys.executable, "-m", "loci", "train", photos, "--into", into, *SMALL, "--epochs", 4]
        return subprocess.Popen(
            list(map(str, command)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def until(run: subprocess.Popen[str], beginning: str) -> None:
        assert run.stderr is not None
        assert any(line.startswith(beginning) for line in run.stderr)

    begun = time.monotonic()
    whole = start("whole")
    assert whole.communicate()[1] is not None
    assert whole.returncode == 0
    seconds = time.monotonic() - begun
    draw = random.Random(2)
    for beginning, number in (
        ("embedding", signal.SIGKILL),
        ("training, epoch 1", signal.SIGKILL),
        ("epoch", signal.SIGINT),  # whichever is first: the kill before it may have come after epoch 1
    ):
        with start("killed") as run:
            until(run, beginning)
            time.sleep(draw.uniform(0, seconds / 40))
            run.send_signal(number)
            _, rest = run.communicate()
            assert run.returncode in (-number, 130, 0)
            if run.returncode == 130:
                assert rest.splitlines()[-1] == "loci: interrupted; run the same command again to resume"
    with start("killed") as run:
        run.communicate()
        assert run.returncode == 0
    models = [load_model(tmp_path / name / "walls.safetensors") for name in ("whole", "killed")]
    assert models[0].fingerprint == models[1].fingerprint
    assert models[0].config == models[1].config
    logs = [
        (tmp_path / name / "walls.safetensors.training/log.jsonl").read_text() for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]
