"""`loci geotag`."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from indexer.answers import KNOWN_SHARE
from loci.console import count, distance, latlon, note, say, say_json, table
from loci.exit_codes import FAILED, Interrupted, SomeUnreadable
from loci.options import DeviceOption, IndexOption, JsonFlag, KnownShareOption, PrecisionOption
from loci.progress import showing_progress

if TYPE_CHECKING:
    from indexer.geotag.geotag import GeotagOptions, Outcome
    from indexer.index import Index

WHERE, WHEN = "Where to write", "When to write"

COLUMNS = (
    ("photo", "long"),
    ("position", "left"),
    ("within", "right"),
    ("confidence", "right"),
    ("score", "right"),
    ("place", "long"),
    ("most similar", "long"),
    ("", "long"),
)

LEFT = {
    "has_position": "left: has a position",
    "unsure": "left: not sure enough",
    "unknown": "left: place unknown",
    "no_position": "left: no photo with a position matches",
    "vague": "left: position too vague",
    "sidecar": "left: sidecar cannot be read or written",
    "unreadable": "left: photo cannot be read",
}
"""Text for each outcome without a position, in the order of the table."""


def geotag(
    photos: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTOS", help="Folders of photos, or photos.", show_default=False),
    ],
    index: IndexOption,
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write positions to this CSV, which --metadata can read.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    xmp: Annotated[
        bool, typer.Option("--xmp", help="Write XMP sidecars next to the photos.", rich_help_panel=WHERE)
    ] = False,
    xmp_into: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Write XMP sidecars to this folder, in the same tree as the photos.",
            rich_help_panel=WHERE,
        ),
    ] = None,
    xmp_name: Annotated[
        Literal["full", "stem"] | None,
        typer.Option(
            metavar="HOW",
            help="Names of new sidecars: full (IMG_1.jpg.xmp, as in darktable and digiKam) or stem "
            "(IMG_1.xmp, as in Lightroom for raw photos). [default: full]",
            rich_help_panel=WHERE,
        ),
    ] = None,
    write: Annotated[
        bool,
        typer.Option(
            "--write", help="Write. Without it, only show what would be written.", rich_help_panel=WHERE
        ),
    ] = False,
    replace: Annotated[
        bool,
        typer.Option(
            "--replace",
            help="Query photos again if their sidecar has a position, and start a new CSV.",
            rich_help_panel=WHERE,
        ),
    ] = False,
    min_confidence: Annotated[
        float,
        typer.Option(
            metavar="P",
            help="Least confidence, 0 to 1.",
            rich_help_panel=WHEN,
        ),
    ] = 0.9,
    min_score: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Least score; the only threshold if the index is not calibrated.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    max_radius: Annotated[
        float | None,
        typer.Option(metavar="METRES", help="Largest radius of a position.", rich_help_panel=WHEN),
    ] = None,
    metadata: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV or GeoJSON with known positions; these photos are left out.",
            rich_help_panel=WHEN,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Stop after N photos, for a trial.", rich_help_panel=WHEN),
    ] = None,
    known_share: KnownShareOption = KNOWN_SHARE,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Add positions to photos that have none.

    Copies positions from matching photos of the index to a CSV or to XMP sidecars, if the index is
    confident enough. Photos never change. Without --write nothing is written. Run the same command again to
    resume. Exit code 3: some photos could not be read, or some sidecars could not be read or written.
    """
    from indexer.geotag.geotag import GeotagOptions
    from indexer.index import Index

    options = GeotagOptions(
        min_confidence=min_confidence,
        min_score=min_score,
        max_radius_m=max_radius,
        metadata=metadata,
        to=to,
        xmp=xmp,
        xmp_into=xmp_into,
        xmp_name=xmp_name,
        replace=replace,
        write=write,
        limit=limit,
    )
    options.check()
    opened = Index.open(index, device=device, precision=precision, known_share=known_share)
    outcomes = _run(opened, photos, options, as_json=as_json)
    _report(opened, outcomes, options, as_json=as_json)
    for outcome in outcomes:
        if outcome.what in ("unreadable", "sidecar"):
            note(f"loci: {outcome.file}: {outcome.reason}")
    if all(outcome.what == "unreadable" for outcome in outcomes):
        raise typer.Exit(FAILED)
    if any(outcome.what in ("unreadable", "sidecar") for outcome in outcomes):
        raise SomeUnreadable


