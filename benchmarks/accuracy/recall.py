"""Recall of the shipped pipeline on real sets with ground truth, over k-means seeds.

    python -m benchmarks.accuracy.recall --image-size 480 --seeds 3

Runs `build_index` and `evaluate` themselves for every set and seed. Only the convolutions are kept between
seeds, since they do not depend on them: a photo's conv map is computed at first and then remembered.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indexer.build.run import build_index
from indexer.evaluation import evaluate
from indexer.index import Index
from indexer.options import BuildOptions
from model.local_features import LOCAL_FEATURES
from model.modelfile import PlaceModel
from model.poolings import ONE_LAYER

# recall@1 of a plain implementation: NetVLAD 32,768-D, and the best reduction seen; ImageNet VGG16, 480 px.
SETS = {
    "corridor": ("corridor/ref", "corridor/query", 92.8, 91.9),
    "gardens": ("thumbs/Gardens_Point/reference", "thumbs/Gardens_Point/query", 76.0, 80.0),
    "sped": ("thumbs/SPED_Test/reference", "thumbs/SPED_Test/query", 42.9, 52.5),
    "nordland": ("nordland-rail/database", "nordland-rail/queries", 60.0, 60.0),
    "cambridge": ("cambridge-street/database", "cambridge-street/queries", 72.1, 74.6),
}


class RememberedMaps:
    """`PlaceModel.maps_and_local` that computes each image once."""

    def __init__(self) -> None:
        self._compute = PlaceModel.maps_and_local
        self._seen: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def install(cls) -> None:
        """Let all models of this process remember."""
        remembered = cls()
        PlaceModel.maps_and_local = lambda model, images: remembered(model, images)  # type: ignore

    def __call__(self, model: PlaceModel, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        if model.config.layers != ONE_LAYER:
            return self._compute(model, images)  # five times the numbers: too many to remember
        keys = [hashlib.sha256(image.contiguous().numpy()).digest() for image in images]
        if any(key not in self._seen for key in keys):
            # With local features whether or not this model keeps them: the next one may.
            maps, local = self._compute(model.fitted(local_features=LOCAL_FEATURES), images)
            assert local is not None
            self._seen.update(zip(keys, zip(maps, *local, strict=True), strict=True))
        # In the network's own memory order, so that every sum rounds as if nothing were remembered.
        maps, cells, codes = map(torch.stack, zip(*(self._seen[key] for key in keys), strict=True))
        local = None if model.local is None else (cells, codes)
        return maps.contiguous(memory_format=torch.channels_last), local


def truth_file(name: str, data: Path, folder: Path) -> Path | None:
    """The set's truth as `loci evaluate --truth` reads it; None where photos carry positions."""
    database, queries = (sorted(p.name for p in (data / part).iterdir()) for part in SETS[name][:2])
    if name == "cambridge":
        return None
    if name == "corridor":
        return data / "corridor/ground_truth.csv"
    tolerance = 2 if name == "gardens" else 0
    path = folder / f"{name}.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["query", "positives"])
        for query in queries:
            if query in database:
                at = database.index(query)
                rows.writerow([query, " ".join(database[max(0, at - tolerance) : at + tolerance + 1])])
    return path


def run(name: str, data: Path, image_size: int, seed: int, folder: Path) -> tuple[dict[str, float], str]:
    database, queries = SETS[name][:2]
    into = folder / f"{name}-{image_size}-{seed}"
    report = build_index([data / database], into, BuildOptions(image_size=image_size, seed=seed))
    index = Index.open(into)
    result = evaluate(index, data / queries, truth=truth_file(name, data, folder))
    return result.recall, report.reduction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--image-size", type=int, default=480)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    RememberedMaps.install()
    print(f"image size {options.image_size}, mean of {options.seeds} seeds, recall in %")
    print("| set | recall@1 by seed | recall@1/5/10 | reductions | plain NetVLAD@1, best reduction@1 |")
    print("|---|---|---|---|---|")
    for name in options.sets:
        with tempfile.TemporaryDirectory() as folder:
            runs = [
                run(name, options.data, options.image_size, seed, Path(folder))
                for seed in range(options.seeds)
            ]
        table = 100 * np.array([[recall[n] for n in ("1", "5", "10")] for recall, _ in runs])
        seeds = ", ".join(f"{value:.1f}" for value in table[:, 0])
        means = " / ".join(f"{value:.1f}" for value in table.mean(0))
        reductions = "; ".join(sorted({reduction for _, reduction in runs}))
        print(f"| {name} | {seeds} | {means} | {reductions} | {SETS[name][2]}, {SETS[name][3]} |", flush=True)


if __name__ == "__main__":
    main()
