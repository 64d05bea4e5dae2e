"""`loci evaluate`: how often the right photo is among the nearest."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loci.console import count, distance, note, say, say_json, table
from loci.failures import SomeUnreadable
from loci.options import DeviceOption, IndexOption, JsonFlag, PrecisionOption, RadiusOption
from loci.progress import showing_progress

if TYPE_CHECKING:
    from indexer.evaluation import Evaluation

COLUMNS = (("N", "right"), ("recall@N", "right"))


def evaluate(
    queries: Annotated[
        Path, typer.Argument(metavar="QUERIES", help="Folder of photos to ask about.", show_default=False)
    ],
    index: IndexOption,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV with query,positives: the right photos of the index, separated by spaces.",
            show_default=False,
        ),
    ] = None,
    radius: RadiusOption = 25.0,
    metadata: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV or GeoJSON with the queries' positions, where neither name nor EXIF has them.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Measure recall with photos whose place is known.

    recall@N is the share of queries that have a right photo among their N nearest. Right is a photo taken
    within the radius, or one that the truth file names; queries for which none is right do not count.
    """
    from indexer.evaluation import evaluate as run
    from indexer.index import Index

    opened = Index.open(index, device=device, precision=precision)
    with showing_progress() as progress:
        result = run(opened, queries, truth=truth, metadata=metadata, radius_m=radius, progress=progress)
    if as_json:
        say_json(result.to_json())
    else:
        print_evaluation(result)
    for path, reason in result.failed:
        note(f"loci: {path}: {reason}")
    if result.failed:
        raise SomeUnreadable


def print_evaluation(result: "Evaluation") -> None:
    """Print the recalls as a table."""
    right = "the truth file names it" if result.radius_m is None else f"within {distance(result.radius_m)}"
    say(f"{count(result.queries, 'query', 'queries')} to {count(result.database, 'photo')}; right: {right}")
    if result.without_answer:
        say(f"not counted: {count(result.without_answer, 'query', 'queries')} without a right photo")
    table(COLUMNS, [(n, f"{recall:.3f}") for n, recall in result.recall.items()])
