"""Giving positions to photos: which are asked about, when an answer is good enough, and what is written."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from indexer.answers import Answer, Position
from indexer.errors import IndexerError, NotCalibrated, UsageError
from indexer.geo import haversine_m
from indexer.geotag.geotag import GeotagOptions, Outcome, geotag
from indexer.geotag.sidecars import read_sidecar
from indexer.geotag.xmp import EXIF, LOCI, Xmp
from indexer.index import Index
from indexer.photos.file_name import from_name
from indexer.photos.metadata import PhotoMetadata

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint, World

Change = Callable[[Answer], Answer]
Answers = Callable[[Change], None]

LAT, LON, STEP = 52.0, 0.25, 0.01


@pytest.fixture
def index(opened: Index) -> Index:
    return opened


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Change what an index answers: the one seam through which confidences come."""
    real = Index.answer

    def change(to: Change) -> None:
        def answer(self: Index, *arguments: Any, **more: Any) -> Answer:
            return to(real(self, *arguments, **more))

        monkeypatch.setattr(Index, "answer", answer)

    return change


@pytest.fixture
def sure(answers: Answers) -> Callable[..., None]:
    """Answers of these confidences by wall, 0.95 where none is given."""

    def calibrate(**by_wall: float) -> None:
        def add(answer: Answer) -> Answer:
            wall = answer.places[0].photos[0].path.split("/")[1]
            confidence = by_wall.get(wall, 0.95)
            return replace(answer, confidence=confidence, known=confidence > 0.5, note=None)

        answers(add)

    return calibrate


@pytest.fixture
def photos(tmp_path: Path, paint: Paint) -> Path:
    """A new photo of each wall, which does not say where it was taken."""
    folder = tmp_path / "archive"
    for wall in range(4):
        paint(folder / f"wall{wall}" / f"{wall}.jpg", wall, 7, gps=False)
    return folder


def run(index: Index, photos: Path, **options: Any) -> dict[str, Outcome]:
    return {found.path: found for found in geotag(index, [photos], GeotagOptions(**options))}


def reasons(outcomes: dict[str, Outcome]) -> dict[str, str | None]:
    return {path: found.reason for path, found in outcomes.items()}


def whats(outcomes: dict[str, Outcome]) -> dict[str, str]:
    return {path: found.what for path, found in outcomes.items()}


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file's bytes and time of change, and every folder's."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder",
            path.stat().st_mtime_ns,
        )
        for path in [folder, *folder.rglob("*")]
    }


def located(lat: float = 1.0, lon: float = 2.0) -> bytes:
    xmp = Xmp.empty()
    xmp.put(EXIF, "GPSLatitude", f"{lat:.0f},0.0N")
    xmp.put(EXIF, "GPSLongitude", f"{lon:.0f},0.0E")
    xmp.put(EXIF, "UserComment", "by hand")
    return xmp.to_bytes()


# Which photos are asked about


def test_an_index_that_cannot_say_how_sure_it_is_is_refused(index: Index, photos: Path) -> None:
    before = state(photos)
    with pytest.raises(NotCalibrated) as raised:
        run(index, photos, xmp=True, write=True)
    assert state(photos) == before
    assert str(raised.value) == (
        f"the index {index.path} is not calibrated (there is no confidence: 8 of 8 photos share a place with "
        "another photo, and calibration needs 40: add photos of these places, or set `places` to folder or "
        "frames:N if folders or order show places). Use `min_score` to threshold on similarity instead; 0 "
        "without `write` shows the scores"
    )
    table = photos.parent / "p.csv"
    table.write_text("path,lat,lon,radius_m,confidence,heading,place,photo\na.jpg,1,2,3,,,,\n")
    before = state(photos.parent)
    with pytest.raises(NotCalibrated):
        run(index, photos, to=table, write=True, replace=True)
    assert state(photos.parent) == before


def test_photos_that_have_a_position_are_left(
    index: Index, photos: Path, paint: Paint, sure: Callable[..., None], tmp_path: Path
) -> None:
    sure()
    paint(photos / "exif.jpg", 0, 9)
    paint(photos / "@0@0@31@U@52.5@0.5@@@@@@@@@.jpg", 0, 9, gps=False)
    for name in ("full", "stem", "listed", "unlisted"):
        paint(photos / f"{name}.jpg", 0, 9, gps=False)
    (photos / "full.jpg.xmp").write_bytes(located())
    (photos / "stem.xmp").write_bytes(located())
    with Image.open(photos / "unlisted.jpg") as image:
        image.save(photos / "inside.jpg", xmp=located())
    table = tmp_path / "known.csv"
    table.write_text("path,lat,lon\nlisted.jpg,1,2\nunlisted.jpg,,\n")
    outcomes = run(index, photos, metadata=table)
    left = {path: found.reason for path, found in outcomes.items() if found.what == "has_position"}
    assert left == {
        "exif.jpg": "in its EXIF",
        "@0@0@31@U@52.5@0.5@@@@@@@@@.jpg": "in its name",
        "full.jpg": "in full.jpg.xmp",
        "stem.jpg": "in stem.xmp",
        "inside.jpg": "in its own XMP",
        "listed.jpg": f"in {table}",
    }
    assert len(outcomes) == 11
    assert all(found.what == "tagged" for path, found in outcomes.items() if path not in left)


