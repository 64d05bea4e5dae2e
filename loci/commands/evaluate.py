"""`loci evaluate`: how often, how surely and how exactly an index is right."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from indexer.answers import KNOWN_SHARE
from indexer.errors import IndexerError
from loci.console import count, distance, note, say, say_json, table
from loci.exit_codes import SomeUnreadable
from loci.options import (
    DeviceOption,
    IndexOption,
    JsonFlag,
    KnownShareOption,
    PrecisionOption,
    VerifyOption,
    at_least,
)
from loci.progress import showing_progress

if TYPE_CHECKING:
    from indexer.evaluation import Comparison, Evaluation
    from indexer.index import Floats, Index
    from indexer.progress import Progress
    from model.embedder import Seen

RADIUS_M = 25.0
NAMED = 10  # changed queries of each kind that the console names
AlignedBy = Literal["name", "order"]


def _right(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel="What is right", show_default=False, **more)


def _radii(values: Sequence[float] | None) -> list[float]:
    return [at_least(0)(value) for value in values or ()]


def evaluate(
    queries: Annotated[
        Path,
        typer.Argument(
            metavar="QUERIES",
            help="Folder of photos to ask about, or a data set's with database/ and queries/ in it.",
            show_default=False,
        ),
    ],
    index: IndexOption,
    radius: Annotated[
        list[float] | None,
        _right(
            "How near to the query a right photo is; 25 if not given. Given again, recall is told for each; "
            "all else goes by the first.",
            metavar="METRES",
            callback=_radii,
        ),
    ] = None,
    heading_tolerance: Annotated[
        float | None,
        _right("A right photo also looks the query's way, give or take these degrees.", metavar="DEGREES"),
    ] = None,
    truth: Annotated[
        Path | None,
        _right(
            "CSV with query,positives: the right photos of the index, separated by spaces.", metavar="FILE"
        ),
    ] = None,
    frames: Annotated[
        int | None,
        _right(
            "Aligned traverses: right is the frame of the query's name, and N to either side.", metavar="N"
        ),
    ] = None,
    aligned_by: Annotated[
        AlignedBy,
        _right("With --frames: by file name, or by position in the order of paths.", metavar="name|order"),
    ] = "name",
    metadata: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV or GeoJSON with the queries' positions, where neither name nor EXIF has them.",
        ),
    ] = None,
    one_per_panorama: Annotated[
        bool,
        typer.Option(
            "--one-per-panorama", help="Of photos cut from one panorama (by @…@ names), count the best only."
        ),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(
            metavar="INDEX", help="Ask this index too: the difference, and whether it is more than chance."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.html", help="Write curves and pictures, as one file that opens offline."),
    ] = None,
    report_queries: Annotated[
        int,
        typer.Option(
            metavar="N",
            callback=at_least(0),
            help="How many queries the report shows photos of: the worst, and a sample of the others.",
        ),
    ] = 100,
    per_query: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Write a table of all queries.")
    ] = None,
    verify: VerifyOption = True,
    known_share: KnownShareOption = KNOWN_SHARE,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Measure how good an index is with photos whose place is known.

    recall@N is the share of queries that have a right photo among their N nearest. Right is a photo taken
    within the radius, one that the truth file names, or the same frame of an aligned traverse; queries for
    which none is right do not count there, but are wrong when answered.
    """
    from indexer import evaluation
    from indexer.index import Index

    options: dict[str, Any] = {
        "truth": truth,
        "frames": frames,
        "aligned_by": aligned_by,
        "metadata": metadata,
        "heading_tolerance": heading_tolerance,
        "one_per_panorama": one_per_panorama,
        "radius_m": radius[0] if radius else RADIUS_M,
        "more_radii_m": radius[1:] if radius else (),
        "verify": verify,
    }
    if radius and (truth or frames is not None):
        note("Note: --radius has no say beside --truth or --frames.")
        options["more_radii_m"] = ()
    for file in (report, per_query):
        _check_writable(file)
    opened = Index.open(index, device=device, precision=precision, known_share=known_share)
    comparison = None
    with showing_progress() as progress:
        result = evaluation.evaluate(opened, queries, **options, progress=progress)
        if compare is not None:
            other = Index.open(compare, device=device, precision=precision, known_share=known_share)
            try:
                asked = evaluation.evaluate(other, queries, **options, progress=progress)
            except IndexerError as error:
                raise type(error)(f"asking {compare}: {error}") from error
            comparison = evaluation.compare(result, asked, compare)
        if report is not None:
            _write_report(report, result, opened, queries, comparison, report_queries, progress)
    if per_query is not None:
        evaluation.write_csv(result, per_query)
    if as_json:
        compared = {"compare": comparison.to_json()} if comparison else {}
        say_json(result.to_json() | compared)
    else:
        print_evaluation(result)
        if comparison is not None:
            print_comparison(comparison)
    for file, what in ((report, "report"), (per_query, "table")):
        if file is not None:
            note(f"wrote the {what} {file}")
    for path, reason in result.failed:
        note(f"loci: {path}: {reason}")
    if result.failed:
        raise SomeUnreadable


