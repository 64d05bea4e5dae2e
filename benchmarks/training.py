"""Whether a short training run on a CPU finds more, on streets that it never saw: three seeds.

    python benchmarks/training.py --seeds 3

For each seed a quarter of cambridge-street, by squares of land, is put aside for the test; `train_model`
trains pooling and reduction over frozen VGG16 on the rest, of which it holds out a part to choose the
epoch by. Then the photos put aside are asked for, before and after: each photo among all others, and
queries in the database.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from recall import RememberedMaps  # type: ignore

from indexer.options import BuildOptions
from indexer.progress import Silent
from indexer.scan import scan
from indexer.train import TrainingOptions, train_model
from indexer.training_set import Supervision, TrainingPhoto, find_photos, training_set
from model.embedder import Embedder
from model.images import read_photo
from model.modelfile import PlaceModel, load_model
from model.training.mining import TrainingSet, recall_at
from model.training.trainer import TrainOptions


class Epochs(Silent):
    """Prints what each epoch found."""

    def epoch(self, line: str) -> None:
        print(f"    {line}", flush=True)


def recalls(model: PlaceModel, photos: list[TrainingPhoto], data: TrainingSet) -> tuple[float, float]:
    """recall@1 in % of the photos put aside: each among all others, and queries in the database."""
    embedder = Embedder(model)
    descriptors = np.concatenate(
        [embedder.embed([read_photo(photo.path, model.config.image_size)]) for photo in photos]
    )
    across = replace(data, held_queries=asked(photos, data), held_database=side(photos, "database"))
    return 100 * recall_at(descriptors, data)[1], 100 * recall_at(descriptors, across)[1]


def side(photos: list[TrainingPhoto], folder: str) -> NDArray[np.int64]:
    return np.array([row for row, photo in enumerate(photos) if photo.path.parent.name == folder])


def asked(photos: list[TrainingPhoto], data: TrainingSet) -> NDArray[np.int64]:
    """The queries among the photos put aside."""
    return np.intersect1d(data.held_queries, side(photos, "queries"))


def run(photos: list[TrainingPhoto], options: argparse.Namespace, seed: int, folder: Path) -> list[float]:
    data = training_set(photos, Supervision(held_out=0.25, seed=seed))
    rest = [photos[row].path for row in np.union1d(data.queries, data.database)]
    into = folder / f"seed{seed}.safetensors"
    told = TrainingOptions(
        fit=BuildOptions(image_size=options.image_size, seed=seed),
        supervision=Supervision(held_out=0.15, seed=seed),
        train=TrainOptions(epochs=options.epochs, patience=3, loss=options.loss, seed=seed),
    )
    report = train_model(rest, into, told, Epochs())
    before = load_model(into.with_name(f"{into.name}.training") / "initial.safetensors")
    after = load_model(into)
    values = [*recalls(before, photos, data), *recalls(after, photos, data)]
    counts = [len(data.held_queries), len(asked(photos, data))]
    print(
        f"| {seed} | {report.trained_on} | {report.best_epoch} of {report.epochs} | {counts[0]} | "
        f"{values[0]:.1f} → {values[2]:.1f} | {counts[1]} | {values[1]:.1f} → {values[3]:.1f} | "
        f"{report.seconds:.0f} s |",
        flush=True,
    )
    return [*counts, *values]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--image-size", type=int, default=480)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--loss", default="triplet")
    options = parser.parse_args()
    remembered = RememberedMaps()
    PlaceModel.maps = lambda self, images: remembered(self, images)  # type: ignore
    street = options.data / "cambridge-street"
    photos, _ = find_photos(scan([street / "database", street / "queries"]), None)
    print("| seed | trained on | epoch kept | put aside | recall@1 | queries among them | recall@1 | time |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = np.array([run(photos, options, seed, Path(folder)) for seed in range(options.seeds)])
    pooled = [np.average(rows[:, 2 + i], weights=rows[:, i % 2]) for i in range(4)]
    print(
        f"| all | | | {rows[:, 0].sum():.0f} | {pooled[0]:.1f} → {pooled[2]:.1f} | {rows[:, 1].sum():.0f} | "
        f"{pooled[1]:.1f} → {pooled[3]:.1f} | |"
    )


if __name__ == "__main__":
    main()
