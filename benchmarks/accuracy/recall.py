"""Recall of poolings on data sets with ground truth, over k-means seeds.

    python -m benchmarks.accuracy.recall --image-size 480 --seeds 3
    python -m benchmarks.accuracy.recall --pooling netvlad vlad average --sets cambridge corridor

Runs `build_index` and `evaluate` for every set, pooling and seed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import SETS, RememberedMaps, truth_file
from indexer.build.run import build_index
from indexer.evaluation import evaluate
from indexer.index import Index
from indexer.options import BuildOptions

POOLINGS: dict[str, dict[str, Any]] = {
    "netvlad": {},
    "netvlad-2": {"pooling": "netvlad", "netvlad_version": 2},
    "vlad": {"pooling": "vlad"},
    "vlad-ssr": {"pooling": "vlad", "vlad_normalisation": "ssr"},
    "vlad-none": {"pooling": "vlad", "vlad_normalisation": "none"},
    "ghostvlad": {"pooling": "ghostvlad"},
    "average": {"pooling": "average"},
    "gem": {"pooling": "gem"},
}


def measure(name: str, data: Path, build: BuildOptions) -> tuple[list[float], str]:
    """recall@1, @5 and @10 of a set in %, and the reduction."""
    database, queries = (data / part for part in SETS[name])
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        report = build_index([database], folder / "index", build)
        result = evaluate(Index.open(folder / "index"), queries, truth=truth_file(name, data, folder))
    return [100 * result.recall[n] for n in ("1", "5", "10")], report.reduction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--pooling", nargs="+", choices=POOLINGS, default=["netvlad"])
    parser.add_argument("--image-size", type=int, default=480)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    RememberedMaps.install()
    print(f"image size {options.image_size}, recall in %, mean of {options.seeds} seeds")
    print("| set | pooling | recall@1 by seed | recall@1/5/10 | reductions |")
    print("|---|---|---|---|---|", flush=True)
    for name in options.sets:
        for pooling in options.pooling:
            builds = [
                BuildOptions(image_size=options.image_size, seed=seed, **POOLINGS[pooling])
                for seed in range(options.seeds)
            ]
            results = [measure(name, options.data, build) for build in builds]
            table = np.array([recalls for recalls, _ in results])
            seeds = ", ".join(f"{value:.1f}" for value in table[:, 0])
            means = " / ".join(f"{value:.1f}" for value in table.mean(0))
            reductions = "; ".join(sorted({reduction for _, reduction in results}))
            print(f"| {name} | {pooling} | {seeds} | {means} | {reductions} |", flush=True)


if __name__ == "__main__":
    main()
