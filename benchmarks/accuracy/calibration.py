"""Calibration of confidence on queries that it was not fitted on, with their places present and absent.

    python -m benchmarks.accuracy.calibration ../shared/data --image-size 480

Every query with a right answer runs twice: on the whole index, and without the photos around it (100 m, or
the places of the right frames and their neighbours). Other queries run once. Confidence assumes a known share
of one half, which is the share in this experiment. `known` uses the default share. Position and heading are
measured on answers whose place is present.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import SETS, RememberedMaps, truth_file
from indexer.answers import KNOWN_SHARE, PhotoHit
from indexer.build.run import build_index
from indexer.confidence.calibration import BINS, KNOWN_FROM, Calibration, expected_calibration_error
from indexer.confidence.evidence import Evidence, Level, evidence_of
from indexer.evaluation.queries import Query
from indexer.evaluation.truth import by_file
from indexer.geo import haversine_m
from indexer.index import Index
from indexer.options import BuildOptions
from indexer.photos.metadata import PhotoMetadata
from indexer.photos.read_metadata import read_metadata
from indexer.photos.scan import ScannedFile, scan
from indexer.places.neighbourhood import Neighbourhoods, PlaceRule, frame_ranks
from indexer.search.localisation import LOCATE_BY, locate
from indexer.search.searcher import WEIGHED
from indexer.search.verification import CANDIDATES, Features, cosine, inliers, raised
from indexer.snapshots.store import sampled
from model.embedder import Seen

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
RIGHT_M, AROUND_M = 25.0, 100.0
PLACES = {"nordland": "frames:2", "corridor": "frames:3", "gardens": "frames:3"}


@dataclass(frozen=True)
class Asked:
    """One query and its result."""

    evidence: Evidence
    right: bool
    present: bool
    foreign: bool
    """Whether no photo of the set shows its place."""
    inside: bool | None = None
    """Whether the position lies within its radius."""
    turned: float | None = None
    """Heading error in degrees; NaN if the answer has none."""


class Bench:
    """An index that can answer without some of its photos."""

    def __init__(self, path: Path) -> None:
        self.index = Index.open(path)
        calibration = Calibration.from_json(self.index.manifest.calibration)
        if calibration is None:
            raise SystemExit(f"{path} was made by another version: run 'loci index' again")
        self.calibration = calibration
        catalogue = self.index.catalogue
        self.ids, self.rows = self.index.descriptors()
        photos = {photo.id: photo for photo in self.index.photos()}
        self.photos = [photos[id] for id in self.ids]
        self._features: dict[str, Features] = {}
        self.number = {id: i for i, id in enumerate(self.ids)}
        places = {member: place.id for place in catalogue.assigned_places() for member in place.members}
        frames = calibration.frames
        ranks = frame_ranks(catalogue.place_photos(), frames) if frames else None
        rule = PlaceRule(calibration.place_radius_m, frames, calibration.named)
        self.where = Neighbourhoods.of(self.photos, places, rule, ranks)

    def ask(self, seen: Seen, gone: Mask) -> tuple[list[int], list[PhotoHit], Evidence]:
        """The best photos that are not left out, as numbers and hits, and the evidence for the first."""
        scores = (self.rows @ seen.descriptor).astype(np.float64)
        sample = sampled(np.arange(len(scores)))
        level = Level.of(scores[sample[~gone[sample]]])
        scores[gone] = -np.inf
        top = np.argsort(-scores, kind="stable")[: min(WEIGHED, int((~gone).sum()))]
        hits = [self._hit(int(i), float(scores[i])) for i in top]
        if seen.local is not None:
            asked = Features.of(seen.local)
            hits[:CANDIDATES] = [self._verified(asked, hit) for hit in hits[:CANDIDATES]]
            hits.sort(key=lambda hit: -hit.score)
        numbers = [self.number[hit.id] for hit in hits]
        near = self.where.near(numbers[0])[numbers]
        cosines = np.array([cosine(hit) for hit in hits])
        return numbers, hits, evidence_of(cosines, near, level, [hit.inliers for hit in hits])

    def _hit(self, number: int, score: float) -> PhotoHit:
        photo = self.photos[number]
        return PhotoHit(photo.id, photo.path, score, None, photo.lat, photo.lon, photo.heading)

    def _verified(self, asked: Features, hit: PhotoHit) -> PhotoHit:
        agreeing = inliers(asked, self.features(hit.id))
        return replace(hit, score=raised(hit.score, agreeing), inliers=agreeing)

    def features(self, photo: str) -> Features:
        """Local features of a photo."""
        if photo not in self._features:
            self._features[photo] = self.index._search.features(photo)[0]
        return self._features[photo]

    def truth(self, known: PhotoMetadata | None, positives: frozenset[str]) -> tuple[Mask, Mask]:
        """Masks of the right photos, and of those around."""
        if known is not None and known.lat is not None and known.lon is not None:
            lat, lon = (np.array([getattr(photo, of) for photo in self.photos]) for of in ("lat", "lon"))
            away = haversine_m(known.lat, known.lon, lat, lon)
            return np.asarray(away <= RIGHT_M), np.asarray(away <= AROUND_M)
        right = np.isin(self.ids, list(positives))
        around = np.zeros(len(right), bool)
        for photo in np.flatnonzero(right).tolist():
            around |= self.where.around(photo)
        if self.calibration.frames == 2:  # one right frame for a query: its place is the answer
            right |= np.isin(self.where.place, self.where.place[right])
        return right, around


def run(bench: Bench, files: Sequence[ScannedFile], truth: Path | None, *, verify: bool) -> list[Asked]:
    """Run every query."""
    index = bench.index
    queries = [Query(file, PhotoMetadata() if truth else read_metadata(file)) for file in files]
    positives = [one.photos or frozenset() for one in by_file(truth, index, queries)] if truth else []
    asked: list[Asked] = []
    for batch in index.embedder.stream([(str(i), f.path) for i, f in enumerate(files)], index.reader):
        for embedded in batch:
            at = int(embedded.item[0])
            seen = embedded.seen[0] if verify else Seen(embedded.outputs[0])
            known = None if truth else queries[at].known
            right, around = bench.truth(known, positives[at] if truth else frozenset())
            top, hits, evidence = bench.ask(seen, np.zeros_like(right))
            if not right.any():
                asked.append(Asked(evidence, False, False, True))
                continue
            inside, turned = _position(hits, known, bench.calibration.radius_factor)
            asked.append(Asked(evidence, bool(right[top[0]]), True, False, inside, turned))
            asked.append(Asked(bench.ask(seen, around)[2], False, False, False))
    return asked


def _position(
    hits: Sequence[PhotoHit], known: PhotoMetadata | None, factor: float
) -> tuple[bool | None, float | None]:
    position = locate(hits[:LOCATE_BY], radius_factor=factor)
    if position is None or known is None or known.lat is None or known.lon is None:
        return None, None
    off_m = float(haversine_m(known.lat, known.lon, position.lat, position.lon))
    if known.heading is None:
        return off_m <= position.radius_m, None
    turned = np.nan if position.heading is None else (position.heading - known.heading + 180) % 360 - 180
    return off_m <= position.radius_m, abs(float(turned))


def show(name: str, bench: Bench, asked: Sequence[Asked]) -> None:
    """Print the results of a set."""
    calibration = bench.calibration
    if calibration.model is None:
        print(f"{name}: not calibrated: {calibration.reason}\n")
        return
    half, default = (
        np.array([(calibration.probabilities(one.evidence, share) or {})["right"] for one in asked])
        for share in (0.5, KNOWN_SHARE)
    )
    right, present, foreign = (
        np.array([getattr(one, of) for one in asked]) for of in ("right", "present", "foreign")
    )
    known = default >= KNOWN_FROM
    error = expected_calibration_error(half, right, np.ones(len(asked)))
    print(f"{name}: {len(bench.ids)} photos, {calibration.queries} of them asked; {len(asked)} questions")
    print(
        f"    right where the place is there: {right.sum() / present.sum():.3f}; AUC {_auc(half, right):.3f}"
    )
    print(
        f"    expected calibration error {error:.3f}; confidence {half.mean():.3f}, right {right.mean():.3f}"
    )
    bins = np.minimum((half * BINS).astype(int), BINS - 1)
    cells = [(half[bins == b].mean(), right[bins == b].mean(), (bins == b).sum()) for b in np.unique(bins)]
    print("    said/right (questions): " + "  ".join(f"{said:.2f}/{was:.2f} ({n})" for said, was, n in cells))
    print(f"    known share {KNOWN_SHARE}: right answers known {known[right].mean():.3f}", end="")
    print(f", absent places refused {(~known[~present]).mean():.3f}", end="")
    print(f", foreign queries refused {(~known[foreign]).sum()} of {foreign.sum()}" if foreign.any() else "")
    inside = [one.inside for one in asked if one.inside is not None]
    if inside:
        print(
            f"    positions within their radius: {np.mean(inside):.3f} (factor {calibration.radius_factor})"
        )
    turned = np.array([one.turned for one in asked if one.turned is not None])
    if len(turned):
        told = turned[~np.isnan(turned)]
        off = ", ".join(f"{value:.1f}" for value in np.percentile(told, (50, 75, 90)))
        print(
            f"    heading told for {len(told)} of {len(turned)}: off by {off} degrees (50, 75, 90 %)", end=""
        )
        print(f", by 45 or less for {(told <= 45).mean():.3f}")
    print(flush=True)


def _auc(confidence: Floats, right: Mask) -> float:
    above = confidence[right][:, None] - confidence[~right]
    return float((above > 0).mean() + 0.5 * (above == 0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--indexes", type=Path, help="a folder of indexes that are there, by a set's name")
    options = parser.parse_args()
    RememberedMaps.install()
    for name in options.sets:
        database, queries = (options.data / part for part in SETS[name])
        with tempfile.TemporaryDirectory() as folder:
            into = (options.indexes or Path(folder)) / name
            if options.indexes is None:
                build_index(
                    [database], into, BuildOptions(image_size=options.image_size, places=PLACES.get(name))
                )
            bench = Bench(into)
            truth = truth_file(name, options.data, Path(folder))
            files = scan([queries]).files
            for verify in (False, True):
                label = f"{name}, verified" if verify else name
                show(label, bench, run(bench, files, truth, verify=verify))


if __name__ == "__main__":
    main()