def test_a_sidecar_without_a_position_is_no_position(
    index: Index, photos: Path, sure: Callable[..., None]
) -> None:
    sure()
    (photos / "wall1" / "1.jpg.xmp").write_bytes(Xmp.empty().to_bytes())
    assert run(index, photos)["wall1/1.jpg"].what == "tagged"


def test_photos_of_the_index_without_a_position_do_not_answer(
    world: World, paint: Paint, sure: Callable[..., None]
) -> None:
    """The usual archive: all of it is indexed, and those that lack a position are in it themselves."""
    sure()
    lost = paint(world.photos / "wall2" / "lost.jpg", 2, 7, gps=False)
    world.build()
    index = world.open()
    assert index.nearest(index.embed([lost])[0], 1)[0].path == "photos/wall2/lost.jpg"
    outcomes = run(index, world.photos)
    assert {path for path, found in outcomes.items() if found.what == "tagged"} == {"wall2/lost.jpg"}
    estimate = outcomes["wall2/lost.jpg"].estimate
    assert estimate is not None
    assert estimate.position is not None
    assert estimate.position.lat == pytest.approx(LAT + 2 * STEP, abs=1e-4)


def test_index_without_positions_is_refused(empty: World, paint: Paint) -> None:
    for photo in list(empty.photos.rglob("*.jpg")):
        paint(photo, int(photo.parent.name[-1]), 1, gps=False)
    empty.build()
    with pytest.raises(IndexerError, match=r"^no photo of the index .* has a position, so it can give none$"):
        run(empty.open(), empty.photos)


def test_no_photos(index: Index, tmp_path: Path) -> None:
    with pytest.raises(IndexerError, match=f"^no photos in {tmp_path}: nothing to look for$"):
        run(index, tmp_path)


def test_it_stops_at_a_limit(index: Index, photos: Path, paint: Paint, sure: Callable[..., None]) -> None:
    sure()
    paint(photos / "a.jpg", 0, 9)
    outcomes = run(index, photos, limit=2)
    assert whats(outcomes) == {
        "a.jpg": "has_position",
        "wall0/0.jpg": "tagged",
        "wall1/1.jpg": "tagged",
    }


# Which answers are good enough


def test_only_confident_positions_are_written(index: Index, photos: Path, sure: Callable[..., None]) -> None:
    sure(wall0=0.9, wall1=0.8999999, wall2=0.2, wall3=0.99)
    outcomes = run(index, photos)
    assert reasons(outcomes) == {
        "wall0/0.jpg": None,
        "wall1/1.jpg": "not sure enough (confidence 0.899 < 0.9)",
        "wall2/2.jpg": "place unknown",
        "wall3/3.jpg": None,
    }
    assert whats(outcomes) == {
        "wall0/0.jpg": "tagged",
        "wall1/1.jpg": "unsure",
        "wall2/2.jpg": "unknown",
        "wall3/3.jpg": "tagged",
    }
    estimate = outcomes["wall3/3.jpg"].estimate
    assert estimate is not None
    assert estimate.position is not None
    off_m = haversine_m(estimate.position.lat, estimate.position.lon, LAT + 3 * STEP, LON)
    assert float(off_m) < 1
    assert estimate.photo in ("photos/wall3/view0.jpg", "photos/wall3/view1.jpg")
    assert estimate.confidence == 0.99
    assert whats(run(index, photos, min_confidence=0.8))["wall1/1.jpg"] == "tagged"


def test_score_decides_without_calibration(index: Index, photos: Path) -> None:
    scores = {p: o.estimate.score for p, o in run(index, photos, min_score=0).items() if o.estimate}
    assert len(scores) == 4
    bound = sorted(scores.values())[2]
    outcomes = run(index, photos, min_score=bound)
    assert whats(outcomes) == {path: "unsure" if s < bound else "tagged" for path, s in scores.items()}
    worst = min(scores, key=lambda path: scores[path])
    shown = round(scores[worst], 3)
    assert shown < bound
    assert outcomes[worst].reason == f"not like enough (score {shown:g} < {bound:g})"


