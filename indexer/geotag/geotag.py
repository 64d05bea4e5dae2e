"""Geotagging: positions for photos that have none, if an index is confident enough."""

from __future__ import annotations

import errno
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from indexer.answers import Answer, PlaceHit, Position
from indexer.errors import IndexerError, NotCalibrated, UsageError, XmpError
from indexer.filters import Filters
from indexer.geo import haversine_m
from indexer.geotag.positions_csv import PositionsCsv
from indexer.geotag.sidecars import (
    PhotoNames,
    Sidecar,
    Sidecars,
    check_writable,
    read_sidecar,
    write_estimate,
)
from indexer.geotag.xmp import Xmp
from indexer.index import Index
from indexer.photos.exif import from_exif
from indexer.photos.file_name import from_name
from indexer.photos.metadata_table import read_table
from indexer.photos.scan import ScannedFile, scan
from indexer.progress import Progress, Silent
from indexer.search.localisation import GROUP_RADIUS_M
from model.embedder import Seen
from model.errors import ImageError
from model.images import open_photo

MIN_CONFIDENCE = 0.9
NOTE = "Position estimated by loci from photos that look alike, not measured"

# everything with a position: the whole earth is within this radius
_LOCATED = Filters(lat=0.0, lon=0.0, radius_m=3e7)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

Floats = NDArray[np.float32]
What = Literal["tagged", "has_position", "unsure", "unknown", "no_position", "vague", "sidecar", "unreadable"]


@dataclass(frozen=True)
class GeotagOptions:
    """Options of `geotag`."""

    min_confidence: float = MIN_CONFIDENCE
    """Least probability that the place is right."""
    min_score: float | None = None
    """Least score; replaces the confidence for an index that is not calibrated."""
    max_radius_m: float | None = None
    """Largest radius of a position."""
    metadata: Path | None = None
    """A table of known positions."""
    to: Path | None = None
    """A CSV to write."""
    xmp: bool = False
    """Write XMP sidecars next to the photos."""
    xmp_into: Path | None = None
    """A folder for sidecars instead, in the same tree as the photos."""
    xmp_name: str | None = None
    """Naming of new sidecars: see `sidecars.NAMINGS`."""
    replace: bool = False
    """Query photos again whose sidecar, or line in the CSV, has a position."""
    write: bool = False
    """Write; otherwise nothing is written."""
    limit: int | None = None
    """Most photos to query."""

    def check(self) -> None:
        """Raise UsageError for impossible values."""
        if not 0 <= self.min_confidence <= 1:
            raise UsageError(f"`min_confidence` must be between 0 and 1, not {self.min_confidence:g}")
        if self.min_score is not None and not math.isfinite(self.min_score):
            raise UsageError(f"`min_score` must be a number, not {self.min_score:g}")
        if self.max_radius_m is not None and not self.max_radius_m > 0:
            raise UsageError(f"`max_radius_m` must be above 0 metres, not {self.max_radius_m:g}")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"`limit` must be at least 1, not {self.limit}")
        if self.to is not None and self.to_sidecars:
            raise UsageError("`to` and `xmp` exclude each other: run once for each")
        if self.write and self.to is None and not self.to_sidecars:
            raise UsageError("`write` needs a target: set `to` or `xmp`")

    @property
    def to_sidecars(self) -> bool:
        return self.xmp or self.xmp_into is not None


@dataclass(frozen=True)
class Estimate:
    """The answer of an index for a photo."""

    position: Position | None
    """Estimated position; None if no photo supports one."""
    confidence: float | None
    """Probability that the nearest place is right."""
    score: float
    place: str | None
    """Name of the nearest place, if it has one."""
    place_id: str
    photo: str | None
    """The most similar photo of that place."""

    @property
    def heading(self) -> float | None:
        """Heading of the photo, degrees clockwise from north; None if unknown."""
        return None if self.position is None else self.position.heading


@dataclass(frozen=True)
class Outcome:
    """The result for one photo."""

    file: Path
    path: str
    """Its name in the CSV."""
    what: What
    """`tagged`: its position was written, or would be; otherwise why not."""
    reason: str | None = None
    """In words; for `tagged`, what the position replaces."""
    estimate: Estimate | None = None
    """None if the index was not queried, or has no answer."""
    sidecar: Path | None = None
    """The sidecar that was written, or would be."""


def geotag(
    index: Index, photos: Sequence[Path], options: GeotagOptions, progress: Progress | None = None
) -> Iterator[Outcome]:
    """Estimate positions of photos that have none, in folders or given singly.

    Yields a result for each, when it is written or left. Photos never change, and stopping between two leaves
    whole files. A photo's position may be in a table, its name, a sidecar, the CSV that is written, its EXIF
    or its own XMP. Photos of the index without a position are left out, so the photos may be in the index.

    Raises:
        UsageError: an impossible option, or a table that cannot be read.
        NotCalibrated: the index is not calibrated, and there is no `min_score`.
        IndexerError: no photos; no photo of the index has a position; the disk is full.
    """
    options.check()
    found = scan(photos)
    if not found.files:
        raise IndexerError(f"no photos in {', '.join(map(str, photos))}: nothing to look for")
    for path, reason in found.problems:
        yield Outcome(path, str(path), "unreadable", reason)
    yield from _Run(index, found.files, options, progress or Silent()).outcomes()


