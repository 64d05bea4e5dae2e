"""The report as one HTML file: charts, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from indexer.charts.chart import layout
from indexer.evaluation import Comparison, Evaluation, QueryResult
from indexer.evaluation.metrics import percentiles
from indexer.evaluation.report import charts as drawn
from indexer.evaluation.report.charts import metres
from indexer.evaluation.report.pictures import Album, Matcher, Pictures, choose, worst_first
from indexer.index import Index
from indexer.progress import Progress, Silent

PICTURED = 100


@dataclass(frozen=True)
class Tile:
    """A main figure."""

    name: str
    value: str
    more: str | None = None


@dataclass(frozen=True)
class Row:
    """A query in the list."""

    result: QueryResult
    kinds: tuple[str, ...]
    """Its filters, the main one first."""
    badge: str
    change: str | None
    facts: tuple[str, ...]
    pictures: Pictures | None


def write_report(
    path: Path,
    evaluation: Evaluation,
    index: Index,
    *,
    title: str,
    comparison: Comparison | None = None,
    pictured: int = PICTURED,
    matches: Matcher | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Write charts, and some queries with their photos and answers, to one HTML file.

    The file loads nothing from elsewhere. File names are shown as text. The path above the folder of queries
    is left out.

    Args:
        index: the queried index, whose photos are shown.
        pictured: number of queries to show with photos: see `indexer.evaluation.report.pictures.choose`.
        matches: returns the matching points of two photos, to draw lines between them.

    Raises:
        OSError: the file cannot be written.
    """
    progress = progress or Silent()
    changed = [*comparison.gained, *comparison.lost] if comparison else []
    chosen = choose(evaluation, pictured, changed, seed)
    progress.stage("drawing", len(chosen))
    album, pictures = Album(index, matches), {}
    for result in chosen:
        pictures[result.path] = album.pictures(result)
        progress.advance()
    path.write_text(_page(evaluation, index, title, comparison, pictures), encoding="utf-8")


