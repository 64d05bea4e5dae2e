"""Recall of every pooling on two real sets, as `loci index` fits them; one table.

    python -m benchmarks.accuracy.poolings --image-size 480

Runs `build_index` and `evaluate` for every pooling, with the reduction that the fit chooses for it. The
convolutions are computed once a photo.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.accuracy.recall import SETS, RememberedMaps, truth_file
from indexer.build.run import build_index
from indexer.evaluation import evaluate
from indexer.index import Index
from indexer.options import BuildOptions

POOLINGS: dict[str, dict[str, Any]] = {
    "netvlad": {},
    "netvlad, version 2": {"pooling": "netvlad", "netvlad_version": 2},
    "vlad, intra": {"pooling": "vlad"},
    "vlad, ssr": {"pooling": "vlad", "vlad_normalisation": "ssr"},
    "vlad, none": {"pooling": "vlad", "vlad_normalisation": "none"},
    "ghostvlad, 8 ghosts": {"pooling": "ghostvlad"},
    "average": {"pooling": "average"},
    "gem, p = 3": {"pooling": "gem"},
}


def run(name: str, options: argparse.Namespace, told: dict[str, Any], folder: Path) -> tuple[str, str]:
    """recall@1/5/10, and the reduction."""
    into = folder / "index"
    data = options.data
    database, queries = SETS[name][:2]
    report = build_index([data / database], into, BuildOptions(image_size=options.image_size, **told))
    result = evaluate(Index.open(into), data / queries, truth=truth_file(name, data, folder))
    return " / ".join(f"{100 * result.recall[n]:.1f}" for n in ("1", "5", "10")), report.reduction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["cambridge", "corridor"])
    parser.add_argument("--image-size", type=int, default=480)
    options = parser.parse_args()
    RememberedMaps.install()
    print("recall@1 / 5 / 10 in %, one seed")
    print("| pooling | " + " | ".join(f"{name} | its descriptor" for name in options.sets) + " |")
    print("|---|" + "---|---|" * len(options.sets), flush=True)
    for label, told in POOLINGS.items():
        cells: list[str] = []
        for name in options.sets:
            with tempfile.TemporaryDirectory() as folder:
                cells += run(name, options, told, Path(folder))
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
