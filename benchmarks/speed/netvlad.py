"""The NetVLAD layer: time and peak memory against two public forms, forward and backward.

    python -m benchmarks.speed.netvlad

K = 64, D = 512; medians, in turns. The public forms are the loop over clusters and the broadcast residual
B×K×D×N. Peak memory is the allocation beyond the inputs, measured by PyTorch's profiler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from model.layers.poolings import NetVLAD

Form = Callable[[NetVLAD, Tensor], Tensor]
Pass = Callable[[Form, NetVLAD, Tensor], None]


def ours(layer: NetVLAD, maps: Tensor) -> Tensor:
    descriptors: Tensor = layer(maps)
    return descriptors


def loop(layer: NetVLAD, maps: Tensor) -> Tensor:
    """The residuals of one cluster at a time."""
    x = F.normalize(maps.flatten(2), dim=1)  # B D N
    a = (layer.weight @ x).softmax(1)  # B K N
    rows = [
        ((x - layer.centres[k][None, :, None]) * a[:, k : k + 1]).sum(2) for k in range(len(layer.centres))
    ]
    return F.normalize(F.normalize(torch.stack(rows, 1), dim=2).flatten(1), dim=1)


def broadcast(layer: NetVLAD, maps: Tensor) -> Tensor:
    """All residuals at once, B K D N."""
    x = F.normalize(maps.flatten(2), dim=1)  # B D N
    a = (layer.weight @ x).softmax(1)  # B K N
    residuals = x[:, None] - layer.centres[None, :, :, None]  # B K D N
    rows = (residuals * a[:, :, None]).sum(3)
    return F.normalize(F.normalize(rows, dim=2).flatten(1), dim=1)


FORMS: dict[str, Form] = {"ours": ours, "loop over K": loop, "broadcast": broadcast}


def forward(form: Form, layer: NetVLAD, maps: Tensor) -> None:
    with torch.inference_mode():
        form(layer, maps)


def backward(form: Form, layer: NetVLAD, maps: Tensor) -> None:
    maps.grad = None
    layer.zero_grad()
    descriptor = form(layer, maps)
    torch.autograd.backward(descriptor, torch.ones_like(descriptor))


def peak_bytes(work: Pass, form: Form, layer: NetVLAD, maps: Tensor) -> int:
    """The largest sum of allocated and not yet freed bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work(form, layer, maps)
    now = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


def measure(batch: int, side: tuple[int, int], repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(batch, 512, *side, generator=generator).requires_grad_()
    centres = F.normalize(torch.randn(64, 512, generator=generator), dim=1)
    layer = NetVLAD.from_centres(centres, 50.0)
    with torch.no_grad():
        want = ours(layer, maps)
        for name, form in FORMS.items():
            if not torch.allclose(form(layer, maps), want, atol=1e-5):
                raise SystemExit(f"{name} gives another descriptor")
    for label, work in (("forward", forward), ("and backward", backward)):
        times: dict[str, list[float]] = {name: [] for name in FORMS}
        for turn in range(repeats + 1):
            for name, form in FORMS.items():
                started = time.perf_counter()
                work(form, layer, maps)
                if turn:
                    times[name].append(time.perf_counter() - started)
        medians = [1000 * float(np.median(values)) for values in times.values()]
        peaks = [peak_bytes(work, form, layer, maps) / 1e6 for form in FORMS.values()]
        cells = [f"{ms:.1f} ms, {mb:.0f} MB" for ms, mb in zip(medians, peaks, strict=True)]
        ratios = ", ".join(f"{value / medians[0]:.1f}" for value in medians[1:])
        less = ", ".join(f"{value / peaks[0]:.0f}" for value in peaks[1:])
        print(
            f"| {batch}×{side[0]}×{side[1]} | {label} | {' | '.join(cells)} | {ratios} | {less} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print("| map | pass | " + " | ".join(FORMS) + " | times faster | times less memory |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for batch, side in ((1, (30, 40)), (4, (30, 40)), (1, (48, 64))):
        measure(batch, side, options.repeats)


if __name__ == "__main__":
    main()
