"""The model file: what is saved comes back, and what is no such file is refused with the reason."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.embedder import Embedder
from model.errors import ModelError
from model.layers.backbone import imagenet_backbone
from model.layers.poolings import NetVLAD
from model.modelfile import FORMAT, ModelConfig, PlaceModel, load_model, read_header, save_model
from model.reduction import Reduction


@pytest.fixture(scope="module")
def model(pooling: NetVLAD, reduction: Reduction) -> PlaceModel:
    config = ModelConfig(clusters=2, dim=8, power=0.5, image_size=320, provenance={"photos": 40})
    return PlaceModel(config, imagenet_backbone(), pooling, reduction).eval()


@pytest.fixture(scope="module")
def file(model: PlaceModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    save_model(model, path)
    return path


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (2, 3, 48, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def rewritten(file: Path, to: Path, *, drop: str | None = None, **header: str) -> Path:
    """A copy with another header or without one tensor."""
    state = load_file(file)
    if drop is not None:
        del state[drop]
    save_file(state, to, metadata=read_header(file) | header)
    return to


def config_of(file: Path, **changes: Any) -> str:
    return json.dumps(json.loads(read_header(file)["config"]) | changes)


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    return str(caught.value)


def test_round_trip(model: PlaceModel, file: Path, images: Tensor) -> None:
    loaded = load_model(file)
    assert loaded.config == model.config
    assert loaded.fingerprint == model.fingerprint
    with torch.inference_mode():
        got, want = loaded(images), model(images)
    assert got.shape == (2, 8)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    torch.testing.assert_close(got.norm(dim=1), torch.ones(2))
    assert not loaded.training
    assert not any(tensor.is_meta for tensor in [*loaded.parameters(), *loaded.buffers()])
    frozen = {name for name, parameter in loaded.named_parameters() if not parameter.requires_grad}
    assert frozen == {"reduction.mean", "reduction.projection"}


@pytest.mark.parametrize("version", [1, 2])
def test_round_trip_without_reduction(version: int, tmp_path: Path, images: Tensor) -> None:
    pooling = NetVLAD.from_centres(torch.randn(3, 512), 20.0, version=version)
    model = PlaceModel(ModelConfig(clusters=3, version=version), imagenet_backbone(), pooling, None)
    fingerprint = save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.reduction is None
    assert loaded.config.output_dim == 3 * 512
    assert loaded.fingerprint == fingerprint
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model(images), rtol=0, atol=0)


def test_saving_again_loses_nothing(file: Path, tmp_path: Path) -> None:
    again = tmp_path / "model.safetensors"
    save_model(load_model(file), again)
    assert read_header(again) == read_header(file)
    before, after = load_file(file), load_file(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_saving_replaces_the_file_and_leaves_no_other(
    small_model: PlaceModel, tmp_path: Path, file: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"older")
    assert save_model(small_model, path) == small_model.fingerprint
    assert read_header(path)["fingerprint"] != read_header(file)["fingerprint"]
    assert list(tmp_path.iterdir()) == [path]


def test_header_is_readable_without_the_tensors(model: PlaceModel, file: Path) -> None:
    header = read_header(file)
    assert header.keys() == {"format", "config", "fingerprint"}
    assert header["format"] == str(FORMAT)
    assert header["fingerprint"] == model.fingerprint
    config = json.loads(header["config"])
    assert (config["clusters"], config["dim"], config["power"], config["image_size"]) == (2, 8, 0.5, 320)
    assert config["mean"] == [123.68, 116.779, 103.939]
    assert config["provenance"] == {"photos": 40}


def test_backbone_is_kept_in_fp16_and_what_was_fitted_in_fp32(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 -- not a mapping
            dtype = opened.get_tensor(name).dtype
            assert dtype == (torch.float16 if name.startswith("backbone.") else torch.float32)


def test_fingerprint_is_16_hex_digits(model: PlaceModel) -> None:
    assert len(model.fingerprint) == 16
    assert int(model.fingerprint, 16) >= 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_fingerprint_and_file_do_not_depend_on_the_precision(
    model: PlaceModel, file: Path, precision: str, tmp_path: Path
) -> None:
    embedder = Embedder(model, device="cpu", precision=precision)
    assert embedder.model.fingerprint == model.fingerprint == read_header(file)["fingerprint"]
    refitted = embedder.model.fitted()
    assert save_model(refitted, tmp_path / "model.safetensors") == model.fingerprint


def test_fingerprint_covers_what_descriptors_depend_on(model: PlaceModel) -> None:
    assert isinstance(model.pooling, NetVLAD)
    pooling = NetVLAD.from_centres(model.pooling.centres.detach() + 0.001, 30.0)
    assert model.reduction is not None
    reduction = Reduction(1024, 8)
    reduction.load_state_dict(model.reduction.state_dict())
    reduction.mean[5] += 0.001
    backbone = imagenet_backbone()
    with torch.no_grad():
        backbone[28].bias[7] += 0.01  # type: ignore[index,operator]
    variants = [
        model.fitted(),
        model.fitted(pooling=pooling),
        model.fitted(reduction=reduction),
        PlaceModel(model.config, backbone, model.pooling, model.reduction),
        *(
            model.fitted(**change)
            for change in ({"image_size": 640}, {"mean": (0.0, 0.0, 0.0)}, {"std": (2.0, 2.0, 2.0)})
        ),
    ]
    fingerprints = [variant.fingerprint for variant in variants]
    assert fingerprints[0] == model.fingerprint
    assert len(set(fingerprints)) == len(variants)


def test_fingerprint_does_not_cover_the_provenance(model: PlaceModel) -> None:
    assert model.fitted(provenance={"photos": 41, "seed": 3}).fingerprint == model.fingerprint


def test_pre_processing_is_the_configurations(pooling: NetVLAD, images: Tensor) -> None:
    plain = ModelConfig(clusters=2)
    scaled = dataclasses.replace(plain, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))
    seen: list[Tensor] = []
    for config in (plain, scaled):
        model = PlaceModel(config, imagenet_backbone(), pooling, None)
        model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
        with torch.inference_mode():
            assert model.maps(images).shape == (2, 512, 3, 2)
    pixel = images[1, :, 7, 9].float()
    torch.testing.assert_close(seen[0][1, :, 7, 9], pixel - torch.tensor([123.68, 116.779, 103.939]))
    torch.testing.assert_close(
        seen[1][1, :, 7, 9], (pixel - torch.tensor([1.0, 2, 3])) / torch.tensor([4.0, 5, 6])
    )


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    assert refusal(path) == f"no model file {path}"
    assert refusal(tmp_path) == f"no model file {tmp_path}"


def test_newer_format(file: Path, tmp_path: Path) -> None:
    path = rewritten(file, tmp_path / "new", format=str(FORMAT + 1), config='{"not": "known"}')
    message = f"model file {path} has format {FORMAT + 1}: a newer loci reads it, this one {FORMAT}"
    assert refusal(path) == message
    with pytest.raises(ModelError, match="a newer loci reads it"):
        read_header(path)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    for metadata in (None, {"format": "pt"}, {"format": "pt", "config": "{}", "fingerprint": "x"}):
        save_file({"weight": torch.zeros(3)}, path, metadata=metadata)
        assert refusal(path) == f"{path} is a safetensors file, but not a loci model"


@pytest.mark.parametrize("kept", [0, 5, 8, 300, 100_000, -1])
def test_truncated_file(file: Path, kept: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(file.read_bytes()[:kept])
    assert refusal(path).startswith(f"model file {path} is damaged: ")


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    for data in (
        b"not a model at all, but text that is long enough",
        b"\xff" * 100,
        b"PK\x03\x04" + bytes(99),
    ):
        path.write_bytes(data)
        assert "is damaged" in refusal(path)


@pytest.mark.parametrize("name", ["pooling.centres", "reduction.mean", "backbone.28.bias"])
def test_missing_tensor(file: Path, name: str, tmp_path: Path) -> None:
    path = rewritten(file, tmp_path / "model.safetensors", drop=name)
    message = refusal(path)
    assert message.startswith(f"model file {path} does not hold the network its header describes: ")
    assert name in message


@pytest.mark.parametrize("change", [{"clusters": 3}, {"dim": 9}, {"dim": None}, {"version": 2}])
def test_header_that_describes_another_network(file: Path, change: dict[str, Any], tmp_path: Path) -> None:
    path = rewritten(file, tmp_path / "model.safetensors", config=config_of(file, **change))
    assert "does not hold the network its header describes" in refusal(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"colour": 3}', '{"mean": 5}', '{"mean": [1, 2]}'])
def test_unreadable_configuration(file: Path, text: str, tmp_path: Path) -> None:
    path = rewritten(file, tmp_path / "model.safetensors", config=text)
    assert refusal(path).startswith(f"model file {path} has a configuration this version cannot read: ")


def test_unknown_weights_and_pooling() -> None:
    with pytest.raises(ModelError, match=r"still to be fitted has weights 'imagenet', not 'places'$"):
        PlaceModel.unfitted(ModelConfig(weights="places"))
    with pytest.raises(
        ModelError, match=r"^unknown pooling 'max': one of netvlad, vlad, ghostvlad, average, gem$"
    ):
        PlaceModel.unfitted(ModelConfig(pooling="max"))


def test_from_unfitted_to_fitted(pooling: NetVLAD, reduction: Reduction, images: Tensor) -> None:
    empty = PlaceModel.unfitted(ModelConfig(clusters=2))
    clustered = empty.fitted(pooling=pooling)
    reduced = clustered.fitted(reduction=reduction, dim=8, power=0.5)
    assert (clustered.config.output_dim, reduced.config.output_dim) == (1024, 8)
    assert len({empty.fingerprint, clustered.fingerprint, reduced.fingerprint}) == 3
    with torch.inference_mode():
        assert torch.isfinite(empty(images)).all()
        maps = clustered.maps(images)
        torch.testing.assert_close(reduced(images), reduced.reduce(clustered.pool(maps)))


def test_model_files_follow_the_umask(small_model: PlaceModel, tmp_path: Path) -> None:
    """A service often runs as another user than who made its index."""
    (tmp_path / "other").touch()
    save_model(small_model, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
