"""The report: what is in it, what is never in it, and how it behaves in a browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from indexer.charts.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from indexer.evaluation import Comparison, Evaluation, QueryResult, compare, evaluate
from indexer.evaluation.report import charts, write_report
from indexer.evaluation.report.page import _points
from indexer.evaluation.report.pictures import LINES, SIDE, Album, choose, thumbnail, worst_first
from indexer.index import Index

if TYPE_CHECKING:
    from tests.indexer.conftest import Paint, World

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = "<script>document.title='broken'</script> & \"quoted\" '<img src=x>.jpg".replace("/", "∕")

Floats = NDArray[np.float32]


class Parsed(HTMLParser):
    """A page's elements with their attributes, its text, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._raw = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag in ("script", "style")

    def handle_endtag(self, _: str) -> None:
        self._raw = False

    def handle_data(self, data: str) -> None:
        if not self._raw:
            self.text += data

    def of(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        """The elements of a tag whose attributes hold these words."""
        return [
            found
            for name, found in self.elements
            if name == tag and all(v in (found.get(k) or "") for k, v in attributes.items())
        ]


@pytest.fixture(scope="module")
def queries(tmp_path_factory: pytest.TempPathFactory, paint: Paint) -> Path:
    """A view of each wall, one that says it is of another, one far off with a name to break pages."""
    folder = tmp_path_factory.mktemp("report") / "asked"
    for wall in range(4):
        paint(folder / f"q{wall}.jpg", wall, 7)
    paint(folder / EVIL, 30)
    shutil.copy(folder / "q2.jpg", folder / "wrong.jpg")
    rows = [f"q{wall}.jpg,{52 + wall * 0.01},0.25" for wall in range(4)]
    table = "\n".join(["path,lat,lon", *rows, "wrong.jpg,52.01,0.25"])
    (folder / "table.csv").write_text(table)
    return folder


@pytest.fixture(scope="module")
def found(opened: Index, queries: Path) -> Evaluation:
    return evaluate(opened, queries, metadata=queries / "table.csv", at=(1, 2, 8))


def with_confidence(found: Evaluation) -> Evaluation:
    sure = [0.9, 0.2, 0.7, 0.8, 0.95, 0.6]
    results = [replace(r, confidence=c, known=c > 0.5) for r, c in zip(found.results, sure, strict=True)]
    return replace(found, results=tuple(results))


def compared(found: Evaluation) -> Comparison:
    """With an index that gets q1 wrong and wrong.jpg right."""
    first = {"q1.jpg": "wall2", "wrong.jpg": "wall1"}
    other = [with_first(result, first.get(result.name, "")) for result in found.results]
    return compare(found, replace(found, results=tuple(other)), Path("indexes/other <b>"))


def with_first(result: QueryResult, wall: str) -> QueryResult:
    hits = sorted(result.hits, key=lambda hit: wall not in hit.path)
    return replace(result, hits=tuple(hits))


def report(tmp_path: Path, found: Evaluation, index: Index, **more: Any) -> str:
    path = tmp_path / "report.html"
    write_report(path, found, index, **{"title": "walls", **more})
    return path.read_text(encoding="utf-8")


def diagonal(_path: Path, _id: str) -> tuple[Floats, Floats]:
    """Ten made-up matches along the diagonal, shifted by a tenth to the right in the photo."""
    at = np.linspace(0, 0.9, 10, dtype=np.float32)
    return np.stack([at, at], axis=1), np.stack([at + np.float32(0.1), at], axis=1)


# What is in it


def test_report_shows_the_measures(tmp_path: Path, found: Evaluation, opened: Index) -> None:
    page = Parsed(report(tmp_path, found, opened))
    words = " ".join(page.text.split())
    assert "5 queries to 8 photos; right: within 25 m." in words
    assert "recall@1 80.0 %" in words
    assert "1 query with no right photo in the index: wrong when answered" in words
    assert "No reliability diagram: the answers carry no confidence." in words
    assert page.of("article")[0]["data-name"] == worst_first(found)[0].name.lower()
    assert {row["data-kinds"] for row in page.of("article")} == {"right", "wrong", "foreign"}
    assert len(page.of("article")) == 6
    assert [title["id"] for title in page.of("title", id="chart-")] == [
        *("chart-recall", "chart-precision", "chart-errors")
    ]


def test_report_shows_photos_with_answers(tmp_path: Path, found: Evaluation, opened: Index) -> None:
    page = Parsed(report(tmp_path, found, opened))
    pictures = page.of("img")
    assert len(pictures) == 6 * (1 + 5) + 1  # each query and its five nearest, and a right one further down
    for picture in pictures:
        head, _, data = (picture["src"] or "").partition(",")
        assert head == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert (str(image.width), str(image.height)) == (picture["width"], picture["height"])
            assert not image.getexif()
    wrong = next(r for r in found.results if r.name == "wrong.jpg")
    assert {shown["title"] for shown in page.of("figure", **{"class": "shown"})} == {
        photo.path for photo in opened.photos()
    }
    shown = Album(opened).pictures(wrong)
    assert shown.best is not None
    assert wrong.rank is not None
    assert [shown.best.photo.right, *(other.right for other in shown.others)] == [False] * 5 + [True]
    assert [other.rank for other in shown.others] == [2, 3, 4, 5, wrong.rank + 1]
    assert (shown.best.photo.rank, shown.best.matches, shown.first_right) == (1, None, None)


def test_a_right_photo_that_was_not_found_is_shown(found: Evaluation, opened: Index) -> None:
    wrong = next(r for r in found.results if r.name == "wrong.jpg")
    late = Album(opened).pictures(replace(wrong, hits=tuple(h for h in wrong.hits if "wall1" not in h.path)))
    (missed,) = [other for other in late.others if other.rank is None]
    assert (missed.right, missed.score) == (True, None)
    assert missed.path.startswith("photos/wall1/")
    assert missed.distance_m == pytest.approx(0, abs=0.1)
    foreign = next(r for r in found.results if r.name == EVIL)
    assert all(other.rank for other in Album(opened).pictures(foreign).others)


def test_photos_that_are_gone_leave_a_gap(world: World, found: Evaluation, tmp_path: Path) -> None:
    shutil.rmtree(world.photos / "wall1")
    page = Parsed(report(tmp_path, found, world.open()))
    assert len(page.of("span", **{"class": "missing"})) == 37 - len(page.of("img"))
    assert 6 < len(page.of("img")) < 37


def test_match_lines(tmp_path: Path, found: Evaluation, opened: Index) -> None:
    """Photos are 48 by 32: y is in units of the width, x of the second photo begins at 1."""
    right = next(r for r in found.results if r.name == "q0.jpg")
    shown = Album(opened, diagonal).pictures(right)
    assert shown.best is not None
    assert (shown.best.matches, shown.first_right) == (10, None)
    assert shown.best.height == pytest.approx(2 / 3)
    assert shown.best.lines[1] == pytest.approx((0.1, 0.2 / 3, 1.2, 0.2 / 3), abs=1e-3)
    wrong = next(r for r in found.results if r.name == "wrong.jpg")
    both = Album(opened, diagonal).pictures(wrong)
    assert both.first_right is not None
    assert (both.first_right.photo.right, both.first_right.matches) == (True, 10)
    assert both.first_right.photo not in both.others
    page = report(tmp_path, found, opened, matches=diagonal)
    assert page.count('<svg class="matches" viewBox="0 0 2 0.66') == 6 + 1
    assert "10 matches" in page


def test_many_and_missing_matches(found: Evaluation, opened: Index) -> None:
    many = np.random.default_rng(0).random((500, 2), np.float32)
    shown = Album(opened, lambda *_: (many, many)).pictures(found.results[0])
    assert shown.best is not None
    assert (shown.best.matches, len(shown.best.lines)) == (500, LINES)
    none = np.empty((0, 2), np.float32)
    shown = Album(opened, lambda *_: (none, none)).pictures(found.results[0])
    assert shown.best is not None
    assert (shown.best.matches, shown.best.lines) == (0, ())
    shown = Album(opened, lambda *_: None).pictures(found.results[0])
    assert shown.best is not None
    assert (shown.best.matches, shown.best.lines) == (None, ())


def test_confidences_and_a_comparison(tmp_path: Path, found: Evaluation, opened: Index) -> None:
    sure = with_confidence(found)
    page = Parsed(report(tmp_path, sure, opened, comparison=compared(sure)))
    words = " ".join(page.text.split())
    assert "chart-reliability" in [title["id"] for title in page.of("title", id="chart-")]
    assert "Against other <b>" in words
    assert "Only this index is right about 1 query, only other <b> about 1" in words
    assert {row["data-kinds"] for row in page.of("article")} >= {"right gained", "wrong lost"}
    assert [radio["value"] for radio in page.of("input", type="radio")] == [
        *("all", "wrong", "right", "foreign", "gained", "lost")
    ]
    assert "20 % sure" in words
    assert "refused: not a place of the index" in words


# What is never in it


def test_names_are_escaped(tmp_path: Path, found: Evaluation, opened: Index) -> None:
    source = report(tmp_path, found, opened)
    page = Parsed(source)
    assert EVIL in page.text
    assert EVIL.lower() in [row["data-name"] for row in page.of("article")]
    assert len(page.of("script")) == 1
    assert "<script>document" not in source
    assert {picture["src"] for picture in page.of("img", src="x")} & {"x"} == set()


def test_report_loads_nothing_from_elsewhere(tmp_path: Path, found: Evaluation, opened: Index) -> None:
    source = report(tmp_path, found, opened, matches=diagonal, comparison=compared(found))
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(r'src="data:[^"]*"', "", source))
    assert not re.findall(r"url\(|@import|<link", source)
    assert "default-src 'none'" in source
    assert str(opened.path.parent) not in source
    assert str(found.results[0].file.root.parent) not in source


