"""`loci query`: which places photos show, and where they were taken."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from indexer.answers import KNOWN_SHARE
from indexer.errors import FieldError, UsageError
from indexer.filters import DEFAULT_TOLERANCE, Filters
from loci.commands.sequence import MotionName, frames_of, query_sequence, steps_of
from loci.console import distance, latlon, note, say, say_json, table
from loci.exit_codes import FAILED, SomeUnreadable
from loci.options import (
    DeviceOption,
    IndexOption,
    JsonFlag,
    KnownShareOption,
    ModelOption,
    PrecisionOption,
    VerifyOption,
    at_least,
)

if TYPE_CHECKING:
    from indexer.answers import Answer, PlaceHit
    from model.images import Source

COLUMNS = (
    ("", "right"),
    ("place", "long"),
    ("score", "right"),
    ("confidence", "right"),
    ("distance", "right"),
    ("position", "left"),
    ("best photo", "long"),
)


def _filter(metavar: str, help: str) -> Any:
    return typer.Option(metavar=metavar, help=help, rich_help_panel="Filters")


def _sequence(name: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(name, metavar=metavar, help=help, rich_help_panel="Sequences")


def query(
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO", help="Photos to ask about.")],
    index: IndexOption,
    clip: Annotated[
        bool,
        typer.Option("--clip", help="The photos are frames of one place, in any order: answer once for all."),
    ] = False,
    k: Annotated[
        int, typer.Option("-k", metavar="N", callback=at_least(1), help="How many places to name.")
    ] = 5,
    lat: Annotated[
        float | None, _filter("DEGREES", "Say how far each place is from here; with --lon.")
    ] = None,
    lon: Annotated[float | None, _filter("DEGREES", "Longitude of --lat.")] = None,
    radius_m: Annotated[
        float | None, _filter("METRES", "Only photos at most so far from --lat and --lon.")
    ] = None,
    taken_after: Annotated[
        str | None, _filter("TIME", "Only photos from this time on, such as 2024-09-23 or 2024-09-23T16:00.")
    ] = None,
    taken_before: Annotated[str | None, _filter("TIME", "Only photos from before this time.")] = None,
    heading: Annotated[
        float | None, _filter("DEGREES", "Only photos that look this way, clockwise from north.")
    ] = None,
    heading_tolerance: Annotated[
        float, _filter("DEGREES", "How far to either side of --heading still counts.")
    ] = DEFAULT_TOLERANCE,
    place: Annotated[str | None, _filter("PLACE", "Only photos of the place of this id or name.")] = None,
    sequence: Annotated[
        bool,
        _sequence(
            "--sequence",
            "The photos are frames of a camera that moves, in their order, or one folder of frames by name: "
            "answer each by those before it, too.",
        ),
    ] = False,
    smooth: Annotated[
        bool, _sequence("--smooth", "Answer each frame by all frames, later ones too; printed at the end.")
    ] = False,
    motion: Annotated[
        MotionName,
        _sequence(
            "--motion",
            "How the camera moves over the index: photos, along each folder's in the order of their names; "
            "metres, between photos with positions; auto takes metres where half of the photos have one.",
            "KIND",
        ),
    ] = "auto",
    odometry: Annotated[
        Path | None,
        _sequence(
            "--odometry",
            "CSV with frame,metres (and heading) or frame,dx,dy: the way since the frame before.",
            "FILE",
        ),
    ] = None,
    max_speed: Annotated[
        float | None,
        _sequence(
            "--max-speed",
            "Metres a second: how far it may have gone by the times in the frames' EXIF.",
            "SPEED",
        ),
    ] = None,
    verify: VerifyOption = True,
    known_share: KnownShareOption = KNOWN_SHARE,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    model: ModelOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Find where photos were taken.

    For each photo, or with --clip for all of them: the position, the nearest places and the photo that
    shows each best. The exit code is 0 even where the place is unknown, 3 if some photos could not be read,
    1 if none could.

    With --sequence each photo has one line: the place where the camera was, or that it was off the map.

    Filters narrow which photos of the index may answer; one that lacks what a filter asks for does not. A
    TIME without an offset is compared with the clock of each photo.
    """
    filters = _filters(
        lat=lat,
        lon=lon,
        radius_m=radius_m,
        taken_after=taken_after,
        taken_before=taken_before,
        heading=heading,
        heading_tolerance=heading_tolerance,
        place=place,
    )
    _check_sequence(sequence, clip=clip, smooth=smooth, motion=motion, odometry=odometry, max_speed=max_speed)
    frames = frames_of(photos) if sequence else []
    steps = steps_of(frames, odometry, max_speed) if sequence else None
    from indexer.index import Index
    from model.errors import ImageError

    opened = Index.open(index, device=device, precision=precision, known_share=known_share, model=model)
    if sequence:
        query_sequence(
            opened,
            frames,
            steps,
            k=k,
            motion=motion,
            smooth=smooth,
            filters=filters,
            verify=verify,
            as_json=as_json,
        )
        return
    answers: list[tuple[list[Path], Answer]] = []
    failed: list[Source] = []

    def skip(photo: "Source", error: ImageError) -> None:
        note(f"loci: {photo!s}: {error}")
        failed.append(photo)

    for asked in [photos] if clip else [[photo] for photo in photos]:
        try:
            answer = opened.query_clip(asked, k, filters=filters, verify=verify, on_unreadable=skip)
        except ImageError:  # none of them can be read, as was said
            continue
        answers.append((asked, answer))
        if not as_json:
            print_answer(_name(asked), answer)
    if as_json:
        say_json([_to_json(asked, answer, clip=clip) for asked, answer in answers])
    else:
        for remark in dict.fromkeys(answer.note for _, answer in answers if answer.note):
            note(f"Note: {remark}")
    if failed:
        raise SomeUnreadable if answers else typer.Exit(FAILED)


