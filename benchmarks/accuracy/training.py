"""Recall after a short training run on a CPU, on streets that it never saw: three seeds.

    python -m benchmarks.accuracy.training

Cambridge-street is divided into thirds by squares of land. For each third, `train_model` trains pooling and
reduction over frozen VGG16 on all photos that are not within 25 m of it, and holds out a part to choose the
epoch. Then the photos of the third are queried, before and after training. "Views": each among all other
photos, right within 25 m with the same heading (near photos with another heading are left out). "Queries":
those of `queries/` among `database/`, right within 25 m. Each third has one seed, for clusters, batches and
what is held out.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import RememberedMaps
from indexer.geo import to_local
from indexer.options import BuildOptions
from indexer.photos.scan import scan
from indexer.progress import Silent
from indexer.training.dataset import Supervision, TrainingPhoto, find_photos, training_set
from indexer.training.options import TrainingOptions
from indexer.training.train import train_model
from model.embedder import Embedder
from model.images import read_photo
from model.modelfile import PlaceModel, load_model
from model.training.mining import TrainingSet
from model.training.trainer import TrainOptions

SQUARE, RADIUS = 100.0, 25.0
"""Sides of the squares, and the radius of right photos, in metres."""

Floats = NDArray[np.float64]


class Epochs(Silent):
    """Prints the result of each epoch."""

    def epoch(self, line: str) -> None:
        print(f"    {line}", flush=True)


def positions(photos: list[TrainingPhoto]) -> Floats:
    """Metres east and north of the first photo, n 2."""
    known = [(photo.lat, photo.lon) for photo in photos if photo.lat is not None and photo.lon is not None]
    if len(known) < len(photos):
        raise SystemExit("every photo needs a position")
    return np.array([to_local(lat, lon, *known[0]) for lat, lon in known])


def thirds(at: Floats) -> NDArray[np.int64]:
    """The third of each photo, by randomly dealt squares, n."""
    _, square = np.unique(np.floor(at / SQUARE), axis=0, return_inverse=True)
    order = np.random.default_rng(0).permutation(square.max() + 1)
    before = np.concatenate([[0], np.bincount(square)[order].cumsum()[:-1]])  # photos in squares dealt before
    third = np.empty(len(order), np.int64)
    third[order] = 3 * before // len(at)
    dealt: NDArray[np.int64] = third[square]
    return dealt


def hits(model: PlaceModel, photos: list[TrainingPhoto], data: TrainingSet) -> tuple[Floats, Floats]:
    """1 if the first answer is right, else 0: for views that have a right photo, and for queries."""
    embedder = Embedder(model)
    size = model.config.image_size
    rows = np.concatenate([embedder.embed([read_photo(photo.path, size)]) for photo in photos])
    in_database = np.array([photo.path.parent.name == "database" for photo in photos])
    database = np.flatnonzero(in_database)
    views, queries = [], []
    for row in data.held_queries:
        beside = [row, *np.setdiff1d(data.near[row], data.right[row])]
        others = np.setdiff1d(np.arange(len(photos)), beside)
        if len(data.right[row]):
            views.append(others[(rows[others] @ rows[row]).argmax()] in data.right[row])
        if not in_database[row]:
            queries.append(database[(rows[database] @ rows[row]).argmax()] in data.near[row])
    return np.array(views, np.float64), np.array(queries, np.float64)


def interval(before: Floats, after: Floats) -> str:
    """95 % interval of the gain in points, by a bootstrap over queries."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(before), size=(10_000, len(before)))
    low, high = np.percentile(100 * (after - before)[drawn].mean(1), [2.5, 97.5])
    return f"{low:+.1f} to {high:+.1f}"


def cells(before: Floats, after: Floats) -> str:
    """Number of queries, recall@1 in % before and after, and the gain's interval."""
    found = f"{100 * before.mean():.1f} | {100 * after.mean():.1f}"
    return f"{len(before)} | {found} | {interval(before, after)}"


def run(
    photos: list[TrainingPhoto], options: argparse.Namespace, seed: int, folder: Path
) -> list[tuple[Floats, Floats]]:
    """Results of views and queries, before and after."""
    at = positions(photos)
    aside = thirds(at) == seed
    near = np.linalg.norm(at[:, None] - at[None, aside], axis=2).min(1) <= RADIUS
    rest = [photo.path for photo, away in zip(photos, ~near, strict=True) if away]
    into = folder / f"seed{seed}.safetensors"
    told = TrainingOptions(
        fit=BuildOptions(image_size=options.image_size, seed=seed),
        supervision=Supervision(held_out=0.15, seed=seed),
        train=TrainOptions(epochs=options.epochs, patience=options.epochs, loss=options.loss, seed=seed),
    )
    report = train_model(rest, into, told, Epochs())
    data = replace(training_set(photos, Supervision()), held_queries=np.flatnonzero(aside))
    start = load_model(into.with_name(f"{into.name}.training") / "initial.safetensors")
    found = list(zip(hits(start, photos, data), hits(load_model(into), photos, data), strict=True))
    print(
        f"| {seed} | {report.trained_on} | {report.best_epoch} of {report.epochs} "
        f"| {cells(*found[0])} | {cells(*found[1])} | {report.seconds:.0f} s |",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--image-size", type=int, default=480)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--loss", default="triplet")
    options = parser.parse_args()
    RememberedMaps.install()
    street = options.data / "cambridge-street"
    photos, _ = find_photos(scan([street / "database", street / "queries"]), None)
    columns = "asked | recall@1 before | after | gain, 95 %"
    print(f"| seed | trained on | epoch kept | views {columns} | queries {columns} | time |")
    print("|" + "---|" * 12, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = [run(photos, options, seed, Path(folder)) for seed in range(3)]
    views, queries = (
        [np.concatenate(part) for part in zip(*(run[kind] for run in runs), strict=True)] for kind in (0, 1)
    )
    print(f"| all | | | {cells(*views)} | {cells(*queries)} | |")


if __name__ == "__main__":
    main()
