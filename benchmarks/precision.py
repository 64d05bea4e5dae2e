"""What number formats cost in recall: one model, fitted once, its network run in each of them.

    python benchmarks/precision.py ../shared/data --maps maps

Clusters and reduction are fitted on bf16's maps (kept in `--maps`, as descriptors.py does); then database and
queries go through the same model in bf16 and in each of the other formats. recall@1 of the nearest photo, not
verified and verified; `pooled` is over all queries of all sets.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from descriptors import Floats, Maker, Network, Photos, Way, chosen_reduction  # type: ignore
from numpy.typing import NDArray
from recall import SETS  # type: ignore

from indexer.fit import RANGE_PHOTOS, RANGE_SIDE
from indexer.options import FitOptions
from indexer.reading import Reader
from indexer.verification import CANDIDATES, Features, inliers, raised
from model.embedder import Embedder, with_ranges
from model.images import read_photo
from model.local_features import LOCAL_FEATURES
from model.modelfile import ModelConfig, PlaceModel
from model.poolings import TWO_LAYERS, TwoLayers, joined

Part = tuple[Floats, list[Features]]


def fitted(photos: Photos) -> PlaceModel:
    """The model that `loci index` would make, but for what it draws at random."""
    maker = Maker(photos, 0)
    both = Way(beside=True)
    half = replace(both, beside=False, clusters=both.clusters // 2)
    pooling = TwoLayers(maker.layer(half), maker.layer(replace(half, cut="conv4_3")))
    reduction = chosen_reduction(maker.pooled(both))
    dim = None if reduction is None else len(reduction.projection)
    model = PlaceModel.unfitted(ModelConfig(local_features=LOCAL_FEATURES))
    model = model.fitted(pooling, reduction, layers=TWO_LAYERS, dim=dim).eval()
    drawn = np.random.default_rng(0).permutation(len(photos.database))[:RANGE_PHOTOS]
    return with_ranges(model, [read_photo(photos.database[n], RANGE_SIDE) for n in drawn], "cpu")


@torch.inference_mode()
def by_maps(model: PlaceModel, photos: Photos, part: Sequence[Path]) -> Part:
    """In bf16, from the maps that are kept."""
    rows, features = [], []
    for photo in part:
        upper, lower = (
            torch.from_numpy(photos.network.maps(photos.name, photo, cut, 1.0).astype(np.float32))[None]
            for cut in ("conv5_3", "conv4_3")
        )
        rows.append(model.reduce(model.pool(joined(upper, lower)))[0].numpy())
        assert model.local is not None
        features.append(Features.of(model.local(lower)[0]))
    return np.stack(rows), features


def by_embedder(embedder: Embedder, part: Sequence[Path]) -> Part:
    reader = Reader(FitOptions().image_size, min_image_size=FitOptions().min_image_size)
    rows, features = [], []
    for batch in embedder.stream([(str(photo), photo) for photo in part], reader):
        for embedded in batch:
            rows.append(embedded.seen[0].descriptor)
            local = embedded.seen[0].local
            assert local is not None
            features.append(Features.of(local))
    return np.stack(rows), features


def right(photos: Photos, database: Part, queries: Part) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which queries are answered rightly, not verified and verified."""
    scores = np.asarray(queries[0] @ database[0].T, np.float64)
    plain = scores.argmax(1)
    for row, asked in zip(scores, queries[1], strict=True):
        for photo in np.argsort(-row, kind="stable")[:CANDIDATES].tolist():
            row[photo] = raised(row[photo], inliers(asked, database[1][photo]))
    found = [np.take_along_axis(photos.right, best[:, None], 1)[:, 0] for best in (plain, scores.argmax(1))]
    return found[0], found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--maps", type=Path, required=True, help="folder for conv maps in bf16")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "int8"), default=["int8"])
    options = parser.parse_args()
    network = Network(options.maps)
    names = ["bf16", *options.precisions]
    print(f"| set | {' | '.join(f'{name}, verified' for name in names)} | least cosine to bf16's |")
    print(f"|---|{'---|' * (len(names) + 1)}", flush=True)
    pooled: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in names}
    for name in options.sets:
        photos = Photos.read(name, options.data, network)
        model = fitted(photos)
        reference = [by_maps(model, photos, part) for part in (photos.database, photos.queries)]
        cells, least = [], []
        for precision in names:
            database, queries = reference
            if precision != "bf16":
                embedder = Embedder(model, device="cpu", precision=precision)
                database = by_embedder(embedder, photos.database)
                queries = by_embedder(embedder, photos.queries)
                rows = zip((database[0], queries[0]), (reference[0][0], reference[1][0]), strict=True)
                least.append(min(float((one * other).sum(1).min()) for one, other in rows))
            found = right(photos, database, queries)
            pooled[precision].append(np.stack(found))
            cells.append(" / ".join(f"{100 * each.mean():.1f}" for each in found))
        print(
            f"| {name} | {' | '.join(cells)} | {', '.join(f'{value:.4f}' for value in least)} |", flush=True
        )
    totals = {name: np.concatenate(of, axis=1) for name, of in pooled.items()}
    print(
        "| pooled | "
        + " | ".join(" / ".join(f"{100 * value:.2f}" for value in total.mean(1)) for total in totals.values())
        + " | |"
    )
    for name in options.precisions:
        for label, one, other in zip(("not verified", "verified"), totals["bf16"], totals[name], strict=True):
            print(
                f"{name}, {label}: {(other & ~one).sum()} queries right that were wrong, "
                f"{(one & ~other).sum()} wrong that were right, of {len(one)}"
            )


if __name__ == "__main__":
    main()