def _page(
    evaluation: Evaluation,
    index: Index,
    title: str,
    comparison: Comparison | None,
    pictures: dict[Path, Pictures],
) -> str:
    rows = _rows(evaluation, comparison, pictures)
    return (
        _environment()
        .get_template("report.html")
        .render(
            **layout(),
            title=title,
            css=_own_text("report.css"),
            script=_own_text("report.js"),
            evaluation=evaluation,
            comparison=comparison,
            tiles=_tiles(evaluation, comparison),
            charts=drawn.charts(evaluation, comparison),
            remarks=_remarks(evaluation),
            rows=rows,
            pictured=len(pictures),
            kinds=_kinds(rows, comparison),
            measured=_measured(evaluation, index),
            failed=[(Path(file).name, reason) for file, reason in evaluation.failed],
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("indexer.evaluation.report"), PackageLoader("indexer.charts")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"metres": metres, "percent": _percent, "points": _points, "count_of": _count_of}
    return environment


def _own_text(name: str) -> Markup:
    """Return a file of ours, unescaped."""
    return Markup(files("indexer.evaluation.report").joinpath("templates", name).read_text(encoding="utf-8"))


def _tiles(evaluation: Evaluation, comparison: Comparison | None) -> list[Tile]:
    tiles = []
    for n, recall in evaluation.recall.items():
        more = None
        if comparison is not None:
            interval = comparison.differences[n]
            more = f"{_points(interval.difference)} ({_points(interval.low)} to {_points(interval.high)})"
        tiles.append(Tile(f"recall@{n}", _percent(recall), more))
    curve = evaluation.precision_recall
    tiles.append(Tile("AUC-PR", f"{curve.area():.3f}", f"ranked by {evaluation.ranked_by}"))
    tiles.append(Tile("at 100 % precision", _percent(curve.recall_at(1.0)), "recall"))
    if evaluation.errors_m:
        at = percentiles(evaluation.errors_m)
        tiles.append(Tile("median position error", metres(at["p50"]), f"95 %: {metres(at['p95'])}"))
    if evaluation.calibration_error is not None:
        tiles.append(Tile("calibration error", f"{evaluation.calibration_error:.3f}", "expected, 10 bins"))
    if evaluation.foreign:
        refused = sum(r.known is False for r in evaluation.results if not r.answerable)
        told = any(r.known is not None for r in evaluation.results)
        tiles.append(Tile("foreign queries", str(evaluation.foreign), f"{refused} refused" if told else None))
    return tiles


def _remarks(evaluation: Evaluation) -> list[str]:
    remarks = []
    if evaluation.foreign:
        remarks.append(
            f"{_count_of(evaluation.foreign, 'query', 'queries')} with no right photo in the index: wrong "
            "when answered in precision and calibration, left out of recall."
        )
    if evaluation.reliability is None:
        remarks.append("No reliability diagram: the answers carry no confidence.")
    if not evaluation.errors_m:
        remarks.append("No position error: the answers, or the queries, have no positions.")
    elif evaluation.within_radius is not None:
        remarks.append(
            f"For {_percent(evaluation.within_radius)} of the positions the truth lies within the radius "
            "that the answer names."
        )
    return remarks


def _rows(evaluation: Evaluation, comparison: Comparison | None, pictures: dict[Path, Pictures]) -> list[Row]:
    changes = {}
    if comparison is not None:
        changes = {r.path: "gained" for r in comparison.gained} | {r.path: "lost" for r in comparison.lost}
    ordered = worst_first(evaluation)
    ordered.sort(key=lambda result: result.path not in pictures)
    rows = []
    for result in ordered:
        kind = "right" if result.right else "wrong" if result.answerable else "foreign"
        change = changes.get(result.path)
        kinds = (kind, change) if change else (kind,)
        well = result.right or (kind == "foreign" and result.known is False)
        badge = f"{'✓' if well else '✗'} {kind}"
        rows.append(Row(result, kinds, badge, change, tuple(_facts(result)), pictures.get(result.path)))
    return rows


def _facts(result: QueryResult) -> list[str]:
    facts = []
    if result.known is False:
        facts.append("refused: not a place of the index")
    if result.confidence is not None:
        facts.append(f"{100 * result.confidence:.0f} % sure")
    if result.score is not None:
        facts.append(f"score {result.score:.3f}")
    if result.answerable and result.rank is None:
        facts.append(f"none right among {len(result.hits)}")
    elif result.rank:
        facts.append(f"first right at {result.rank + 1}")
    if result.error_m is not None:
        facts.append(f"position off by {metres(result.error_m)}")
    return facts


def _kinds(rows: Sequence[Row], comparison: Comparison | None) -> list[tuple[str, str, int]]:
    """Filters of the list: value, words, and number of rows."""
    names = {"wrong": "Wrong", "right": "Right", "foreign": "Foreign"}
    if comparison is not None:
        names |= {"gained": "Gained", "lost": "Lost"}
    counts = {kind: sum(kind in row.kinds for row in rows) for kind in names}
    return [("all", "All", len(rows)), *((k, name, counts[k]) for k, name in names.items() if counts[k])]


def _measured(evaluation: Evaluation, index: Index) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [
        ("Right", evaluation.rule),
        ("Queries with a right photo", evaluation.queries),
        ("Foreign to the index", evaluation.foreign),
        ("Not judged", evaluation.unjudged),
        ("Photos in the index", evaluation.database),
        ("Index", index.path.name),
        ("Model, snapshot", f"{evaluation.model}, {evaluation.snapshot}"),
        ("Image size", f"{index.image_size} px"),
    ]
    return [(name, value) for name, value in facts if value or name == "Queries with a right photo"]


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    """Return a difference of shares in percentage points."""
    rounded = round(100 * value, 1)
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def _count_of(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"
