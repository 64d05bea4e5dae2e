"""`loci evaluate`: what it prints, writes and refuses."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from indexer.answers import Answer
from indexer.index import Index

Loci = Callable[..., Result]
Photograph = Callable[..., Path]


@pytest.fixture
def queries(tmp_path: Path, photograph: Photograph) -> Path:
    """Another view of each of walls 0 to 3, and one of a wall far from them all."""
    for wall in (0, 1, 2, 3, 40):
        photograph(tmp_path / "queries" / f"wall{wall}.jpg", wall, 1)
    return tmp_path / "queries"


def test_evaluate_by_distance(loci: Loci, index: Path, queries: Path) -> None:
    result = loci("evaluate", queries, "--index", index)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "4 queries, 16 photos in the index; right: within 25 m"
    assert lines[1] == "not counted: 1 query without a right photo"
    assert lines[2].split() == ["N", "recall@N"]
    assert [line.split() for line in lines[4:8]] == [[n, "1.000"] for n in ("1", "5", "10", "20")]
    assert lines[8:] == [
        "",
        "precision-recall by score: AUC 1.000, recall 1.000 at 100 % precision, including 1 query that "
        "the index does not show",
        "position error 0.0 m (median), 0.0 m (75 %), 0.0 m (95 %); within the stated radius: 100%",
    ]


def test_queries_without_truth_are_reported(
    loci: Loci, index: Path, queries: Path, photograph: Photograph
) -> None:
    photograph(queries / "nowhere.jpg", 1, 2, gps=False)
    lines = loci("evaluate", queries, "--index", index).stdout.splitlines()
    assert lines[1:3] == [
        "not counted: 1 query without a right photo",
        "not counted: 1 query that cannot be judged",
    ]


def test_evaluate_json_by_a_truth_file(loci: Loci, index: Path, queries: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    rows = "query,positives\nwall0.jpg,wall0/view0.jpg wall0/view1.jpg\nwall1.jpg,wall2/view0.jpg\n"
    truth.write_text(rows)
    result = loci("evaluate", queries, "--index", index, "--truth", truth, "--json")
    measured = json.loads(result.stdout)
    assert result.exit_code == 0
    assert list(measured)[:4] == ["queries", "database", "radius_m", "recall"]
    assert (measured["queries"], measured["database"], measured["radius_m"]) == (2, 16, None)
    assert list(measured["recall"]) == ["1", "5", "10", "20"]
    assert (measured["recall"]["1"], measured["recall"]["20"]) == (0.5, 1.0)


def test_evaluate_by_a_metadata_file_and_radius(
    loci: Loci, index: Path, photograph: Photograph, tmp_path: Path
) -> None:
    photograph(tmp_path / "queries" / "q.jpg", 1, 1, gps=False)
    (tmp_path / "m.csv").write_text("path,lat,lon\nq.jpg,52.0021,0.25\n")
    arguments = ("evaluate", tmp_path / "queries", "--index", index, "--metadata", tmp_path / "m.csv")
    assert loci(*arguments, "--radius", 12).exit_code == 0
    result = loci(*arguments, "--radius", 10)
    assert result.exit_code == 1
    assert result.stderr.startswith("loci: none of the 1 query photos has a position near")


def test_evaluate_names_what_it_cannot_read(loci: Loci, index: Path, queries: Path, tmp_path: Path) -> None:
    (queries / "broken.jpg").write_text("no photo")
    (tmp_path / "m.csv").write_text("path,lat,lon\nbroken.jpg,52.0,0.25\n")
    result = loci("evaluate", queries, "--index", index, "--metadata", tmp_path / "m.csv")
    assert result.exit_code == 3
    assert result.stdout.startswith("4 queries, ")
    assert result.stderr.endswith(f"loci: {queries / 'broken.jpg'}: not an image that can be read\n")


def test_evaluate_by_several_radii(loci: Loci, index: Path, queries: Path) -> None:
    """Walls are 222 m apart: within 250 m, those beside a query's own are right, too."""
    arguments = ("evaluate", queries, "--index", index, "--radius", 10, "--radius", 250)
    lines = loci(*arguments).stdout.splitlines()
    assert lines[0] == "4 queries, 16 photos in the index; right: within 10 m"
    assert lines[2].split() == ["recall@N", "within", "10", "m", "within", "250", "m"]
    assert [line.split() for line in lines[4:9]] == [
        *([n, "1.000", "1.000"] for n in ("1", "5", "10", "20")),
        ["queries", "4", "4"],
    ]
    measured = json.loads(loci(*arguments, "--json").stdout)
    assert measured["radius_m"] == 10
    assert [found["radius_m"] for found in measured["by_radius"]] == [10, 250]
    assert measured["recall"] == measured["by_radius"][0]["recall"]


