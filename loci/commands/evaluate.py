"""`loci evaluate`."""

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
    from indexer.index import Index
    from indexer.progress import Progress
    from indexer.snapshots.store import Floats
    from model.embedder import Seen

RADIUS_M = 25.0
NAMED = 10
"""Most changed queries of each kind that the console names."""
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
            help="Folder of query photos, or of a data set with database/ and queries/ in it.",
            show_default=False,
        ),
    ],
    index: IndexOption,
    radius: Annotated[
        list[float] | None,
        _right(
            "Distance within which a photo is right. [default: 25] Repeat it to get recall at several radii; "
            "everything else uses the first.",
            metavar="METRES",
            callback=_radii,
        ),
    ] = None,
    heading_tolerance: Annotated[
        float | None,
        _right("A right photo also has the query's heading, within these degrees.", metavar="DEGREES"),
    ] = None,
    truth: Annotated[
        Path | None,
        _right(
            "CSV with query,positives: the right photos for each query, separated by spaces.", metavar="FILE"
        ),
    ] = None,
    frames: Annotated[
        int | None,
        _right(
            "Aligned traverses: the frame with the query's name is right, and N on either side.", metavar="N"
        ),
    ] = None,
    aligned_by: Annotated[
        AlignedBy,
        _right("With --frames: align by file name, or by order of paths.", metavar="name|order"),
    ] = "name",
    metadata: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV or GeoJSON with the positions of queries, if name and EXIF have none.",
        ),
    ] = None,
    one_per_panorama: Annotated[
        bool,
        typer.Option("--one-per-panorama", help="Count only the best photo of each panorama (by @…@ names)."),
    ] = False,
    compare: Annotated[
        Path | None,
        typer.Option(metavar="INDEX", help="Compare with this index: the difference and its 95 % interval."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html", help="Write a report with curves and pictures, one file that opens offline."
        ),
    ] = None,
    report_queries: Annotated[
        int,
        typer.Option(
            metavar="N",
            callback=at_least(0),
            help="Queries that the report shows with photos: the worst, and a sample of the rest.",
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
    """Measure an index with photos of known places.

    recall@N is the share of queries with a right photo among their N nearest. A photo is right if it was
    taken within the radius, if the truth file names it, or if it is the same frame of an aligned traverse.
    Queries without any right photo do not count for recall, but count as errors if they are answered.
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
        note("Note: --radius has no effect with --truth or --frames.")
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
                raise type(error)(f"{compare}: {error}") from error
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
    """Check before the run that a file can be written."""
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

    title = f"{index.path.absolute().name}, queried with {queries.absolute().name}"

    seen: dict[Path, Seen] = {}

    def matches(query: Path, photo: str) -> "tuple[Floats, Floats] | None":
        if query not in seen:
            seen.clear()  # queries come one after the other
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
    """Print recall as a table, then each other measure as a line."""
    asked = count(result.queries, "query", "queries")
    say(f"{asked}, {count(result.database, 'photo')} in the index; right: {result.rule}")
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
    """Return a line for each measure other than recall."""
    from indexer.evaluation.metrics import percentiles

    curve = result.precision_recall
    foreign = ""
    if result.foreign:
        foreign = f", including {count(result.foreign, 'query', 'queries')} that the index does not show"
    lines = [
        f"precision-recall by {result.ranked_by}: AUC {curve.area():.3f}, "
        f"recall {curve.recall_at(1.0):.3f} at 100 % precision{foreign}"
    ]
    if result.errors_m:
        at = percentiles(result.errors_m)
        lines.append(
            f"position error {distance(at['p50'])} (median), {distance(at['p75'])} (75 %), "
            f"{distance(at['p95'])} (95 %); within the stated radius: {result.within_radius:.0%}"
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
    """Print the differences in recall, and the queries that changed."""
    say("")
    say(f"compared with {comparison.name}, {count(len(comparison.pairs), 'query', 'queries')}:")
    columns = [(name, "right") for name in ("N", "this", "other", "difference", "95 % interval")]
    rows = []
    for n, interval in comparison.differences.items():
        this, other = comparison.recalls[n]
        spread = f"{interval.low:+.3f} to {interval.high:+.3f}"
        rows.append((n, f"{this:.3f}", f"{other:.3f}", f"{interval.difference:+.3f}", spread))
    table(columns, rows)
    for what, changed in (
        ("only this index is right", comparison.gained),
        ("only the other", comparison.lost),
    ):
        names = ", ".join(result.name for result in changed[:NAMED]) + (", …" if len(changed) > NAMED else "")
        say(f"{what}: {len(changed)}{': ' + names if changed else ''}")