def _check_writable(path: Path | None) -> None:
    """Raise at once what would otherwise be known only after all queries."""
    if path is None:
        return
    if path.is_dir() or not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        reason = "it is a folder" if path.is_dir() else "there is no such folder, or it cannot be written to"
        raise IndexerError(f"cannot write {path}: {reason}")


def _write_report(
    path: Path,
    result: "Evaluation",
    index: "Index",
    queries: Path,
    comparison: "Comparison | None",
    pictured: int,
    progress: "Progress",
) -> None:
    from indexer.evaluation.report import write_report

    title = f"{index.path.absolute().name}, asked about {queries.absolute().name}"

    seen: dict[Path, Seen] = {}

    def matches(query: Path, photo: str) -> "tuple[Floats, Floats] | None":
        if query not in seen:
            seen.clear()  # one is asked after the other
            seen[query] = index.see(query)
        found = index.matches(seen[query], photo)
        return None if found is None else (found.query, found.photo)

    write_report(
        path,
        result,
        index,
        title=title,
        comparison=comparison,
        pictured=pictured,
        matches=matches if index.verifies else None,
        progress=progress,
    )


def print_evaluation(result: "Evaluation") -> None:
    """Print the recalls as a table, then what else was measured, a line each."""
    asked = count(result.queries, "query", "queries")
    say(f"{asked} to {count(result.database, 'photo')}; right: {result.rule}")
    for number, what in (
        (result.foreign, "without a right photo"),
        (result.unjudged, "that cannot be judged"),
    ):
        if number:
            say(f"not counted: {count(number, 'query', 'queries')} {what}")
    if result.by_radius:
        _print_radii(result)
    else:
        table(
            (("N", "right"), ("recall@N", "right")),
            [(n, f"{recall:.3f}") for n, recall in result.recall.items()],
        )
    say("")
    for line in measures(result):
        say(line)


def _print_radii(result: "Evaluation") -> None:
    within = [(f"within {one.radius_m:g} m", "right") for one in result.by_radius]
    rows = [(n, *(f"{one.recall[n]:.3f}" for one in result.by_radius)) for n in result.recall]
    table((("recall@N", "right"), *within), [*rows, ("queries", *(one.queries for one in result.by_radius))])


def measures(result: "Evaluation") -> list[str]:
    """What was measured beside recall, in words."""
    from indexer.evaluation.metrics import percentiles

    curve = result.precision_recall
    foreign = ""
    if result.foreign:
        foreign = f", {count(result.foreign, 'query', 'queries')} foreign to the index among them"
    lines = [
        f"precision-recall by {result.ranked_by}: AUC {curve.area():.3f}, "
        f"recall {curve.recall_at(1.0):.3f} at 100 % precision{foreign}"
    ]
    if result.errors_m:
        at = percentiles(result.errors_m)
        lines.append(
            f"position off by {distance(at['p50'])} (median), {distance(at['p75'])} (75 %), "
            f"{distance(at['p95'])} (95 %); within the radius told: {result.within_radius:.0%}"
        )
    if result.calibration_error is not None:
        lines.append(f"confidence: expected calibration error {result.calibration_error:.3f} over 10 bins")
    known = result.known
    if known is not None:
        lines.append(
            f"refused: {known['right_and_refused']} of {known['right']} right, {known['wrong_and_refused']} "
            f"of {known['wrong']} wrong, {known['foreign_and_refused']} of {known['foreign']} foreign"
        )
    return lines


def print_comparison(comparison: "Comparison") -> None:
    """Print the differences of recall, and which queries changed."""
    say("")
    say(f"against {comparison.name}, {count(len(comparison.pairs), 'query', 'queries')}:")
    columns = [(name, "right") for name in ("N", "this", "other", "difference", "95 % interval")]
    rows = []
    for n, interval in comparison.differences.items():
        this, other = comparison.recalls[n]
        spread = f"{interval.low:+.3f} to {interval.high:+.3f}"
        rows.append((n, f"{this:.3f}", f"{other:.3f}", f"{interval.difference:+.3f}", spread))
    table(columns, rows)
    for what, changed in (("only this is right", comparison.gained), ("only that is", comparison.lost)):
        names = ", ".join(result.name for result in changed[:NAMED]) + (", …" if len(changed) > NAMED else "")
        say(f"{what}: {len(changed)}{': ' + names if changed else ''}")
