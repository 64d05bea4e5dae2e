"""`loci index`, `info`, `check` and `remove`."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import Result

from indexer.build.report import BuildReport, Failure
from indexer.milvus.sync import send
from indexer.snapshots.manifest import read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout
from loci.commands.index import print_report
from loci.commands.info import _confidence

Loci = Callable[..., Result]
Photograph = Callable[..., Path]


def test_index_says_what_it_did(made: tuple[Path, Result]) -> None:
    index, result = made
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"16 photos in {index}"
    assert lines[1] == "  changes      16 added, 0 changed, 0 moved, 0 removed, 0 unchanged"
    assert lines[2] == "  places       4"
    assert lines[3].startswith("  descriptors  ")
    assert lines[4].endswith(", snapshot 01/000001")
    assert "16 embedded" in lines[5]
    assert lines[5].endswith(" photos/s")
    assert len(lines) == 6
    notes = result.stderr.splitlines()
    assert notes[0] == "scanning"
    assert notes[-1] == f"Next: loci query PHOTO --index {index}"


def test_second_run_updates_the_index(
    loci: Loci, photos: Path, own_index: Path, tmp_path: Path, photograph: Photograph
) -> None:
    folder = tmp_path / photos.name
    shutil.copytree(photos, folder)
    # The index knows the photos by the folder they were in; seen from a copy, each has moved.
    photograph(folder / "wall0" / "new.jpg", 0, 7)
    (folder / "wall1" / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")
    result = loci("index", folder, "--into", own_index, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 3
    assert report["index"] == str(own_index)
    assert (report["photos"], report["moved"], report["embedded"], report["places"]) == (17, 16, 1, 4)
    assert report["failed"] == [
        {"path": str(folder / "wall1" / "broken.jpg"), "reason": "not an image that can be read"}
    ]
    assert report["snapshot"] == "01/000002"


def test_every_unreadable_photo_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    report = BuildReport(
        photos=1_000,
        added=1_002,
        changed=0,
        moved=0,
        removed=3,
        unchanged=0,
        embedded=1_000,
        failed=(Failure("p/a.jpg", "truncated image"), Failure("p/b [1].png", "empty file")),
        snapshot="01/000001",
        model="f00d",
        places=12,
        dim=256,
        reduction="PCA to 256-D",
        seconds=250.0,
        photos_per_second=4.0,
        notes=("something to know",),
    )
    print_report(report, Path("my index"))
    assert capsys.readouterr().out.splitlines() == [
        "1,000 photos in my index",
        "  changes      1,002 added, 0 changed, 0 moved, 3 removed, 0 unchanged",
        "  places       12",
        "  descriptors  PCA to 256-D",
        "  model        f00d, snapshot 01/000001",
        "  time         4 min 10 s, 1,000 embedded, 4.0 photos/s",
        "  something to know",
        "2 photos could not be read:",
        "  p/a.jpg: truncated image",
        "  p/b [1].png: empty file",
    ]


def test_options_reach_the_build(loci: Loci, monkeypatch: pytest.MonkeyPatch) -> None:
    from indexer.errors import IndexerError
    from indexer.options import BuildOptions

    seen: list[object] = []

    def build(sources: list[Path], into: Path, options: BuildOptions, _progress: object) -> None:
        seen.extend([sources, into, options])
        raise IndexerError("seen")

    monkeypatch.setattr("indexer.build.run.build_index", build)
    given = "a b --into i --metadata m.csv --dim 64 --clusters 8 --pooling netvlad --image-size 480 "
    given += "--panoramas 6 --places frames:5 --place-radius 12.5 --weights imagenet --device cpu "
    given += "--precision fp32 --batch-size 2 --seed 3 --refit --rehash --prune"
    assert loci("index", *given.split()).exit_code == 1
    assert seen == [
        [Path("a"), Path("b")],
        Path("i"),
        BuildOptions(
            metadata=Path("m.csv"),
            dim=64,
            clusters=8,
            pooling="netvlad",
            image_size=480,
            panoramas=6,
            places="frames:5",
            place_radius_m=12.5,
            weights="imagenet",
            device="cpu",
            precision="fp32",
            batch_size=2,
            seed=3,
            refit=True,
            rehash=True,
            prune=True,
        ),
    ]
    loci("index", "a", "--into", "i")
    assert seen[-1] == BuildOptions()


def test_empty_folder_fails_and_leaves_nothing(loci: Loci, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_text("no photo")
    for photos in ("empty", "bad", "missing"):
        result = loci("index", tmp_path / photos, "--into", tmp_path / "index")
        assert result.exit_code == 1
        assert str(tmp_path / photos) in result.stderr.splitlines()[-1]
        assert result.stdout == ""
    assert not (tmp_path / "index").exists()


def test_wrong_metadata_column_is_wrong_usage(loci: Loci, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,lat,lon\na.jpg,north,0\n")
    arguments = ("index", photos, "--into", tmp_path / "index", "--metadata", tmp_path / "m.csv")
    result = loci(*arguments)
    assert result.exit_code == 2
    assert str(tmp_path / "m.csv") in result.stderr
    assert not (tmp_path / "index").exists()


@pytest.mark.slow
def test_interrupted_run_is_resumed(loci: Loci, tmp_path: Path, photograph: Photograph) -> None:
    folder, index = tmp_path / "photos", tmp_path / "index"
    for number in range(80):  # enough that it still runs when the signal comes
        photograph(folder / f"{number}.jpg", number % 5, number // 5)
    command = [sys.executable, "-m", "loci", "index", folder, "--into", index, "--clusters", "4"]
    run = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    for line in run.stderr:
        if line.startswith("embedding"):
            break
    run.send_signal(signal.SIGINT)
    rest = run.stderr.read()
    run.stderr.close()
    assert run.wait(60) == 130
    assert rest.splitlines()[-1] == "loci: interrupted; run the same command again to resume"
    result = loci("index", folder, "--into", index, "--clusters", 4)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"80 photos in {index}\n")


def test_info_json_has_the_documented_names(loci: Loci, index: Path) -> None:
    result = loci("info", index, "--json")
    found = json.loads(result.stdout)
    assert list(found)[:7] == ["photos", "failed", "places", "dim", "clusters", "model", "snapshot"]
    assert (found["photos"], found["failed"], found["places"], found["clusters"]) == (16, 0, 4, 4)
    assert found["snapshot"] == "01/000001"
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (None, "none: the next 'loci index' run calibrates it"),
        ({"reason": "too few photos"}, "none: too few photos"),
        (
            {"reason": None, "queries": 300, "right": 0.7667, "ece": 0.0184},
            "calibrated on 300 photos of the index (some disturbed; 77% found their place); expected "
            "calibration error 0.018 on held-out photos",
        ),
    ],
)
def test_info_shows_calibration(found: dict[str, object] | None, line: str) -> None:
    assert _confidence(found) == line


@pytest.mark.filterwarnings("ignore")  # of milvus-lite's own
def test_info_of_a_snapshot_elsewhere(loci: Loci, index: Path, tmp_path: Path) -> None:
    pytest.importorskip("milvus_lite", reason="milvus-lite is not installed")
    layout, store = Layout(index), f"milvus:{tmp_path / 'milvus.db'}"
    with closing(Catalogue(index)) as catalogue:
        send(layout, catalogue, read_manifest(layout, layout.current()), store, 0.99)
    there = loci("info", store, "--model", layout.model(1))
    assert there.exit_code == 0
    found, own = (
        dict(line.split(maxsplit=1) for line in result.stdout.splitlines() if "features" not in line)
        for result in (there, loci("info", index))
    )
    assert found.pop("search") == "Milvus FLAT, loci_01_000001, recall 100.0% of an exact search"
    del own["search"], own["size"]
    assert found == own
    assert "needs --model" in loci("info", store).stderr


def test_info_for_people(loci: Loci, index: Path) -> None:
    lines = dict(line.split("  ", 1) for line in loci("info", index).stdout.splitlines())
    assert lines["photos"].strip() == "16, 16 with a position"
    assert lines["places"].strip().startswith("4, by ")
    assert lines["model"].strip().endswith(": imagenet, netvlad of 4 clusters (version 1) on conv4_3+conv5_3")
    assert "panoramas" not in lines


def test_check_passes_sound_index(loci: Loci, index: Path) -> None:
    result = loci("check", index)
    assert (result.exit_code, result.stdout) == (0, f"{index} is sound.\n")
    result = loci("check", index, "--json")
    assert json.loads(result.stdout) == {"index": str(index), "sound": True, "problems": []}


def test_check_names_damaged_files(loci: Loci, own_index: Path) -> None:
    (damaged,) = own_index.glob("generations/*/snapshots/*/index.faiss")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    result = loci("check", own_index)
    assert result.exit_code == 1
    assert str(damaged) in result.stdout
    found = json.loads(loci("check", own_index, "--json").stdout)
    assert found["sound"] is False
    assert [str(damaged) in problem for problem in found["problems"]] == [True]


def test_remove(loci: Loci, own_index: Path) -> None:
    result = loci("remove", own_index, "wall0/view0.jpg", "photos/wall1/view2.jpg")
    assert result.exit_code == 0
    assert result.stdout == "removed photos/wall0/view0.jpg\nremoved photos/wall1/view2.jpg\n"
    assert json.loads(loci("info", own_index, "--json").stdout)["photos"] == 14
    result = loci("remove", own_index, "wall0/view1.jpg", "--json")
    assert json.loads(result.stdout) == {"index": str(own_index), "removed": ["photos/wall0/view1.jpg"]}
    result = loci("remove", own_index, "view9.jpg")
    assert (result.exit_code, result.stderr) == (1, "loci: view9.jpg is not in the index\n")


@pytest.mark.parametrize("command", ["info", "check", "remove", "export", "query", "evaluate", "serve"])
def test_missing_index_is_one_sentence(loci: Loci, tmp_path: Path, question: Path, command: str) -> None:
    index = tmp_path / "no-index"
    arguments: dict[str, tuple[object, ...]] = {
        "remove": (index, "a.jpg"),
        "export": (index, "--format", "csv"),
        "query": (question, "--index", index),
        "evaluate": (question.parent, "--index", index),
        "serve": ("--index", index),
    }
    result = loci(command, *arguments.get(command, (index,)))
    assert result.exit_code == 1
    assert result.stderr == f"loci: no index in {index}: make one with 'loci index'\n"
    assert result.stdout == ""
    assert not index.exists()


def test_unwritable_target_is_one_sentence(loci: Loci, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    target = tmp_path / "file" / "index"
    result = loci("index", photos, "--into", target)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == f"loci: cannot write to {target}: Not a directory"
