"""Recall of untrained ways to make descriptors, on every set.

    python -m benchmarks.accuracy.descriptors ../shared/data --maps maps

The first row is NetVLAD on conv5_3 with the reduction of `loci index`. Every other row changes one thing.
recall@1 is by descriptor, without verification, mean over k-means seeds. Conv maps are computed once and kept
in the folder `--maps` (19 GB for all sets), so a second run takes minutes.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from benchmarks.common import SETS, with_answers
from model.clusters import SAMPLE_PHOTOS, kmeans, rank_by_halves, sample_local, sharpness
from model.fitting import halves
from model.images import DEFAULT_IMAGE_SIZE, MIN_IMAGE_SIZE, open_photo, read_photo, target_size, upright_size
from model.layers.backbone import imagenet_backbone
from model.layers.poolings import NetVLAD
from model.modelfile import IMAGENET_MEAN
from model.reduction import MIN_PHOTOS, Reduction, choose_reduction, fit_reduction

Floats = NDArray[np.float32]
Maps = list[NDArray[np.float16]]
Weights = Callable[[Tensor], Tensor]
"""Weights of local descriptors: B D N → B 1 N."""


class Pooled(NamedTuple):
    """Unreduced descriptors of the database, of the halves of its photos, and of the queries."""

    database: Floats
    left: Floats
    right: Floats
    queries: Floats


class Network:
    """VGG16's maps of photos, kept on disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._layers = imagenet_backbone().bfloat16().to(memory_format=torch.channels_last).eval()
        self._mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)

    def maps(self, name: str, photo: Path, cut: str, scale: float) -> NDArray[np.float16]:
        """Return a map, D H W; `scale` multiplies the longest side that `loci index` would use."""
        into = self._folder / name / photo.parent.name
        path = into / f"{photo.stem}@{scale:g}.{cut}.npy"
        if not path.exists():
            into.mkdir(parents=True, exist_ok=True)
            for each, computed in self._compute(photo, scale).items():
                np.save(into / f"{photo.stem}@{scale:g}.{each}.npy", computed)
        return np.load(path)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def _compute(self, photo: Path, scale: float) -> dict[str, NDArray[np.float16]]:
        with open_photo(photo) as opened:
            longest = max(target_size(*upright_size(opened), DEFAULT_IMAGE_SIZE, MIN_IMAGE_SIZE))
        side = round(longest * scale)
        image = torch.from_numpy(read_photo(photo, side, side)).permute(2, 0, 1)[None]
        x = (image - self._mean).to(torch.bfloat16, memory_format=torch.channels_last)
        middle, upper = self._layers.both(x)
        return {"conv4_3": middle[0].half().numpy(), "conv5_3": upper[0].half().numpy()}


@dataclass(frozen=True)
class Photos:
    """A set: its photos, and which of the database (N) are right for which query (Q N)."""

    name: str
    database: Sequence[Path]
    queries: Sequence[Path]
    right: NDArray[np.bool_]
    network: Network

    @classmethod
    def read(cls, name: str, data: Path, network: Network) -> Photos:
        return cls(name, *with_answers(name, data), network)

    def maps(self, photos: Sequence[Path], cut: str, scale: float) -> Maps:
        return [self.network.maps(self.name, photo, cut, scale) for photo in photos]


