"""Recall of an index: what counts as right, and what is said of queries that cannot count."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from indexer.errors import IndexerError, UsageError
from indexer.evaluation import Evaluation, evaluate
from indexer.index import Index

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint, World


@pytest.fixture
def index(opened: Index) -> Index:
    return opened


@pytest.fixture
def queries(tmp_path: Path, paint: Paint) -> Path:
    """A new photo of each wall, with its position."""
    folder = tmp_path / "queries"
    for wall in range(4):
        paint(folder / f"q{wall}.jpg", wall, 7)
    return folder


def truth(queries: Path, *lines: str, header: str = "query,positives") -> Path:
    path = queries.parent / "truth.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def recall(index: Index, queries: Path, *lines: str, header: str = "query,positives") -> Evaluation:
    return evaluate(index, queries, truth=truth(queries, *lines, header=header), at=(1, 2, 3))


# By distance


def test_recall_by_distance_equals_a_naive_count(index: Index, tmp_path: Path, paint: Paint) -> None:
    """Photos of one wall with the position of another: mostly wrong, sometimes late."""
    folder = tmp_path / "queries"
    said = np.random.default_rng(0).integers(0, 4, 12)
    for number in range(12):
        paint(folder / f"{number:02}.jpg", number % 4, 20 + number)
    rows = [f"{n:02}.jpg,{52 + wall * 0.01},{0.25}" for n, wall in enumerate(said)]
    table = tmp_path / "positions.csv"
    table.write_text("\n".join(["file,lat,lon", *rows]))
    found = evaluate(index, folder, metadata=table, at=(1, 2, 4, 8))
    ids, descriptors = index.descriptors()
    where = {photo.id: photo.lat for photo in index.photos()}
    for n in (1, 2, 4, 8):
        hits = 0
        for number, wall in enumerate(said):
            query = index.embed([folder / f"{number:02}.jpg"])[0]
            nearest = [ids[i] for i in np.argsort(-(descriptors @ query))[:n]]
            hits += any(abs((where[photo] or 0) - (52 + wall * 0.01)) * 111_195 <= 25 for photo in nearest)
        assert found.recall[str(n)] == pytest.approx(hits / 12)
    assert 0 < found.recall["1"] < found.recall["8"] == 1
    assert (found.queries, found.database, found.radius_m, found.without_answer) == (12, 8, 25.0, 0)


def test_the_radius_decides(index: Index, queries: Path, tmp_path: Path) -> None:
    """A hundred metres north of every wall."""
    table = tmp_path / "positions.csv"
    table.write_text(
        "file,lat,lon\n" + "".join(f"q{w}.jpg,{52 + w * 0.01 + 0.0009},0.25\n" for w in range(4))
    )
    assert evaluate(index, queries, metadata=table, radius_m=101).queries == 4
    with pytest.raises(IndexerError, match=r"^none of the 4 query photos has a position near a photo of the"):
        evaluate(index, queries, metadata=table, radius_m=99)


def test_queries_without_an_answer_do_not_count(index: Index, queries: Path, paint: Paint) -> None:
    paint(queries / "far.jpg", 30)
    paint(queries / "nowhere.jpg", 0, 9, gps=False)
    found = evaluate(index, queries)
    assert (found.queries, found.without_answer, found.failed) == (4, 2, ())
    assert found.recall == {"1": 1.0, "5": 1.0, "10": 1.0, "20": 1.0}


def test_every_unreadable_query_is_named(index: Index, queries: Path) -> None:
    (queries / "text.jpg").write_text("no photo")
    data = (queries / "q3.jpg").read_bytes()
    (queries / "q3.jpg").write_bytes(data[: len(data) // 2])
    found = evaluate(index, queries)
    assert (found.queries, found.without_answer) == (3, 0)
    assert found.failed == (
        (str(queries / "q3.jpg"), "truncated image"),
        (str(queries / "text.jpg"), "not an image that can be read"),
    )
    values = json.loads(json.dumps(found.to_json()))
    assert values["failed"][0] == {"path": str(queries / "q3.jpg"), "reason": "truncated image"}
    assert list(values)[:4] == ["queries", "database", "radius_m", "recall"]


def test_no_readable_query(index: Index, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no photo")
    with pytest.raises(
        IndexerError, match=r"^none of the query photos can be read; the first is .*a\.jpg: not"
    ):
        evaluate(index, tmp_path)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(IndexerError, match=r"^no photos in .*: nothing to evaluate$"):
        evaluate(index, tmp_path)


def test_an_index_without_positions_needs_a_truth(queries: Path, empty: World, paint: Paint) -> None:
    shutil.rmtree(empty.photos)
    for wall in range(2):
        paint(empty.photo(wall), wall, gps=False)
    empty.build()
    with pytest.raises(IndexerError, match="the index has no positions: set `truth`"):
        evaluate(empty.open(), queries)
    assert recall(empty.open(), queries, "q0.jpg,wall0/view0.jpg").recall["1"] == 1


# By a truth file


@pytest.mark.parametrize(
    "query",
    ["q1.jpg", "queries/q1.jpg", "./q1.jpg", "{folder}/q1.jpg"],
    ids=["name", "end", "dot", "absolute"],
)
@pytest.mark.parametrize(
    "positive",
    ["wall1/view1.jpg", "photos/wall1/view1.jpg", "{photos}/wall1/view1.jpg"],
    ids=["relative", "with its folder", "absolute"],
)
def test_paths_in_a_truth_file(index: Index, queries: Path, made: World, query: str, positive: str) -> None:
    line = f"{query},{positive}".format(folder=queries, photos=made.photos)
    found = recall(index, queries, line)
    assert (found.queries, found.without_answer, found.radius_m) == (1, 3, None)
    nearest = [hit.path for hit in index.nearest(index.embed([queries / "q1.jpg"])[0], 2)]
    rank = nearest.index("photos/wall1/view1.jpg")
    assert found.recall == {"1": float(rank == 0), "2": 1.0, "3": 1.0}


def test_several_positives_and_several_lines(index: Index, queries: Path) -> None:
    found = recall(
        index,
        queries,
        "q0.jpg,wall0/view0.jpg wall0/view1.jpg",
        "q1.jpg,wall3/view0.jpg",
        "q1.jpg,wall1/view0.jpg  wall1/view1.jpg",
        "q2.jpg,",
        "q3.jpg,wall0/view0.jpg",
    )
    assert (found.queries, found.without_answer) == (3, 1)
    assert found.recall["1"] == pytest.approx(2 / 3)


def test_frame_aligned_truth(index: Index, queries: Path) -> None:
    header = "query,reference_indices"
    found = recall(index, queries, "0,0 1", "1,2 3", "2,4 5", "3,0", header=header)
    assert (found.queries, found.recall["1"]) == (4, 0.75)
    for line, message in (
        ("0,8", "line 2: photo number 8 is not among the 8 of the index"),
        ("0,-1", "line 2: photo number -1 is not among the 8 of the index"),
        ("4,0", "line 2: photo number 4 is not among the 4 of the folder"),
        ("-1,0", "line 2: photo number -1 is not among the 4 of the folder"),
        ("q0.jpg,0", "line 2: invalid literal"),
        (",0", "line 2: invalid literal"),
    ):
        with pytest.raises(UsageError, match=message):
            recall(index, queries, line, header=header)


def test_frame_numbers_count_photos_that_cannot_be_read(world: World, queries: Path) -> None:
    (world.photos / "wall0" / "a-first.jpg").write_text("no photo")
    world.build()
    header = "query,reference_indices"
    found = recall(world.open(), queries, "0,1 2", "1,3 4", "3,7 8", header=header)
    assert found.recall["1"] == 1
    assert recall(world.open(), queries, "0,0", header=header).recall["3"] == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q9.jpg,wall0/view0.jpg", r"line 2: the query 'q9\.jpg' names no photos of the folder"),
        ("same.jpg,wall0/view0.jpg", r"line 2: the query 'same\.jpg' names 2 photos of the folder"),
        (",wall0/view0.jpg", "line 2: the query '' names no photos of the folder"),
        ("q0.jpg,wall0/view9.jpg", r"line 2: wall0/view9\.jpg is not in the index"),
        ("q0.jpg,view0.jpg", r"line 2: view0\.jpg matches 4 photos of the index: give more of its path"),
    ],
)
def test_a_line_that_names_nothing_or_too_much(
    index: Index, queries: Path, paint: Paint, line: str, message: str
) -> None:
    for folder in ("one", "two"):
        paint(queries / folder / "same.jpg", 0)
    with pytest.raises(UsageError, match=message):
        recall(index, queries, line)


@pytest.mark.parametrize(
    ("header", "has"),
    [("query,positive", "positive, query"), ("photo,positives", "photo, positives"), ("", "none")],
)
def test_a_missing_column(index: Index, queries: Path, header: str, has: str) -> None:
    with pytest.raises(UsageError, match=rf"needs the columns query and positives, it has {has}$"):
        recall(index, queries, "q0.jpg,wall0/view0.jpg" if header else "", header=header)


def test_a_truth_file_that_says_nothing(index: Index, queries: Path) -> None:
    with pytest.raises(
        IndexerError, match=r"^none of the 4 query photos has a right answer in .*truth\.csv$"
    ):
        recall(index, queries)


def test_a_truth_file_that_cannot_be_read(index: Index, queries: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "no.csv", tmp_path):
        with pytest.raises(UsageError, match=r"^the truth file .* cannot be read: "):
            evaluate(index, queries, truth=path)
    (tmp_path / "binary.csv").write_bytes(b"query,positives\n\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        evaluate(index, queries, truth=tmp_path / "binary.csv")


def test_excel_writes_a_mark_first(index: Index, queries: Path) -> None:
    path = queries.parent / "truth.csv"
    path.write_text("query,positives,remark\r\nq0.jpg,wall0/view0.jpg,far, too far\r\n", encoding="utf-8-sig")
    assert evaluate(index, queries, truth=path).queries == 1


def test_a_truth_with_an_unreadable_query(index: Index, queries: Path) -> None:
    (queries / "q0.jpg").write_text("no photo")
    found = recall(index, queries, "q0.jpg,wall0/view0.jpg", "q1.jpg,wall1/view0.jpg wall1/view1.jpg")
    assert (found.queries, found.recall["1"], found.without_answer) == (1, 1.0, 2)
    assert found.failed == ((str(queries / "q0.jpg"), "not an image that can be read"),)
