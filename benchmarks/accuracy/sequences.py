"""A sequence filter against single frames, on traverses and a walk.

    python -m benchmarks.accuracy.sequences

Traverses: corridor and Gardens Point (right within two frames), nordland-rail (right if the same frame; its
ten queries 1150 to 1159 are not on the map). Each runs forwards, backwards, with its halves swapped (the
camera is carried), with every third frame only, and in random order. Walk: campus-phone in order of time;
every other photo is the map, the rest are frames, right within 25 m. Its odometry comes from the frames' GPS.

All rows of a set use one index (`--indexes FOLDER` takes existing ones, by name). Nothing is tuned to a set.
The interval of the gain is a paired bootstrap over blocks of ten frames, because neighbours fail together
(eight blocks if there are fewer than 80 frames). A frame is far off if its photo is more than three frames
from every right one, or over 50 m on the walk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import SETS, photos_of, right_rows
from indexer.build.run import build_index
from indexer.geo import haversine_m, to_local
from indexer.index import Index
from indexer.options import BuildOptions
from indexer.photos.exif import from_exif
from indexer.search.verification import CANDIDATES, raised
from indexer.sequences.bayes_filter import Likeness, SequenceFilter, learn
from indexer.sequences.motion import MetricMotion, Motion, OrderedMotion, Step
from model.embedder import Seen
from model.images import open_photo

TRAVERSES = ("corridor", "gardens", "nordland")
BLOCK, ROUNDS = 10, 10_000
COLUMNS = (
    *(
        "set",
        "frames",
        "what",
        "recall@1",
        "gain, 95 %",
        "far off",
        "average precision",
        "recall at 100 % precision",
    ),
    *("right ones known", "wrong ones known", "foreign ones refused", "calibration error"),
)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Found:
    """Results of T frames: confidence; whether the best photo is right, any is, it is known."""

    sure: Floats
    right: NDArray[np.bool_]
    answerable: NDArray[np.bool_]
    known: NDArray[np.bool_]
    far: NDArray[np.bool_]
    """Whether the answer is far off although some photo is right."""

    def recall(self) -> float:
        return float(self.right[self.answerable].mean())

    def average_precision(self) -> float:
        """Area under the precision-recall curve."""
        order = np.argsort(-self.sure, kind="stable")
        hits = self.right[order].cumsum()
        precision = hits / np.arange(1, len(hits) + 1)
        return float(precision[self.right[order]].sum() / max(self.answerable.sum(), 1))

    def at_precision(self, least: float) -> float:
        """Largest recall with at least this precision."""
        order = np.argsort(-self.sure, kind="stable")
        hits = self.right[order].cumsum()
        enough = hits / np.arange(1, len(hits) + 1) >= least
        return float(hits[enough].max(initial=0) / max(self.answerable.sum(), 1))

    def calibration_error(self) -> float:
        """Expected calibration error over ten bins."""
        bins = np.minimum((self.sure * 10).astype(int), 9)
        parts = [abs(self.right[bins == b].sum() - self.sure[bins == b].sum()) for b in range(10)]
        return float(sum(parts) / len(self.sure))


def gain(one: Found, other: Found) -> str:
    """Gain of `other` over `one` in points, with a 95 % interval."""
    difference = np.where(one.answerable, other.right.astype(float) - one.right, 0.0)
    count = one.answerable.astype(float)
    generator = np.random.default_rng(0)
    blocks = np.array_split(np.arange(len(count)), max(len(count) // BLOCK, min(len(count), 8)))
    sums = np.array([[difference[b].sum(), count[b].sum()] for b in blocks])
    drawn = sums[generator.integers(0, len(sums), (ROUNDS, len(sums)))].sum(axis=1)
    low, high = np.percentile(100 * drawn[:, 0] / np.maximum(drawn[:, 1], 1), [2.5, 97.5])
    return f"{100 * difference.sum() / count.sum():+.1f} ({low:+.1f} to {high:+.1f})"


@dataclass(frozen=True)
class Task:
    """Frames to find on a map."""

    motion: Motion
    likeness: Likeness
    frames: Floats
    """Descriptors, T d."""
    scores: Floats
    """Whether each photo is right, T N."""
    inliers: Sequence[dict[int, int]]
    """Inliers of the CANDIDATES best photos of each frame."""
    right: Sequence[set[int]]
    nearly: Sequence[set[int]]

    def single(self, order: Sequence[int], *, verify: bool = True) -> Found:
        scores = self.scores[order]
        for row, frame in zip(scores, order, strict=True):
            for photo, agreeing in self.inliers[frame].items() if verify else ():
                row[photo] = raised(row[photo], agreeing)
        sure = scores.max(axis=1)
        return self._found(order, scores.argmax(axis=1), sure, sure > -np.inf)

    def filtered(
        self,
        order: Sequence[int],
        steps: Sequence[Step | None] | None,
        smooth: bool = False,
        *,
        blind: bool = False,
        verify: bool = True,
    ) -> Found:
        """Run the filter over `order`; `blind`: without the step estimated from frames."""
        followed = SequenceFilter(self.motion, self.likeness.contrast, remember=True)
        beliefs = []
        for at, frame in enumerate(order):
            step = steps[at] if steps else None
            if at and not blind:
                seen = self.likeness.step(float(self.frames[frame] @ self.frames[order[at - 1]]))
                step = seen if step is None else Step(None, step.metres, step.offset_m, 0.0, seen.novelty)
            beliefs.append(followed.update(self.scores[frame], step, self.inliers[frame] if verify else None))
        if smooth:
            beliefs = followed.smoothed()
        best = np.array([belief.photos.argmax() for belief in beliefs])
        sure = np.array(
            [b.photos[followed.motion.near(int(p))].sum() for b, p in zip(beliefs, best, strict=True)]
        )
        return self._found(order, best, sure, sure > 0.5)

    def _found(self, order: Sequence[int], best: Any, sure: Floats, known: NDArray[np.bool_]) -> Found:
        right = np.array([int(p) in self.right[frame] for p, frame in zip(best, order, strict=True)])
        answerable = np.array([bool(self.right[frame]) for frame in order])
        nearly = np.array([int(p) in self.nearly[frame] for p, frame in zip(best, order, strict=True)])
        return Found(np.asarray(sure, float), right, answerable, known, answerable & ~nearly)


def orders(count: int, name: str) -> dict[str, list[int]]:
    driven = list(range(count))
    half = count // 2 if name != "nordland" else 10
    return {
        "as driven": driven,
        "backwards": driven[::-1],
        "carried half-way": driven[half:] + driven[:half],
        "every third": driven[::3],
        "shuffled": np.random.default_rng(0).permutation(count).tolist(),
    }


def row(name: str, order: str, what: str, found: Found, single: Found, *, probability: bool) -> None:
    foreign = ~found.answerable
    cells = [
        *(name, order, what, f"{100 * found.recall():.1f}"),
        gain(single, found) if found is not single else "",
        str(found.far.sum()),
        f"{100 * found.average_precision():.1f}",
        f"{100 * found.at_precision(1.0):.1f}",
    ]
    if probability:
        kept = f"{(found.known & found.right).sum()} of {found.right.sum()}"
        refused = f"{(foreign & ~found.known).sum()} of {foreign.sum()}" if foreign.any() else ""
        wrong = str((found.known & ~found.right & found.answerable).sum())
        cells += [kept, wrong, refused, f"{found.calibration_error():.2f}"]
    else:
        cells += [""] * 4
    print("| " + " | ".join(cells) + " |", flush=True)


def opened(name: str, photos: Path, options: argparse.Namespace, folder: Path) -> Index:
    if options.indexes and (options.indexes / name).is_dir():
        return Index.open(options.indexes / name)
    build_index([photos], folder / name, BuildOptions(image_size=options.image_size))
    return Index.open(folder / name)


def inliers(
    index: Index, files: Sequence[Path], seen: Sequence[Seen], scores: Floats
) -> list[dict[int, int]]:
    """Inliers with the CANDIDATES best of these files, for each frame."""
    names = {Path(photo.path).name: photo.id for photo in index.photos()}
    ids = [names[file.name] for file in files]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :CANDIDATES].tolist()
    found = [
        {number: index.matches(frame, ids[number]) for number in numbers}
        for frame, numbers in zip(seen, best, strict=True)
    ]
    return [{n: len(agree) for n, agree in of.items() if agree is not None} for of in found]


def by_file(index: Index, files: Sequence[Path]) -> NDArray[np.float32]:
    """Descriptors of the index in the order of these files."""
    names = {Path(photo.path).name: photo.id for photo in index.photos()}
    ids, matrix = index.descriptors()
    return matrix[[ids.index(names[file.name]) for file in files]].astype(np.float32)


def traverse(name: str, options: argparse.Namespace, folder: Path) -> None:
    database, queries = photos_of(name, options.data)
    index = opened(name, options.data / SETS[name][0], options, folder)
    rows, seen = by_file(index, database), [index.see(query) for query in queries]
    frames = np.stack([frame.descriptor for frame in seen]).astype(float)
    scores = np.asarray(frames @ rows.T, np.float64)
    right = right_rows(name, options.data, folder)
    motion = OrderedMotion([len(database)])
    likeness = learn(lambda photos: rows[photos], motion)
    nearly = [{photo + by for photo in of for by in range(-3, 4)} for of in right]
    task = Task(motion, likeness, frames, scores, inliers(index, database, seen, scores), right, nearly)
    for order, numbers in orders(len(queries), name).items():
        single = task.single(numbers)
        row(name, order, "single", single, single, probability=False)
        plain = task.single(numbers, verify=False)
        row(name, order, "single, not verified", plain, single, probability=False)
        for what, settings in (
            ("filter", {}),
            ("smoothed", {"smooth": True}),
            ("filter, not verified", {"verify": False}),
            ("filter, -2 to 9", {"blind": True}),
        ):
            found = task.filtered(numbers, None, **settings)
            row(name, order, what, found, single, probability=True)


def walk(options: argparse.Namespace, folder: Path) -> None:
    photos = options.data / "campus-phone/small"
    index = opened("campus", photos, options, folder)
    known = []
    for file in sorted(photos.iterdir()):
        with open_photo(file) as image:
            known.append((from_exif(image), file))
    known.sort(key=lambda pair: (pair[0].taken_at or "")[:19])
    files = [file for _, file in known]
    lat, lon = (np.array([getattr(m, name) for m, _ in known], float) for name in ("lat", "lon"))
    clock = [np.datetime64((m.taken_at or "")[:19]).astype(float) for m, _ in known]
    rows, seen = by_file(index, files), [index.see(file) for file in files]
    frames = np.stack([frame.descriptor for frame in seen]).astype(float)
    for half in (0, 1):
        base, asked = np.arange(half, len(files), 2), np.arange(1 - half, len(files), 2)
        away = haversine_m(lat[asked, None], lon[asked, None], lat[None, base], lon[None, base])
        motion = MetricMotion(lat[base], lon[base])
        likeness = learn(lambda photos, base=base: rows[base][photos], motion)  # type: ignore[misc]
        right = [set(np.flatnonzero(near <= 25).tolist()) for near in away]
        nearly = [set(np.flatnonzero(near <= 50).tolist()) for near in away]
        scores = np.asarray(frames[asked] @ rows[base].T, np.float64)
        agreeing = inliers(index, [files[n] for n in base], [seen[n] for n in asked], scores)
        task = Task(motion, likeness, frames[asked], scores, agreeing, right, nearly)
        order = list(range(len(asked)))
        pairs = list(pairwise(asked))
        ways = [to_local(lat[b], lon[b], float(lat[a]), float(lon[a])) for a, b in pairs]
        steps: dict[str, list[Step] | None] = {
            "filter": None,
            "filter, at most 1 m/s": [Step(metres=abs(clock[b] - clock[a]) + 1) for a, b in pairs],
            "filter, metres": [Step(metres=float(np.hypot(*way))) for way in ways],
            "filter, dx and dy": (exact := [Step(offset_m=(float(w[0]), float(w[1]))) for w in ways]),
        }
        single = task.single(order)
        name = f"campus {half + 1}"
        row(name, "as walked", "single", single, single, probability=False)
        for what, known_steps in steps.items():
            given: Any = None if known_steps is None else [None, *known_steps]
            row(name, "as walked", what, task.filtered(order, given), single, probability=True)
        found = task.filtered(order, [None, *exact], smooth=True)
        row(name, "as walked", "smoothed, dx and dy", found, single, probability=True)


def cost(photos: int) -> None:
    """Milliseconds a frame of the filter alone, without search and network."""
    generator = np.random.default_rng(0)
    side = int(photos**0.5)
    numbers = np.arange(photos, dtype=np.float64)
    lat, lon = 52 + numbers // side * 1e-4, 0.1 + numbers % side * 1.5e-4
    for name, motion, step in (
        ("traverse", OrderedMotion([photos]), Step(photos=1.0)),
        ("metres", MetricMotion(lat, lon), Step(metres=20.0)),
    ):
        followed = SequenceFilter(motion, 3.0)
        times = []
        for frame in range(6):
            scores = generator.standard_normal(photos)
            scores[photos // 2 + frame] += 8
            begun = time.perf_counter()
            followed.update(scores, step)
            times.append(time.perf_counter() - begun)
        print(f"{name}, {photos:,} photos: {1000 * float(np.median(times[1:])):.0f} ms a frame", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--indexes", type=Path, help="folder of ready indexes: corridor, gardens, …")
    parser.add_argument("--photos", type=int, default=1_000_000, help="of the map whose cost is measured")
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in TRAVERSES:
            traverse(name, options, Path(folder))
        walk(options, Path(folder))
    cost(options.photos)


if __name__ == "__main__":
    main()
