"""Indexing speed against the bare network, and against one fp32 image at a time; memory.

    python benchmarks/indexing.py ../shared/data/cambridge-street/database --photos 300

Three things are timed on the same photos, in one run and in turn: the network alone on images that lie
decoded in memory (the precision and batches that indexing uses); `build_index` from folder to published
index, in a process of its own whose peak memory is read; and the same network driven as scripts in this
field do: fp32, one image at a time, decoded as it comes. The ratios are what counts on a noisy machine.
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
from pathlib import Path

import torch

from indexer.build import build_index
from indexer.fit import unfitted_model
from indexer.options import BuildOptions, FitOptions
from indexer.scan import scan
from model.embedder import Embedder
from model.images import read_photo


def bare_network(paths: list[Path], image_size: int) -> float:
    """Images per second of the convolutions alone, as indexing runs them."""
    embedder = Embedder(unfitted_model(FitOptions(image_size=image_size)))
    seconds = 0.0
    step = 8 * embedder.batch_size
    for start in range(0, len(paths), step):
        images = [read_photo(path, image_size) for path in paths[start : start + step]]
        begun = time.perf_counter()
        embedder.outputs(images, "maps")
        seconds += time.perf_counter() - begun
    return len(paths) / seconds


def one_at_a_time(paths: list[Path], image_size: int) -> float:
    """Images per second, decoding included: fp32, batches of one, nothing overlapped."""
    model = unfitted_model(FitOptions(image_size=image_size)).eval()
    begun = time.perf_counter()
    with torch.inference_mode():
        for path in paths:
            image = torch.from_numpy(read_photo(path, image_size)).permute(2, 0, 1)[None]
            x = image.contiguous() - model.mean
            model.pool(model.backbone(x))
    return len(paths) / (time.perf_counter() - begun)


def end_to_end(folder: Path, image_size: int) -> tuple[float, float]:
    """Images per second and peak memory in GB of `build_index`, in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--image-size", str(image_size), "--child"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result = json.loads(done.stdout)
    return result["rate"], result["peak_gb"]


def child(folder: Path, image_size: int) -> None:
    with tempfile.TemporaryDirectory() as into:
        report = build_index([folder], Path(into) / "index", BuildOptions(image_size=image_size))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"rate": report.photos_per_second, "peak_gb": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--slow-photos", type=int, default=40, help="for one image at a time")
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.folder, options.image_size)
        return
    files = scan([options.folder]).files
    paths = [file.path for file in files[:: max(1, len(files) // options.photos)]][: options.photos]
    with tempfile.TemporaryDirectory() as copied:
        for path in paths:
            shutil.copy(path, copied)
        print(f"{len(paths)} photos, image size {options.image_size}, {os.cpu_count()} cores")
        for _ in range(options.rounds):
            half = len(paths) // 2
            before = bare_network(paths[:half], options.image_size)
            whole, peak = end_to_end(Path(copied), options.image_size)
            after = bare_network(paths[half:], options.image_size)
            slow = one_at_a_time(paths[: options.slow_photos], options.image_size)
            bare = len(paths) / (half / before + (len(paths) - half) / after)
            print(f"bare network            {bare:6.2f} images/s ({before:.2f} before, {after:.2f} after)")
            print(f"indexing, end to end    {whole:6.2f} images/s, {whole / bare:.2f} of the bare network")
            print(
                f"fp32, one at a time     {slow:6.2f} images/s, indexing is {whole / slow:.2f} times as fast"
            )
            print(f"peak memory of indexing {peak:6.2f} GB", flush=True)


if __name__ == "__main__":
    main()