def test_confidence_and_score_bounds_both_apply(
    index: Index, photos: Path, sure: Callable[..., None]
) -> None:
    sure(wall0=0.6)
    outcomes = run(index, photos, min_score=0)
    assert [o.what for o in outcomes.values()].count("tagged") == 3
    assert outcomes["wall0/0.jpg"].reason == "not sure enough (confidence 0.6 < 0.9)"
    assert set(whats(run(index, photos, min_score=2)).values()) == {"unsure"}


def test_an_answer_without_a_confidence_among_others_is_left(
    index: Index, photos: Path, answers: Answers
) -> None:
    confidences: Iterator[float | None] = iter([0.95, None, 0.95, 0.95])
    answers(lambda answer: replace(answer, confidence=next(confidences)))
    outcomes = run(index, photos)
    assert sorted(whats(outcomes).values()) == ["tagged", "tagged", "tagged", "unsure"]
    assert "not sure enough (no confidence)" in reasons(outcomes).values()


def test_positions_with_large_radius_are_left(index: Index, photos: Path, sure: Callable[..., None]) -> None:
    sure()
    found = next(iter(run(index, photos).values())).estimate
    assert found is not None
    assert found.position is not None
    radius = found.position.radius_m
    outcomes = run(index, photos, max_radius_m=radius - 0.1)
    assert reasons(outcomes)["wall0/0.jpg"] == f"too vague (within {radius:g} m > {radius - 0.1:g} m)"
    assert run(index, photos, max_radius_m=radius)["wall0/0.jpg"].what == "tagged"


def test_a_position_must_be_that_of_the_place_that_is_trusted(
    index: Index, photos: Path, answers: Answers
) -> None:
    def elsewhere(answer: Answer) -> Answer:
        best = answer.places[0].photos[0]
        assert best.lat is not None
        assert best.lon is not None
        offset = {"wall0": 0.0008, "wall1": 0.0010}.get(best.path.split("/")[1])  # 89 m, 111 m
        position = None if offset is None else Position(best.lat + offset, best.lon, 40.0)
        return replace(answer, confidence=0.99, position=position)

    answers(elsewhere)
    assert reasons(run(index, photos)) == {
        "wall0/0.jpg": None,
        "wall1/1.jpg": "photos like it speak for another position than its nearest place",
        "wall2/2.jpg": "no position in the index near",
        "wall3/3.jpg": "no position in the index near",
    }


def test_place_without_position_gives_no_position(index: Index, photos: Path, answers: Answers) -> None:
    def unlocated(answer: Answer) -> Answer:
        best = answer.places[0]
        hits = tuple(replace(hit, lat=None, lon=None) for hit in best.photos)
        return replace(answer, confidence=0.99, places=(replace(best, photos=hits),))

    answers(unlocated)
    assert set(whats(run(index, photos)).values()) == {"no_position"}
    answers(lambda answer: replace(answer, confidence=0.99, places=()))
    assert set(whats(run(index, photos)).values()) == {"no_position"}


# What is written


def test_a_dry_run_writes_nothing(index: Index, photos: Path, sure: Callable[..., None]) -> None:
    sure()
    before = state(photos.parent)
    outcomes = run(index, photos, xmp=True)
    assert outcomes["wall1/1.jpg"].sidecar == photos / "wall1" / "1.jpg.xmp"
    run(index, photos, to=photos.parent / "new" / "p.csv")
    assert state(photos.parent) == before


