"""Recall of clips against single photos: frames of a traverse pooled as one, on corridor and nordland.

    python -m benchmarks.accuracy.clips

For each length T, the query is a frame with its neighbours on both sides: as a clip (pooled like
`Index.query_clip`), and as the mean of the frames' descriptors. The truth is that of the middle frame.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import SETS, photos_of, right_rows
from indexer.build.run import build_index
from indexer.index import Index
from indexer.options import BuildOptions
from model.images import read_photo

LENGTHS = (1, 3, 5, 7)


def recall(found: NDArray[np.int64], right: list[set[int]]) -> str:
    asked = [i for i in range(len(right)) if right[i]]
    hits = [[bool(right[i] & set(found[i, :n].tolist())) for i in asked] for n in (1, 5)]
    return " / ".join(f"{100 * np.mean(row):.1f}" for row in hits)


def run(name: str, options: argparse.Namespace, folder: Path) -> None:
    data = options.data
    database, queries = photos_of(name, data)
    build_index([data / SETS[name][0]], folder / "index", BuildOptions(image_size=options.image_size))
    index = Index.open(folder / "index")
    by_name = {Path(photo.path).name: photo.id for photo in index.photos()}
    ids, matrix = index.descriptors()
    order = [ids.index(by_name[path.name]) for path in database]
    base = matrix[order].astype(np.float32)
    right = right_rows(name, data, folder)
    frames = [read_photo(path, index.image_size) for path in queries]
    single = index.embedder.embed(frames)
    for length in LENGTHS:
        windows = [
            list(range(max(0, i - length // 2), min(len(frames), i + length // 2 + 1)))
            for i in range(len(frames))
        ]
        clips = np.stack([index.embedder.see([[frames[j] for j in w]])[0].descriptor for w in windows])
        means = np.stack([single[w].mean(0) for w in windows])
        clip_recall, mean_recall = (
            recall((-x @ base.T).argsort(1, kind="stable"), right) for x in (clips, means)
        )
        print(f"| {name} | {length} | {clip_recall} | {mean_recall} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--image-size", type=int, default=480)
    options = parser.parse_args()
    print("recall@1 / 5 in %; one frame is the single photo")
    print("| set | frames | clip | mean of descriptors |")
    print("|---|---|---|---|", flush=True)
    for name in ("corridor", "nordland"):
        with tempfile.TemporaryDirectory() as folder:
            run(name, options, Path(folder))


if __name__ == "__main__":
    main()
