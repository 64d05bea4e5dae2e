"""How results and progress are written."""

import io

import pytest
from rich.console import Console

from loci import console, progress
from loci.progress import Bars, Lines


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("müller/[red]:smile:.jpg", "müller/[red]:smile:.jpg"),
        ("a\x1b[31mb\r\x07.jpg", r"a\x1b[31mb\r\x07.jpg"),
        ("a\udcff.jpg", r"a\udcff.jpg"),
        ("one\ntwo", "one\ntwo"),
    ],
)
def test_no_name_can_steer_the_terminal(raw: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.printable(raw) == shown
    console.say(raw)
    console.note(raw)
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\n")


def test_piped_table_is_uncut_and_has_no_empty_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = "[x]/" + "long" * 60 + ".jpg"
    columns = (("rank", "right"), ("name", "long"), ("photo", "long"))
    console.table(columns, [(1, None, path), (10, None, "b.jpg")])
    heading, rule, first, second = capsys.readouterr().out.splitlines()
    assert heading.split() == ["rank", "photo"]
    assert set(rule) == {"─"}
    assert first.split() == ["1", path]
    assert second.split() == ["10", "b.jpg"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (24.4, "24 s"), (200, "3 min 20 s"), (2_580, "43 min"), (7_500, "2 h 5 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_quantities() -> None:
    assert [console.distance(m) for m in (0.04, 8.4, 120.4, 3_240)] == ["0.0 m", "8.4 m", "120 m", "3.2 km"]
    assert [console.size(n) for n in (1_200, 29_757_440, 1_200_000_000)] == ["1 kB", "29.8 MB", "1.2 GB"]
    assert [console.count(n, "query", "queries") for n in (1, 1_204)] == ["1 query", "1,204 queries"]
    assert console.latlon(52.2034, -0.114) == "52.203400,-0.114000"
    assert console.latlon(None, None) is None
    assert [progress.pace(n) for n in (0.44, 2_100)] == ["0.4 photos/s", "2,100 photos/s"]


def test_progress_in_a_log_is_a_line_at_times() -> None:
    now = 0.0
    lines: list[str] = []
    shown = Lines(lines.append, lambda: now)
    shown.stage("scanning", None)
    shown.stage("embedding", 10_000)
    for _ in range(300):
        now += 0.5
        shown.advance(2)
    shown.note("fitted anew")
    shown.stage("nothing to do", 0)
    assert lines == [
        "scanning",
        "embedding: 10,000",
        "embedding: 120/10,000, 4.0 photos/s, 41 min left",
        "embedding: 240/10,000, 4.0 photos/s, 40 min left",
        "embedding: 360/10,000, 4.0 photos/s, 40 min left",
        "embedding: 480/10,000, 4.0 photos/s, 39 min left",
        "embedding: 600/10,000, 4.0 photos/s, 39 min left",
        "fitted anew",
    ]


def test_terminal_shows_bars_with_speed_and_time_left() -> None:
    screen = io.StringIO()
    bars = Bars(Console(file=screen, force_terminal=True, width=80, markup=False))
    with bars.shown:
        bars.stage("reading [all]", 3)
        bars.advance(3)
        bars.stage("embedding", 4)
        bars.advance()
        bars.note("a\x1bnote")
        bars.advance()
        bars.shown.refresh()
        half = screen.getvalue()
        bars.finish()
    assert "✓ reading [all]" in half
    assert "3/3" in half
    assert "2/4" in half
    assert "photos/s, " in half
    assert " s left" in half
    assert r"a\x1bnote" in half
    assert "2/2" in screen.getvalue()
    assert "nothing" not in screen.getvalue()