# Which queries get pictures


@pytest.mark.parametrize(("most", "shown"), [(0, 0), (3, 3), (100, 6)])
def test_so_many_queries_get_pictures(
    tmp_path: Path, found: Evaluation, opened: Index, most: int, shown: int
) -> None:
    page = Parsed(report(tmp_path, found, opened, pictured=most))
    articles = page.of("article")
    assert (len(articles), sum("data-pictured" in row for row in articles)) == (6, shown)
    assert all("data-pictured" in row for row in articles[:shown])


def test_the_worst_and_a_sample_of_the_others(found: Evaluation) -> None:
    """Four answered wrongly, scoring 0 to .3, and forty rightly, scoring 0 to .39."""

    def made(name: str, like: QueryResult, score: float) -> QueryResult:
        best = replace(like.hits[0], score=score)
        return replace(like, file=like.file._replace(relative=name), hits=(best, *like.hits[1:]))

    by_name = {result.name: result for result in found.results}
    wrong = [made(f"w{n}", by_name["wrong.jpg"], n / 10) for n in range(4)]
    right = [made(f"r{n}", by_name["q0.jpg"], n / 100) for n in range(40)]
    evaluation = replace(found, results=(*wrong, *right))
    assert [r.name for r in worst_first(evaluation)][:6] == ["w3", "w2", "w1", "w0", "r0", "r1"]
    chosen = [r.name for r in choose(evaluation, 6)]
    assert chosen[:3] == ["w3", "w2", "w1"]
    assert len(set(chosen)) == 6
    assert [r.name for r in choose(evaluation, 6)] == chosen
    assert [r.name for r in choose(evaluation, 6, seed=5)] != chosen
    assert "r39" in [r.name for r in choose(evaluation, 3, changed=[right[39]])]
    assert len(choose(evaluation, 1000)) == 44
    assert choose(evaluation, 0) == []


