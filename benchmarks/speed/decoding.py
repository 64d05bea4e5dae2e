"""Differences between GPU and CPU decoding: pixels, descriptors, recall.

    loci index ../shared/data/cambridge-street/database --into decoding --image-size 320
    python -m benchmarks.speed.decoding decoding ../shared/data/cambridge-street/queries

The index is made from the CPU's pixels; its queries are read both ways. Without a GPU, the GPU reader
computes the same on the CPU, except that libjpeg decodes the photo instead of nvJPEG.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from indexer.evaluation.run import evaluate
from indexer.index import Index
from indexer.photos.scan import scan
from model.gpu_decoding import GpuReader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    options = parser.parse_args()
    index = Index.open(options.index, device="cpu")
    gpu = GpuReader(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    files = [file.path for file in scan([options.queries]).files]
    on_cpu = evaluate(index, options.queries)
    plain = index.embed(files)
    pixels = [index.read(file) for file in files]
    index.embedder.read = gpu
    found = [index.read(file) for file in files]
    away = [
        float(np.abs(a.cpu().numpy().astype(float) - np.asarray(b)).mean())
        if isinstance(a, torch.Tensor)
        else 0
        for a, b in zip(found, pixels, strict=True)
    ]
    cosines = (plain * index.embed(files)).sum(1)
    on_gpu = evaluate(index, options.queries)
    print(f"{gpu.device}: {sum(isinstance(a, torch.Tensor) for a in found)} of {len(files)} photos")
    print(f"pixels: {np.mean(away):.2f} of 256 off on average, {max(away):.2f} in the worst photo")
    print(f"descriptors: cosine {cosines.mean():.5f} on average, {cosines.min():.5f} at least")
    changed = sum(a.right != b.right for a, b in zip(on_cpu.results, on_gpu.results, strict=True))
    for name, one in (("CPU", on_cpu), ("GPU's reader", on_gpu)):
        print(f"{name}: recall@1/5/10 {' / '.join(f'{100 * one.recall[str(n)]:.1f}' for n in (1, 5, 10))}")
    print(f"{changed} of {on_cpu.queries} queries judged otherwise")


if __name__ == "__main__":
    main()
