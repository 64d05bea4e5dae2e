"""Locally connected layers at DeepFace's sizes, against the plain form and the machine's limits.

    python -m benchmarks.speed.connections

The plain form is `einsum` over `unfold`, with weights in the usual order O J P, and in our order P O J. All
three run in turns; times are medians in milliseconds. A forward pass reads the weights at least once; with
backward they are read twice and their gradient is written once. The time of that at this machine's speed of
reading (a sum) and writing (a fill) is the memory's limit. Each image multiplies every weight once forward,
and twice backward; the time of that at the speed of a large matrix product is the processor's limit. The
share is of the higher limit.

A gradient as large as L4's weights is returned to the system at each step, and its pages come back one fault
at a time. If that is slow, let the allocator keep them:

    MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592 python -m benchmarks.speed.connections
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.connections import LocallyConnected
from model.layers.deepface import LOCAL_LAYERS, MAPS

MEASURED = 1 << 28
"""Bytes read and written to measure the memory's speed."""
SQUARE = 1536
"""Side of the matrices that measure the processor's speed."""


class Plain(nn.Module):
    """The same layer as `einsum` over `unfold`; `order` names the weights' axes."""

    def __init__(self, layer: LocallyConnected, order: str) -> None:
        super().__init__()
        weight = layer.weight.detach()  # P O J
        self.weight = nn.Parameter(torch.einsum(f"poj->{order}", weight).contiguous())
        self.bias = nn.Parameter(torch.zeros(layer.out_channels, len(weight)))
        self.formula = f"{order},bjp->bop"
        self.kernel, self.stride, self.output_size = layer.kernel, layer.stride, layer.output_size

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, self.kernel, stride=self.stride)  # B J P
        y = torch.einsum(self.formula, self.weight, patches) + self.bias
        return y.view(len(x), -1, *self.output_size)


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def forward(layer: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        layer(x)


def both_ways(layer: nn.Module, x: Tensor) -> None:
    """One step of training: gradients of weights, biases and input."""
    layer.zero_grad()
    x.grad = None
    layer(x).sum().backward()


def measure(name: str, batch: int, rounds: int, memory: Tensor) -> None:
    size, kernel, stride = LOCAL_LAYERS[name]
    layer = LocallyConnected(MAPS, MAPS, size, kernel, stride=stride)
    forms = [layer, Plain(layer, "ojp"), Plain(layer, "poj")]
    x = torch.randn(batch, MAPS, size, size, requires_grad=True)
    square = torch.randn(SQUARE, SQUARE)
    y = layer(x)
    for form in forms[1:]:
        torch.testing.assert_close(form(x), y, rtol=1e-3, atol=1e-3)
    size_bytes = layer.weights * layer.weight.element_size()
    for mode, run in (("forward", forward), ("and backward", both_ways)):
        for form in forms:
            run(form, x)
        times: list[list[float]] = [[] for _ in range(6)]
        for _ in range(rounds):
            for i, form in enumerate(forms):
                times[i].append(seconds(partial(run, form, x)))
            times[3].append(seconds(memory.sum) / MEASURED)
            times[4].append(seconds(lambda: memory.fill_(1)) / MEASURED)
            times[5].append(seconds(partial(torch.mm, square, square)) / SQUARE**3)
        ours, ojp, poj, read, write, multiply = map(statistics.median, times)
        of_memory = size_bytes * (read if mode == "forward" else 2 * read + write)
        of_processor = batch * layer.multiplies * multiply * (1 if mode == "forward" else 3)
        share = max(of_memory, of_processor) / ours
        print(
            f"| {name} | {batch} | {mode} | {ours * 1e3:.2f} | {ojp * 1e3:.2f} | {poj * 1e3:.2f} "
            f"| {ojp / ours:.1f}, {poj / ours:.1f} | {size_bytes / 1e6:.1f} | {of_memory * 1e3:.2f} "
            f"| {of_processor * 1e3:.2f} | {share:.0%} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="turns for L4; smaller layers have more")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    memory = torch.ones(MEASURED // 4)
    read = MEASURED / min(seconds(memory.sum) for _ in range(10))
    write = MEASURED / min(seconds(lambda: memory.fill_(1)) for _ in range(10))
    print(f"{torch.get_num_threads()} threads, reads {read / 1e9:.1f} GB/s, writes {write / 1e9:.1f} GB/s\n")
    print("| layer | batch | pass | ours | einsum O J P | einsum P O J | times faster | weights, MB ", end="")
    print("| memory's limit | processor's | share |\n|" + " --- |" * 11)
    for name in LOCAL_LAYERS:
        for batch in options.batches:
            measure(name, batch, options.rounds * (1 if name == "L4" else 3), memory)


if __name__ == "__main__":
    main()
