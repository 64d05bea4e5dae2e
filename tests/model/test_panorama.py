import math

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.panorama import (
    View,
    cut_views,
    field_of_view,
    is_equirectangular,
    is_panorama,
    source_width,
    view_yaws,
)

Pixels = NDArray[np.uint8]
FloatArray = NDArray[np.float64]


def colour(right: FloatArray, down: FloatArray, ahead: FloatArray) -> Pixels:
    """A smooth colour for every direction, different for any two."""
    norm = np.sqrt(right**2 + down**2 + ahead**2)
    return np.asarray(
        np.rint(127.5 + 120 * np.stack([right, down, ahead], axis=-1) / norm[..., None]), np.uint8
    )


def panorama(width: int, height: int | None = None) -> Pixels:
    """What a 360° camera sees where each direction has its colour; the middle column looks ahead."""
    height = height or width // 2
    longitude = ((np.arange(width) + 0.5) / width - 0.5)[None, :] * 2 * math.pi
    down = ((np.arange(height) + 0.5) - height / 2)[:, None] * 2 * math.pi / width
    ones = np.ones((height, width))
    return colour(np.sin(longitude) * np.cos(down), np.sin(down) * ones, np.cos(longitude) * np.cos(down))


def seen(view: View, fov_deg: float) -> Pixels:
    """What a pinhole camera that looks where the view does would see there."""
    height, width, _ = view.image.shape
    focal = width / 2 / math.tan(math.radians(fov_deg) / 2)
    x = (np.arange(width) + 0.5 - width / 2)[None, :] / focal
    y = (np.arange(height) + 0.5 - height / 2)[:, None] / focal * np.ones((1, width))
    yaw = math.radians(view.yaw_deg)
    return colour(
        math.cos(yaw) * x + math.sin(yaw) * np.ones_like(y),
        y,
        math.cos(yaw) * np.ones_like(y) - math.sin(yaw) * x,
    )


def worst(a: Pixels, b: Pixels) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("views", [4, 5, 8, 12, 24])
def test_views_are_what_a_camera_there_would_take(views: int) -> None:
    found = cut_views(panorama(1024), views)
    assert [view.yaw_deg for view in found] == pytest.approx([360 * i / views for i in range(views)])
    for view in found:
        assert view.image.dtype == np.uint8
        assert worst(view.image, seen(view, field_of_view(views))) <= 2


def test_a_panorama_without_zenith_and_nadir_is_cut_right_too() -> None:
    for view in cut_views(panorama(1024, 400), 8):
        assert worst(view.image, seen(view, field_of_view(8))) <= 2


def test_a_scaled_view_is_the_same_view() -> None:
    for view in cut_views(panorama(2048), 8, 128):
        assert view.image.shape == (96, 128, 3)
        assert worst(view.image, seen(view, field_of_view(8))) <= 3


def test_a_view_is_never_enlarged() -> None:
    natural = cut_views(panorama(512), 8)
    limited = cut_views(panorama(512), 8, 4000)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(natural, limited, strict=True))


def test_turning_the_panorama_turns_the_views() -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 256, 3)).astype(np.uint8)
    ahead = cut_views(image, 8)
    turned = cut_views(np.roll(image, -32, axis=1), 8)
    for i in range(8):
        assert np.array_equal(turned[i].image, ahead[(i + 1) % 8].image)


def test_neighbours_overlap_and_the_circle_is_covered() -> None:
    assert field_of_view(8) == 67.5
    assert field_of_view(24) == 60.0
    assert field_of_view(4) == 100.0
    assert all(field_of_view(views) >= 360 / views for views in range(4, 40))


@pytest.mark.parametrize("views", [4, 8, 12, 24])
@pytest.mark.parametrize("width", [100, 333])
def test_source_width_gives_views_of_that_width(views: int, width: int) -> None:
    needed = source_width(width, views)
    blank = np.zeros((needed // 8, needed, 3), np.uint8)
    assert cut_views(blank, views)[0].image.shape[1] == pytest.approx(width, abs=1)
    assert cut_views(blank, views, width)[0].image.shape[1] <= width


def test_views_look_evenly_around() -> None:
    assert view_yaws(4) == [0.0, 90.0, 180.0, 270.0]


XMP = '<rdf:Description GPano:ProjectionType="equirectangular" {}/>'
CROP = 'GPano:FullPanoWidthPixels="8000" GPano:CroppedAreaImageWidthPixels="{}"'


@pytest.mark.parametrize(
    ("width", "height", "xmp", "expected"),
    [
        (4096, 2048, None, True),
        (4096, 2080, None, True),
        (4096, 2148, None, False),
        (2048, 4096, None, False),
        (4000, 3000, None, False),
        (0, 0, None, False),
        (4000, 1200, XMP.format(""), True),
        (4000, 1200, b"<GPano:ProjectionType>equirectangular</GPano:ProjectionType>", True),
        (4000, 1200, XMP.replace("equirectangular", "cylindrical").format(""), False),
        (8000, 2400, XMP.format(CROP.format(8000)), True),
        (4000, 2000, XMP.format(CROP.format(4000)), False),
        (4000, 1200, b"\xff\xfe no XMP at all", False),
    ],
)
def test_what_is_a_panorama(width: int, height: int, xmp: bytes | str | None, expected: bool) -> None:
    assert is_equirectangular(width, height, xmp) is expected


def test_an_opened_photos_own_xmp_is_read() -> None:
    image = Image.new("RGB", (400, 120))
    assert not is_panorama(image)
    image.info["xmp"] = XMP.format("").encode()
    assert is_panorama(image)


@pytest.mark.parametrize("views", [0, -1])
def test_fewer_than_one_view(views: int) -> None:
    with pytest.raises(ValueError, match="expected at least 1 view"):
        cut_views(panorama(64), views)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 8), np.uint8), np.zeros((4, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)]
)
def test_another_shape(image: Pixels) -> None:
    with pytest.raises(ValueError, match=r"expected a uint8 image of shape \(H, W, 3\)"):
        cut_views(image, 8)
