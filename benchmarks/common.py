"""Data sets with their truth, remembered conv maps, descriptors, timing and memory, for all benchmarks."""

from __future__ import annotations

import csv
import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from indexer.geo import haversine_m
from indexer.photos.file_name import from_name
from indexer.snapshots.manifest import read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout, generation_of
from indexer.storage.shards import read_slots
from model.layers.local_features import LOCAL_FEATURES
from model.layers.poolings import ONE_LAYER
from model.modelfile import PlaceModel

SETS = {
    "corridor": ("corridor/ref", "corridor/query"),
    "gardens": ("thumbs/Gardens_Point/reference", "thumbs/Gardens_Point/query"),
    "sped": ("thumbs/SPED_Test/reference", "thumbs/SPED_Test/query"),
    "nordland": ("nordland-rail/database", "nordland-rail/queries"),
    "cambridge": ("cambridge-street/database", "cambridge-street/queries"),
}
"""Folders of database and queries, relative to the data."""

MATRIX_SIDE = 4096
"""Rows of the square matrices whose product shows the limit of a processor."""

Run = Callable[[], Any]
Descriptors = NDArray[np.float32]


class RememberedMaps:
    """`PlaceModel.maps_and_local`, computed once for each image."""

    def __init__(self) -> None:
        self._compute = PlaceModel.maps_and_local
        self._seen: dict[bytes, tuple[Tensor, Tensor, Tensor]] = {}

    @classmethod
    def install(cls) -> None:
        """Replace the method for all models of this process."""
        remembered = cls()
        PlaceModel.maps_and_local = lambda model, images: remembered(model, images)  # type: ignore

    def __call__(self, model: PlaceModel, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        if model.config.layers != ONE_LAYER:
            return self._compute(model, images)  # maps of two layers are five times as large
        keys = [hashlib.sha256(image.contiguous().numpy()).digest() for image in images]
        if any(key not in self._seen for key in keys):
            # Always with local features: the next model may keep them.
            maps, local = self._compute(model.fitted(local_features=LOCAL_FEATURES), images)
            assert local is not None
            self._seen.update(zip(keys, zip(maps, *local, strict=True), strict=True))
        # In the network's memory order, so that every sum rounds as without remembering.
        maps, cells, codes = map(torch.stack, zip(*(self._seen[key] for key in keys), strict=True))
        local = None if model.local is None else (cells, codes)
        return maps.contiguous(memory_format=torch.channels_last), local


def photos_of(name: str, data: Path) -> tuple[list[Path], list[Path]]:
    """Database and queries of a set, sorted by path."""
    database, queries = (sorted((data / part).iterdir()) for part in SETS[name])
    return database, queries


def truth_file(name: str, data: Path, folder: Path) -> Path | None:
    """The truth of a set, for `loci evaluate --truth`; None if its photos have positions."""
    if name == "cambridge":
        return None
    if name == "corridor":
        return data / "corridor/ground_truth.csv"
    database, queries = ([path.name for path in part] for part in photos_of(name, data))
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


def right_rows(name: str, data: Path, folder: Path) -> list[set[int]]:
    """Rows of the database that are right, for each query."""
    path = truth_file(name, data, folder)
    assert path is not None, f"{name} has no table of right answers"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    if name == "corridor":
        return [{int(i) for i in row["reference_indices"].split()} for row in rows]
    database, queries = ([path.name for path in part] for part in photos_of(name, data))
    right = {row["query"]: {database.index(p) for p in row["positives"].split()} for row in rows}
    return [right.get(query, set()) for query in queries]


def with_answers(name: str, data: Path) -> tuple[list[Path], list[Path], NDArray[np.bool_]]:
    """The database (N), the queries that have a right photo (Q), and which photos are right (Q N)."""
    database, queries = photos_of(name, data)
    if name == "cambridge":
        at = [
            np.array([(m.lat, m.lon) for m in map(from_name, map(str, part))]) for part in (queries, database)
        ]
        away = haversine_m(*(at[0][:, None, i] for i in (0, 1)), *(at[1][None, :, i] for i in (0, 1)))
        right = np.asarray(away <= 25)
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = right_rows(name, data, Path(folder))
        right = np.array([[n in row for n in range(len(database))] for row in rows])
    known = np.flatnonzero(right.any(1))
    return database, [queries[n] for n in known], right[known]


def stored_descriptors(index: Path) -> Descriptors:
    """All descriptors of an index, n d."""
    layout = Layout(index)
    manifest = read_manifest(layout, layout.current())
    generation = generation_of(manifest.snapshot)
    live = Catalogue(index).live_descriptors(generation)
    return np.concatenate(list(read_slots(layout.shards(generation), [s for *_, s in live], manifest.dim)))


class DescriptorSource:
    """Draws descriptors that resemble real ones (n d).

    Each is a point between a real one and one of its ten nearest, moved by 0.8 of the direction between two
    others and by 0.5 of a random direction.
    """

    def __init__(self, real: Descriptors) -> None:
        self._real = real
        cosines = real @ real.T
        np.fill_diagonal(cosines, -2)
        self._near = np.argsort(-cosines, axis=1)[:, :10]

    def draw(self, count: int, generator: np.random.Generator) -> Descriptors:
        real, near = self._real, self._near
        one = generator.integers(0, len(real), count)
        other = near[one, generator.integers(0, near.shape[1], count)]
        share = generator.random((count, 1), np.float32)
        between = unit((1 - share) * real[one] + share * real[other])
        first, second = generator.integers(0, len(real), (2, count))
        random = unit(generator.standard_normal((count, real.shape[1]), np.float32))
        return unit(between + 0.8 * unit(real[first] - real[second]) + 0.5 * random)


def unit(rows: Descriptors) -> Descriptors:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9), np.float32)


def multiplications(backbone: nn.Module, height: int, width: int) -> float:
    """Multiplications of a forward pass, in 10⁹."""
    count, x = 0, torch.zeros(1, 3, height, width)
    for layer in backbone.children():
        with torch.inference_mode():
            x = layer(x)
        if isinstance(layer, nn.Conv2d):
            count += x.shape[2] * x.shape[3] * layer.weight.numel()
    return count / 1e9


def median_seconds(runs: Mapping[str, Run], rounds: int) -> dict[str, float]:
    """Median time of each, run in turns, after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - begun)
    return {name: float(np.median(each)) for name, each in times.items()}


def memory_mib(field: str, process: int | str = "self") -> float:
    """MiB of a process, from a field of /proc/PID/status such as VmRSS, VmHWM, RssAnon."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
