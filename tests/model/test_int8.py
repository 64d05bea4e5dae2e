"""VGG16 in int8: ranges as they are, maps as fp32 has them, and when it is taken."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model.embedder import Embedder, with_ranges
from model.errors import ModelError
from model.int8 import Int8VGG16, activation_ranges, computes_int8
from model.layers.backbone import CHANNELS, VGG16, imagenet_backbone
from model.layers.local_features import unpack
from model.modelfile import ModelConfig, PlaceModel, load_model, read_header, save_model

pytest.importorskip("openvino", reason="OpenVINO is not installed")
multiplies = pytest.mark.skipif(not computes_int8(), reason="this processor has neither VNNI nor AMX")


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth patterns less the ImageNet mean, as the network takes them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((count, 3, 6, 8), generator=generator)
    fine = torch.rand((count, 3, height, width), generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return 255 * (0.8 * smooth + 0.2 * fine) - 115


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return (images(1, height, width, seed)[0] + 115).clamp(0, 255).byte().permute(1, 2, 0).numpy()


@pytest.fixture(scope="module")
def backbone() -> VGG16:
    return imagenet_backbone().eval()


@pytest.fixture(scope="module")
def ranges(backbone: VGG16) -> tuple[float, ...]:
    return activation_ranges(backbone, [images(2, 96, 128, seed) for seed in range(3)])


@pytest.fixture(scope="module")
def network(backbone: VGG16, ranges: tuple[float, ...]) -> Int8VGG16:
    return Int8VGG16(backbone, ranges, threads=1)


def test_ranges_are_what_goes_into_the_convolutions(backbone: VGG16, ranges: tuple[float, ...]) -> None:
    largest = [0.0] * 13
    for seed in range(3):
        x, convolution = images(2, 96, 128, seed), 0
        for layer in backbone:
            if isinstance(layer, nn.Conv2d):
                largest[convolution] = max(largest[convolution], float(x.abs().max()))
                convolution += 1
            with torch.inference_mode():
                x = layer(x)
    assert ranges == pytest.approx(largest, rel=1e-4)
    assert not any(layer._forward_pre_hooks for layer in backbone)


@multiplies
@pytest.mark.parametrize("shape", [(96, 128), (80, 72), (250, 187)])
def test_maps_are_nearly_those_of_fp32(backbone: VGG16, network: Int8VGG16, shape: tuple[int, int]) -> None:
    x = images(2, *shape, seed=9)
    with torch.inference_mode():
        expected, found = backbone.both(x), network.both(x)
        assert torch.equal(network(x), found[1])
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape
        assert other.shape[1] == CHANNELS
        assert F.cosine_similarity(one, other, dim=1).mean() > 0.995
    assert (found[0] >= 0).all()
    assert not torch.equal(expected[1], found[1])


def test_its_convolutions_are_of_8_bits(network: Int8VGG16) -> None:
    """OpenVINO computes a graph that it cannot make use of in another format, without a word."""
    known = [operation.get_rt_info() for operation in network._network.get_runtime_model().get_ops()]
    formats = [
        info["runtimePrecision"].astype(str)
        for info in known
        if info["layerType"].astype(str) == "Convolution"
    ]
    assert len(formats) == 13
    assert set(formats) <= {"u8", "i8"}


@multiplies
def test_a_photo_has_the_same_maps_in_whatever_batch(network: Int8VGG16) -> None:
    x = images(5, 96, 128, seed=4)
    together = network(x)
    for number in range(5):
        assert torch.equal(network(x[number : number + 1])[0], together[number])


@pytest.fixture
def model() -> PlaceModel:
    config = ModelConfig(pooling="average", clusters=0, local_features=30)
    return PlaceModel.unfitted(config).eval()


def measured(model: PlaceModel, precision: str) -> Embedder:
    known = with_ranges(model, [photo(96, 128, seed) for seed in range(3)], "cpu")
    return Embedder(known, device="cpu", precision=precision)


@multiplies
def test_int8_descriptors_resemble_fp32(model: PlaceModel) -> None:
    plain, fast = Embedder(model, device="cpu", precision="fp32"), measured(model, "auto")
    fast = Embedder(fast.model, device="cpu", precision="int8")
    assert fast.describe() == {"device": "CPU", "precision": "int8", "decoding": "CPU"}
    photos = [photo(96, 128, 7), photo(90, 60, 8), photo(96, 128, 9)]
    for one, other in zip(plain.see([[p] for p in photos]), fast.see([[p] for p in photos]), strict=True):
        assert one.descriptor @ other.descriptor > 0.999
        assert one.local is not None
        assert other.local is not None
        (cells, _), (same, _) = unpack(one.local), unpack(other.local)
        assert len({tuple(c) for c in cells.tolist()} & {tuple(c) for c in same.tolist()}) >= 0.8 * len(cells)
    again = fast.with_model(fast.model)
    assert again.precision == "int8"
    np.testing.assert_array_equal(again.embed(photos), fast.embed(photos))


def test_ranges_stay_with_the_model_and_out_of_its_fingerprint(model: PlaceModel, tmp_path: Path) -> None:
    known = measured(model, "auto").model
    assert len(known.config.activation_ranges) == 13
    save_model(known, tmp_path / "model.safetensors")
    assert load_model(tmp_path / "model.safetensors").config == known.config
    assert read_header(tmp_path / "model.safetensors")["fingerprint"] == model.fingerprint
    if computes_int8():  # not measured in int8, whatever it runs in
        assert measured(known, "int8").model.config == known.config


@pytest.mark.parametrize(
    ("fast", "installed", "taken"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_auto_takes_it_where_it_is_the_fastest(
    model: PlaceModel, monkeypatch: pytest.MonkeyPatch, fast: bool, installed: bool, taken: bool
) -> None:
    monkeypatch.setattr("model.embedder.computes_int8", lambda: fast)
    monkeypatch.setattr("model.embedder.has_runtime", lambda: installed)
    assert Embedder(model, device="cpu").precision in ("bf16", "fp32")
    embedder = measured(model, "auto")
    assert embedder.model.config.activation_ranges
    assert (embedder.precision == "int8") is taken
    assert measured(model, "fp32").precision == "fp32"


def test_another_backbone_and_no_photo_leave_a_model_as_it_is(model: PlaceModel) -> None:
    deepface = PlaceModel.untrained(ModelConfig(backbone="deepface", pooling="average", clusters=0))
    assert with_ranges(deepface, [photo(152, 152)]) is deepface
    assert with_ranges(model, []) is model


def test_why_it_cannot_be(model: PlaceModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"^this model has no int8 ranges: .*`refit`"):
        Embedder(model, device="cpu", precision="int8")
    known = measured(model, "auto").model
    monkeypatch.setattr("model.embedder.computes_int8", lambda: False)
    with pytest.raises(ModelError, match=r"^this processor cannot compute in int8: "):
        Embedder(known, device="cpu", precision="int8")
    monkeypatch.setattr("model.embedder._device", lambda name: torch.device(name))
    with pytest.raises(ModelError, match=r"^int8 runs on a CPU, not on cuda:1$"):
        Embedder(known, device="cuda:1", precision="int8")
    monkeypatch.setattr("model.embedder.has_runtime", lambda: False)
    with pytest.raises(
        ModelError, match=r"^int8 needs OpenVINO, which is not installed: pip install 'geniusloci\[int8\]'$"
    ):
        Embedder(known, device="cpu", precision="int8")
