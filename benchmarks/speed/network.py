"""The network in every precision, against plain fp32 and against the machine's limit.

    python -m benchmarks.speed.network ../shared/data/cambridge-street/database

VGG16 to conv5_3 in `Embedder` (fp32, bf16, int8) and in plain PyTorch (fp32), one image at a time, in turns.
The limit is a large matrix product in the same format. Then the same from photo to descriptor, with decoding.
The cosine compares local descriptors of conv5_3 with plain fp32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.common import MATRIX_SIDE, Run, median_seconds, multiplications
from indexer.build.fit import RANGE_PHOTOS, RANGE_SIDE
from indexer.photos.scan import scan
from model.embedder import DTYPES, Embedder, with_ranges
from model.images import read_photo
from model.layers.local_features import LOCAL_FEATURES
from model.modelfile import ModelConfig, PlaceModel


def products() -> dict[str, Run]:
    """A matrix product in each format."""
    runs: dict[str, Run] = {}
    for name in ("fp32", "bf16"):
        a, b = (torch.randn(MATRIX_SIDE, MATRIX_SIDE).to(DTYPES[name]) for _ in range(2))
        runs[name] = lambda a=a, b=b: a @ b  # type: ignore[misc]
    import openvino
    from openvino import opset13 as ops

    given = ops.parameter([MATRIX_SIDE, MATRIX_SIDE], np.float32)
    low, high = (ops.constant(np.full((1, 1), bound, np.float32)) for bound in (-128 / 127, 1.0))
    codes = np.random.default_rng(0).integers(-127, 128, (MATRIX_SIDE, MATRIX_SIDE), np.int8)
    weights = ops.multiply(
        ops.convert(ops.constant(codes), np.float32), ops.constant(np.full((1, 1), 1 / 127, np.float32))
    )
    product = ops.matmul(ops.fake_quantize(given, low, high, low, high, 256), weights, False, False)
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    network = openvino.Core().compile_model(openvino.Model([product], [given]), "CPU", settings)
    values = np.random.default_rng(1).uniform(-1, 1, (MATRIX_SIDE, MATRIX_SIDE)).astype(np.float32)
    runs["int8"] = lambda: network(values, share_outputs=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    files = [file.path for file in scan([options.folder]).files]
    files = files[:: max(1, len(files) // (RANGE_PHOTOS + 10))]
    model = PlaceModel.unfitted(ModelConfig(pooling="average", clusters=0, local_features=LOCAL_FEATURES))
    model = with_ranges(model, [read_photo(f, RANGE_SIDE) for f in files[:RANGE_PHOTOS]], "cpu").eval()
    precisions = ("fp32", "bf16", "int8")
    embedders = {name: Embedder(model, device="cpu", precision=name) for name in precisions}
    photos = files[RANGE_PHOTOS:][:10]
    images = [read_photo(f, max(options.height, options.width)) for f in photos]
    images = [np.ascontiguousarray(image[: options.height, : options.width]) for image in images]
    image, photo = images[0], photos[0]

    def plain(image: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            x = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous() - model.mean
            maps: torch.Tensor = model.backbone(x)
            return maps

    giga = multiplications(model.backbone, *image.shape[:2])
    runs: dict[str, Run] = {"plain": lambda: plain(image)}
    runs |= {name: lambda e=e: e.outputs([image], "maps") for name, e in embedders.items()}  # type: ignore[misc]
    runs["plain, decoding"] = lambda: plain(read_photo(photo))
    runs |= {
        f"{name}, decoding": lambda e=e: e.see([[read_photo(photo)]])  # type: ignore[misc]
        for name, e in embedders.items()
    }
    runs |= {f"limit {name}": run for name, run in products().items()}
    took = median_seconds(runs, options.rounds)
    size, threads = f"{image.shape[1]}×{image.shape[0]} pixels", torch.get_num_threads()
    print(f"{size}, {giga:.0f} billion multiplications, {threads} threads")
    print(f"plain fp32, one at a time: {took['plain']:.3f} s, with decoding {took['plain, decoding']:.3f} s")
    print()
    print("| precision | s | against plain | of the limit | to descriptor, to plain | cosine, mean, least |")
    print("|---|---|---|---|---|---|")
    for name, embedder in embedders.items():
        limit = MATRIX_SIDE**3 / 1e9 / took[f"limit {name}"]
        cosines = []
        for each in images:
            found = torch.from_numpy(embedder.outputs([each], "maps")[0])
            cosines.append(F.cosine_similarity(plain(each)[0], found, dim=0).flatten())
        cosine = torch.cat(cosines)
        cells = [
            *(name, f"{took[name]:.3f}", f"{took['plain'] / took[name]:.2f}"),
            f"{giga / took[name] / limit:.2f} of {limit:.0f} GMAC/s",
            f"{took['plain, decoding'] / took[f'{name}, decoding']:.2f}",
            f"{cosine.mean():.5f}, {cosine.min():.4f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
