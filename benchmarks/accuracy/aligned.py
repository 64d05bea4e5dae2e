"""Locally connected layers on aligned and on shifted images: DeepFace-like networks on a corridor.

    python -m benchmarks.accuracy.aligned ../shared/data/corridor

Classes are the places of the first pass (`ref`), one photo each. Queries are the photos of the second pass
(`query`); an answer is right if `ground_truth.csv` allows it. The networks differ only in L4 to L6: a kernel
for each position, for each tile, or one kernel. Sizes, multiplications, seeds, optimiser and augmentation are
the same. "Aligned" crops all photos at the middle. "Shifted" crops each at random, up to 10 pixels off, in
training and test.

DeepFace is at about half its size (64×64 in, F7 of 256): the whole one would take hours on two cores.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.images import read_photo
from model.layers.connections import Connection, Convolution, FullyConnected, build_connection

KINDS = ("local", "tiled", "convolution")
SIZE, MARGIN = 64, 10
"""Side of the crop, and its greatest shift, in pixels."""
SMALL_SHIFT, BRIGHTNESS = 2, 0.2


class SmallDeepFace(nn.Sequential):
    """C1 16@7×7 → 58², M2 → 29², C3 16@5×5 → 25², L4 @5×5 → 21², L5 @5×5/2 → 9², L6 @3×3 → 7², F7 256."""

    def __init__(self, kind: str, classes: int, tile: int, generator: torch.Generator) -> None:
        local = [
            build_connection(kind, 16, 16, size, kernel, stride=stride, tile=tile, generator=generator)
            for size, kernel, stride in ((25, 5, 1), (21, 5, 2), (9, 3, 1))
        ]
        super().__init__(
            *(Convolution(3, 16, SIZE, 7, generator=generator), nn.ReLU()),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *(Convolution(16, 16, 29, 5, generator=generator), nn.ReLU()),
            *(module for layer in local for module in (layer, nn.ReLU())),
            *(FullyConnected(16, 256, 7, 7, generator=generator), nn.ReLU(), nn.Dropout(0.5)),
            *(FullyConnected(256, classes, 1, 1, generator=generator), nn.Flatten()),
        )
        self.local = local


def read(folder: Path) -> Tensor:
    """Photos of a pass at (64 + 2·10)², mean 0 and variance 1 over all, N 3 84 84."""
    whole = SIZE + 2 * MARGIN
    photos = [
        torch.from_numpy(read_photo(path, 640)).permute(2, 0, 1)[None].float()
        for path in sorted(folder.glob("*.jpg"))
    ]
    images = torch.cat([F.interpolate(x, (whole, whole), mode="bilinear", antialias=True) for x in photos])
    return (images - images.mean()) / images.std()


def cut(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """Crops of 64×64, at most `reach` pixels off the middle in each direction."""
    shifts = torch.randint(-reach, reach + 1, (len(images), 2), generator=generator) + MARGIN
    return torch.stack(
        [
            image[:, top : top + SIZE, left : left + SIZE]
            for image, (top, left) in zip(images, shifts.tolist(), strict=True)
        ]
    )


def train(network: nn.Module, images: Tensor, reach: int, epochs: int, generator: torch.Generator) -> float:
    """Train, and return the share of the last epoch's images that were recognised."""
    optimiser = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    network.train()
    for _ in range(epochs):
        known = 0
        order = torch.randperm(len(images), generator=generator)
        for batch in torch.split(order, 37):
            seen = cut(images[batch], reach, generator)
            gain = 1 + BRIGHTNESS * (2 * torch.rand(len(batch), 1, 1, 1, generator=generator) - 1)
            logits = network(seen * gain)
            optimiser.zero_grad()
            F.cross_entropy(logits, batch).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            known += int((logits.argmax(1) == batch).sum())
        schedule.step()
    return known / len(images)


def accuracy(network: nn.Module, images: Tensor, allowed: list[set[int]]) -> float:
    """Share of the images whose first answer is allowed."""
    network.eval()
    with torch.inference_mode():
        answers = network(images).argmax(1).tolist()
    return sum(answer in right for answer, right in zip(answers, allowed, strict=True)) / len(allowed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tile", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="these layers are small: 1 is best")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    database, queries = read(options.folder / "ref"), read(options.folder / "query")
    with (options.folder / "ground_truth.csv").open() as file:
        allowed = [set(map(int, row["reference_indices"].split())) for row in csv.DictReader(file)]
    begun = time.perf_counter()
    print("| cut | L4 to L6 | their weights | multiplies | trained, % | right, mean % | each seed |")
    print("|" + " --- |" * 7)
    for name, train_reach, test_reach in (("aligned", SMALL_SHIFT, 0), ("shifted", MARGIN, MARGIN)):
        for kind in KINDS:
            known, right = [], []
            for seed in range(options.seeds):
                generator = torch.Generator().manual_seed(seed)
                torch.manual_seed(seed)  # for the dropout
                network = SmallDeepFace(kind, len(database), options.tile, generator)
                order = torch.Generator().manual_seed(100 + seed)
                known.append(100 * train(network, database, train_reach, options.epochs, order))
                asked = cut(queries, test_reach, torch.Generator().manual_seed(200 + seed))
                right.append(100 * accuracy(network, asked, allowed))
            weights = sum(layer.weights for layer in network.local)
            multiplies = sum(m.multiplies for m in network.modules() if isinstance(m, Connection))
            print(
                f"| {name} | {kind} | {weights:,} | {multiplies:,} | {statistics.mean(known):.0f} "
                f"| {statistics.mean(right):.1f} | {', '.join(f'{value:.1f}' for value in right)} |",
                flush=True,
            )
    print(f"\n{options.seeds} seeds, {options.epochs} epochs, {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
