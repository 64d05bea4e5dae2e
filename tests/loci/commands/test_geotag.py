"""`loci geotag`: the dry run, what is written, what is said of what is left, and the exit codes."""

import csv
import json
import os
import shutil
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

from indexer.answers import Answer
from indexer.geotag.sidecars import read_sidecar
from indexer.index import Index

Loci = Callable[..., Result]
Photograph = Callable[..., Path]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def sure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the index be 95 % sure, of wall 3 only 62 %."""
    real = Index.answer

    def answer(self: Index, *arguments: Any, **more: Any) -> Answer:
        found = real(self, *arguments, **more)
        unsure = found.places[0].photos[0].path.startswith("photos/wall3/")
        return replace(found, known=True, confidence=0.62 if unsure else 0.95, note=None)

    monkeypatch.setattr(Index, "answer", answer)


@pytest.fixture
def archive(tmp_path: Path, photograph: Photograph) -> Path:
    """Photos of walls 1 to 3 without a position, and one of wall 0 with."""
    folder = tmp_path / "archive"
    photograph(folder / "here.jpg", 0, 5)
    for wall in (1, 2, 3):
        photograph(folder / "lost" / f"wall{wall}.jpg", wall, 1, gps=False)
    return folder


def cells(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.mark.usefixtures("sure")
def test_dry_run_shows_what_would_be_written(loci: Loci, index: Path, archive: Path) -> None:
    before = sorted(archive.rglob("*"))
    result = loci("geotag", archive, "--index", index)
    assert result.exit_code == 0
    heading, _, first, second, third, _, summary, _, *counts = cells(result.stdout)
    assert heading == ["photo", "position", "within", "confidence", "most", "similar"]
    assert first[:2] == ["lost/wall1.jpg", "52.002000,0.250000"]
    assert first[3] == "m"
    assert first[4] == "95%"
    assert first[5].startswith("photos/wall1/view")
    assert first[6:] == ["would", "be", "written"]
    assert second[1] == "52.004000,0.250000"
    assert third[:2] == ["lost/wall3.jpg", "62%"]
    assert third[3:] == ["left:", "not", "sure", "enough", "(confidence", "0.62", "<", "0.9)"]
    assert summary == ["photos"]
    assert counts == [
        ["position", "would", "be", "written", "2"],
        ["left:", "has", "a", "position", "1"],
        ["left:", "not", "sure", "enough", "1"],
    ]
    assert result.stderr.splitlines()[-1] == ("Nothing was written. Add --write, and --to FILE.csv or --xmp.")
    assert sorted(archive.rglob("*")) == before


@pytest.mark.usefixtures("sure")
def test_sidecars(loci: Loci, index: Path, archive: Path) -> None:
    command = ("geotag", archive, "--index", index, "--xmp")
    dry = loci(*command)
    assert dry.stderr.endswith("Nothing was written. Add --write to write 2 positions as XMP sidecars.\n")
    result = loci(*command, "--write")
    assert result.exit_code == 0
    assert [line.split() for line in result.stdout.replace("─", "").splitlines()] == [
        line.replace("would be ", "").split() for line in dry.stdout.replace("─", "").splitlines()
    ]
    assert result.stderr.endswith("Wrote 2 positions as XMP sidecars.\n")
    written = sorted(path.name for path in archive.rglob("*.xmp"))
    assert written == ["wall1.jpg.xmp", "wall2.jpg.xmp"]
    position = read_sidecar(archive / "lost" / "wall1.jpg.xmp").position()
    assert position == pytest.approx((52.002, 0.25), abs=1e-6)
    again = loci(*command, "--write")
    assert ["left:", "has", "a", "position", "3"] in cells(again.stdout)
    assert again.stderr.endswith("Wrote 0 positions as XMP sidecars.\n")


@pytest.mark.usefixtures("sure")
def test_sidecars_named_by_stem_in_another_folder(
    loci: Loci, index: Path, archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ("--xmp-into", out, "--xmp-name", "stem", "--write", "--min-confidence", 0.5)
    result = loci("geotag", archive, "--index", index, *options)
    assert result.exit_code == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.xmp")) == [
        "lost/wall1.xmp",
        "lost/wall2.xmp",
        "lost/wall3.xmp",
    ]
    assert list(archive.rglob("*.xmp")) == []


@pytest.mark.usefixtures("sure")
def test_written_csv_can_be_indexed(
    loci: Loci, index: Path, archive: Path, tmp_path: Path, own_index: Path
) -> None:
    table = tmp_path / "positions.csv"
    result = loci("geotag", archive, "--index", index, "--to", table, "--write")
    assert result.stderr.endswith(f"Wrote 2 positions to {table}.\n")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["path"] for row in rows] == ["lost/wall1.jpg", "lost/wall2.jpg"]
    assert [row["confidence"] for row in rows] == ["0.95", "0.95"]
    assert loci("index", archive, "--into", own_index, "--metadata", table).exit_code == 0
    found = {photo.path: photo.lat for photo in Index.open(own_index).photos()}
    assert found["archive/lost/wall2.jpg"] == pytest.approx(52.004, abs=1e-6)
    assert found["archive/lost/wall3.jpg"] is None


@pytest.mark.usefixtures("sure")
def test_json(loci: Loci, index: Path, archive: Path) -> None:
    result = loci("geotag", archive, "--index", index, "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert list(report) == ["index", "model", "snapshot", "written", "counts", "photos"]
    assert (report["written"], report["snapshot"]) == (False, "01/000001")
    assert report["counts"] == {
        "tagged": 2,
        "has_position": 1,
        "unsure": 1,
        "unknown": 0,
        "no_position": 0,
        "vague": 0,
        "sidecar": 0,
        "unreadable": 0,
    }
    here, wall1, _, wall3 = report["photos"]
    names = "path file outcome reason lat lon radius_m heading confidence score place photo sidecar"
    assert list(here) == names.split()
    assert (here["path"], here["outcome"], here["reason"]) == ("here.jpg", "has_position", "in its EXIF")
    assert (wall1["file"], wall1["outcome"]) == (str(archive / "lost" / "wall1.jpg"), "tagged")
    assert wall1["lat"] == pytest.approx(52.002, abs=1e-6)
    assert (wall1["confidence"], wall3["confidence"]) == (0.95, 0.62)
    assert wall3["reason"] == "not sure enough (confidence 0.62 < 0.9)"
    assert wall1["place"]["name"] is None
    assert wall1["sidecar"] is None


def test_uncalibrated_index_is_refused(loci: Loci, index: Path, archive: Path) -> None:
    result = loci("geotag", archive, "--index", index, "--xmp", "--write")
    assert (result.exit_code, result.stdout) == (1, "")
    sentence = result.stderr.splitlines()[-1]
    assert sentence.startswith(f"loci: the index {index} is not calibrated (there is no confidence: ")
    assert sentence.endswith("; 0 without --write shows the scores")
    assert list(archive.rglob("*.xmp")) == []
    result = loci("geotag", archive, "--index", index, "--min-score", 0)
    assert result.exit_code == 0
    heading, _, first, *_ = cells(result.stdout)
    assert heading == ["photo", "position", "within", "score", "most", "similar"]
    assert float(first[4]) == pytest.approx(1, abs=0.01)


@pytest.mark.usefixtures("sure")
def test_unreadable_files_are_named(loci: Loci, index: Path, archive: Path) -> None:
    broken, damaged = archive / "broken.jpg", archive / "lost" / "wall2.jpg"
    broken.write_text("no photo")
    damaged.with_name("wall2.jpg.xmp").write_text("<x/>")
    result = loci("geotag", archive, "--index", index, "--xmp", "--write")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-2:] == [
        f"loci: {broken}: not an image that can be read",
        f"loci: {damaged}: wall2.jpg.xmp is XML, but has no rdf:RDF, as XMP has",
    ]
    assert (archive / "lost" / "wall1.jpg.xmp").exists()
    shutil.rmtree(archive / "lost")
    (archive / "here.jpg").unlink()
    assert loci("geotag", archive, "--index", index).exit_code == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--write"], "--write needs a target: set --to or --xmp"),
        (["--min-confidence", 90], "--min-confidence must be between 0 and 1, not 90"),
        (["--xmp-name", "both"], "Invalid value for '--xmp-name': 'both' is not one of 'full', 'stem'"),
    ],
)
def test_wrong_usage(loci: Loci, index: Path, archive: Path, options: list[object], sentence: str) -> None:
    result = loci("geotag", archive, "--index", index, *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith(f"loci: {sentence}")


@pytest.mark.usefixtures("sure")
def test_interruption_keeps_written_files_and_is_reported(
    loci: Loci, index: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = Index.answer
    asked: list[int] = []

    def interrupted(self: Index, *arguments: Any, **more: Any) -> Answer:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(self, *arguments, **more)

    monkeypatch.setattr(Index, "answer", interrupted)
    result = loci("geotag", archive, "--index", index, "--xmp", "--write")
    assert result.exit_code == 130
    assert ["position", "written", "1"] in cells(result.stdout)
    assert result.stderr.endswith("loci: interrupted; run the same command again to resume\n")
    assert len(list(archive.rglob("*.xmp"))) == 1


@pytest.mark.slow
def test_interrupted_geotag_leaves_whole_sidecars_and_resumes(
    real_index: Path, tmp_path: Path, photograph: Photograph, loci: Loci
) -> None:
    folder = tmp_path / "many"
    for number in range(40):
        photograph(folder / f"{number:02}.jpg", number % 4, number // 4 % 4, gps=False)
    command = ["geotag", str(folder), "--index", str(real_index), "--min-score", "-1", "--xmp", "--write"]
    with subprocess.Popen(
        [sys.executable, "-m", "loci", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    ) as process:
        deadline = time.monotonic() + 120
        while not list(folder.glob("*.xmp")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    written = {path: path.read_bytes() for path in folder.glob("*.xmp")}
    assert written
    assert all(read_sidecar(path).position() for path in written)
    assert not list(folder.glob(".*"))
    if process.returncode == 130:  # it may have been done already
        assert said.endswith("loci: interrupted; run the same command again to resume\n")
        assert len(written) < 40
    assert loci(*command).exit_code == 0
    assert len(list(folder.glob("*.xmp"))) == 40
    assert {path: path.read_bytes() for path in written} == written
