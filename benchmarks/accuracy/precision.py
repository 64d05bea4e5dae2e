"""Recall in int8 against fp32, with the same model.

    python -m benchmarks.accuracy.precision ../shared/data --image-size 320

Each set is indexed in int8. Then its database and queries pass the same model, clusters and reduction in each
format. The table has recall@1 in %, without and with verification; `pooled` is over all queries of all sets.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import SETS, with_answers
from indexer.build.run import build_index
from indexer.options import BuildOptions
from indexer.photos.reader import Reader
from indexer.search.verification import CANDIDATES, Features, inliers, raised
from indexer.storage.layout import Layout
from model.embedder import Embedder, Seen
from model.modelfile import PlaceModel, load_model

Floats = NDArray[np.float32]
Part = tuple[Floats, list[Features]]
PRECISIONS = ("fp32", "int8")


def seen(model: PlaceModel, precision: str, photos: Sequence[Path]) -> Part:
    """Descriptors (n d) and local features, in the order of the photos."""
    config = model.config
    embedder = Embedder(model, device="cpu", precision=precision)
    reader = Reader(config.image_size, min_image_size=config.min_image_size)
    found: dict[str, Seen] = {}
    for batch in embedder.stream([(str(photo), photo) for photo in photos], reader):
        found |= {embedded.item[0]: embedded.seen[0] for embedded in batch}
    local = [found[str(photo)].local for photo in photos]
    rows = np.stack([found[str(photo)].descriptor for photo in photos])
    return rows, [Features.of(each) for each in local if each is not None]


def right(truth: NDArray[np.bool_], database: Part, queries: Part) -> NDArray[np.bool_]:
    """Whether each query's answer is right, 2 q: without and with verification."""
    scores = np.asarray(queries[0] @ database[0].T, np.float64)
    plain = scores.argmax(1)
    for row, asked in zip(scores, queries[1], strict=True):
        for photo in np.argsort(-row, kind="stable")[:CANDIDATES].tolist():
            row[photo] = raised(row[photo], inliers(asked, database[1][photo]))
    both = (plain, scores.argmax(1))
    return np.stack([np.take_along_axis(truth, best[:, None], 1)[:, 0] for best in both])


def measure(name: str, options: argparse.Namespace) -> tuple[dict[str, NDArray[np.bool_]], float]:
    """Whether each query's answer is right for each format, and the least cosine of two descriptors."""
    database, queries, truth = with_answers(name, options.data)
    with tempfile.TemporaryDirectory() as folder:
        wanted = BuildOptions(precision="int8", device="cpu", image_size=options.image_size)
        build_index([options.data / SETS[name][0]], Path(folder) / "index", wanted)
        model = load_model(Layout(Path(folder) / "index").model(1))
    parts = {
        precision: [seen(model, precision, part) for part in (database, queries)] for precision in PRECISIONS
    }
    pairs = zip(*parts.values(), strict=True)
    least = min(float((one[0] * other[0]).sum(1).min()) for one, other in pairs)
    return {precision: right(truth, *part) for precision, part in parts.items()}, least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--image-size", type=int, default=640)
    options = parser.parse_args()
    print(
        "| set | fp32, and verified | int8, and verified | right in int8 alone, fp32 alone | least cosine |"
    )
    print("|---|---|---|---|---|", flush=True)
    everything: dict[str, list[NDArray[np.bool_]]] = {precision: [] for precision in PRECISIONS}
    for name in options.sets:
        found, least = measure(name, options)
        for precision in PRECISIONS:
            everything[precision].append(found[precision])
        row(name, found, f"{least:.4f}")
    row("pooled", {precision: np.concatenate(of, axis=1) for precision, of in everything.items()}, "")


def row(name: str, found: dict[str, NDArray[np.bool_]], least: str) -> None:
    cells = [" / ".join(f"{100 * each.mean():.2f}" for each in found[precision]) for precision in PRECISIONS]
    one, other = (found[precision][1] for precision in PRECISIONS)
    changed = f"{(other & ~one).sum()}, {(one & ~other).sum()} of {len(one)}"
    print(f"| {name} | {' | '.join(cells)} | {changed} | {least} |", flush=True)


if __name__ == "__main__":
    main()