def test_sidecars_are_written_and_photos_never_change(
    index: Index, photos: Path, sure: Callable[..., None]
) -> None:
    sure(wall2=0.7)
    before = state(photos)
    outcomes = run(index, photos, xmp=True, write=True)
    files = {path: found for path, found in state(photos).items() if found[0] != "a folder"}
    assert {path: found for path, found in files.items() if path.endswith(".jpg")} == {
        path: found for path, found in before.items() if path.endswith(".jpg")
    }
    assert sorted(path for path in files if not path.endswith(".jpg")) == [
        "wall0/0.jpg.xmp",
        "wall1/1.jpg.xmp",
        "wall3/3.jpg.xmp",
    ]
    xmp = read_sidecar(photos / "wall3" / "3.jpg.xmp")
    estimate = outcomes["wall3/3.jpg"].estimate
    assert estimate is not None
    assert estimate.position is not None
    assert xmp.position() == pytest.approx((estimate.position.lat, estimate.position.lon), abs=1e-8)
    assert xmp.get(EXIF, "GPSHPositioningError") == f"{estimate.position.radius_m * 10:.0f}/10"
    assert {name: xmp.get(LOCI, name) for name in ("Estimated", "Confidence", "Model", "Note")} == {
        "Estimated": "True",
        "Confidence": "0.9500",
        "Model": index.model_fingerprint,
        "Note": "Position estimated by loci from photos that look alike, not measured",
    }
    assert "view" not in (photos / "wall3" / "3.jpg.xmp").read_text()  # no name of an indexed photo
    again = run(index, photos, xmp=True, write=True)
    assert reasons(again) == {
        "wall0/0.jpg": "in 0.jpg.xmp",
        "wall1/1.jpg": "in 1.jpg.xmp",
        "wall2/2.jpg": "not sure enough (confidence 0.7 < 0.9)",
        "wall3/3.jpg": "in 3.jpg.xmp",
    }


def test_an_archive_that_is_only_read(
    index: Index, photos: Path, sure: Callable[..., None], tmp_path: Path
) -> None:
    sure()
    (photos / "wall1" / "1.xmp").write_bytes(Xmp.empty().to_bytes())
    before = state(photos)
    run(index, photos, xmp_into=tmp_path / "out", write=True)
    assert state(photos) == before
    written = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert written == ["wall0/0.jpg.xmp", "wall1/1.xmp", "wall2/2.jpg.xmp", "wall3/3.jpg.xmp"]
    again = run(index, photos, xmp_into=tmp_path / "out", write=True)
    assert set(whats(again).values()) == {"has_position"}


def test_replacing_reports_the_old_position(index: Index, photos: Path, sure: Callable[..., None]) -> None:
    sure()
    by_hand = photos / "wall1" / "1.jpg.xmp"
    by_hand.write_bytes(located())
    run(index, photos, xmp=True, write=True)
    assert by_hand.read_bytes() == located()
    outcomes = run(index, photos, xmp=True, replace=True)
    assert reasons(outcomes) == {
        "wall0/0.jpg": "instead of an earlier estimate",
        "wall1/1.jpg": "instead of the position there",
        "wall2/2.jpg": "instead of an earlier estimate",
        "wall3/3.jpg": "instead of an earlier estimate",
    }
    assert by_hand.read_bytes() == located()
    run(index, photos, xmp=True, replace=True, write=True)
    xmp = read_sidecar(by_hand)
    assert xmp.position() == pytest.approx((LAT + STEP, LON), abs=1e-4)
    assert xmp.get(EXIF, "UserComment") == "by hand"


def test_the_csv_goes_back_in_as_metadata(
    world: World, photos: Path, sure: Callable[..., None], tmp_path: Path
) -> None:
    sure(wall2=0.7)
    table = tmp_path / "positions.csv"
    outcomes = run(world.open(), photos, to=table, write=True)
    lines = table.read_text().splitlines()
    assert lines[0] == "path,lat,lon,radius_m,confidence,heading,place,photo"
    estimate = outcomes["wall0/0.jpg"].estimate
    assert estimate is not None
    assert estimate.position is not None
    where = estimate.position
    assert f"wall0/0.jpg,{where.lat},{where.lon},{where.radius_m},0.95,,,{estimate.photo}" in lines
    assert len(lines) == 4
    world.build(photos, metadata=table)
    found = {photo.path: (photo.lat, photo.lon) for photo in world.open().photos()}
    assert found["archive/wall0/0.jpg"] == (where.lat, where.lon)
    assert found["archive/wall2/2.jpg"] == (None, None)


def test_a_csv_that_is_there_is_gone_on_with(
    index: Index, photos: Path, sure: Callable[..., None], tmp_path: Path
) -> None:
    sure()
    table = tmp_path / "positions.csv"
    run(index, photos, to=table, write=True, limit=1)
    first = table.read_text()
    assert len(first.splitlines()) == 2
    outcomes = run(index, photos, to=table, write=True)
    assert outcomes["wall0/0.jpg"].reason == f"in {table}"
    assert table.read_text().startswith(first)
    assert len(table.read_text().splitlines()) == 5
    run(index, photos, to=table, write=True, replace=True, limit=1)
    assert table.read_text() == first