class _Run:
    """One run: which photos to query, how to judge the answers, and where to write."""

    def __init__(
        self, index: Index, files: Sequence[ScannedFile], options: GeotagOptions, progress: Progress
    ) -> None:
        self._index = index
        self._files = files
        self._options = options
        self._progress = progress
        self._names = PhotoNames(files)
        self._table = read_table(options.metadata) if options.metadata else None
        self._sidecars = Sidecars(files, self._names, into=options.xmp_into, naming=options.xmp_name)
        self._csv = PositionsCsv(options.to, anew=options.replace) if options.to else None
        self._filters = _filters(index)
        self._settled: deque[Outcome] = deque()  # without a query
        self._calibrated = False

    def outcomes(self) -> Iterator[Outcome]:
        if self._csv and self._options.write:
            self._csv.check_writable()
        self._progress.stage("geotagging", len(self._files))
        reader = self._index.reader
        try:
            for batch in self._index.embedder.stream(self._to_ask(), lambda f: reader(("", f.path))):
                yield from self._drain()
                for embedded in batch:
                    self._progress.advance()
                    if embedded.error is not None:
                        yield self._left(embedded.item, "unreadable", embedded.error)
                    else:
                        yield self._answer(embedded.item, embedded.seen[0])
            yield from self._drain()
            if self._csv and self._options.write:
                self._csv.begin()  # also without new positions, the replaced ones go
        finally:
            if self._csv:
                self._csv.close()

    def _drain(self) -> Iterator[Outcome]:
        while self._settled:
            yield self._settled.popleft()

    def _to_ask(self) -> Iterator[ScannedFile]:
        """Yield photos without a position; `settle` the others on the way."""
        asked = 0
        for file in self._files:
            if asked == self._options.limit:
                return
            settled = self._settle(file)
            if settled is None:
                asked += 1
                yield file
            else:
                self._progress.advance()
                self._settled.append(settled)

    def _settle(self, file: ScannedFile) -> Outcome | None:
        try:
            known = self._known(file)
            if known is not None:
                return self._left(file, "has_position", known)
            if self._options.to_sidecars:
                with _named(self._sidecars.of(file).target.name):
                    check_writable(self._sidecars.of(file))
        except XmpError as error:
            return self._left(file, "sidecar", str(error))
        except ImageError as error:
            return self._left(file, "unreadable", str(error))
        return None

    def _known(self, file: ScannedFile) -> str | None:
        """Return the source of a photo's known position, or None. Raises XmpError, ImageError."""
        listed = self._table.for_photo(file.root, file.relative) if self._table else None
        if self._table and listed and listed.lat is not None:
            return f"in {self._table.path}"
        if from_name(file.path.name).lat is not None:
            return "in its name"
        if not self._options.replace:
            if self._csv and self._csv.has(self._names.of(file)):
                return f"in {self._csv.path}"
            for path in self._sidecars.there(file):
                with _named(path.name):
                    if read_sidecar(path).position():
                        return f"in {path.name}"
        with open_photo(file.path) as image:
            if from_exif(image).lat is not None:
                return "in its EXIF"
            return "in its own XMP" if _has_position(image.info.get("xmp")) else None

    def _answer(self, file: ScannedFile, seen: Seen) -> Outcome:
        answer = self._index.answer(seen, 1, filters=self._filters)
        self._require_confidence(answer)
        if not answer.places:
            return self._left(file, "no_position", "no photo of the index that has a position is like it")
        estimate = _estimate(answer, answer.places[0])
        objection = _objection(answer, estimate, self._options)
        if objection is not None:
            return self._left(file, *objection, estimate)
        return self._tag(file, estimate)

    def _require_confidence(self, answer: Answer) -> None:
        self._calibrated = self._calibrated or answer.confidence is not None
        if not self._calibrated and self._options.min_score is None:
            raise NotCalibrated(
                f"the index {self._index.path} is not calibrated ({answer.note}). Use `min_score` to "
                "threshold on similarity instead; 0 without `write` shows the scores"
            )

    def _tag(self, file: ScannedFile, estimate: Estimate) -> Outcome:
        path, replaced, target = self._names.of(file), None, None
        if self._options.to_sidecars:
            try:
                sidecar = self._sidecars.of(file)
                target = sidecar.target
                with _named(target.name):
                    replaced = _replaced(sidecar)
                    if replaced and not self._options.replace:  # written while the photo was queried
                        return self._left(file, "has_position", f"in {target.name}")
                    if self._options.write:
                        write_estimate(sidecar, *_values(estimate), self._remarks(estimate))
            except XmpError as error:
                return self._left(file, "sidecar", str(error), estimate)
            except OSError as error:
                if error.errno in _DISK_FULL:
                    raise
                return self._left(file, "sidecar", f"{target} cannot be written: {error.strerror}", estimate)
        elif self._csv and self._options.write:
            self._csv.add(_row(path, estimate))
        return Outcome(file.path, path, "tagged", replaced, estimate, target)

    def _remarks(self, estimate: Estimate) -> dict[str, str]:
        """Remarks of a sidecar on an estimate; without the matched photo, whose name may be private."""
        remarks = {"Note": NOTE, "Model": self._index.model_fingerprint, "Score": f"{estimate.score:.4f}"}
        if estimate.confidence is not None:
            remarks["Confidence"] = f"{estimate.confidence:.4f}"
        return remarks

    def _left(self, file: ScannedFile, what: What, reason: str, estimate: Estimate | None = None) -> Outcome:
        return Outcome(file.path, self._names.of(file), what, reason, estimate)


