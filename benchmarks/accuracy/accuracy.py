"""Recall with each step of the pipeline: plain NetVLAD, reduction, enlarging, verification, two layers.

    python -m benchmarks.accuracy.accuracy ../shared/data --sets corridor gardens

Every set is indexed and evaluated with one more step each time, on the same network outputs if the images are
the same. Differences of recall@1 have the 95 % interval of a paired bootstrap.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import SETS, RememberedMaps, truth_file
from indexer.build.run import build_index
from indexer.evaluation import Evaluation, compare, evaluate
from indexer.index import Index
from indexer.options import BuildOptions
from model.layers.poolings import ONE_LAYER
from model.reduction import Choice

FIRST = {"min_image_size": 0, "local_features": 0, "layers": ONE_LAYER}


def build(name: str, data: Path, into: Path, options: dict[str, Any], *, reduce: bool = True) -> Index:
    unreduced = mock.patch("indexer.build.fit.choose_reduction", return_value=Choice(None))
    with unreduced if not reduce else mock.patch.dict({}):
        build_index([data / SETS[name][0]], into, BuildOptions(**options))
    return Index.open(into)


def ready(indexes: Path | None, name: str) -> Index | None:
    return Index.open(indexes / name) if indexes and (indexes / name).is_dir() else None


def ask(name: str, data: Path, index: Index, folder: Path, *, verify: bool) -> Evaluation:
    truth = truth_file(name, data, folder)
    return evaluate(index, data / SETS[name][1], truth=truth, verify=verify)


def difference(before: Evaluation, after: Evaluation) -> str:
    found = compare(after, before, Path("before")).differences["1"]
    return f"{100 * found.difference:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--indexes", type=Path, help="a folder of indexes as they are now, by a set's name")
    options = parser.parse_args()
    RememberedMaps.install()
    size = {"image_size": options.image_size}
    print(
        "recall@1 in %; the last three columns: the last step against reduced, against plain, recall@1/5/10"
    )
    steps_named = "plain NetVLAD | reduced | enlarged | and verified | two layers | and verified"
    print(f"| set | {steps_named} | on reduced | on plain | @1/5/10 |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.sets:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            plain = build(name, options.data, folder / "plain", size | FIRST, reduce=False)
            first = build(name, options.data, folder / "first", size | FIRST)
            larger = build(name, options.data, folder / "larger", size | {"layers": ONE_LAYER})
            now = ready(options.indexes, name) or build(name, options.data, folder / "now", size)
            steps = [
                ask(name, options.data, index, folder, verify=verify)
                for index, verify in (
                    *((plain, False), (first, False), (larger, False), (larger, True)),
                    *((now, False), (now, True)),
                )
            ]
            cells = [f"{100 * step.recall['1']:.1f}" for step in steps]
            cells += [difference(steps[1], steps[-1]), difference(steps[0], steps[-1])]
            whole = " / ".join(f"{100 * steps[-1].recall[n]:.1f}" for n in ("1", "5", "10"))
            print(f"| {name} | {' | '.join(cells)} | {whole} |", flush=True)


if __name__ == "__main__":
    main()
