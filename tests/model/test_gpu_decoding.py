"""JPEGs decoded for a GPU: the CPU's pixels, and the CPU wherever there is any doubt.

Where TorchCodec is installed, the reader is run on the CPU, on which it computes the same but for nvJPEG;
where there is a GPU, on that, too.
"""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model import gpu_decoding as decoding
from model.errors import ImageError, TooManyPixels
from model.gpu_decoding import ALIKE, GpuReader, reader, resized, turned
from model.images import read_photo

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]

Pixels = NDArray[np.uint8]


def picture(width: int = 320, height: int = 240, seed: int = 0) -> Image.Image:
    """Clouds: as smooth as a photo, so that decoders agree on them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def failing(error: Exception) -> Tensor:
    raise error


def away(a: decoding.Image, b: decoding.Image) -> float:
    a, b = (np.asarray(one.cpu() if isinstance(one, Tensor) else one).astype(float) for one in (a, b))
    assert a.shape == b.shape
    return float(np.abs(a - b).mean())


@pytest.fixture(params=DEVICES)
def gpu(request: pytest.FixtureRequest) -> GpuReader:
    try:
        return GpuReader(torch.device(request.param))
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"TorchCodec is not here, or made for another PyTorch: {error}")


@pytest.mark.parametrize("turn", [None, *Image.Transpose])
def test_turned_as_pillow_turns(turn: Image.Transpose | None) -> None:
    image = picture(32, 24)
    wanted = image if turn is None else image.transpose(turn)
    found = turned(torch.from_numpy(np.array(image)), turn)
    np.testing.assert_array_equal(found.numpy(), np.asarray(wanted))


@pytest.mark.parametrize("size", [(320, 240), (200, 150), (160, 120), (90, 68), (40, 30), (500, 375)])
def test_resized_as_pillow_resizes(size: tuple[int, int]) -> None:
    """By Pillow's own way from the JPEG, at a half, a quarter and an eighth as well."""
    data = jpeg(picture(), quality=98, subsampling=0)
    whole = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)
    found = resized(whole, size)
    assert found.dtype == torch.uint8
    assert away(found, read_photo(data, max(size), max(size))) < 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(gpu: GpuReader, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(picture(), exif=exif)
    found = gpu(data, 160)
    assert isinstance(found, Tensor)
    assert away(found, read_photo(data, 160)) < 1


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 2}]
)
def test_kinds_of_jpeg(gpu: GpuReader, options: dict[str, Any]) -> None:
    data = jpeg(picture(333, 251), **options)
    for size, least in ((640, 0), (200, 0), (100, 0), (640, 500)):
        found = gpu(data, size, least)
        assert isinstance(found, Tensor)
        assert away(found, read_photo(data, size, least)) < 2


def test_grey(gpu: GpuReader) -> None:
    data = jpeg(picture().convert("L"))
    found = gpu(data, 100)
    assert isinstance(found, Tensor)
    assert found.shape == (75, 100, 3)
    assert away(found, read_photo(data, 100)) < 1


def test_a_file_a_path_and_an_open_file_are_one(gpu: GpuReader, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg(picture()))
    with path.open("rb") as file:
        found = [gpu(source, 100) for source in (path, str(path), path.read_bytes(), file)]
    assert all(away(one, found[0]) == 0 for one in found)


@pytest.mark.parametrize("kind", ["png", "cmyk", "rgb", "large", "filled"])
def test_formats_that_only_the_cpu_reads(gpu: GpuReader, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "png":
        file = io.BytesIO()
        picture().save(file, "PNG")
        data = file.getvalue()
    elif kind == "cmyk":
        data = jpeg(picture().convert("CMYK"))
    elif kind == "rgb":
        data = jpeg(picture(), keep_rgb=True)
    elif kind == "large":
        data = jpeg(picture())
        monkeypatch.setattr(decoding, "GPU_PIXELS", 320 * 240 - 1)
    else:
        data = jpeg(picture())
        data = data[:2] + b"\xff\xff" + data[2:]  # fill bytes: allowed, and never met
    found = gpu(data, 100)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, read_photo(data, 100))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_truncated_photo_is_refused_as_on_the_cpu(gpu: GpuReader, share: float) -> None:
    data = jpeg(picture())
    with pytest.raises(ImageError, match=r"^truncated image$"):
        gpu(data[: int(share * len(data))], 100)


def test_other_refusals_are_the_cpus(gpu: GpuReader, tmp_path: Path) -> None:
    for source, reason in (
        (b"", "empty file"),
        (b"no photo", "not an image"),
        (tmp_path / "no", "no such file"),
    ):
        with pytest.raises(ImageError, match=reason):
            gpu(source)
    with pytest.raises(TooManyPixels):
        gpu(jpeg(picture()), max_pixels=1000)
    data = jpeg(picture(), progressive=True)
    with pytest.raises(ImageError, match="scans"):
        gpu(data[:-2] + data[data.index(b"\xff\xda") : -2] * 100 + data[-2:])


@pytest.mark.parametrize("error", [RuntimeError("nvjpegDecode failed: 8"), torch.OutOfMemoryError("CUDA")])
def test_cpu_reads_what_the_gpu_cannot(
    gpu: GpuReader, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_decode", lambda *_, **__: failing(error))
    data = jpeg(picture())
    np.testing.assert_array_equal(gpu(data, 100), read_photo(data, 100))


def test_gpu_with_other_pixels_is_not_used(gpu: GpuReader, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.trouble() is None
    decode = gpu._decode
    monkeypatch.setattr(gpu, "_decode", lambda *a, **b: decode(*a, **b).flip(2))
    assert "of 256 off" in str(gpu.trouble())
    monkeypatch.setattr(gpu, "_decode", lambda *_, **__: failing(RuntimeError("no kernel")))
    assert gpu.trouble() == "no JPEG can be decoded"


def test_reader_for_each_device(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    chosen = reader.__wrapped__  # which is not remembered
    assert chosen(torch.device("cpu")) is read_photo
    cuda = torch.device("cuda")
    monkeypatch.setattr(decoding, "find_spec", lambda _: None)
    assert chosen(cuda) is read_photo
    monkeypatch.setattr(decoding, "find_spec", lambda _: True)

    class Broken:
        def __init__(self, *_: Any) -> None:
            raise RuntimeError("could not load libtorchcodec\nfor many reasons")

        def trouble(self) -> str | None:
            return "no JPEG can be decoded"

    monkeypatch.setattr(decoding, "GpuReader", Broken)
    for why in ("could not load libtorchcodec", "no JPEG can be decoded"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert chosen(cuda) is read_photo
        assert caplog.messages == [f"JPEGs are decoded on the CPU: on cuda, {why}"]
        monkeypatch.setattr(Broken, "__init__", lambda *_: None)
    monkeypatch.setattr(Broken, "trouble", lambda _: None)
    assert isinstance(chosen(cuda), Broken)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared photos are not here")
def test_real_photos(gpu: GpuReader) -> None:
    files = [f for f in sorted(SHARED.rglob("*.jp*g")) if f.parent.name != "thumbnails"][::150]
    assert len(files) > 10
    differences = [away(gpu(file, size), read_photo(file, size)) for file in files for size in (640, 320)]
    assert max(differences) < ALIKE
    assert np.mean(differences) < 0.5
