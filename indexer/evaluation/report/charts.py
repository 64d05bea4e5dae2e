"""Charts of a report: values as coordinates for the template."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from indexer.charts.chart import Bar, Chart, Dot, Line, Scale, Tick, linear, path
from indexer.evaluation import Comparison, Evaluation
from indexer.evaluation.metrics import Bin, Curve

STEPS = 400  # most points of a curve: ten thousand queries draw no larger file than five hundred


def charts(evaluation: Evaluation, comparison: Comparison | None) -> list[Chart]:
    """Return every chart that has values."""
    compared = [(comparison.name, comparison.other)] if comparison else []
    own = [("this index" if comparison else "", evaluation), *compared]
    found = [recall_chart(evaluation, own), precision_chart(own)]
    if evaluation.reliability is not None:
        found.append(reliability_chart(evaluation.reliability, evaluation.calibration_error or 0.0))
    if evaluation.errors_m:
        found.append(error_chart(own, evaluation.radius_m))
    return found


def recall_chart(evaluation: Evaluation, compared: Sequence[tuple[str, Evaluation]]) -> Chart:
    """recall@N over N, one curve for each index, or for each radius if there are several."""
    several = evaluation.by_radius
    named = [(f"within {e.radius_m:g} m", e) for e in several] if several else compared
    deepest = max(evaluation.at)
    lowest = math.floor(min(min(e.curve) for _, e in named) * 5) / 5
    bottom = lowest if lowest < 1 else 0.8
    x, y = linear(1, max(deepest, 2), across=True), linear(bottom, 1, across=False)
    lines = []
    for name, one in named:
        dots = [Dot(x(n), y(one.curve[n - 1]), f"recall@{n}: {_percent(one.curve[n - 1])}") for n in one.at]
        lines.append(Line(name, path((x(n + 1), y(v)) for n, v in enumerate(one.curve)), tuple(dots)))
    return Chart(
        "recall",
        "Recall@N",
        "Share of the queries with a right photo among the N nearest.",
        "N",
        "recall@N",
        tuple(Tick(x(n), str(n)) for n in evaluation.at),
        tuple(Tick(y(v), _percent(v, 0)) for v in _fifths(bottom)),
        tuple(lines),
    )


def precision_chart(compared: Sequence[tuple[str, Evaluation]]) -> Chart:
    """Precision over recall, from the most confident answer to all."""
    x, y = linear(0, 1, across=True), linear(0, 1, across=False)
    lines = []
    for name, one in compared:
        curve = one.precision_recall
        full = curve.recall_at(1.0)
        dot = Dot(x(full), y(1.0), f"recall {_percent(full)} at 100 % precision")
        lines.append(Line(name, _steps(curve, x, y), (dot,) if full else ()))
    by = " and ".join(dict.fromkeys(one.ranked_by for _, one in compared))
    return Chart(
        "precision",
        "Precision and recall",
        f"Answering only what is sure enough, by the {by} of the first answer.",
        "recall: rightly answered, of the answerable",
        "precision",
        tuple(Tick(x(v), _percent(v, 0)) for v in _fifths()),
        tuple(Tick(y(v), _percent(v, 0)) for v in _fifths()),
        tuple(lines),
    )


def reliability_chart(bins: Sequence[Bin], error: float) -> Chart:
    """Share of right answers by confidence; calibrated ones follow the diagonal."""
    x, y = linear(0, 1, across=True), linear(0, 1, across=False)
    bars = []
    for b in bins:
        if b.right is not None:
            label = f"{b.queries} answers, {_percent(b.confidence or 0)} sure: {_percent(b.right)} right"
            left, top = x(b.low), y(b.right)
            bars.append(Bar(left + 1, x(b.high) - left - 2, top, y(0) - top, b.queries, label))
    return Chart(
        "reliability",
        "Reliability",
        f"How often answers were right, by how sure they were; expected calibration error {error:.3f}.",
        "confidence",
        "share right",
        tuple(Tick(x(v), _percent(v, 0)) for v in _fifths()),
        tuple(Tick(y(v), _percent(v, 0)) for v in _fifths()),
        bars=tuple(bars),
        diagonal=True,
    )


def error_chart(compared: Sequence[tuple[str, Evaluation]], radius_m: float | None) -> Chart:
    """Share of queries by position error in metres."""
    known = [(name, one.errors_m) for name, one in compared if one.errors_m]
    highest = max(10.0, *(errors[-1] for _, errors in known))
    decades = math.ceil(math.log10(highest) - 1e-9)
    x, y = linear(0, decades, across=True), linear(0, 1, across=False)
    lines = []
    for name, errors in known:
        shares = [(max(error, 1.0), (n + 1) / len(errors)) for n, error in enumerate(errors)]
        points, level = [(x(0), y(0))], y(0)
        for error, share in _thinned(shares):  # by steps, so that the median is on the curve
            points += [(x(math.log10(error)), level), (x(math.log10(error)), y(share))]
            level = y(share)
        median = float(np.median(errors))
        dot = Dot(x(math.log10(max(median, 1.0))), y(0.5), f"half are off by less than {metres(median)}")
        lines.append(Line(name, path(points), (dot,)))
    inside = radius_m is not None and 1 < radius_m < 10**decades
    return Chart(
        "errors",
        "Position error",
        "Share of the queries whose position is off by at most so much.",
        "off by at most",
        "share of the queries",
        tuple(Tick(x(n), metres(10.0**n, 0)) for n in range(decades + 1)),
        tuple(Tick(y(v), _percent(v, 0)) for v in _fifths()),
        tuple(lines),
        upright=Tick(x(math.log10(radius_m)), metres(radius_m, 0)) if inside and radius_m else None,
    )


def metres(value: float, digits: int = 1) -> str:
    """Return a distance as text: `8.4 m`, `120 m`, `3.2 km`."""
    if value < 1000:
        return f"{value:.{digits if value < 10 else 0}f} m"
    return f"{value / 1000:.{digits if value < 10_000 else 0}f} km"


def _percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _fifths(low: float = 0.0) -> list[float]:
    return [v / 5 for v in range(round(low * 5), 6)]


def _steps(curve: Curve, x: Scale, y: Scale) -> str:
    """Return SVG path data of precision by steps, as the area is counted."""
    path, before = "", 0.0
    for recall, precision in _thinned(
        list(zip(curve.recall.tolist(), curve.precision.tolist(), strict=True))
    ):
        start = f"L{x(before):g} {y(precision):g}" if path else f"M{x(0):g} {y(precision):g}"
        path += f"{start}L{x(recall):g} {y(precision):g}"
        before = recall
    return path


Pair = tuple[float, float]


def _thinned(points: Sequence[Pair], most: int = STEPS) -> Sequence[Pair]:
    """Return at most this many of the points, with first and last."""
    if len(points) <= most:
        return points
    return [points[i] for i in np.linspace(0, len(points) - 1, most).round().astype(int)]