def test_evaluate_by_frames(loci: Loci, index: Path, tmp_path: Path, photograph: Photograph) -> None:
    for name, wall in (("view0", 0), ("view3", 3), ("view9", 1)):
        photograph(tmp_path / "frames" / f"{name}.png", wall, 1, gps=False)
    arguments = ("evaluate", tmp_path / "frames", "--index", index, "--frames")
    result = loci(*arguments, 0)
    counts = "2 queries, 16 photos in the index; right: the frame of the same name"
    assert result.stdout.splitlines()[0] == counts
    measured = json.loads(loci(*arguments, 1, "--json").stdout)
    assert (measured["queries"], measured["foreign"], measured["frames"]) == (2, 1, 1)
    assert measured["recall"]["5"] == 1
    by_order = loci(*arguments, 1, "--aligned-by", "order")
    assert by_order.stdout.splitlines()[0].endswith("right: the frame of the same position in order, ±1")
    assert by_order.stderr.startswith("3 queries are aligned by order with 16 photos: ")


def test_evaluate_by_direction_needs_headings(loci: Loci, index: Path, queries: Path) -> None:
    result = loci("evaluate", queries, "--index", index, "--heading-tolerance", 30)
    assert (result.exit_code, result.stderr) == (
        1,
        "loci: the index has no headings, so a heading tolerance is impossible\n",
    )


def test_evaluate_data_set_folder_writes_all_outputs(
    loci: Loci, index: Path, queries: Path, tmp_path: Path
) -> None:
    (queries.parent / "database").mkdir()
    report, table = tmp_path / "report.html", tmp_path / "queries.csv"
    result = loci(
        *("evaluate", queries.parent, "--index", index, "--report", report, "--per-query", table),
        *("--report-queries", 2),
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("4 queries, 16 photos in the index; right: within 25 m\n")
    assert result.stderr.endswith(f"wrote the report {report}\nwrote the table {table}\n")
    page = report.read_text(encoding="utf-8")
    assert f"<title>index, queried with {tmp_path.name}</title>" in page
    assert page.count(" data-pictured") == 2
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["query"], row["answerable"], row["rank"]) for row in rows] == [
        ("wall0.jpg", "1", "1"),
        ("wall1.jpg", "1", "1"),
        ("wall2.jpg", "1", "1"),
        ("wall3.jpg", "1", "1"),
        ("wall40.jpg", "0", ""),
    ]


def test_evaluate_compares_two_indexes(
    loci: Loci, index: Path, queries: Path, tmp_path: Path, photograph: Photograph
) -> None:
    """The other index has a photo of wall 1 where wall 0 is, and none of wall 3."""
    for wall, view in ((0, 2), (1, 2), (2, 2)):
        photograph(tmp_path / "other" / f"{wall}.jpg", wall, view)
    misled = photograph(tmp_path / "other" / "0.jpg", 33, 2, gps=False)
    (tmp_path / "m.csv").write_text(f"path,lat,lon\n{misled.name},52.0,0.25\n")
    other = tmp_path / "other-index"
    made = loci(
        *("index", tmp_path / "other", "--into", other, "--clusters", 2, "--metadata", tmp_path / "m.csv")
    )
    assert made.exit_code == 0
    arguments = ("evaluate", queries, "--index", index, "--compare", other)
    result = loci(*arguments)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    start = lines.index(f"compared with {other.name}, 3 queries:")
    assert lines[start + 1].split() == ["N", "this", "other", "difference", "95", "%", "interval"]
    assert lines[start + 3].split()[:4] == ["1", "1.000", "0.667", "+0.333"]
    assert lines[start + 4].split() == ["5", "1.000", "1.000", "+0.000", "+0.000", "to", "+0.000"]
    assert lines[-2:] == ["only this index is right: 1: wall0.jpg", "only the other: 0"]
    compared = json.loads(loci(*arguments, "--json").stdout)["compare"]
    assert (compared["index"], compared["queries"], compared["recall"]["5"]) == (str(other), 3, 1)
    assert compared["difference"]["1"]["difference"] == pytest.approx(1 / 3)
    assert (compared["gained"], compared["lost"]) == ([str(queries / "wall0.jpg")], [])


