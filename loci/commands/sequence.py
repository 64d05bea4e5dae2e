"""`loci query --sequence`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from indexer.errors import UsageError
from indexer.filters import Filters
from loci.console import distance, latlon, note, say, say_json
from loci.exit_codes import FAILED, SomeUnreadable
from loci.flags import with_flags

if TYPE_CHECKING:
    from indexer.index import Index
    from indexer.sequences.follower import FrameAnswer
    from indexer.sequences.motion import Step
    from model.errors import ImageError
    from model.images import Source

MotionName = Literal["auto", "photos", "metres"]


def frames_of(photos: Sequence[Path]) -> list[Path]:
    """Return the frames in order: as given, or if one folder is given, its photos by name.

    Raises:
        UsageError: a folder among other photos, or a folder without photos.
    """
    if not any(photo.is_dir() for photo in photos):
        return list(photos)
    if len(photos) > 1:
        raise UsageError("a sequence is either photos in order, or one folder")
    from indexer.photos.scan import scan
    from indexer.places.groups import natural_order

    files = sorted(scan(photos).files, key=lambda file: (natural_order(file.relative), file.relative))
    if not files:
        raise UsageError(f"{photos[0]}: no photos in this folder")
    return [file.path for file in files]


def steps_of(
    frames: Sequence[Path], odometry: Path | None, max_speed: float | None
) -> "list[Step | None] | None":
    """Return the known motion to each frame. Raises UsageError."""
    if odometry is None and max_speed is None:
        return None
    if odometry is not None and max_speed is not None:
        raise UsageError("--odometry already gives the motion: leave out --max-speed")
    from indexer.sequences.odometry import read_odometry, steps_by_time

    if odometry is not None:
        return read_odometry(odometry, frames)
    return steps_by_time(frames, max_speed or 0.0)


def query_sequence(
    index: "Index",
    frames: Sequence[Path],
    steps: "Sequence[Step | None] | None",
    *,
    k: int,
    motion: MotionName,
    smooth: bool,
    filters: Filters,
    verify: bool,
    as_json: bool,
) -> None:
    """Print the answer for each frame, at once or, with `smooth`, after the last frame."""
    from indexer.sequences.follower import follow_all

    follower = index.follow(k, motion=motion, filters=filters, verify=verify, remember=smooth)
    failed: list[Source] = []

    def skip(frame: "Source", error: "ImageError") -> None:
        note(f"loci: {frame!s}: {error}")
        failed.append(frame)

    answers: list[FrameAnswer] = []
    for answer in follow_all(follower, frames, steps, skip):
        answers.append(answer)
        if not (as_json or smooth):
            say(line(frames[answer.frame], answer))
    if smooth:
        answers = follower.smoothed()
    if as_json:
        say_json([_to_json(frames[answer.frame], answer) for answer in answers])
    else:
        for answer in answers if smooth else ():
            say(line(frames[answer.frame], answer))
        for remark in dict.fromkeys(answer.answer.note for answer in answers if answer.answer.note):
            note(f"Note: {with_flags(remark)}")
    if failed:
        raise SomeUnreadable if answers else typer.Exit(FAILED)


def _to_json(frame: Path, answer: "FrameAnswer") -> dict[str, Any]:
    return {"query": str(frame)} | answer.to_json()


def line(frame: Path, found: "FrameAnswer") -> str:
    """Return a frame's answer as one line."""
    answer = found.answer
    if found.off_map is not None and found.off_map > 0.5:
        return f"{frame}: off the map, {found.off_map:.0%} sure"
    if not answer.places:
        return f"{frame}: no place found"
    best = answer.places[0]
    words = [f"place {best.name or best.id}"]
    if best.photos:
        words.append(f"as in {best.photos[0].path}")
    if answer.position is not None:
        position = answer.position
        words.append(f"at {latlon(position.lat, position.lon)}, within {distance(position.radius_m)}")
    if answer.confidence is not None:
        words.append(f"{answer.confidence:.0%} sure")
    return f"{frame}: {'' if answer.known is not False else 'unknown, perhaps '}{', '.join(words)}"