# Figures drawn


def test_curves_have_the_right_coordinates(found: Evaluation) -> None:
    recall, precision, errors = charts.charts(found, None)
    assert recall.lines[0].dots[0].label == "recall@1: 80.0 %"
    top, bottom = TOP, HEIGHT - BOTTOM
    assert recall.lines[0].path.startswith(f"M{LEFT:g} {bottom:g}L")  # 80 % is the lowest shown
    assert [tick.label for tick in recall.y_ticks] == ["80 %", "100 %"]
    assert (precision.y_ticks[0].at, precision.y_ticks[-1].at) == (bottom, top)
    assert errors.upright is not None
    assert errors.upright.label == "25 m"
    assert errors.lines[0].path.startswith(f"M{LEFT:g} {bottom:g}L")
    assert [tick.label for tick in errors.x_ticks] == ["1 m", "10 m", "100 m", "1 km", "10 km"]


def test_position_errors_rise_by_steps(found: Evaluation) -> None:
    """Of 1, 10 and 100 m: a third at each of three decades; the median is on the curve."""
    errors = [1.0, 10.0, 100.0]
    made = replace(found)
    made.__dict__["errors_m"] = errors
    chart = charts.error_chart([("", made)], None)
    left, right = LEFT, WIDTH - RIGHT
    top, bottom = TOP, HEIGHT - BOTTOM
    third, middle = (bottom - top) / 3, (left + right) / 2
    points = [tuple(map(float, p.split())) for p in chart.lines[0].path.removeprefix("M").split("L")]
    assert points == [
        (left, bottom),
        (left, bottom),
        (left, pytest.approx(bottom - third, abs=0.1)),
        (middle, pytest.approx(bottom - third, abs=0.1)),
        (middle, pytest.approx(bottom - 2 * third, abs=0.1)),
        (right, pytest.approx(bottom - 2 * third, abs=0.1)),
        (right, top),
    ]
    assert (chart.lines[0].dots[0].x, chart.lines[0].dots[0].y) == (middle, (top + bottom) / 2)