@pytest.mark.parametrize("target", ["sidecars", "csv"])
def test_stopped_run_is_resumed(
    index: Index, photos: Path, sure: Callable[..., None], tmp_path: Path, target: str
) -> None:
    sure()
    to: dict[str, Any] = {"xmp": True} if target == "sidecars" else {"to": tmp_path / "p.csv"}
    options = GeotagOptions(write=True, **to)
    running = geotag(index, [photos], options)
    assert [next(running).what for _ in range(2)] == ["tagged", "tagged"]
    running.close()  # type: ignore[attr-defined]
    outcomes = [found.what for found in geotag(index, [photos], options)]
    assert sorted(outcomes) == ["has_position", "has_position", "tagged", "tagged"]


def test_photos_are_not_read_long_before_their_turn(
    index: Index, paint: Paint, sure: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sure()
    for number in range(60):
        paint(tmp_path / "many" / f"{number:02}.jpg", number % 4, number, gps=False)
    looked: list[str] = []

    def look(name: str) -> PhotoMetadata:
        looked.append(name)
        return from_name(name)

    monkeypatch.setattr("indexer.geotag.geotag.from_name", look)
    running = geotag(index, [tmp_path / "many"], GeotagOptions())
    next(running)
    assert len(looked) <= 20
    assert len(list(running)) == 59


# What goes wrong


def test_what_cannot_be_read_is_named(index: Index, photos: Path, sure: Callable[..., None]) -> None:
    sure()
    (photos / "wall0" / "0.jpg").write_text("no photo")
    whole = (photos / "wall1" / "1.jpg").read_bytes()
    (photos / "wall1" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "wall2" / "2.jpg.xmp").write_text("<x>")
    (photos / "gone.jpg").symlink_to(photos / "nowhere.jpg")
    outcomes = run(index, photos, xmp=True, write=True)
    assert outcomes["wall0/0.jpg"].reason == "not an image that can be read"
    assert outcomes["wall1/1.jpg"].what == "unreadable"
    assert outcomes[str(photos / "gone.jpg")].reason == "link to nothing"
    assert outcomes["wall2/2.jpg"].what == "sidecar"
    assert (outcomes["wall2/2.jpg"].reason or "").startswith("2.jpg.xmp is not XML: ")
    assert (photos / "wall2" / "2.jpg.xmp").read_text() == "<x>"
    assert outcomes["wall3/3.jpg"].what == "tagged"


def test_photos_with_read_only_targets_are_not_queried(
    index: Index, photos: Path, sure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sure()
    barred = photos / "wall1"
    monkeypatch.setattr(os, "access", lambda path, _: path != barred)
    outcomes = run(index, photos, xmp=True, write=True)
    assert outcomes["wall1/1.jpg"].reason == (
        f"1.jpg.xmp cannot be written, because {barred} is read-only: see `xmp_into`"
    )
    assert outcomes["wall1/1.jpg"].estimate is None
    assert outcomes["wall0/0.jpg"].what == "tagged"


def test_a_sidecar_that_cannot_be_written_leaves_the_photo(
    index: Index, photos: Path, sure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sure()
    real = Path.replace

    def fail(number: int) -> None:
        def replace(self: Path, target: Path) -> Path:
            if target.parent.name == "wall1":
                raise OSError(number, os.strerror(number), str(target))
            return real(self, target)

        monkeypatch.setattr(Path, "replace", replace)

    fail(errno.EROFS)
    outcomes = run(index, photos, xmp=True, write=True)
    target = photos / "wall1" / "1.jpg.xmp"
    assert outcomes["wall1/1.jpg"].reason == f"{target} cannot be written: Read-only file system"
    assert sum(found.what == "tagged" for found in outcomes.values()) == 3
    fail(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left on device"):
        run(index, photos, xmp=True, write=True)
    assert sorted(path.name for path in (photos / "wall1").iterdir()) == ["1.jpg"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_confidence": 90}, "`min_confidence` must be between 0 and 1, not 90"),
        ({"min_confidence": float("nan")}, "`min_confidence` must be between 0 and 1, not nan"),
        ({"min_score": float("nan")}, "`min_score` must be a number, not nan"),
        ({"max_radius_m": 0}, "`max_radius_m` must be above 0 metres, not 0"),
        ({"limit": 0}, "`limit` must be at least 1, not 0"),
        ({"write": True}, "`write` needs a target: set `to` or `xmp`"),
        ({"to": Path("p.csv"), "xmp": True}, "`to` and `xmp` exclude each other: run once for each"),
        ({"xmp_name": "both"}, "no naming 'both' of sidecars; there are full, stem"),
        ({"metadata": Path("nothing.csv")}, "cannot read the metadata file nothing.csv: No such file or dir"),
    ],
)
def test_invalid_options_are_refused(
    index: Index, photos: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        run(index, photos, **options)
    assert str(raised.value).startswith(message)