def _filters(**given: Any) -> Filters:
    try:
        return Filters(**given)
    except FieldError as error:
        raise UsageError(f"--{error.field.replace('_', '-')}: {error}") from None


def _check_sequence(sequence: bool, *, clip: bool, motion: MotionName, **given: Any) -> None:
    """Refuse what does not go together. Raises UsageError."""
    if sequence and clip:
        raise UsageError("--clip pools photos of one place, --sequence follows a camera: give one of them")
    if not sequence:
        wanted = [name for name, value in given.items() if value not in (None, False)]
        wanted += ["motion"] if motion != "auto" else []
        if wanted:
            raise UsageError(f"--{wanted[0].replace('_', '-')} needs --sequence")


def _name(photos: Sequence[Path]) -> str:
    return str(photos[0]) if len(photos) == 1 else f"{photos[0]} and {len(photos) - 1} more"


def _to_json(photos: Sequence[Path], answer: "Answer", *, clip: bool) -> dict[str, Any]:
    paths = [str(photo) for photo in photos]
    return {"query": paths if clip else paths[0]} | answer.to_json()


def print_answer(name: object, answer: "Answer") -> None:
    """Print the answer for a photo or clip: where it was taken, and the nearest places."""
    say(f"{name}: {headline(answer)}")
    table(COLUMNS, [_row(rank, place) for rank, place in enumerate(answer.places, 1)])
    say("")


def headline(answer: "Answer") -> str:
    """Give the answer in one line."""
    if not answer.places:
        return "no place found"
    sure = "" if answer.confidence is None else f", {answer.confidence:.0%} sure"
    if answer.known is False:
        return f"probably no place of this index{sure}{' of the nearest' if sure else ''}"
    if answer.position is None:
        return f"looks like {answer.places[0].name or answer.places[0].id}{sure}"
    position = answer.position
    looking = "" if position.heading is None else f", looking {round(position.heading) % 360}°"
    return f"at {latlon(position.lat, position.lon)}, within {distance(position.radius_m)}{looking}{sure}"


def _row(rank: int, place: "PlaceHit") -> Sequence[object]:
    return (
        rank,
        place.name or place.id,
        f"{place.score:.3f}",
        None if place.confidence is None else f"{place.confidence:.0%}",
        None if place.distance_m is None else distance(place.distance_m),
        latlon(place.lat, place.lon),
        place.photos[0].path if place.photos else None,
    )