def test_a_long_curve_is_thinned() -> None:
    points = [(float(n), float(n)) for n in range(10_000)]
    thinned = charts._thinned(points)
    assert (len(thinned), thinned[0], thinned[-1]) == (charts.STEPS, points[0], points[-1])
    assert charts._thinned(points[:5]) == points[:5]


@pytest.mark.parametrize(
    ("value", "words"), [(4.2, "4.2 m"), (18.4, "18 m"), (1234, "1.2 km"), (56_000, "56 km")]
)
def test_metres(value: float, words: str) -> None:
    assert charts.metres(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0.0123, "+1.2"), (-0.05, "−5.0"), (-0.0001, "0.0"), (0.1, "+10.0")]
)
def test_points(value: float, words: str) -> None:
    assert _points(value) == words


def test_a_thumbnail_is_small(tmp_path: Path, paint: Paint) -> None:
    found = thumbnail(paint(tmp_path / "large.jpg", 0, size=(800, 400)))
    assert found is not None
    assert (found.width, found.height) == (SIDE, SIDE // 2)
    (tmp_path / "text.jpg").write_text("no photo")
    assert thumbnail(tmp_path / "text.jpg") is None


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(390, "light"), (1440, "dark")], ids=["phone", "desk"])
def page(
    request: pytest.FixtureRequest, browser: Browser, tmp_path: Path, found: Evaluation, opened: Index
) -> Iterator[Page]:
    """A report in a browser that has no network, and notes what is asked for or goes wrong."""
    width, scheme = request.param
    sure = with_confidence(found)
    report(tmp_path, sure, opened, matches=diagonal, comparison=compared(sure), pictured=5)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(("data:", "file:")) else wrong.append(r.url))
    page.goto((tmp_path / "report.html").as_uri())
    yield page
    assert wrong == []
    context.close()


@pytest.mark.slow
def test_in_a_browser(page: Page) -> None:
    assert page.title() == "walls"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    rows = page.locator("article.query:visible")
    assert (rows.count(), page.locator("output").text_content()) == (5, "5 of 6 shown")
    page.get_by_label("only with pictures").uncheck()
    names = [row.get_attribute("data-name") or "" for row in rows.all()]
    assert len(names) == 6
    page.locator("label:has([value=wrong])").click()
    assert [row.get_attribute("data-name") for row in rows.all()] == ["wrong.jpg"]
    page.locator("label:has([value=all])").click()
    page.get_by_label("only with pictures").check()
    (hidden,) = [n for n in names if n not in [row.get_attribute("data-name") for row in rows.all()]]
    page.get_by_role("searchbox").fill(hidden.upper())
    assert [row.get_attribute("data-name") for row in rows.all()] == [hidden]
    page.get_by_role("searchbox").fill("Q1")
    assert [row.get_attribute("data-name") for row in rows.all()] == ["q1.jpg"]
    page.get_by_role("searchbox").fill("nothing like it")
    assert (rows.count(), page.get_by_text("No query fits.").is_visible()) == (0, True)


@pytest.mark.slow
def test_match_lines_lie_over_their_photos(page: Page) -> None:
    """The drawing spans both photos, so that fractions of them are where they are on the screen."""
    boxes = page.evaluate(
        """() => {
            const pair = document.querySelector('.pair:has(.matches)');
            pair.scrollIntoView();
            return [...pair.querySelectorAll('img, .matches')].map(e => e.getBoundingClientRect().toJSON());
        }"""
    )
    asked, shown, lines = boxes
    assert lines["left"] == pytest.approx(asked["left"], abs=1)
    assert lines["right"] == pytest.approx(shown["right"], abs=1)
    assert shown["left"] == pytest.approx(asked["right"], abs=1)
    assert (lines["top"], lines["bottom"]) == pytest.approx((asked["top"], asked["bottom"]), abs=1)
