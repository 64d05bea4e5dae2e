"""Filters: which photos may be in an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime

from indexer.errors import FieldError

DEFAULT_TOLERANCE = 45.0
DAY_S = 86_400.0


@dataclass(frozen=True)
class Filters:
    """Conditions on the photos in an answer. A photo without the data for a condition is left out.

    A time without a UTC offset is compared with the clock times of photos. A time with an offset is compared
    with the photos' times in UTC; a photo's time without an offset then counts as UTC. If only the day of a
    photo is known, the whole day must be in range.

    Raises:
        FieldError: a value is out of range, or needs another field; the message names the field.
    """

    lat: float | None = None
    """Degrees north, with `lon`. Without `radius_m`, answers only contain the distance to each place."""
    lon: float | None = None
    """Degrees east."""
    radius_m: float | None = None
    """Photos at most so many metres from (lat, lon), along the great circle."""
    taken_after: str | None = None
    """ISO 8601: photos taken at this time or later."""
    taken_before: str | None = None
    """ISO 8601: photos taken before this time."""
    heading: float | None = None
    """Photos, or views of a panorama, with this viewing direction, degrees clockwise from north."""
    heading_tolerance: float = DEFAULT_TOLERANCE
    """Most degrees from `heading`, to either side."""
    place: str | None = None
    """Photos of the places with this id or name."""

    def __post_init__(self) -> None:
        check_position(self.lat, self.lon)
        if self.radius_m is not None:
            if not (math.isfinite(self.radius_m) and self.radius_m > 0):
                raise FieldError("radius_m", f"must be more than 0 metres, not {self.radius_m:g}")
            if self.lat is None:
                raise FieldError("radius_m", "needs lat and lon")
        after, before = self.after, self.before
        if after is not None and before is not None and after.precedes(before) is False:
            raise FieldError("taken_before", "must be later than taken_after")
        within("heading", self.heading, 0, 360)
        within("heading_tolerance", self.heading_tolerance, 0, 180)
        if self.place is not None and not self.place:
            raise FieldError("place", "must be a place's id or name, not empty")

    @property
    def after(self) -> Moment | None:
        """`taken_after` as a moment."""
        return _moment("taken_after", self.taken_after)

    @property
    def before(self) -> Moment | None:
        """`taken_before` as a moment."""
        return _moment("taken_before", self.taken_before)

    @property
    def position(self) -> tuple[float, float] | None:
        """Latitude and longitude; None if not set."""
        return None if self.lat is None or self.lon is None else (self.lat, self.lon)

    @property
    def narrow(self) -> bool:
        """Whether any condition is set."""
        return any(
            value is not None
            for value in (self.radius_m, self.taken_after, self.taken_before, self.heading, self.place)
        )


@dataclass(frozen=True)
class Moment:
    """A time of a photo or filter."""

    clock: float
    """Seconds since 1970 of the clock time, as if it were in UTC."""
    offset: float | None
    """Seconds that the clock is ahead of UTC; None if unknown."""
    lasts: float = 0.0
    """Seconds of uncertainty: a day if only the day is known."""

    @property
    def has_offset(self) -> bool:
        return self.offset is not None

    def precedes(self, other: Moment) -> bool | None:
        """Return whether this is before another; None if only one of them has an offset."""
        return self.seconds < other.seconds if self.has_offset == other.has_offset else None

    @property
    def seconds(self) -> float:
        """Seconds since 1970, in UTC if there is an offset, otherwise of the clock time."""
        return self.clock - (self.offset or 0.0)


def read_moment(text: str) -> Moment | None:
    """Read ISO 8601, with or without time and offset; return None for other text."""
    try:
        if len(text) <= 10 and "T" not in text:  # a date, in any of ISO 8601's forms
            day = date.fromisoformat(text)
            return Moment(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp(), None, DAY_S)
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    offset = moment.utcoffset()
    clock = (moment.replace(tzinfo=UTC) - _EPOCH).total_seconds()
    return Moment(clock, None if offset is None else offset.total_seconds())


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(field: str, text: str | None) -> Moment | None:
    if text is None:
        return None
    moment = read_moment(text.strip())
    if moment is None:
        raise FieldError(
            field, f"must be a time such as 2024-09-23T16:06:58 or 2024-09-23, not {text[:40]!r}"
        )
    return moment


def check_position(lat: float | None, lon: float | None) -> None:
    """Raise FieldError for an incomplete or impossible position."""
    within("lat", lat, -90, 90)
    within("lon", lon, -180, 180)
    if (lat is None) != (lon is None):
        missing, other = ("lat", "lon") if lat is None else ("lon", "lat")
        raise FieldError(missing, f"is missing, though {other} is given")


def within(field: str, value: float | None, least: float, most: float) -> None:
    """Raise FieldError for a value that is out of range or not a number."""
    if value is not None and not least <= value <= most:
        raise FieldError(field, f"must be {least:g} to {most:g}, not {value:g}")
