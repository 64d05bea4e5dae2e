"""All that is measured of made-up answers, worked out by hand; comparisons and the table."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from indexer.answers import PhotoHit, Position
from indexer.errors import IndexerError, UsageError
from indexer.evaluation import (
    Comparison,
    Evaluation,
    Expected,
    QueryResult,
    Rule,
    compare,
    evaluate,
    write_csv,
)
from indexer.index import Index
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.scan import ScannedFile

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint

LAT, LON = 52.0, 0.25
METRE = 1 / 111_195


def result(
    name: str,
    hits: str,
    right: str | None,
    score: float = 0.5,
    *,
    off_m: float | None = None,
    radius_m: float = 20.0,
    **more: Any,
) -> QueryResult:
    """A query answered by the photos `hits` (letters), of which those in `right` are right."""
    position = None if off_m is None else Position(LAT + off_m * METRE, LON, radius_m)
    return QueryResult(
        file=ScannedFile("/asked", name, 1, 1),
        metadata=PhotoMetadata(lat=LAT, lon=LON),
        expected=Expected(None if right is None else frozenset(right)),
        hits=tuple(
            PhotoHit(letter, f"db/{letter}.jpg", score - n / 10, lat=LAT + 30 * METRE, lon=LON)
            for n, letter in enumerate(hits)
        ),
        position=position,
        **more,
    )


def evaluation(*results: QueryResult, **more: Any) -> Evaluation:
    values: dict[str, Any] = {"at": (1, 2, 3), "database": 5, "rule": Rule(radius_m=25), "unjudged": 0}
    values |= {"failed": (), "model": "m", "snapshot": "01/000001"} | more
    return Evaluation(results=results, **values)


MADE = (
    result("a", "xyz", "x", 0.9, off_m=5, confidence=0.95, known=True),
    result("b", "xyz", "y", 0.8, off_m=50, confidence=0.85, known=True),
    result("c", "xyz", "x", 0.4, off_m=15, confidence=0.45, known=False),
    result("d", "xyz", "w", 0.6, off_m=10_000, confidence=0.3, known=False),
    result("e", "xyz", "", 0.7, off_m=700, confidence=0.65, known=True),
    result("f", "xyz", "", 0.3, off_m=800, confidence=0.05, known=False),
)


def test_measures_of_an_evaluation() -> None:
    found = evaluation(*MADE, unjudged=3)
    assert (found.queries, found.foreign, found.unjudged, found.without_answer) == (4, 2, 3, 5)
    assert found.recall == {"1": 0.5, "2": 0.75, "3": 0.75}
    assert found.curve == (0.5, 0.75, 0.75)
    assert [r.rank for r in MADE] == [0, 1, 0, None, None, None]


def test_foreign_queries_are_wrong_when_answered() -> None:
    """By confidence: a right, b wrong, e foreign, c right, d wrong, f foreign; four are answerable."""
    curve = evaluation(*MADE).precision_recall
    assert curve.precision.tolist() == pytest.approx([1, 1 / 2, 1 / 3, 2 / 4, 2 / 5, 2 / 6])
    assert curve.recall.tolist() == [0.25, 0.25, 0.25, 0.5, 0.5, 0.5]


def test_score_ranks_if_a_confidence_is_missing() -> None:
    found = evaluation(*MADE)
    assert found.ranked_by == "confidence"
    partly = evaluation(replace(MADE[0], confidence=None), *MADE[1:])
    assert partly.ranked_by == "score"
    assert partly.precision_recall.thresholds.tolist() == [0.9, 0.8, 0.7, 0.6, 0.4, 0.3]
    assert sum(b.queries for b in partly.reliability or ()) == 5


def test_json() -> None:
    values = evaluation(*MADE, failed=(("/asked/g", "truncated image"),)).to_json()
    assert list(values)[:5] == ["queries", "database", "radius_m", "recall", "without_answer"]
    assert values["failed"] == [{"path": "/asked/g", "reason": "truncated image"}]
    assert values["precision_recall"] == {
        "ranked_by": "confidence",
        "auc": pytest.approx(0.25 + 0.25 * 0.5),
        "recall_at_100_precision": 0.25,
        "recall_at_precision": {"0.99": 0.25, "0.95": 0.25, "0.9": 0.25},
    }
    errors = values["position_error_m"]
    assert (errors["queries"], errors["within_radius"]) == (4, 0.5)
    assert errors["p50"] == pytest.approx(32.5, abs=0.01)
    gaps = [1 - 0.95, 0.85, 1 - 0.45, 0.3, 0.65, 0.05]
    assert values["calibration"]["expected_error"] == pytest.approx(sum(gaps) / 6)
    assert [b["queries"] for b in values["calibration"]["bins"]] == [1, 0, 0, 1, 1, 0, 1, 0, 1, 1]
    assert values["known"] == {
        "right": 2,
        "right_and_refused": 1,
        "wrong": 2,
        "wrong_and_refused": 1,
        "foreign": 2,
        "foreign_and_refused": 1,
    }


def test_json_of_answers_that_say_little() -> None:
    values = evaluation(result("a", "xy", "x"), result("b", "", "x")).to_json()
    assert values["recall"]["1"] == 0.5
    assert [values[key] for key in ("position_error_m", "calibration", "known")] == [None] * 3
    assert values["precision_recall"]["ranked_by"] == "score"
    assert values["precision_recall"]["auc"] == 0.5


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(radius_m=12.5), "within 12.5 m"),
        (Rule(radius_m=25, heading_tolerance=45), "within 25 m, looking the same way ±45°"),
        (Rule(truth=Path("t.csv")), "the truth file names it"),
        (Rule(frames=0), "the frame of the same name"),
        (Rule(frames=2, aligned_by="order"), "the frame of the same position in order, ±2"),
    ],
)
def test_a_rule_in_words(rule: Rule, words: str) -> None:
    assert str(rule) == words


def test_several_radii_judge_the_same_answers(opened: Index, tmp_path: Path, paint: Paint) -> None:
    """Two queries 10 m, two 100 m north of their walls."""
    for wall in range(4):
        paint(tmp_path / "asked" / f"{wall}.jpg", wall, 7)
    table = tmp_path / "m.csv"
    north = [10, 10, 100, 100]
    rows = [f"{wall}.jpg,{LAT + wall * 0.01 + m * METRE},{LON}" for wall, m in enumerate(north)]
    table.write_text("\n".join(["path,lat,lon", *rows]))
    found = evaluate(opened, tmp_path / "asked", metadata=table, more_radii_m=[150, 5000])
    assert (found.radius_m, found.queries, found.foreign) == (25, 2, 2)
    assert [one["radius_m"] for one in found.to_json()["by_radius"]] == [25, 150, 5000]
    assert [one["queries"] for one in found.to_json()["by_radius"]] == [2, 4, 4]
    assert [one.recall["1"] for one in found.by_radius] == [1, 1, 1]
    with pytest.raises(IndexerError, match=r"near a photo of the index \(within 5 m\)$"):
        evaluate(opened, tmp_path / "asked", metadata=table, more_radii_m=[5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": Path("t.csv"), "frames": 1}, "a truth file and frames both define what is right"),
        ({"frames": 1, "heading_tolerance": 30}, "a heading tolerance goes with a radius"),
        ({"frames": 1, "more_radii_m": [10]}, "several radii judge photos by distance"),
    ],
)
def test_conflicting_options_are_refused(opened: Index, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(opened, Path("asked"), **options)


def test_positions_are_measured_with_a_truth_file(opened: Index, tmp_path: Path, paint: Paint) -> None:
    paint(tmp_path / "asked" / "q.jpg", 1, 9)
    (tmp_path / "truth.csv").write_text("query,positives\nq.jpg,wall1/view0.jpg wall1/view1.jpg\n")
    found = evaluate(opened, tmp_path / "asked", truth=tmp_path / "truth.csv")
    assert found.errors_m == pytest.approx([0], abs=0.1)
    assert found.results[0].distance_m(LAT + 0.02, LON) == pytest.approx(1112, abs=1)


# Two indexes


def compared() -> Comparison:
    other = evaluation(
        result("a", "yxz", "x"),
        result("b", "yxz", "y"),
        result("c", "xyz", "x"),
        result("d", "wyz", "w"),
        result("e", "xyz", "x"),
        model="n",
    )
    return compare(evaluation(*MADE), other, Path("/indexes/other"))


def test_a_comparison() -> None:
    found = compared()
    assert [this.name for this, _ in found.pairs] == ["a", "b", "c", "d"]
    assert found.name == "other"
    assert found.recalls == {"1": (0.5, 0.75), "2": (0.75, 1.0), "3": (0.75, 1.0)}
    assert [r.name for r in found.gained] == ["a"]
    assert [r.name for r in found.lost] == ["b", "d"]
    assert found.differences["1"].difference == -0.25
    assert -1 <= found.differences["1"].low < -0.25 < found.differences["1"].high <= 1
    values = found.to_json()
    assert list(values) == [
        *("index", "queries", "recall", "difference", "gained", "lost", "model", "snapshot")
    ]
    assert (values["index"], values["lost"], values["model"]) == (
        "/indexes/other",
        ["/asked/b", "/asked/d"],
        "n",
    )
    assert values["difference"]["1"].keys() == {"difference", "low", "high"}


def test_nothing_to_compare() -> None:
    with pytest.raises(IndexerError, match=r"^no query has a right answer in both this index and /other$"):
        compare(evaluation(MADE[0]), evaluation(MADE[1]), Path("/other"))


# The table


def test_the_table_of_queries(tmp_path: Path) -> None:
    blind = replace(result("g,h", "", "x"), metadata=PhotoMetadata())
    write_csv(evaluation(*MADE, blind), tmp_path / "q.csv")
    with (tmp_path / "q.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["query"] for row in rows] == ["a", "b", "c", "d", "e", "f", "g,h"]
    assert [row["rank"] for row in rows] == ["1", "2", "1", "", "", "", ""]
    assert [row["answerable"] for row in rows] == ["1", "1", "1", "1", "0", "0", "1"]
    assert [row["right"] for row in rows] == ["1", "0", "1", "0", "0", "0", "0"]
    second = rows[1]
    assert (second["best_photo"], second["first_right_photo"]) == ("db/x.jpg", "db/y.jpg")
    assert (second["score"], second["confidence"], second["known"]) == ("0.8", "0.85", "1")
    assert (second["best_photo_distance_m"], second["error_m"], second["radius_m"]) == (
        "30.0",
        "50.0",
        "20.0",
    )
    assert (second["true_lat"], second["positives"]) == ("52.0", "1")
    last = {key: value for key, value in rows[6].items() if value}
    assert last == {"query": "g,h", "answerable": "1", "right": "0", "positives": "1"}
