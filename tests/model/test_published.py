"""Published weights, in files of their structure that this writes, against their own formulas in NumPy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.io import savemat
from torch import Tensor

from model.errors import ModelError
from model.layers.backbone import vgg16_conv5
from model.modelfile import load_model
from model.published import read_published
from model.weights import fetched, import_weights, load_weights, pull

K, DIM = 3, 5
Floats = NDArray[np.float32]


class Published:
    """Weights of the published network's shapes, the convolutions small so that nothing overflows."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.convolutions: dict[str, Floats] = {
            name: np.float32(0.04) * rng.standard_normal(tuple(tensor.shape), np.float32)
            for name, tensor in vgg16_conv5().state_dict().items()
        }
        self.assignment = 10 * rng.standard_normal((K, 512), np.float32)
        self.centres = rng.standard_normal((K, 512), np.float32)
        self.whitening: Floats = rng.standard_normal((DIM, K, 512), np.float32) / np.float32(40)
        self.bias = rng.standard_normal(DIM, np.float32)

    def descriptors(self, images: Tensor, *, whitened: bool = True) -> NDArray[np.float64]:
        """From images already normalised, in float64 and by the formulas as they were published."""
        backbone = vgg16_conv5()
        backbone.load_state_dict({k: torch.from_numpy(v) for k, v in self.convolutions.items()}, assign=True)
        with torch.inference_mode():
            maps = backbone(images).flatten(2).double().numpy()  # B D N
        rows = []
        for x in maps:
            x = x / np.linalg.norm(x, axis=0)
            logits = self.assignment.astype(np.float64) @ x
            a = np.exp(logits - logits.max(0))
            a /= a.sum(0)
            v = np.stack([((x - c[:, None]) * w).sum(1) for c, w in zip(self.centres, a, strict=True)])  # K D
            v /= np.linalg.norm(v, axis=1, keepdims=True)
            v /= np.linalg.norm(v)
            if whitened:
                y = np.einsum("pkd,kd->p", self.whitening.astype(np.float64), v) + self.bias
                rows.append(y / np.linalg.norm(y))
            else:
                rows.append(v.flatten())
        return np.stack(rows)