def test_comparison_notes_name_the_other_index(
    loci: Loci, index: Path, queries: Path, tmp_path: Path, photograph: Photograph
) -> None:
    other = tmp_path / "other-index"
    photograph(tmp_path / "other" / "a.jpg", 0, 1)
    assert loci("index", tmp_path / "other", "--into", other, "--clusters", 2).exit_code == 0
    truth = tmp_path / "truth.csv"
    truth.write_text("query,positives\nwall0.jpg,wall0/view0.jpg\n")
    result = loci("evaluate", queries, "--index", index, "--truth", truth, "--compare", other)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.endswith(f"loci: {other}: {truth}, line 2: wall0/view0.jpg is not in the index\n")


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (
            ("--truth", "t.csv", "--frames", 1),
            2,
            "a truth file and frames both define what is right: give one",
        ),
        (("--frames", 1, "--heading-tolerance", 5), 2, "a heading tolerance goes with a radius, not with a"),
        (("--frames", -1), 2, "frames must be 0 or more, not -1"),
        (("--heading-tolerance", 200), 2, "the heading tolerance must be 0 to 180 degrees, not 200"),
        (("--report", "no/such/report.html"), 1, "cannot write no/such/report.html: there is no such folder"),
        (("--per-query", "/"), 1, "cannot write /: it is a folder"),
        (("--one-per-panorama",), 1, "no photo of the index has a panorama"),
    ],
)
def test_invalid_options_are_refused(
    loci: Loci, index: Path, queries: Path, options: tuple[object, ...], code: int, message: str
) -> None:
    result = loci("evaluate", queries, "--index", index, *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"loci: {message}")


@pytest.mark.parametrize("radius", ["-1", "nan"])
def test_invalid_radius_is_refused(loci: Loci, index: Path, queries: Path, radius: str) -> None:
    result = loci("evaluate", queries, "--index", index, "--radius", 5, "--radius", radius)
    assert result.exit_code == 2
    assert "it must be at least 0, not" in result.stderr


def test_radius_is_ignored_with_truth_file(loci: Loci, index: Path, queries: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("query,positives\nwall0.jpg,wall0/view0.jpg\n")
    result = loci("evaluate", queries, "--index", index, "--truth", truth, "--radius", 5, "--radius", 9)
    assert result.exit_code == 0
    assert result.stderr.startswith("Note: --radius has no effect with --truth or --frames.\n")


def test_calibrated_answers_print_confidence(
    loci: Loci, index: Path, queries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made up: 90 % sure of what scores above .9, which all but the foreign wall 40 do, else 30 %."""
    answer = Index.answer

    def sure(self: Index, *arguments: Any, **more: Any) -> Answer:
        found = answer(self, *arguments, **more)
        likely = found.places[0].score > 0.9
        return replace(found, confidence=0.9 if likely else 0.3, known=likely)

    monkeypatch.setattr(Index, "answer", sure)
    report = tmp_path / "report.html"
    result = loci("evaluate", queries, "--index", index, "--report", report)
    assert result.stdout.splitlines()[-4:] == [
        "precision-recall by confidence: AUC 1.000, recall 1.000 at 100 % precision, including 1 query "
        "that the index does not show",
        "position error 0.0 m (median), 0.0 m (75 %), 0.0 m (95 %); within the stated radius: 100%",
        "confidence: expected calibration error 0.140 over 10 bins",
        "refused: 0 of 4 right, 0 of 0 wrong, 1 of 1 foreign",
    ]
    page = report.read_text(encoding="utf-8")
    assert "Reliability" in page
    assert "✓ foreign" in page
    measured = json.loads(loci("evaluate", queries, "--index", index, "--json").stdout)
    assert measured["calibration"]["expected_error"] == pytest.approx((4 * 0.1 + 0.3) / 5)
    assert measured["known"]["foreign_and_refused"] == 1
