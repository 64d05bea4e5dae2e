"""The embedder on a GPU: where there is one, that it sees what a CPU sees; else that it waits as it must.

Without a GPU, a made-up one stands in, whose copies and events do nothing until they are waited for: what is
read too early is zeros.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import embedder as module
from model.cuda_graphs import Outputs, Pass
from model.embedder import Embedder, Seen
from model.gpu_decoding import GpuReader
from model.layers.local_features import unpack
from model.modelfile import ModelConfig, PlaceModel

Photo = NDArray[np.uint8]
SHAPES = ((48, 64), (64, 48), (32, 32))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def photo(number: int, shape: tuple[int, int] = (48, 64)) -> Photo:
    return np.random.default_rng(number).integers(0, 256, (*shape, 3), np.uint8)


def photos(count: int) -> list[Photo]:
    return [photo(number, SHAPES[number * number % 3]) for number in range(count)]


@pytest.fixture
def model() -> PlaceModel:
    return PlaceModel.unfitted(ModelConfig(pooling="average", clusters=0, local_features=12)).eval()


class MadeUp:
    """A GPU whose work is done when it is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: list[Callable[[], object]] = []
        self.waiting = 0
        """Batches whose results nobody has waited for."""
        self.most = 0
        self.cleared = 0
        cuda = torch.cuda
        monkeypatch.setattr(Embedder, "_is_gpu", True)
        monkeypatch.setattr(module, "Graphs", lambda: self)
        monkeypatch.setattr(module, "_pinned", self.pinned)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
        for name in ("Stream", "current_stream"):
            monkeypatch.setattr(cuda, name, lambda *_: self)
        monkeypatch.setattr(cuda, "Event", lambda: self)
        monkeypatch.setattr(cuda, "stream", self.within)
        monkeypatch.setattr(cuda, "device", self.within)
        monkeypatch.setattr(cuda, "get_device_name", lambda _: "made up")
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *a, **b: empty(*a, **b | {"pin_memory": False}))

    @contextmanager
    def within(self, _: object) -> Iterator[None]:
        yield

    def __call__(self, _: str, run: Pass, images: Tensor) -> Outputs:
        return run(images)

    def clear(self) -> None:
        self.cleared += 1

    def wait_stream(self, _: object) -> None: ...

    def pinned(self, output: Tensor) -> Tensor:
        below = torch.zeros_like(output)
        self.queue.append(lambda: below.copy_(output))
        return below

    def record(self) -> None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)

    def synchronize(self) -> None:
        self.waiting -= 1
        with torch.inference_mode():
            for work in self.queue:
                work()
        self.queue.clear()


def same(one: Seen, other: Seen) -> bool:
    assert one.local is not None
    assert other.local is not None
    assert (unpack(one.local)[0] == unpack(other.local)[0]).all()
    return bool(one.descriptor @ other.descriptor > 0.9999)


def test_results_are_waited_for_and_in_order(model: PlaceModel) -> None:
    images = photos(11)
    wanted = Embedder(model, device="cpu", precision="fp32").see([[image] for image in images])
    with pytest.MonkeyPatch.context() as patch:
        gpu = MadeUp(patch)
        found = Embedder(model, device="cpu", precision="fp32", batch_size=4).see([[i] for i in images])
        assert gpu.waiting == 0
    assert all(same(one, other) for one, other in zip(found, wanted, strict=True))


def test_stream_overlaps_two_batches(model: PlaceModel) -> None:
    images = photos(22)
    wanted = Embedder(model, device="cpu", precision="fp32").see([[image] for image in images])
    with pytest.MonkeyPatch.context() as patch:
        gpu = MadeUp(patch)
        embedder = Embedder(model, device="cpu", precision="fp32", batch_size=4)

        def read(number: int) -> list[Any]:
            image = images[number]
            return [torch.from_numpy(image) if number % 2 else image]  # decoded there, and here

        found = {one.item: one.seen[0] for batch in embedder.stream(range(22), read) for one in batch}
        assert gpu.waiting == 0
    assert gpu.most == 2
    assert all(same(found[number], wanted[number]) for number in range(22))


def test_out_of_memory_while_a_batch_is_under_way(model: PlaceModel) -> None:
    images = [photo(number) for number in range(10)]
    wanted = Embedder(model, device="cpu", precision="fp32").see([[image] for image in images])
    with pytest.MonkeyPatch.context() as patch:
        gpu = MadeUp(patch)
        embedder = Embedder(model, device="cpu", precision="fp32", batch_size=4)
        outputs, fail = embedder._outputs, [False, True]

        def failing(given: Tensor, stage: str) -> Any:
            if len(given) > 2 and fail and fail.pop(0):
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return outputs(given, stage)

        patch.setattr(embedder, "_outputs", failing)
        batches = embedder.stream(range(10), lambda number: [images[number]])
        found = {one.item: one.seen[0] for batch in batches for one in batch}
        assert gpu.waiting == 0
    assert gpu.cleared == 1
    assert embedder.batch_size == 2
    assert all(same(found[number], wanted[number]) for number in range(10))


@needs_gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_sees_what_the_cpu_sees(model: PlaceModel, precision: str, tmp_path: Path) -> None:
    from PIL import Image

    images = photos(40)
    wanted = Embedder(model, device="cpu", precision="fp32").embed(images)
    embedder = Embedder(model, device="cuda", precision=precision, batch_size=8)
    for _ in range(3):  # step by step, recording, replaying
        for number in range(4):
            found = embedder.embed([images[number]])[0]
            assert found @ wanted[number] > 0.999
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    streamed = embedder.stream(range(40), lambda number: [embedder.read(tmp_path / f"{number}.png")])
    for batch in streamed:
        for one in batch:
            assert one.outputs[0] @ wanted[one.item] > 0.999


@needs_gpu
def test_reader_for_a_gpu() -> None:
    pytest.importorskip("torchcodec")
    model = PlaceModel.unfitted(ModelConfig(pooling="average", clusters=0)).eval()
    embedder = Embedder(model, device="cuda")
    assert isinstance(embedder.read, GpuReader)
    assert embedder.describe()["decoding"] == "GPU"
