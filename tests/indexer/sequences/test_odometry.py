"""Odometry files, and ways by time and speed."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from indexer.errors import UsageError
from indexer.sequences.motion import Step
from indexer.sequences.odometry import read_odometry, steps_by_time

FRAMES = [Path("drive/a.jpg"), Path("drive/b.jpg"), Path("drive/c.jpg")]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "way.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_metres_by_name_path_and_number(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffframe,note,metres\ndrive/a.jpg,x,0\nb.jpg,,1.5\n2,,20\n")
    assert read_odometry(path, FRAMES) == [Step(metres=0.0), Step(metres=1.5), Step(metres=20.0)]


def test_dx_and_dy(tmp_path: Path) -> None:
    path = write(tmp_path, "frame,dx,dy\nb.jpg,3,-4\nc.jpg,,\n")
    assert read_odometry(path, FRAMES) == [None, Step(offset_m=(3.0, -4.0)), None]


def test_metres_with_a_heading(tmp_path: Path) -> None:
    path = write(tmp_path, "frame,metres,heading\nb.jpg,10,90\nc.jpg,10,\na.jpg,-2,180\n")
    back, east, free = read_odometry(path, FRAMES)
    assert east is not None
    assert east.offset_m == pytest.approx((10, 0))
    assert back is not None
    assert back.offset_m == pytest.approx((0, 2))
    assert free == Step(metres=10.0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,metres\n", "needs the columns frame and metres, or frame, dx and dy; it has file, metres"),
        ("frame,dx\n", "needs the columns frame and metres, or frame, dx and dy; it has frame, dx"),
        ("", "needs the columns frame and metres, or frame, dx and dy; it has none"),
        ("frame,metres\nb.jpg,far\n", "line 2: metres is not a number: 'far'"),
        ("frame,metres\nb.jpg,nan\n", "line 2: metres is not a number: 'nan'"),
        ("frame,metres\na.jpg,1\nb.jpg,-1\n", "line 3: metres must not be less than 0: -1"),
        ("frame,metres\nz.jpg,1\n", "line 2: the frame 'z.jpg' names none of those given"),
        ("frame,dx,dy\nb.jpg,1,\n", "line 2: dx and dy go together, and one is empty"),
    ],
)
def test_invalid_odometry_values_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        read_odometry(path, FRAMES)
    assert str(raised.value).removeprefix("the odometry file ") in (
        f"{path} {sentence}",
        f"{path}, {sentence}",
    )


def test_a_name_that_two_frames_have(tmp_path: Path) -> None:
    path = write(tmp_path, "frame,metres\na.jpg,1\n")
    with pytest.raises(UsageError, match=r"line 2: the frame 'a\.jpg' names 2 of those given"):
        read_odometry(path, [Path("one/a.jpg"), Path("two/a.jpg")])


def test_invalid_odometry_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the odometry file .*none\.csv: No such file"):
        read_odometry(tmp_path / "none.csv", FRAMES)
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UsageError, match=r"photo\.jpg is no CSV in UTF-8"):
        read_odometry(path, FRAMES)


def frame(path: Path, taken_at: str | None) -> Path:
    exif = Image.Exif()
    if taken_at:
        exif.get_ifd(0x8769)[0x9003] = taken_at
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path, exif=exif)
    return path


def test_ways_by_time(tmp_path: Path) -> None:
    times = ["2024:09:23 16:00:00", "2024:09:23 16:00:10", None, "2024:09:23 16:00:20", "2024:09:23 16:00:18"]
    frames = [frame(tmp_path / f"{n}.jpg", at) for n, at in enumerate(times)]
    (tmp_path / "broken.jpg").write_text("no photo")
    steps = steps_by_time([*frames, tmp_path / "broken.jpg"], 2.0)
    assert steps == [None, Step(metres=22.0), None, None, Step(metres=6.0), None]
    assert steps_by_time(frames[:1], 2.0) == [None]


def test_invalid_speeds_and_times_are_refused(tmp_path: Path) -> None:
    frames = [frame(tmp_path / f"{n}.jpg", None) for n in range(2)]
    with pytest.raises(
        UsageError,
        match="a speed needs times, and no two consecutive frames",
    ):
        steps_by_time(frames, 1.0)
    for speed in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="the speed must be more than 0 metres a second, not"):
            steps_by_time(frames, speed)
