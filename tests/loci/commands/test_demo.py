"""`loci demo`, on a few of its photos so that a test can afford it, and with no network at all."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from indexer.answers import Answer, PhotoHit, PlaceHit, Position
from indexer.photos.metadata import PhotoMetadata
from loci.commands import demo as demonstration
from loci.commands.demo import Finding, compare_with_truth

Loci = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[str]"]

STEP = 4
"""Every so many of the demo's photos and queries are used."""


@pytest.fixture
def small_demo(tmp_path: Path) -> Path:
    """The demo's folder with fewer photos."""
    folder = tmp_path / "demo"
    for source in (demonstration.PHOTOS, demonstration.QUERIES):
        (folder / source.name).mkdir(parents=True)
        for photo in sorted(source.iterdir())[::STEP]:
            shutil.copy(photo, folder / source.name)
    shutil.copy(demonstration.TRUTH, folder)
    return folder


@pytest.mark.slow
def test_demo_finds_the_query_photos(
    loci: Loci, small_demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Path] = []
    monkeypatch.setattr(demonstration, "PHOTOS", small_demo / "photos")
    monkeypatch.setattr(demonstration, "QUERIES", small_demo / "queries")
    monkeypatch.setattr(demonstration, "run_service", lambda index, **_: served.append(index))
    result = loci("demo", "--serve", "--into", tmp_path / "kept")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Indexed 15 photos as ")
    rows = [line.split() for line in lines if line.startswith("IMG_")]
    assert [row[0] for row in rows] == [path.name for path in sorted((small_demo / "queries").iterdir())]
    for _query, best, mark, found, truth, off, unit in rows:
        assert best.startswith("IMG_")
        assert mark in "✓✗"
        assert found.startswith("30.17")
        assert truth.startswith("30.17")
        assert 0 <= float(off) < 100
        assert unit == "m"
    right = [row[2] for row in rows].count("✓")
    assert f" within 25 m of the query: {right} of 4, recall@1 {right / 4:.3f}." in lines[-2]
    assert lines[-1].startswith("Median position error: ")
    assert served == [tmp_path / "kept"]
    assert f"loci query PHOTO --index {tmp_path / 'kept'}" in result.stderr
    assert loci("info", tmp_path / "kept").exit_code == 0
    assert max(map(len, lines)) <= 80


@pytest.mark.slow
def test_index_query_and_demo_work_offline(
    process: Process, small_demo: Path, tmp_path: Path, question: Path, photos: Path
) -> None:
    for folder in ("photos", "queries"):  # what is found does not matter here
        for photo in sorted((small_demo / folder).iterdir())[4:]:
            photo.unlink()
    code = f"""
import sys
from pathlib import Path

asked = []

def refuse(event, arguments):
    if event.startswith("socket.") and event not in ("socket.__new__", "socket.gethostname"):
        asked.append((event, arguments[1:]))
        raise OSError("the network is off")

sys.addaudithook(refuse)

from typer.testing import CliRunner
from loci.commands import demo as demonstration
from loci.main import app

demonstration.PHOTOS = Path({str(small_demo / "photos")!r})
demonstration.QUERIES = Path({str(small_demo / "queries")!r})

def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    print(arguments[0], result.exit_code)

run("index", {str(photos)!r}, "--into", {str(tmp_path / "index")!r}, "--clusters", 4)
run("query", {str(question)!r}, "--index", {str(tmp_path / "index")!r})
run("compare", {str(question)!r}, {str(question)!r})
run("demo")
print("asked for:", asked)
"""
    result = process(code=code)
    assert result.stdout.splitlines() == ["index 0", "query 0", "compare 0", "demo 0", "asked for: []"]


def test_demo_row_shows_answer_and_truth() -> None:
    hit = PhotoHit("1", "photos/a.jpg", 0.5)
    answer = Answer(
        None,
        None,
        Position(30.0, -98.0, 10.0),
        (PlaceHit("p", None, None, None, 0.5, photos=(hit,)),),
        "",
        "",
        {},
    )
    finding = compare_with_truth("q.jpg", answer, PhotoMetadata(lat=30.001, lon=-98.0), {"a.jpg", "b.jpg"})
    assert finding.off_m == pytest.approx(111.2, abs=0.1)
    assert (finding.best, finding.right) == ("a.jpg", True)
    assert (finding.found, finding.truth) == ("30.00000,-98.00000", "30.00100,-98.00000")
    nothing = Answer(None, None, None, (), "", "", {})
    assert compare_with_truth("q.jpg", nothing, PhotoMetadata(), set()) == Finding(
        "q.jpg", None, False, None, None, None
    )
