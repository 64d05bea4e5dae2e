"""The embedder: batches of any mixture, in order, whatever memory there is."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.clusters import kmeans, sample_local, sharpness
from model.embedder import Embedder
from model.errors import ModelError
from model.images import read_photo
from model.layers.poolings import NetVLAD
from model.modelfile import ModelConfig, PlaceModel

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
PHOTOS = SHARED / "data" / "cambridge-street" / "queries"

Photo = NDArray[np.uint8]


def photos(*shapes: tuple[int, int], seed: int = 0) -> list[Photo]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]


def mixed(n: int = 11) -> list[Photo]:
    return photos(*(((48, 64), (64, 48), (32, 32))[i % 3] for i in range(n)))


class Memory:
    """A device that holds only so many images at a time."""

    def __init__(self, images: int, error: Exception | None = None) -> None:
        self.images = images
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.batches: list[int] = []

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        maps = PlaceModel.maps

        def limited(model: PlaceModel, images: Tensor) -> Tensor:
            self.batches.append(len(images))
            if len(images) > self.images:
                raise self.error
            return maps(model, images)

        monkeypatch.setattr(PlaceModel, "maps", limited)


@pytest.fixture
def embedder(small_model: PlaceModel) -> Embedder:
    return Embedder(small_model, device="cpu", precision="fp32", batch_size=4)


def test_mixed_shapes_keep_their_order(embedder: Embedder) -> None:
    images = mixed()
    together = embedder.embed(images)
    alone = np.stack([embedder.embed([image])[0] for image in images])
    assert together.shape == (11, 8)
    assert together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-5)
    assert (together * alone).sum(1).min() >= 0.9999
    similar = together @ alone.T
    np.testing.assert_array_equal(similar.argmax(1), np.arange(11))  # each is its own, not another's


def test_equals_the_model(embedder: Embedder, small_model: PlaceModel) -> None:
    images = photos((48, 64), (48, 64))
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        np.testing.assert_allclose(embedder.embed(images), small_model(batch).numpy(), atol=1e-5)


def test_nothing_gives_nothing(embedder: Embedder) -> None:
    assert embedder.embed([]).shape == (0, 8)
    assert embedder.outputs([], "maps") == []


def test_equal_shapes_go_together(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(100)
    memory.install(monkeypatch)
    embedder.embed(mixed(18))  # three shapes, six of each
    assert memory.batches == [4, 2] * 3


def test_stages(embedder: Embedder) -> None:
    images = photos((48, 64))
    maps, pooled, descriptors = (
        embedder.outputs(images, stage)[0] for stage in ("maps", "pooled", "descriptors")
    )
    assert (maps.shape, pooled.shape, descriptors.shape) == ((512, 3, 4), (1024,), (8,))
    assert maps.dtype == pooled.dtype == np.float32
    with pytest.raises(ModelError, match=r"^unknown stage 'conv5': one of maps, sums, pooled, descriptors$"):
        embedder.outputs(images, "conv5")


@pytest.mark.parametrize("layout", ["read-only", "strided", "mirrored"])
def test_images_of_any_layout(embedder: Embedder, layout: str) -> None:
    image = photos((48, 64))[0]
    want = embedder.embed([image])[0]
    given = image.copy()
    if layout == "read-only":
        given.setflags(write=False)
    elif layout == "strided":
        given = np.repeat(image, 2, axis=1)[:, ::2]
    else:
        given = image[:, ::-1].copy()[:, ::-1]
    np.testing.assert_allclose(embedder.embed([given])[0], want, atol=1e-6)


@pytest.mark.parametrize("stage", ["maps", "descriptors"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"
        ),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch(
    small_model: PlaceModel, monkeypatch: pytest.MonkeyPatch, error: Exception, stage: str
) -> None:
    images = photos(*[(48, 64)] * 21, (32, 32), (32, 32))
    embedder = Embedder(small_model, device="cpu", precision="fp32", batch_size=8)
    want = embedder.outputs(images, stage)
    memory = Memory(3, error)
    memory.install(monkeypatch)
    got = embedder.outputs(images, stage)
    assert memory.batches[:4] == [8, 4, 2, 2]
    assert embedder.batch_size == 2
    assert max(memory.batches[4:]) <= 4  # the other half of the first batch, then twos
    assert len(got) == len(want) == 23
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_one_image_that_does_not_fit(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    Memory(0).install(monkeypatch)
    with pytest.raises(ModelError) as caught:
        embedder.embed(photos((48, 64), (48, 64), (48, 64)))
    message = "not enough memory on cpu for one image of 64×48: use a smaller `image_size`"
    assert str(caught.value) == message
    assert embedder.batch_size == 1


def test_other_errors_are_not_taken_for_memory(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(0, RuntimeError("weight type does not match"))
    memory.install(monkeypatch)
    with pytest.raises(RuntimeError, match="weight type"):
        embedder.embed(photos((48, 64), (48, 64)))
    assert memory.batches == [2]


def test_out_of_memory_in_a_stream_loses_no_photo(
    small_model: PlaceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = Embedder(small_model, device="cpu", precision="fp32", batch_size=8)
    Memory(3).install(monkeypatch)
    images = mixed(40)
    found = [one for batch in embedder.stream(range(40), lambda i: [images[i]]) for one in batch]
    assert sorted(one.item for one in found) == list(range(40))
    for one in found:
        np.testing.assert_allclose(one.outputs[0], embedder.embed([images[one.item]])[0], atol=1e-5)


@pytest.mark.parametrize("device", ["cuda:97", "abacus", "", "cpu:x"])
def test_unknown_device(small_model: PlaceModel, device: str) -> None:
    with pytest.raises(ModelError, match=rf"^no device '{device}' here: "):
        Embedder(small_model, device=device)


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu", "hpu", "xla", "privateuseone", "vulkan", "meta"])
def test_absent_device(small_model: PlaceModel, device: str) -> None:
    if device in ("cuda", "mps", "xpu") and getattr(torch, device).is_available():
        pytest.skip(f"there is a {device} device here")
    with pytest.raises(ModelError, match=rf"^no device '{device}' here: "):
        Embedder(small_model, device=device)


def test_unknown_precision(small_model: PlaceModel) -> None:
    with pytest.raises(ModelError, match=r"^unknown precision 'fp8': one of auto, fp32, bf16, fp16, int8$"):
        Embedder(small_model, device="cpu", precision="fp8")


@pytest.mark.parametrize("batch_size", [0, -1])
def test_wrong_batch_size(small_model: PlaceModel, batch_size: int) -> None:
    with pytest.raises(ModelError, match=rf"^the batch size must be at least 1, got {batch_size}$"):
        Embedder(small_model, device="cpu", batch_size=batch_size)


def test_description(small_model: PlaceModel) -> None:
    names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    for precision, name in names.items():
        embedder = Embedder(small_model, device="cpu", precision=precision)
        assert embedder.describe() == {"device": "CPU", "precision": name, "decoding": "CPU"}
    assert Embedder(small_model, device="cpu").describe()["precision"] in names.values()


def test_given_model_stays_as_it_was(small_model: PlaceModel) -> None:
    before = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    embedder = Embedder(small_model, device="cpu", precision="bf16")
    embedder.embed(photos((48, 64)))
    assert embedder.model is small_model
    for name, tensor in small_model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_another_model_keeps_device_and_precision(small_model: PlaceModel, precision: str) -> None:
    images = photos((48, 64))
    embedder = Embedder(small_model, device="cpu", precision=precision, batch_size=3)
    before = embedder.embed(images)
    unreduced = PlaceModel(ModelConfig(clusters=2), small_model.backbone, small_model.pooling, None)
    other = embedder.with_model(unreduced)
    assert other.embed(images).shape == (1, 1024)
    assert (other.describe(), other.batch_size) == (embedder.describe(), 3)
    np.testing.assert_array_equal(embedder.embed(images), before)
    embedder.set_model(unreduced)
    np.testing.assert_array_equal(embedder.embed(images), other.embed(images))


@pytest.fixture(scope="module")
def photo() -> Photo:
    if not PHOTOS.is_dir():
        pytest.skip("no real photos: ../shared/data is not there")
    return read_photo(min(PHOTOS.iterdir()), 320)


@pytest.fixture(scope="module")
def fitted(photo: Photo) -> PlaceModel:
    """ImageNet's network with eight clusters of a real photo."""
    model = PlaceModel.unfitted(ModelConfig(clusters=8))
    maps = Embedder(model, device="cpu", precision="fp32").outputs([photo], "maps")[0]
    points = sample_local(maps, np.random.default_rng(0))
    centres = torch.from_numpy(kmeans(points, 8))
    pooling = NetVLAD.from_centres(centres, sharpness(torch.from_numpy(points), centres))
    return model.fitted(pooling=pooling)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "auto"])
def test_precision_hardly_moves_a_real_descriptor(photo: Photo, fitted: PlaceModel, precision: str) -> None:
    exact = Embedder(fitted, device="cpu", precision="fp32").embed([photo])[0]
    quick = Embedder(fitted, device="cpu", precision=precision).embed([photo])[0]
    assert float(exact @ quick) >= 0.999
    mirrored = Embedder(fitted, device="cpu", precision="fp32").embed([photo[::-1]])[0]
    assert float(exact @ mirrored) < 0.9  # what 0.999 is worth: upside down is another photo


@pytest.mark.slow
def test_batches_hardly_move_a_real_descriptor(photo: Photo, fitted: PlaceModel) -> None:
    embedder = Embedder(fitted, device="cpu", precision="fp32", batch_size=4)
    images: Iterator[Photo] = (np.ascontiguousarray(photo[:, shift : shift + 240]) for shift in (0, 40, 80))
    batch = list(images)
    for image, together in zip(batch, embedder.embed(batch), strict=True):
        assert float(embedder.embed([image])[0] @ together) >= 0.9999