def by_length(power: float, local: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(local, dim=1, keepdim=True)
    return torch.pow(length / length.mean(2, keepdim=True), power)


def by_rarity(power: float, local: Tensor) -> Tensor:
    """Lower weights for local descriptors that resemble others of the photo (Jégou et al., CVPR 2009)."""
    unit = F.normalize(local, dim=1)
    return (unit.mT @ unit).clamp_min(0).pow(power).sum(1, keepdim=True).rsqrt()


def expanded_queries(count: int, power: float, database: Floats, queries: Floats) -> tuple[Floats, Floats]:
    """αQE (Radenović et al., PAMI 2018): add the nearest photos, weighted by a power of the cosine."""
    return database, _with_nearest(queries, queries @ database.T, database, count, power)


def augmented_database(count: int, power: float, database: Floats, queries: Floats) -> tuple[Floats, Floats]:
    """The same for photos of the database (Turcot and Lowe, 2009)."""
    similarity = database @ database.T
    np.fill_diagonal(similarity, -1.0)
    return _with_nearest(database, similarity, database, count, power), queries


def _with_nearest(rows: Floats, similarity: Floats, database: Floats, count: int, power: float) -> Floats:
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    weights = np.take_along_axis(similarity, nearest, 1).clip(min=0) ** power
    return _unit(rows + np.einsum("nk,nkd->nd", weights, database[nearest]))


def shrunk(share: float, pooled: Pooled) -> tuple[Floats, Floats]:
    """Whitening to n/2 dimensions, at most 512, with `share` of the mean eigenvalue added to each."""
    n = len(pooled.database)
    basis = fit_reduction(pooled.database, min(512, n // 2), 0.0)
    sides = (pooled.database, pooled.queries)
    projected = [(torch.from_numpy(rows) - basis.mean) @ basis.projection.T for rows in sides]
    total = float(np.square(pooled.database - pooled.database.mean(0)).sum() / (n - 1))
    scale = (projected[0].square().mean(0) + share * total / (n - 1)).rsqrt()
    database, queries = (F.normalize(rows * scale, dim=1).detach().numpy() for rows in projected)
    return database, queries


def unreduced(pooled: Pooled) -> tuple[Floats, Floats]:
    return pooled.database, pooled.queries


def chosen_reduction(pooled: Pooled) -> Reduction | None:
    """The reduction of `loci index`, or None."""
    database = pooled.database
    kept = choose_reduction(database.copy(), pooled.left, pooled.right, np.arange(len(database))).kept
    return None if kept is None else fit_reduction(database, kept.dim, kept.power)


def chosen(pooled: Pooled) -> tuple[Floats, Floats]:
    """Descriptors after that reduction."""
    reduction = chosen_reduction(pooled)
    if reduction is None:
        return pooled.database, pooled.queries
    with torch.inference_mode():
        database, queries = (reduction(torch.from_numpy(r)) for r in (pooled.database, pooled.queries))
    return database.numpy(), queries.numpy()


@dataclass(frozen=True)
class Way:
    """One way to make descriptors."""

    cut: str = "conv5_3"
    relu: bool = False
    beside: bool = False
    """Add conv4_3 after its ReLU; each layer has half of the clusters."""
    clusters: int = 64
    sharper: float = 1.0
    """Factor of NetVLAD's α."""
    scales: tuple[float, ...] = (1.0,)
    """Weights of the photo's residuals."""
    weights: Weights | None = None
    """Weights of local descriptors."""
    ghosts: int = 0
    """Additional clusters that absorb common features (GhostVLAD)."""
    reduce: Callable[[Pooled], tuple[Floats, Floats]] = chosen
    """From pooled to final descriptors of database and queries."""
    expand: Callable[[Floats, Floats], tuple[Floats, Floats]] | None = None
    """Changes to final descriptors, with neighbours added."""


WAYS: dict[str, Way] = {
    "as it is": (base := Way()),
    "conv5_3 after its ReLU": replace(base, relu=True),
    "conv4_3 after its ReLU": replace(base, cut="conv4_3"),
    "conv4_3 after its ReLU beside conv5_3": replace(base, beside=True),
    "photos at 0.7 of the size": replace(base, scales=(0.7,)),
    "photos at 1.41 of the size": replace(base, scales=(1.41,)),
    "both scales 1 and 0.7": replace(base, scales=(1.0, 0.7)),
    "both scales 1 and 1.41": replace(base, scales=(1.0, 1.41)),
    "scales 1, 0.7 and 1.41": replace(base, scales=(1.0, 0.7, 1.41)),
    "K = 16": replace(base, clusters=16),
    "K = 32": replace(base, clusters=32),
    "K = 128": replace(base, clusters=128),
    "α a quarter": replace(base, sharper=0.25),
    "α a half": replace(base, sharper=0.5),
    "α twice": replace(base, sharper=2.0),
    "local descriptors by length^½": replace(base, weights=functools.partial(by_length, 0.5)),
    "local descriptors by length": replace(base, weights=functools.partial(by_length, 1.0)),
    "bursts down-weighted, x·y": replace(base, weights=functools.partial(by_rarity, 1.0)),
    "bursts down-weighted, (x·y)^5": replace(base, weights=functools.partial(by_rarity, 5.0)),
    "8 ghosts": replace(base, ghosts=8),
    "not reduced": replace(base, reduce=unreduced),
    **{
        f"whitened, n/2 dimensions, shrinkage {share:g}": replace(
            base, reduce=functools.partial(shrunk, share)
        )
        for share in (0.0, 0.1, 0.3, 1.0)
    },
    **{
        f"query expansion, {count} photos, α = {power}": replace(
            base, expand=functools.partial(expanded_queries, count, power)
        )
        for count, power in ((1, 3), (3, 3), (5, 3), (3, 1))
    },
    **{
        f"database augmentation, {count} photos, α = {power}": replace(
            base, expand=functools.partial(augmented_database, count, power)
        )
        for count, power in ((1, 3), (2, 3), (4, 3), (2, 1))
    },
}
LARGE = ("nordland", "cambridge")
LARGER = [way for way in WAYS if "1.41" in way]
"""Left out for sets of large photos: they take an hour on a CPU."""


class Maker:
    """Descriptors of one set for one k-means seed, with shared steps cached."""

    def __init__(self, photos: Photos, seed: int) -> None:
        self.photos = photos
        self.seed = seed
        self._maps = functools.lru_cache(maxsize=2)(self._read)
        self._layer = functools.cache(self._fit)
        self._plain: tuple[Way, Pooled] | None = None

    def recall(self, way: Way) -> float:
        """recall@1 in %."""
        pooling = replace(way, reduce=chosen, expand=None)
        if self._plain is None or self._plain[0] != pooling:
            self._plain = pooling, self.pooled(pooling)
        database, queries = way.reduce(self._plain[1])
        if way.expand is not None:
            database, queries = way.expand(database, queries)
        best = (queries @ database.T).argmax(1)
        return float(100 * np.take_along_axis(self.photos.right, best[:, None], 1).mean())

    def layer(self, way: Way) -> NetVLAD:
        return self._layer(way.cut, way.relu, way.scales[0], way.clusters, way.sharper, way.ghosts)

    def pooled(self, way: Way) -> Pooled:
        if way.beside:
            half = replace(way, beside=False, clusters=way.clusters // 2)
            parts = (self.pooled(half), self.pooled(replace(half, cut="conv4_3")))
            return Pooled(*(_unit(np.concatenate(rows, 1)) for rows in zip(*parts, strict=True)))
        layer = self.layer(way)
        rows: tuple[list[Floats], ...] = ([], [], [], [])
        for database, maps in ((True, self._scaled(way, 0)), (False, self._scaled(way, 1))):
            for photo in maps:
                scales = [_tensor(each, relu=way.relu) for each in photo]
                rows[0 if database else 3].append(_pooled(layer, scales, way.weights))
                if database:
                    sides = zip(*(halves(each) for each in scales), strict=True)
                    for into, side in zip(rows[1:3], sides, strict=True):
                        into.append(_pooled(layer, side, way.weights))
        return Pooled(*(np.concatenate(each) for each in rows))

    def _scaled(self, way: Way, part: int) -> Iterator[tuple[NDArray[np.float16], ...]]:
        return zip(*(self._maps(way.cut, scale)[part] for scale in way.scales), strict=True)

    def _read(self, cut: str, scale: float) -> tuple[Maps, Maps]:
        photos = self.photos
        return photos.maps(photos.database, cut, scale), photos.maps(photos.queries, cut, scale)

    def _fit(self, cut: str, relu: bool, scale: float, clusters: int, sharper: float, ghosts: int) -> NetVLAD:
        maps = self._maps(cut, scale)[0]
        order = np.random.default_rng(self.seed).permutation(len(maps))[:SAMPLE_PHOTOS]
        drawn = [
            sample_local(_tensor(maps[n], relu=relu)[0].numpy(), np.random.default_rng([self.seed, n]))
            for n in order
        ]
        points = np.concatenate(drawn)
        centres = torch.from_numpy(kmeans(points, clusters + ghosts, seed=self.seed))
        alpha = sharper * sharpness(torch.from_numpy(points), centres)
        if ghosts:
            plain = NetVLAD.from_centres(centres, alpha)
            sides = zip(*(halves(_tensor(maps[n], relu=relu)) for n in order[:200]), strict=True)
            with torch.inference_mode():
                left, right = (
                    torch.cat([plain.accumulate(each) for each in side]).view(len(side), len(centres), -1)
                    for side in sides
                )
            centres = centres[rank_by_halves(left, right)]
        return NetVLAD.from_centres(centres, alpha, ghosts=ghosts)


def _tensor(maps: NDArray[np.float16], *, relu: bool) -> Tensor:
    tensor = torch.from_numpy(maps.astype(np.float32))[None]
    return tensor.relu_() if relu else tensor


@torch.inference_mode()
def _pooled(layer: NetVLAD, scales: Sequence[Tensor], weights: Weights | None) -> Floats:
    """1 K·D."""
    if weights is None:
        return layer.pool_clip(scales).numpy()
    sums = []
    for maps in scales:
        local = maps.flatten(2)  # 1 D N
        assigned = layer.assign(maps) * weights(local)  # 1 K N
        residuals = assigned @ F.normalize(local, dim=1).mT - assigned.sum(2, keepdim=True) * layer.centres
        sums.append(residuals.flatten(1))
    return layer.finish(torch.stack(sums).sum(0)).numpy()


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--maps", type=Path, required=True, help="folder for conv maps")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--large", action="store_true", help="photos over 600 pixels 1.41 times larger, too")
    options = parser.parse_args()
    network = Network(options.maps)
    table: dict[str, dict[str, float]] = {way: {} for way in options.ways}
    for name in options.sets:
        photos = Photos.read(name, options.data, network)
        found: dict[str, list[float]] = {way: [] for way in options.ways}
        for seed in range(options.seeds):
            maker = Maker(photos, seed)
            for way in options.ways:
                if way in LARGER and name in LARGE and not options.large:
                    continue
                if len(photos.database) < MIN_PHOTOS and WAYS[way].reduce is not chosen:
                    continue  # no reduction to compare with
                found[way].append(maker.recall(WAYS[way]))
        for way, recalls in found.items():
            if recalls:
                table[way][name] = float(np.mean(recalls))
                print(f"{name}, {way}: {', '.join(f'{recall:.1f}' for recall in recalls)}", flush=True)
    print(f"\nrecall@1 in %, mean of {options.seeds} seeds; what the way adds, in brackets\n")
    print(f"| | {' | '.join(options.sets)} | mean |\n|---|{'---|' * (len(options.sets) + 1)}")
    first = table[options.ways[0]]
    for way, row in table.items():
        cells = [f"{row[n]:.1f} ({row[n] - first[n]:+.1f})" if n in row else "" for n in options.sets]
        gains = [row[n] - first[n] for n in row]
        cells.append(f"{np.mean(gains):+.1f}" if len(gains) == len(options.sets) else "")
        print(f"| {way} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