@pytest.fixture(scope="module")
def published() -> Published:
    return Published()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(
        0, 256, (2, 3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def layer(*weights: Floats) -> dict[str, Any]:
    cells = np.empty(len(weights), object)
    cells[:] = weights
    return {"weights": cells, "type": "conv"}


def write_matlab(path: Path, published: Published, *, layers: int = 35) -> Path:
    cells: list[dict[str, Any]] = [{"type": "relu", "weights": np.empty(0, object)} for _ in range(layers)]
    for index in {int(name.split(".")[0]) for name in published.convolutions}:
        kernel = published.convolutions[f"{index}.weight"].transpose(2, 3, 1, 0)  # S S IN OUT
        cells[index] = layer(kernel, published.convolutions[f"{index}.bias"])
    cells[30] = layer(published.assignment.T, -published.centres.T)  # D K, and minus the centres
    if layers > 33:
        by_channel = published.whitening.transpose(2, 1, 0)  # D K d: index d·K + k
        cells[33] = layer(by_channel.reshape(1, 1, K * 512, DIM), published.bias)
    struct = np.empty(layers, object)
    struct[:] = cells
    mean = np.broadcast_to(np.array([123.0, 116.0, 103.0]), (4, 4, 3))
    savemat(path, {"net": {"layers": struct, "meta": {"normalization": {"averageImage": mean}}}})
    return path


def pytorch_state(published: Published, *, whitened: bool, prefix: str = "") -> dict[str, Tensor]:
    state = {f"encoder.{name}": torch.from_numpy(array) for name, array in published.convolutions.items()}
    state["pool.conv.weight"] = torch.from_numpy(published.assignment)[:, :, None, None]
    state["pool.centroids"] = torch.from_numpy(published.centres)
    if whitened:
        state["WPCA.0.weight"] = torch.from_numpy(published.whitening).reshape(DIM, K * 512, 1, 1)
        state["WPCA.0.bias"] = torch.from_numpy(published.bias)
    return {name.replace(".", prefix, 1) if prefix else name: tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def matlab(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_matlab(tmp_path_factory.mktemp("matlab") / "Pitts30K_struct.mat", published)


@pytest.fixture(scope="module")
def checkpoint(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pytorch") / "checkpoint.pth.tar"
    torch.save({"epoch": 3, "state_dict": pytorch_state(published, whitened=False)}, path)
    return path


def test_matlab(published: Published, matlab: Path, images: Tensor) -> None:
    model = read_published(matlab)
    mean = torch.tensor([123.0, 116.0, 103.0]).view(1, 3, 1, 1)
    with torch.inference_mode():
        got = model(images).numpy()
    np.testing.assert_allclose(got, published.descriptors(images.float() - mean), atol=2e-5)
    config = model.config
    assert (config.weights, config.dim, config.power) == ("Pitts30K_struct", DIM, 1.0)
    assert config.mean == (123.0, 116.0, 103.0)
    assert config.std == (1.0, 1.0, 1.0)
    assert config.provenance["source"] == "Pitts30K_struct.mat"


def test_matlab_without_whitening(published: Published, tmp_path: Path, images: Tensor) -> None:
    model = read_published(write_matlab(tmp_path / "small.mat", published, layers=33))
    mean = torch.tensor([123.0, 116.0, 103.0]).view(1, 3, 1, 1)
    with torch.inference_mode():
        got = model(images).numpy()
    want = published.descriptors(images.float() - mean, whitened=False)
    np.testing.assert_allclose(got, want, atol=2e-5)


def torchvision(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (images.float() / 255 - mean) / std


def test_pytorch_netvlad(published: Published, checkpoint: Path, images: Tensor) -> None:
    model = read_published(checkpoint)
    with torch.inference_mode():
        got = model(images).numpy()
    want = published.descriptors(torchvision(images), whitened=False)
    np.testing.assert_allclose(got, want, atol=2e-5)
    assert model.config.weights == "checkpoint"


def test_patch_netvlad(published: Published, tmp_path: Path, images: Tensor) -> None:
    """Bare, with its whitening, and with the names that several GPUs leave."""
    path = tmp_path / "mapillary_WPCA.pth"
    torch.save(pytorch_state(published, whitened=True, prefix=".module."), path)
    with torch.inference_mode():
        got = read_published(path)(images).numpy()
    np.testing.assert_allclose(got, published.descriptors(torchvision(images)), atol=2e-5)


def test_a_missing_tensor_is_named(published: Published, tmp_path: Path) -> None:
    state = pytorch_state(published, whitened=False)
    del state["pool.centroids"]
    torch.save({"state_dict": state}, tmp_path / "a.pth")
    with pytest.raises(ModelError, match=r"a\.pth has no tensor pool\.centroids: not a checkpoint"):
        read_published(tmp_path / "a.pth")
    state["pool.centroids"] = torch.zeros(K, 7)
    torch.save({"state_dict": state}, tmp_path / "b.pth")
    with pytest.raises(ModelError, match=r"b\.pth: the centres has shape \(3, 7\), not \(3, 512\)"):
        read_published(tmp_path / "b.pth")


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def test_a_pickle_with_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ModelError, match="holds more than tensors, or is no PyTorch file, and was not read"):
        read_published(tmp_path / "evil.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["a.mat", "a.pth", "a.tar"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut off"])
def test_another_kind_of_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=name):
        read_published(tmp_path / name)


def test_another_mat_file(tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"x": np.eye(3)})
    with pytest.raises(ModelError, match="is not the struct of the published NetVLAD weights"):
        read_published(tmp_path / "a.mat")
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ModelError, match="none of the endings"):
        read_published(tmp_path / "a.onnx")
    with pytest.raises(ModelError, match="no file"):
        read_published(tmp_path / "b.mat")


def test_import_and_load(checkpoint: Path, tmp_path: Path) -> None:
    into = tmp_path / "mine.safetensors"
    model = import_weights(checkpoint, into)
    assert load_model(into).fingerprint == model.fingerprint
    loaded = load_weights(str(into))
    assert loaded.config.weights == f"mine@{load_model(into).fingerprint}"
    assert load_weights(str(checkpoint)).config.weights == f"checkpoint@{model.fingerprint}"
    assert load_weights(str(into)).fingerprint == loaded.fingerprint


def test_pull_uses_a_file_in_place(matlab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCI_CACHE", str(tmp_path))
    (tmp_path / "Pitts30K_struct.mat").write_bytes(matlab.read_bytes())
    assert pull("pitts30k") == fetched("pitts30k") == tmp_path / "pitts30k.safetensors"
    assert [path.name for path in tmp_path.iterdir()] == ["pitts30k.safetensors"]
    assert pull("pitts30k").exists()
    assert load_weights("pitts30k").config.weights.startswith("pitts30k@")


def test_pull_fetches(matlab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(url: str, path: Path, **_: Any) -> None:
        asked.append(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(matlab.read_bytes())

    monkeypatch.setenv("LOCI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("model.weights.download", fetch)
    pull("tokyotm")
    pull("tokyotm")
    assert asked == ["https://cvg-data.inf.ethz.ch/hloc/netvlad/TokyoTM_struct.mat"]


def test_names(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^no weights and no file 'pits30k': did you mean pitts30k\?$"):
        load_weights("pits30k")
    with pytest.raises(ModelError, match="names are imagenet, pitts30k, tokyotm"):
        pull(str(tmp_path / "x.safetensors"))
    with pytest.raises(ModelError, match="nothing to fetch"):
        pull("imagenet")
