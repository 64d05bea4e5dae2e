"""`loci query --sequence`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import Result

from indexer.answers import Answer, PhotoHit, PlaceHit, Position
from indexer.sequences.follower import FrameAnswer
from loci.commands.sequence import frames_of, line

Loci = Callable[..., Result]
Photograph = Callable[..., Path]

COUNT, SIZE, STEP = 24, (128, 96), 48


def street(path: Path, left: int, *, seed: int = 0, lat: float | None = None) -> Path:
    """Save a view of a long wall of coloured squares, `left` pixels along it."""
    squares = np.random.default_rng(seed).integers(0, 256, (8, 160, 3), dtype=np.uint8)
    wall = Image.fromarray(squares).resize((1920, 96), Image.Resampling.NEAREST)
    exif = Image.Exif()
    if lat is not None:
        exif.get_ifd(0x8825).update({1: "N", 2: (lat, 0.0, 0.0), 3: "E", 4: (0.25, 0.0, 0.0)})
    path.parent.mkdir(parents=True, exist_ok=True)
    wall.crop((left, 0, left + SIZE[0], SIZE[1])).save(path, quality=90, exif=exif)
    return path


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, loci: Loci) -> Path:
    """An index of a drive along the wall, without positions: frames 1 to 24, not in the order of letters."""
    folder = tmp_path_factory.mktemp("road")
    for number in range(COUNT):
        street(folder / "drive" / f"frame{number + 1}.jpg", STEP * number)
    assert loci("index", folder / "drive", "--into", folder / "index", "--clusters", 4).exit_code == 0
    return folder / "index"


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second drive past frames 5 to 12, a few pixels off, then elsewhere."""
    folder = tmp_path_factory.mktemp("again")
    for number in range(8):
        street(folder / f"q{number + 1}.jpg", STEP * (number + 4) + 7)
    for number in range(8, 12):
        street(folder / f"q{number + 1}.jpg", STEP * number, seed=1)
    return folder


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jpg"
    path.write_text("no photo")
    return path


def test_folder_of_frames_prints_one_line_each(loci: Loci, road: Path, frames: Path) -> None:
    result = loci("query", "--sequence", frames, "--index", road)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [text.split(": ")[0] for text in lines] == [str(frames / f"q{n}.jpg") for n in range(1, 13)]
    for number in range(3, 8):
        assert f", as in drive/frame{number + 5}.jpg, " in lines[number]
        assert lines[number].endswith("% sure")
    assert (
        result.stderr == "Note: the confidence comes from the sequence and is not calibrated on this index\n"
    )


def test_json_has_an_answer_a_frame(loci: Loci, road: Path, frames: Path) -> None:
    asked = [frames / f"q{n}.jpg" for n in range(1, 6)]
    result = loci("query", "--sequence", *asked, "--index", road, "--json", "-k", 2)
    assert (result.exit_code, result.stderr) == (0, "")
    answers = json.loads(result.stdout)
    names = "query frame known confidence position places model snapshot timings_ms note off_map"
    assert [list(answer) for answer in answers] == [names.split()] * 5
    assert [answer["query"] for answer in answers] == [str(frame) for frame in asked]
    assert [answer["frame"] for answer in answers] == list(range(5))
    last = answers[-1]
    assert last["places"][0]["photos"][0]["path"] == "drive/frame9.jpg"
    assert last["known"] is (last["confidence"] > 0.5)
    assert last["confidence"] == last["places"][0]["confidence"]
    assert 0 <= last["off_map"] <= 1
    assert len(last["places"]) == 2


