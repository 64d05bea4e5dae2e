"""Whether a short training run on a CPU finds more, on streets that it never saw: three seeds.

    python benchmarks/training.py --seeds 3

For each seed a third of cambridge-street, by squares of land, is put aside for the test; `train_model`
trains pooling and reduction over frozen VGG16 on the rest, of which it holds out a fifth to choose the epoch
by. Then the photos put aside are asked for, before and after: queries in the database, and each photo among
all others.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from recall import RememberedMaps  # type: ignore

from indexer.options import FitOptions
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
    """recall@1 in % of the photos put aside: queries in the database, and each among all others."""
    embedder = Embedder(model)
    descriptors = np.concatenate(
        [embedder.embed([read_photo(photo.path, model.config.image_size)]) for photo in photos]
    )
    everything = np.arange(len(photos))
    each = TrainingSet(**{**vars(data), "held_queries": put_aside(data), "held_database": everything})
    return 100 * recall_at(descriptors, data)[1], 100 * recall_at(descriptors, each)[1]


def put_aside(data: TrainingSet) -> np.ndarray:
    """All rows of squares put aside: the queries' and those in the database near them."""
    return np.setdiff1d(np.arange(len(data.ids)), np.flatnonzero(data.labels >= 0))


def run(photos: list[TrainingPhoto], options: argparse.Namespace, seed: int, folder: Path) -> list[float]:
    data = training_set(photos, Supervision(held_out=1 / 3, seed=seed))
    rest = [photos[row].path for row in np.union1d(data.queries, data.database)]
    into = folder / f"seed{seed}.safetensors"
    told = TrainingOptions(
        fit=FitOptions(image_size=options.image_size, seed=seed),
        supervision=Supervision(seed=seed),
        train=TrainOptions(epochs=options.epochs, patience=3, loss=options.loss, seed=seed),
    )
    report = train_model(rest, into, told, Epochs())
    before = load_model(into.with_name(f"{into.name}.training") / "initial.safetensors")
    after = load_model(into)
    values = [*recalls(before, photos, data), *recalls(after, photos, data)]
    print(
        f"| {seed} | {report.trained_on} | {report.best_epoch} | {len(data.held_queries)} | "
        f"{values[0]:.1f} → {values[2]:.1f} | {len(put_aside(data))} | {values[1]:.1f} → {values[3]:.1f} | "
        f"{report.seconds:.0f} s |",
        flush=True,
    )
    return [len(data.held_queries), len(put_aside(data)), *values]


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
    print("| seed | trained on | epoch kept | queries | found@1, % | photos | found@1, % | time |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = np.array([run(photos, options, seed, Path(folder)) for seed in range(options.seeds)])
    queries, each = rows[:, 0], rows[:, 1]
    pooled = [np.average(rows[:, 2 + i], weights=queries if i % 2 == 0 else each) for i in range(4)]
    print(
        f"| all | | | {queries.sum():.0f} | {pooled[0]:.1f} → {pooled[2]:.1f} | {each.sum():.0f} | "
        f"{pooled[1]:.1f} → {pooled[3]:.1f} | |"
    )


if __name__ == "__main__":
    main()
