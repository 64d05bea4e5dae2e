"""Recorded passes: replayed where they are right, and never otherwise.

Without a GPU, what records is a stand-in that computes anew into the memory of its outputs, as a replay does.
"""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from model.cuda_graphs import IMAGES, KEPT, CudaRecorder, Graphs, Outputs, Pass


class Recorder:
    """Records passes, and counts."""

    def __init__(self, wrong: float = 0.0, error: Exception | None = None) -> None:
        self.wrong, self.error = wrong, error
        self.recorded = self.replayed = 0

    def __call__(self, run: Pass, images: Tensor) -> tuple[Outputs, Callable[[], None]]:
        if self.error is not None:
            raise self.error
        self.recorded += 1
        outputs = tuple(torch.zeros_like(output) for output in run(images))

        def replay() -> None:
            self.replayed += 1
            for output, found in zip(outputs, run(images), strict=True):
                output.copy_(found + self.wrong)

        return outputs, replay


def network(images: Tensor) -> Outputs:
    return images.float().flatten(1).sum(1, keepdim=True), images.amax((1, 2, 3))


def photos(n: int = 1, height: int = 4, width: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(1, 256, (n, height, width, 3), generator=generator).to(torch.uint8).permute(0, 3, 1, 2)
    )


def right(graphs: Graphs, images: Tensor, stage: str = "descriptors") -> bool:
    found = graphs(stage, network, images)
    return all(torch.equal(a, b) for a, b in zip(found, network(images), strict=True))


def test_repeated_shape_is_recorded_and_replayed() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder)
    assert all(right(graphs, photos(seed=seed)) for seed in range(5))
    assert (recorder.recorded, recorder.replayed) == (1, 1 + 3)  # once to check it
    assert right(graphs, photos(2))
    assert right(graphs, photos(seed=9), "maps")  # of another stage
    assert recorder.recorded == 1


def test_large_batches_are_run_as_they_are() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder)
    assert all(right(graphs, photos(IMAGES + 1, seed=seed)) for seed in range(3))
    assert recorder.recorded == 0


def test_only_the_latest_shapes_are_kept() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder)
    for width in range(1, KEPT + 3):
        assert all(right(graphs, photos(1, 3, width, seed)) for seed in range(3))
    assert recorder.recorded == KEPT + 2
    assert right(graphs, photos(1, 3, KEPT + 2, seed=5))  # still there
    assert recorder.recorded == KEPT + 2
    assert right(graphs, photos(1, 3, 1))  # forgotten, and only seen anew
    assert right(graphs, photos(1, 3, 1, seed=4))
    assert recorder.recorded == KEPT + 3


def test_cleared_they_begin_anew() -> None:
    recorder = Recorder()
    graphs = Graphs(recorder)
    for _ in range(2):
        assert all(right(graphs, photos(seed=seed)) for seed in range(3))
        graphs.clear()
    assert recorder.recorded == 2


@pytest.mark.parametrize(
    ("recorder", "why"),
    [
        (Recorder(wrong=1e4), "off"),
        (Recorder(wrong=float("nan")), "off"),
        (Recorder(error=RuntimeError("operation not permitted when stream is capturing\nmore")), "capturing"),
    ],
)
def test_without_what_cannot_be_recorded_or_replays_wrongly(
    recorder: Recorder, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    graphs = Graphs(recorder)
    with caplog.at_level(logging.WARNING):
        assert all(right(graphs, photos(seed=seed)) for seed in range(4))
        assert all(right(graphs, photos(2, seed=seed)) for seed in range(4))
    assert len(caplog.records) == 1  # told once
    assert why in caplog.text
    assert recorder.recorded <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_cuda_replays_what_it_recorded() -> None:
    recorder = CudaRecorder()
    recorded = Graphs(recorder)
    layer = torch.nn.Conv2d(3, 8, 3, padding=1).cuda()

    def run(images: Tensor) -> Outputs:
        maps = layer(images.float())
        return maps, maps.flatten(2).norm(dim=1).argsort(dim=1, descending=True, stable=True)

    with torch.inference_mode():
        for seed in range(6):
            for size in ((64, 48), (48, 64)):
                images = photos(1 + seed % 2, *size, seed=seed).cuda()
                for found, wanted in zip(recorded("maps", run, images), run(images), strict=True):
                    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-2)
    assert sum(one is not None for one in recorded._kept.values()) == 4