def test_only_smoothing_uses_later_frames(loci: Loci, road: Path, frames: Path) -> None:
    asked = [frames / f"q{n}.jpg" for n in range(1, 7)]

    def sure(*arguments: object) -> list[float]:
        result = loci("query", "--sequence", *arguments, "--index", road, "--json")
        assert result.exit_code == 0
        return [answer["confidence"] for answer in json.loads(result.stdout)]

    whole = sure(*asked)
    assert sure(*asked[:3]) == whole[:3]
    smooth = sure(*asked, "--smooth")
    assert smooth[-1] == pytest.approx(whole[-1], abs=1e-4)
    assert smooth[0] > whole[0]
    result = loci("query", "--sequence", *asked, "--index", road, "--smooth")
    assert len(result.stdout.splitlines()) == 6


def test_unreadable_frame_is_reported_and_skipped(loci: Loci, road: Path, frames: Path, broken: Path) -> None:
    asked = [frames / "q1.jpg", frames / "q2.jpg", broken, frames / "q3.jpg", frames / "q4.jpg"]
    result = loci("query", "--sequence", *asked, "--index", road, "--json")
    assert (result.exit_code, result.stderr) == (3, f"loci: {broken}: not an image that can be read\n")
    answers = json.loads(result.stdout)
    assert [answer["frame"] for answer in answers] == [0, 1, 3, 4]
    assert answers[-1]["places"][0]["photos"][0]["path"] == "drive/frame8.jpg"
    result = loci("query", "--sequence", broken, broken, "--index", road)
    assert (result.exit_code, result.stdout) == (1, "")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            ["--sequence", "--clip"],
            "--clip pools photos of one place, --sequence follows a moving camera: use one of them",
        ),
        (["--smooth"], "--smooth needs --sequence"),
        (["--odometry", "way.csv"], "--odometry needs --sequence"),
        (["--max-speed", 3], "--max-speed needs --sequence"),
        (["--motion", "photos"], "--motion needs --sequence"),
        (
            ["--sequence", "--motion", "metres"],
            "metres need positions, and the photos of this index have none",
        ),
        (
            ["--sequence", "--odometry", "way.csv", "--max-speed", 3],
            "--odometry already gives the motion: leave out --max-speed",
        ),
        (["--sequence", "--max-speed", -3], "the speed must be more than 0 metres a second, not -3"),
    ],
)
def test_conflicting_options_are_refused(
    loci: Loci, road: Path, frames: Path, options: list[object], sentence: str
) -> None:
    result = loci("query", frames / "q1.jpg", "--index", road, *options)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"loci: {sentence}\n")


def test_odometry_of_wrong_columns(loci: Loci, road: Path, frames: Path, tmp_path: Path) -> None:
    path = tmp_path / "way.csv"
    path.write_text("photo,metres\nq1.jpg,1\n")
    result = loci("query", "--sequence", frames, "--index", road, "--odometry", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"loci: the odometry file {path} needs the columns frame and metres, or frame, dx and dy; "
        "it has photo, metres\n"
    )


def test_odometry_needs_a_map_with_positions(loci: Loci, road: Path, frames: Path, tmp_path: Path) -> None:
    path = tmp_path / "way.csv"
    path.write_text("frame,metres\nq2.jpg,1\n")
    result = loci(
        "query", "--sequence", frames / "q1.jpg", frames / "q2.jpg", "--index", road, "--odometry", path
    )
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "loci: steps in metres need photo positions; this map is ordered by file name"
    )


def test_odometry_over_photos_with_positions(loci: Loci, index: Path, photos: Path, tmp_path: Path) -> None:
    """The walls stand 222 m apart: sixteen photos, too few to say how sure."""
    path = tmp_path / "way.csv"
    path.write_text("frame,dx,dy\n1,0,222.4\n")
    asked = [photos / "wall1" / "view1.jpg", photos / "wall2" / "view1.jpg"]
    result = loci("query", "--sequence", *asked, "--index", index, "--odometry", path, "--json")
    assert result.exit_code == 0
    answers = json.loads(result.stdout)
    assert [round(answer["position"]["lat"], 4) for answer in answers] == [52.002, 52.004]
    assert [answer["confidence"] for answer in answers] == [None, None]
    assert "fewer than 20 photos" in answers[0]["note"]


