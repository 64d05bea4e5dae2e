"""The network on a GPU in every precision, with and without CUDA graphs, and from file to descriptor.

    python -m benchmarks.speed.gpu ../shared/data/cambridge-street/database

The baseline is VGG16 to conv5_3 in PyTorch, fp32, one image at a time, on the same GPU (convolutions in TF32
if the GPU has it, PyTorch's default). The limit is a large matrix product in the same format. Then from files
to descriptors and local features, in batches and for one query, with both decoders. All runs take turns.
Without a GPU, nothing is measured; `--device cpu` runs everything on the CPU, to try the script.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.common import MATRIX_SIDE, Run, median_seconds, multiplications
from indexer.photos.scan import scan
from model.embedder import DTYPES, Embedder
from model.gpu_decoding import GpuReader
from model.images import read_photo
from model.layers.local_features import LOCAL_FEATURES
from model.modelfile import ModelConfig, PlaceModel

PRECISIONS = ("fp32", "fp16", "bf16")


def done(run: Callable[[], torch.Tensor]) -> Run:
    """Run and wait for the result."""
    return lambda: float(run().flatten()[0])


def without_graphs(embedder: Embedder) -> Embedder:
    embedder._graphs = None
    return embedder


def network(model: PlaceModel, images: list[np.ndarray], device: str, options: argparse.Namespace) -> None:
    """Time and cosine of the convolutions, for one image and for a batch."""
    giga = multiplications(model.backbone, *images[0].shape[:2])
    on_gpu = copy.deepcopy(model).to(device)

    @torch.inference_mode()
    def plain(image: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].contiguous() - on_gpu.mean
        maps: torch.Tensor = on_gpu.backbone(x)
        return maps

    embedders = {name: Embedder(model, device=device, precision=name) for name in PRECISIONS}
    stepwise = {name: without_graphs(Embedder(model, device=device, precision=name)) for name in PRECISIONS}
    batch = images * (options.batch // len(images) + 1)
    runs: dict[str, Run] = {"plain": done(lambda: plain(images[0]))}
    for name in PRECISIONS:
        runs[f"{name} step by step"] = lambda e=stepwise[name]: e.outputs(images[:1], "pooled")  # type: ignore[misc]
        runs[f"{name} recorded"] = lambda e=embedders[name]: e.outputs(images[:1], "pooled")  # type: ignore[misc]
        runs[f"{name} batch"] = lambda e=embedders[name]: e.outputs(batch[: options.batch], "pooled")  # type: ignore[misc]
        a, b = (torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device).to(DTYPES[name]) for _ in range(2))
        runs[f"{name} limit"] = done(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    took = median_seconds(runs, options.rounds)
    height, width = images[0].shape[:2]
    print(f"{width}×{height} pixels, {giga:.0f} billion multiplications")
    print(f"plain fp32, one at a time: {1000 * took['plain']:.2f} ms an image")
    print()
    print("| precision | one image, ms | recorded | of a batch | against plain | of the limit | cosine |")
    print("|---|---|---|---|---|---|---|")
    wanted = [plain(image)[0].float().cpu() for image in images]
    for name in PRECISIONS:
        found = [torch.from_numpy(maps) for maps in embedders[name].outputs(images, "maps")]
        cosines = torch.cat(
            [F.cosine_similarity(a, b, dim=0).flatten() for a, b in zip(found, wanted, strict=True)]
        )
        each = took[f"{name} batch"] / options.batch
        limit = MATRIX_SIDE**3 / 1e9 / took[f"{name} limit"]
        cells = [
            *(name, f"{1000 * took[f'{name} step by step']:.2f}", f"{1000 * took[f'{name} recorded']:.2f}"),
            *(f"{1000 * each:.2f}", f"{took['plain'] / each:.1f}"),
            f"{giga / each / limit:.2f} of {limit / 1000:.1f} TMAC/s",
            f"{cosines.mean():.5f}, {cosines.min():.4f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def end_to_end(model: PlaceModel, files: list[Path], device: str, options: argparse.Namespace) -> None:
    """Photos a second from files to descriptors, and milliseconds for one photo, with each decoder."""
    embedder = Embedder(model, device=device, batch_size=options.batch)
    step = without_graphs(Embedder(model, device=device, batch_size=options.batch))
    readers: dict[str, Any] = {"CPU": read_photo}
    if isinstance(embedder.read, GpuReader):
        readers["GPU"] = embedder.read
        away = [
            np.abs(embedder.read(file).cpu().numpy().astype(float) - read_photo(file)).mean()  # type: ignore[union-attr]
            for file in files[:50]
        ]
        print(f"\nthe GPU's pixels: {np.mean(away):.2f} of 256 off on average, {max(away):.2f} at most")

    def in_turn(read: Any) -> None:
        for start in range(0, len(files), options.batch):
            step.see([[read(file)] for file in files[start : start + options.batch]])

    def streamed(read: Any) -> None:
        for _ in embedder.stream(files, lambda file: [read(file)]):
            pass

    runs: dict[str, Run] = {"CPU, in turn": lambda: in_turn(read_photo)}
    runs |= {f"{name}, overlapped": lambda r=r: streamed(r) for name, r in readers.items()}  # type: ignore[misc]
    rates = {name: len(files) / each for name, each in median_seconds(runs, options.rounds).items()}
    singles = median_seconds(
        {
            "CPU, in turn": lambda: step.see([[read_photo(files[0])]]),
            **{f"{n}, overlapped": lambda r=r: embedder.see([[r(files[0])]]) for n, r in readers.items()},  # type: ignore[misc]
        },
        4 * options.rounds,
    )
    print(f"\n{len(files)} photos in {embedder.describe()['precision']}, batches of {options.batch}")
    print()
    print("| decoded by | photos a second | ratio | one photo, ms | ratio |")
    print("|---|---|---|---|---|")
    first = next(iter(rates))
    for name, rate in rates.items():
        single = singles[name]
        cells = [name, f"{rate:.1f}", f"{rate / rates[first]:.2f}"]
        cells += [f"{1000 * single:.1f}", f"{singles[first] / single:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("There is no GPU here: not measured.")
        return
    if options.device == "cpu":
        print("On the CPU: none of this says anything about a GPU.")
    else:
        print(torch.cuda.get_device_name(options.device))
    files = [file.path for file in scan([options.folder]).files]
    files = files[:: max(1, len(files) // options.photos)][: options.photos]
    images = [read_photo(file, max(options.height, options.width)) for file in files[:8]]
    images = [np.ascontiguousarray(image[: options.height, : options.width]) for image in images]
    model = PlaceModel.unfitted(
        ModelConfig(pooling="average", clusters=0, local_features=LOCAL_FEATURES)
    ).eval()
    network(model, images, options.device, options)
    end_to_end(model, files, options.device, options)


if __name__ == "__main__":
    main()