def _run(opened: "Index", photos: list[Path], options: "GeotagOptions", *, as_json: bool) -> "list[Outcome]":
    """Return all outcomes, by path. An interrupted run also reports what it wrote."""
    from indexer.geotag.geotag import geotag as run

    outcomes: list[Outcome] = []
    try:
        with showing_progress() as progress:
            outcomes.extend(
                run(opened, photos, options, progress)
            )  # keeps the outcomes before an interruption
    except BaseException as error:
        if any(outcome.what == "tagged" for outcome in outcomes):
            _report(opened, _sorted(outcomes), options, as_json=as_json)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("interrupted; run the same command again to resume") from None
        raise
    return _sorted(outcomes)


def _sorted(outcomes: "Sequence[Outcome]") -> "list[Outcome]":
    return sorted(outcomes, key=lambda outcome: str(outcome.file))


def _report(
    opened: "Index", outcomes: "Sequence[Outcome]", options: "GeotagOptions", *, as_json: bool
) -> None:
    counts: Counter[str] = Counter(outcome.what for outcome in outcomes)
    if as_json:
        say_json(
            {
                "index": str(opened.path),
                "model": opened.model_fingerprint,
                "snapshot": opened.snapshot,
                "written": options.write,
                "counts": {what: counts[what] for what in ("tagged", *LEFT)},
                "photos": [_to_json(outcome) for outcome in outcomes],
            }
        )
        return
    done = "written" if options.write else "would be written"
    asked = [outcome for outcome in outcomes if outcome.what != "has_position"]
    if asked:
        table(COLUMNS, [_row(outcome, done) for outcome in asked])
        say("")
    rows = [(f"position {done}", counts["tagged"]), *((text, counts[what]) for what, text in LEFT.items())]
    table([("", "left"), ("photos", "right")], [(text, f"{n:,}") for text, n in rows if n])
    note(_next_step(counts["tagged"], options))


def _next_step(tagged: int, options: "GeotagOptions") -> str:
    where = f"to {options.to}" if options.to else "as XMP sidecars"
    if options.write:
        return f"Wrote {count(tagged, 'position')} {where}."
    if not tagged:
        return "Nothing to write."
    if options.to is None and not options.to_sidecars:
        return "Nothing was written. Add --write, and --to FILE.csv or --xmp."
    return f"Nothing was written. Add --write to write {count(tagged, 'position')} {where}."


def _row(outcome: "Outcome", done: str) -> Sequence[object]:
    estimate = outcome.estimate
    if estimate is None:
        return (outcome.path, *[None] * 6, f"left: {outcome.reason}")
    tagged = outcome.what == "tagged"
    position = estimate.position if tagged else None  # an uncertain position is not shown
    remark = f"{done} {outcome.reason or ''}".rstrip() if tagged else f"left: {outcome.reason}"
    return (
        outcome.path,
        latlon(position.lat, position.lon) if position else None,
        distance(position.radius_m) if position else None,
        None if estimate.confidence is None else f"{estimate.confidence:.0%}",
        f"{estimate.score:.3f}" if estimate.confidence is None else None,
        estimate.place,
        estimate.photo,
        remark,
    )


def _to_json(outcome: "Outcome") -> dict[str, Any]:
    estimate = outcome.estimate
    position = estimate.position if estimate else None
    return {
        "path": outcome.path,
        "file": str(outcome.file),
        "outcome": outcome.what,
        "reason": outcome.reason,
        "lat": position.lat if position else None,
        "lon": position.lon if position else None,
        "radius_m": position.radius_m if position else None,
        "heading": estimate.heading if estimate else None,
        "confidence": estimate.confidence if estimate else None,
        "score": estimate.score if estimate else None,
        "place": {"id": estimate.place_id, "name": estimate.place} if estimate else None,
        "photo": estimate.photo if estimate else None,
        "sidecar": str(outcome.sidecar) if outcome.sidecar else None,
    }
