"""`loci query`."""

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
from loci.flags import with_flags
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
    photos: Annotated[list[Path], typer.Argument(metavar="PHOTO", help="Query photos.")],
    index: IndexOption,
    clip: Annotated[
        bool,
        typer.Option("--clip", help="The photos show one place: pool them and answer once."),
    ] = False,
    k: Annotated[
        int, typer.Option("-k", metavar="N", callback=at_least(1), help="Places in the answer.")
    ] = 5,
    lat: Annotated[
        float | None, _filter("DEGREES", "Latitude of a point; shows the distance of each place from it.")
    ] = None,
    lon: Annotated[float | None, _filter("DEGREES", "Longitude of that point.")] = None,
    radius_m: Annotated[
        float | None, _filter("METRES", "Only photos within this distance of --lat and --lon.")
    ] = None,
    taken_after: Annotated[
        str | None,
        _filter("TIME", "Only photos from this time or later, such as 2024-09-23 or 2024-09-23T16:00."),
    ] = None,
    taken_before: Annotated[str | None, _filter("TIME", "Only photos before this time.")] = None,
    heading: Annotated[
        float | None, _filter("DEGREES", "Only photos with this heading, clockwise from north.")
    ] = None,
    heading_tolerance: Annotated[
        float, _filter("DEGREES", "Allowed difference from --heading, to either side.")
    ] = DEFAULT_TOLERANCE,
    place: Annotated[str | None, _filter("PLACE", "Only photos of this place: an id or a name.")] = None,
    sequence: Annotated[
        bool,
        _sequence(
            "--sequence",
            "The photos are frames of a moving camera in order, or one folder of frames in order of name. "
            "Earlier frames help to answer later ones.",
        ),
    ] = False,
    smooth: Annotated[
        bool, _sequence("--smooth", "Also use later frames; prints all answers at the end.")
    ] = False,
    motion: Annotated[
        MotionName,
        _sequence(
            "--motion",
            "Motion model: photos (along those of each folder, in order of name), metres (between photos "
            "with positions), or auto: metres if half of the photos have positions.",
            "KIND",
        ),
    ] = "auto",
    odometry: Annotated[
        Path | None,
        _sequence(
            "--odometry",
            "CSV with frame,metres (and heading) or frame,dx,dy: the motion since the previous frame.",
            "FILE",
        ),
    ] = None,
    max_speed: Annotated[
        float | None,
        _sequence(
            "--max-speed",
            "Highest speed in metres per second; uses the times in the frames' EXIF.",
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

    Prints the position, the nearest places and the best photo of each. Exit code 0 also if the place is
    unknown, 3 if some photos could not be read, 1 if none could.

    With --sequence, prints one line for each frame: the place of the camera, or that it is off the map.

    Filters restrict which photos of the index may answer. Photos without the filtered value are left out. A
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
        except ImageError:  # no photo could be read, and each was reported
            continue
        answers.append((asked, answer))
        if not as_json:
            print_answer(_name(asked), answer)
    if as_json:
        say_json([_to_json(asked, answer, clip=clip) for asked, answer in answers])
    else:
        for remark in dict.fromkeys(answer.note for _, answer in answers if answer.note):
            note(f"Note: {with_flags(remark)}")
    if failed:
        raise SomeUnreadable if answers else typer.Exit(FAILED)


def _filters(**given: Any) -> Filters:
    try:
        return Filters(**given)
    except FieldError as error:
        raise UsageError(f"--{error.field.replace('_', '-')}: {error}") from None


def _check_sequence(sequence: bool, *, clip: bool, motion: MotionName, **given: Any) -> None:
    """Refuse options that do not go together. Raises UsageError."""
    if sequence and clip:
        raise UsageError(
            "--clip pools photos of one place, --sequence follows a moving camera: use one of them"
        )
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
    """Print the answer for a photo or clip: the position and the nearest places."""
    say(f"{name}: {headline(answer)}")
    table(COLUMNS, [_row(rank, place) for rank, place in enumerate(answer.places, 1)])
    say("")


def headline(answer: "Answer") -> str:
    """Return the answer as one line."""
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
