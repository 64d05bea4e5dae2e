"""Indexing and querying end to end, against the bare network and against a script; with peak memory.

    python -m benchmarks.speed.indexing ../shared/data/cambridge-street/database --photos 300

On the same photos, in turns: `build_index` from folder to published index, in its own process; the network
alone on decoded images (with indexing's precision and batches); and a script with the same model, clusters
and reduction in fp32, one image at a time. Then single queries, from file to answer, with and without
verification, against the script with an array of descriptors. Hashing, fitting, calibration and local
features count for `build_index`. On a noisy machine, compare the ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from indexer.build.run import build_index
from indexer.index import Index
from indexer.options import BuildOptions
from indexer.photos.scan import scan
from model.embedder import Embedder
from model.images import read_photo
from model.modelfile import PlaceModel, load_model


def bare_network(model: PlaceModel, paths: list[Path], precision: str) -> float:
    """Images a second of the convolutions alone, as indexing runs them."""
    embedder = Embedder(model, precision=precision)
    seconds = 0.0
    step = 8 * embedder.batch_size
    for start in range(0, len(paths), step):
        images = [read_photo(path, model.config.image_size) for path in paths[start : start + step]]
        begun = time.perf_counter()
        embedder.outputs(images, "maps")
        seconds += time.perf_counter() - begun
    return len(paths) / seconds


def plain(model: PlaceModel, path: Path) -> torch.Tensor:
    """Descriptor of a photo in fp32, by the script."""
    image = torch.from_numpy(read_photo(path, model.config.image_size)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        found: torch.Tensor = model(image.contiguous())
        return found


def one_at_a_time(model: PlaceModel, paths: list[Path]) -> float:
    """Images a second of the script, with decoding: batches of one, nothing overlapped."""
    begun = time.perf_counter()
    for path in paths:
        plain(model, path)
    return len(paths) / (time.perf_counter() - begun)


def end_to_end(folder: Path, into: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Images a second and peak memory in GB of `build_index`, in its own process."""
    command = [sys.executable, __file__, str(folder), "--image-size", str(options.image_size)]
    command += ["--precision", options.precision, "--child", str(into)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    return result["rate"], result["peak_gb"]


def child(options: argparse.Namespace) -> None:
    wanted = BuildOptions(image_size=options.image_size, precision=options.precision)
    report = build_index([options.folder], options.child, wanted)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"rate": report.photos / report.seconds, "peak_gb": peak}))


def one_query(index: Index, model: PlaceModel, paths: list[Path]) -> dict[str, float]:
    """Median seconds of a query, in turns: ours, ours verified, and the script."""
    _, descriptors = index.descriptors()
    table = np.ascontiguousarray(descriptors)
    runs: dict[str, Callable[[Path], Any]] = {
        "not verified": lambda path: index.query(path, verify=False),
        "verified": lambda path: index.query(path),
        "plain": lambda path: np.argsort(-(table @ plain(model, path)[0].numpy()))[:10],
    }
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for number, path in enumerate([paths[0], *paths]):
        for name, run in runs.items():
            begun = time.perf_counter()
            run(path)
            if number:  # the first is a warm-up
                taken[name].append(time.perf_counter() - begun)
    return {name: float(np.median(each)) for name, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--slow-photos", type=int, default=40, help="for one image at a time")
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    files = scan([options.folder]).files
    paths = [file.path for file in files[:: max(1, len(files) // options.photos)]][: options.photos]
    with tempfile.TemporaryDirectory() as copied:
        for path in paths:
            shutil.copy(path, copied)
        print(f"{len(paths)} photos, image size {options.image_size}, {os.cpu_count()} cores")
        for _ in range(options.rounds):
            with tempfile.TemporaryDirectory() as folder:
                measure(paths, Path(copied), Path(folder) / "index", options)


def measure(paths: list[Path], copied: Path, into: Path, options: argparse.Namespace) -> None:
    """Run one round of everything."""
    few = paths[:: max(1, len(paths) // options.slow_photos)][: options.slow_photos]
    half = len(few) // 2
    whole, peak = end_to_end(copied, into, options)
    index = Index.open(into, precision=options.precision)
    model = load_model(into / "generations" / "01" / "model.safetensors").eval()
    before = one_at_a_time(model, few[:half])
    bare = bare_network(model, paths[: len(paths) // 2], options.precision)
    after = one_at_a_time(model, few[half:])
    slow = len(few) / (half / before + (len(few) - half) / after)
    query = one_query(index, model, few)
    runs_on = index.embedder.describe()["precision"]
    print(f"indexing, end to end  {whole:6.2f} images/s in {runs_on}, at its peak {peak:.2f} GB")
    print(f"bare network          {bare:6.2f} images/s: indexing is {whole / bare:.2f} of it")
    print(
        f"fp32, one at a time   {slow:6.2f} images/s ({before:.2f} before, {after:.2f} after): "
        f"indexing is {whole / slow:.2f} times as fast"
    )
    for name in ("not verified", "verified"):
        print(
            f"one query, {name}: {query[name]:.3f} s, the script {query['plain']:.3f} s: "
            f"{query['plain'] / query[name]:.2f} times as fast",
            flush=True,
        )


if __name__ == "__main__":
    main()