def _filters(index: Index) -> Filters | None:
    """Return the filter for the photos of an index that have a position; None if all have.

    Raises:
        IndexerError: none has.
    """
    located = [photo.lat is not None for photo in index.photos()]
    if not any(located):
        raise IndexerError(f"no photo of the index {index.path} has a position, so it can give none")
    return None if all(located) else _LOCATED


def _estimate(answer: Answer, best: PlaceHit) -> Estimate:
    return Estimate(
        position=answer.position,
        confidence=answer.confidence,
        score=best.score,
        place=best.name,
        place_id=best.id,
        photo=best.photos[0].path if best.photos else None,
    )


def _objection(answer: Answer, estimate: Estimate, options: GeotagOptions) -> tuple[What, str] | None:
    """Return why an answer is not good enough, or None."""
    position, confidence = estimate.position, estimate.confidence
    if answer.known is False:
        return "unknown", "place unknown"
    if confidence is None and options.min_score is None:
        return "unsure", "not sure enough (no confidence)"
    if confidence is not None and confidence < options.min_confidence:
        return "unsure", f"not sure enough (confidence {_below(confidence, options.min_confidence)})"
    if options.min_score is not None and estimate.score < options.min_score:
        return "unsure", f"not like enough (score {_below(estimate.score, options.min_score)})"
    if position is None:
        return "no_position", "no position in the index near"
    if not _is_at(position, answer.places[0]):
        return "no_position", "photos like it speak for another position than its nearest place"
    if options.max_radius_m is not None and position.radius_m > options.max_radius_m:
        return "vague", f"too vague (within {position.radius_m:g} m > {options.max_radius_m:g} m)"
    return None


def _is_at(position: Position, best: PlaceHit) -> bool:
    """Whether the position is that of the best place, to which the confidence belongs.

    Then the best photo is within a group's radius of the position.
    """
    where = best.photos[0] if best.photos else best
    if where.lat is None or where.lon is None:
        return False
    off_m = float(haversine_m(position.lat, position.lon, where.lat, where.lon))
    return off_m <= 2 * GROUP_RADIUS_M


def _below(value: float, bound: float) -> str:
    """Return a value and the bound that it misses, with three digits or more."""
    shown = round(value, 3)
    return f"{shown if shown < bound else math.floor(value * 1000) / 1000:g} < {bound:g}"


def _values(estimate: Estimate) -> tuple[float, float, float, float | None]:
    if estimate.position is None:
        raise ValueError("an estimate without a position cannot be written")
    return estimate.position.lat, estimate.position.lon, estimate.position.radius_m, estimate.heading


def _row(path: str, estimate: Estimate) -> tuple[object, ...]:
    """Return a line of the CSV. A place without a name stays empty: its id would be read as a name."""
    lat, lon, radius_m, heading = _values(estimate)
    return path, lat, lon, radius_m, estimate.confidence, heading, estimate.place, estimate.photo


def _replaced(sidecar: Sidecar) -> str | None:
    """Return what a sidecar's new position replaces. Raises XmpError."""
    xmp = read_sidecar(sidecar.base) if sidecar.base else None
    if xmp is None or xmp.position() is None:
        return None
    return "instead of an earlier estimate" if xmp.estimated else "instead of the position there"


def _has_position(packet: object) -> bool:
    """Whether the XMP within a photo has a position; damaged XMP counts as none."""
    try:
        return isinstance(packet, bytes) and Xmp.parse(packet).position() is not None
    except XmpError:
        return False


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Begin the message of an XmpError with the sidecar's name."""
    try:
        yield
    except XmpError as error:
        raise XmpError(f"{name} {error}") from None