def test_folder_mixed_with_photos_is_refused(loci: Loci, road: Path, frames: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = loci("query", "--sequence", tmp_path / "empty", "--index", road)
    assert (result.exit_code, result.stderr) == (2, f"loci: {tmp_path / 'empty'}: no photos in this folder\n")
    result = loci("query", "--sequence", frames, frames / "q1.jpg", "--index", road)
    assert result.exit_code == 2
    assert result.stderr == "loci: a sequence is either photos in order, or one folder\n"
    given = [frames / "q3.jpg", frames / "q1.jpg"]
    assert frames_of(given) == given


def test_unordered_photos_are_refused_as_map(loci: Loci, frames: Path, tmp_path: Path) -> None:
    for number in range(24):
        street(tmp_path / "mixed" / f"{number:02}.jpg", 40 * number, seed=number + 5)
    assert loci("index", tmp_path / "mixed", "--into", tmp_path / "index", "--clusters", 4).exit_code == 0
    result = loci("query", "--sequence", frames, "--index", tmp_path / "index")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        "loci: a camera cannot be followed in this index: its photos have no positions"
    )


PHOTO = PhotoHit("a", "photos/gate.jpg", 0.5)


@pytest.mark.parametrize(
    ("known", "confidence", "off", "position", "text"),
    [
        (True, 0.934, 0.02, None, "q.jpg: place the gate, as in photos/gate.jpg, 93% sure"),
        (
            True,
            0.93,
            0.02,
            Position(52.0, 0.25, 8.0),
            "q.jpg: place the gate, as in photos/gate.jpg, at 52.000000,0.250000, within 8.0 m, 93% sure",
        ),
        (False, 0.4, 0.3, None, "q.jpg: unknown, perhaps place the gate, as in photos/gate.jpg, 40% sure"),
        (False, 0.1, 0.88, None, "q.jpg: off the map, 88% sure"),
        (None, None, None, None, "q.jpg: place the gate, as in photos/gate.jpg"),
    ],
)
def test_frame_is_one_line(
    known: bool | None, confidence: float | None, off: float | None, position: Position | None, text: str
) -> None:
    place = PlaceHit("p1", "the gate", None, None, 0.5, confidence, photos=(PHOTO,))
    answer = Answer(known, confidence, position, (place,), "f00d", "01/000001", {})
    assert line(Path("q.jpg"), FrameAnswer(3, answer, off)) == text


DATA = Path(__file__).parents[4] / "shared" / "data" / "corridor"


@pytest.mark.skipif(not DATA.is_dir(), reason="no real photos in ../shared/data")
@pytest.mark.slow
def test_real_corridor_backwards_and_foreign_frames(loci: Loci, tmp_path: Path) -> None:
    """A robot's second pass, backwards, over the first half of the corridor; then the unknown other half."""
    passes = {name: sorted((DATA / name).iterdir()) for name in ("ref", "query")}
    for number, photo in enumerate(passes["ref"][:50]):
        (tmp_path / "ref").mkdir(exist_ok=True)
        shutil.copy(photo, tmp_path / "ref" / f"{number:03}.jpg")
    assert loci("index", tmp_path / "ref", "--into", tmp_path / "index", "--clusters", 16).exit_code == 0
    asked = [*passes["query"][:45][::-1], *passes["query"][75:100]]
    result = loci("query", "--sequence", *asked, "--index", tmp_path / "index", "--json")
    assert result.exit_code == 0
    answers = json.loads(result.stdout)
    best = [int(Path(answer["places"][0]["photos"][0]["path"]).stem) for answer in answers]
    off = np.abs(np.array(best[:45]) - np.arange(45)[::-1])
    assert (off <= 2).mean() >= 0.9
    assert off[5:].max() <= 5
    assert np.mean([answer["known"] for answer in answers[12:45]]) >= 0.9  # it has to find itself first
    assert np.mean([answer["known"] for answer in answers[-10:]]) <= 0.1
