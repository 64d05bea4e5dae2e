"""`loci query`, `compare` and `export`."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import Result

from indexer.answers import Answer, PlaceHit, Position
from indexer.index import Index
from loci.commands.query import headline

Loci = Callable[..., Result]

WALL_2 = "52.004000,0.250000"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jpg"
    path.write_text("no photo")
    return path


def test_query_prints_position_and_places(loci: Loci, index: Path, question: Path) -> None:
    result = loci("query", question, "--index", index, "-k", 2)
    assert result.exit_code == 0
    first, heading, _rule, best, second, end = result.stdout.splitlines()
    assert first.startswith(f"{question}: at {WALL_2}, within ")
    assert first.endswith(" m")
    assert heading.split() == ["place", "score", "position", "best", "photo"]
    rank, _place, score, position, photo = best.split()
    assert (rank, position) == ("1", WALL_2)
    assert 0 < float(score) < 1
    assert photo.startswith("photos/wall2/view")
    assert second.split()[0] == "2"
    assert end == ""
    assert result.stderr.startswith("Note: ")
    assert len(result.stderr.splitlines()) == 1


def test_clip_has_one_answer(loci: Loci, index: Path, photos: Path, question: Path, broken: Path) -> None:
    frames = [question, photos / "wall2" / "view1.jpg"]
    result = loci("query", "--clip", *frames, "--index", index, "-k", 1)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{question} and 1 more: at {WALL_2}, within ")
    one, other = (
        json.loads(loci("query", "--clip", *order, "--index", index, "--json").stdout)
        for order in (frames, frames[::-1])
    )
    assert one[0]["query"] == [str(frame) for frame in frames]
    assert len(one) == 1
    assert one[0]["places"] == other[0]["places"]
    result = loci("query", "--clip", broken, question, "--index", index, "--json")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"loci: {broken}: ")
    single = json.loads(loci("query", question, "--index", index, "--json").stdout)
    assert json.loads(result.stdout)[0]["places"] == single[0]["places"]


def test_query_json_is_a_list_with_the_documented_names(loci: Loci, index: Path, question: Path) -> None:
    result = loci("query", question, question, "--index", index, "-k", 3, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    answers = json.loads(result.stdout)
    assert [answer["query"] for answer in answers] == [str(question)] * 2
    answer = answers[0]
    names = "query known confidence position places model snapshot timings_ms note"
    assert list(answer) == names.split()
    assert answer["known"] is None
    assert answer["confidence"] is None
    assert answer["position"]["lat"] == pytest.approx(52.004, abs=1e-5)
    assert answer["position"]["radius_m"] > 0
    assert len(answer["places"]) == 3
    names = "id name lat lon score confidence distance_m photos"
    assert list(answer["places"][0]) == names.split()
    names = "id path score inliers lat lon heading taken_at matches"
    assert list(answer["places"][0]["photos"][0]) == names.split()
    assert list(answer["timings_ms"]) == ["decode", "embed", "search", "verify"]
    assert answer["snapshot"] == "01/000001"


def test_query_finds_an_indexed_photo_itself(loci: Loci, index: Path, photos: Path) -> None:
    result = loci("query", photos / "wall3" / "view1.jpg", "--index", index, "-k", 1, "--json")
    (answer,) = json.loads(result.stdout)
    assert answer["places"][0]["photos"][0]["path"] == "photos/wall3/view1.jpg"
    assert answer["places"][0]["score"] == pytest.approx(1, abs=0.01)


def test_filters_narrow_the_answer(loci: Loci, index: Path, question: Path) -> None:
    def places(*options: object) -> list[dict[str, object]]:
        result = loci("query", question, "--index", index, "--json", *options)
        assert result.exit_code == 0
        found: list[dict[str, object]] = json.loads(result.stdout)[0]["places"]
        return found

    here = ("--lat", 52.0, "--lon", 0.25)
    (near,) = places(*here, "--radius-m", 50)
    assert near["distance_m"] == 0
    assert [place["id"] for place in places("--place", near["id"])] == [near["id"]]
    assert sorted(str(place["distance_m"]) for place in places(*here)) == ["0.0", "222.4", "444.8", "667.2"]
    assert places("--taken-after", "2000-01-01") == []  # none of them says when it was taken
    assert places("--taken-before", "2100-01-01") == []
    assert places("--heading", 90, "--heading-tolerance", 180) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--radius-m", 5], "--radius-m: radius_m needs lat and lon"),
        (["--lat", 5], "--lon: lon is missing, though lat is given"),
        (["--heading", 400], "--heading: heading must be 0 to 360, not 400"),
    ],
)
def test_invalid_filters_are_wrong_usage(
    loci: Loci, index: Path, question: Path, options: list[object], sentence: str
) -> None:
    result = loci("query", question, "--index", index, *options)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"loci: {sentence}\n")


@pytest.mark.parametrize("share", ["0", "1", "-0.5", "nan"])
def test_invalid_share_is_wrong_usage(loci: Loci, index: Path, question: Path, share: str) -> None:
    result = loci("query", question, "--index", index, "--known-share", share)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--known-share" in result.stderr
    assert f"it must lie between 0 and 1, not {float(share)}" in result.stderr


def test_known_share_reaches_the_index(
    loci: Loci, index: Path, question: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    opened = Index.open

    def note(*arguments: Any, **options: Any) -> Index:
        found = opened(*arguments, **options)
        shares.append(found.known_share)
        return found

    monkeypatch.setattr(Index, "open", note)
    assert loci("query", question, "--index", index).exit_code == 0
    assert loci("query", question, "--index", index, "--known-share", 0.25).exit_code == 0
    assert shares == [0.8, 0.25]


def test_query_answers_readable_photos_and_names_the_rest(
    loci: Loci, index: Path, question: Path, broken: Path, tmp_path: Path
) -> None:
    missing = tmp_path / "missing.jpg"
    result = loci("query", broken, question, missing, "--index", index, "--json")
    assert result.exit_code == 3
    assert [answer["query"] for answer in json.loads(result.stdout)] == [str(question)]
    assert result.stderr == (
        f"loci: {broken}: not an image that can be read\nloci: {missing}: no such file\n"
    )


def test_query_fails_if_no_photo_is_readable(loci: Loci, index: Path, broken: Path) -> None:
    result = loci("query", broken, "--index", index)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"loci: {broken}: not an image that can be read\n"
    result = loci("query", broken, "--index", index, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, [])


@pytest.mark.parametrize(
    ("known", "confidence", "position", "line"),
    [
        (None, None, Position(52.0, 0.25, 12.4), "at 52.000000,0.250000, within 12 m"),
        (True, 0.934, Position(52.0, 0.25, 8.0), "at 52.000000,0.250000, within 8.0 m, 93% sure"),
        (None, None, Position(52.0, 0.25, 8.0, 359.6), "at 52.000000,0.250000, within 8.0 m, looking 0°"),
        (None, None, Position(52.0, 0.25, 8.0, 90.4), "at 52.000000,0.250000, within 8.0 m, looking 90°"),
        (None, None, None, "looks like the gate"),
        (False, 0.12, Position(52.0, 0.25, 8.0), "probably no place of this index, 12% sure of the nearest"),
    ],
)
def test_answer_is_one_line(
    known: bool | None, confidence: float | None, position: Position | None, line: str
) -> None:
    place = PlaceHit("p1", "the gate", None, None, 0.5)
    assert headline(Answer(known, confidence, position, (place,), "f00d", "01/000001", {})) == line


def test_answer_without_places() -> None:
    assert headline(Answer(None, None, None, (), "f00d", "01/000001", {})) == "no place found"


def test_compare_without_index_names_its_features(loci: Loci, photos: Path, question: Path) -> None:
    same = loci("compare", question, question)
    assert (same.exit_code, same.stdout) == (0, "1.000\n")
    assert "ImageNet" in same.stderr
    result = loci("compare", question, photos / "wall2" / "view3.jpg", "--json")
    compared = json.loads(result.stdout)
    assert compared["photos"] == [str(question), str(photos / "wall2" / "view3.jpg")]
    assert compared["model"] == "imagenet-average"
    assert 0 < compared["similarity"] < 1
    assert result.stderr == ""


def test_compare_uses_the_model_of_an_index(loci: Loci, index: Path, photos: Path, question: Path) -> None:
    alike = loci("compare", question, photos / "wall2" / "view1.jpg", "--index", index, "--json")
    other = loci("compare", question, photos / "wall1" / "view1.jpg", "--index", index, "--json")
    query = json.loads(loci("query", question, "--index", index, "--no-verify", "--json").stdout)[0]
    assert json.loads(alike.stdout)["model"] == query["model"]
    best = query["places"][0]["photos"][0]
    assert best["path"] == "photos/wall2/view1.jpg"
    # The index keeps descriptors in fp16.
    assert json.loads(alike.stdout)["similarity"] == pytest.approx(best["score"], abs=2e-3)
    assert json.loads(other.stdout)["similarity"] < json.loads(alike.stdout)["similarity"]
    text = loci("compare", question, photos / "wall2" / "view1.jpg", "--index", index)
    assert float(text.stdout) == pytest.approx(best["score"], abs=2e-3)
    assert text.stderr == ""


def test_compare_names_the_unreadable_photo(loci: Loci, question: Path, broken: Path) -> None:
    result = loci("compare", question, broken)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"loci: {broken}: not an image that can be read\n"


def test_export_to_stdout(loci: Loci, index: Path) -> None:
    result = loci("export", index, "--format", "csv")
    assert (result.exit_code, result.stderr) == (0, "")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert len(rows) == 16
    assert (rows[0]["path"], float(rows[0]["lat"])) == ("photos/wall0/view0.jpg", 52.0)
    collection = json.loads(loci("export", index, "--format", "geojson").stdout)
    assert len(collection["features"]) == 16
    pairs = loci("export", index, "--format", "hloc", "--neighbours", 2).stdout.splitlines()
    assert len(pairs) == 32
    assert loci("export", index, "--format", "kapture").stdout.startswith("# kapture format: 1.1\n")
    images = loci("export", index, "--format", "colmap").stdout.splitlines()
    assert len(images) == 16


def test_export_to_a_file(loci: Loci, index: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "descriptors.npz"
    result = loci("export", index, "--format", "numpy", "--output", output)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"wrote {output}: 16 photos\n"
    with np.load(output) as arrays:
        assert arrays["descriptors"].shape[0] == len(arrays["paths"]) == 16
        np.testing.assert_allclose(np.linalg.norm(arrays["descriptors"], axis=1), 1, atol=1e-2)


def test_export_to_an_unwritable_file(loci: Loci, index: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = loci("export", index, "--format", "csv", "--output", tmp_path / "file" / "out.csv")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"loci: cannot write {tmp_path / 'file' / 'out.csv'}: ")
