"""A chart: its values as coordinates, which the template `chart.svg` draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

WIDTH, HEIGHT = 460, 330
LEFT, RIGHT, TOP, BOTTOM = 72, 14, 12, 52

Scale = Callable[[float], float]


@dataclass(frozen=True)
class Tick:
    """A labelled line of the grid, at a coordinate of its axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Dot:
    """A point of a curve, with a label for the mouse."""

    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Line:
    """One curve."""

    name: str
    path: str
    """SVG path data."""
    dots: tuple[Dot, ...] = ()


@dataclass(frozen=True)
class Bar:
    """A bar from the axis up, with its number of queries."""

    x: float
    width: float
    y: float
    height: float
    queries: int
    label: str


@dataclass(frozen=True)
class Chart:
    """A drawing of `WIDTH` by `HEIGHT` pixels; the origin is at the top left."""

    id: str
    title: str
    caption: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    diagonal: bool = False
    upright: Tick | None = None
    """A marked value of the x axis."""


def linear(low: float, high: float, *, across: bool) -> Scale:
    """Return the scale from values low to high to coordinates: left to right, or bottom up."""
    if across:
        return lambda value: round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)
    return lambda value: round(HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM), 1)


def path(points: Iterable[tuple[float, float]]) -> str:
    """Return SVG path data of a polyline."""
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in points)


def layout() -> dict[str, int]:
    """Return the sizes that the templates use."""
    return {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}


def svg(title: str, charts: Sequence[Chart]) -> str:
    """Return charts, one below the other, as one SVG file."""
    environment = Environment(
        loader=PackageLoader("indexer.charts"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    values: dict[str, Any] = {"title": title, "charts": charts, **layout()}
    return environment.get_template("charts.svg").render(values)
