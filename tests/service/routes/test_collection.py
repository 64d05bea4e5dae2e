"""Places and photos over HTTP."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex

Problem = Callable[..., dict[str, Any]]

RED_PHOTO = {
    "id": "red",
    "path": "walls/red.jpg",
    "place": "red",
    "lat": 52.0,
    "lon": 0.25,
    "heading": 90.0,
    "taken_at": "2024-05-01T10:00:00",
    "width": 80,
    "height": 120,
    "status": "ok",
}


def test_places_are_paged(client: httpx.Client) -> None:
    body = client.get("/v1/places", params={"limit": 1, "offset": 1}).json()
    green = {"id": "green", "name": "the green wall", "lat": 52.0, "lon": 0.25, "photo_count": 1}
    assert body == {"total": 3, "limit": 1, "offset": 1, "places": [green]}
    assert [place["id"] for place in client.get("/v1/places").json()["places"]] == ["red", "green", "blue"]
    assert client.get("/v1/places", params={"offset": 3}).json()["places"] == []


@pytest.mark.parametrize(("name", "value"), [("limit", 0), ("limit", 1001), ("offset", -1)])
def test_pages_out_of_range_are_422(client: httpx.Client, problem: Problem, name: str, value: int) -> None:
    problem(client.get("/v1/places", params={name: value}), 422, name)


def test_a_place_comes_with_its_photos(client: httpx.Client) -> None:
    body = client.get("/v1/places/red").json()
    assert list(body) == ["id", "name", "lat", "lon", "photo_count", "photos"]
    assert body["photos"] == [RED_PHOTO]


def test_geojson_puts_longitude_first_and_leaves_out_what_has_no_position(client: httpx.Client) -> None:
    response = client.get("/v1/places.geojson")
    assert response.headers["content-type"] == "application/geo+json"
    body = response.json()
    assert body["type"] == "FeatureCollection"
    assert [feature["id"] for feature in body["features"]] == ["red", "green"]
    assert body["features"][0] == {
        "type": "Feature",
        "id": "red",
        "geometry": {"type": "Point", "coordinates": [0.25, 52.0]},
        "properties": {"name": "the red wall", "photo_count": 1},
    }


def test_a_photo_is_described(client: httpx.Client) -> None:
    assert client.get("/v1/photos/red").json() == RED_PHOTO


@pytest.mark.parametrize(
    "path",
    [
        "/v1/photos/pink",
        "/v1/photos/pink/image",
        "/v1/photos/pink/thumbnail",
        "/v1/places/pink",
        "/v1/photos/..%2f..%2fetc%2fpasswd/image",
    ],
)
def test_unknown_ids_are_404(client: httpx.Client, problem: Problem, path: str) -> None:
    problem(client.get(path), 404)


def test_an_image_is_the_original_file(client: httpx.Client, index: FakeIndex) -> None:
    response = client.get("/v1/photos/red/image")
    assert response.content == (index.folder / "red.jpg").read_bytes()
    assert response.headers["content-type"] == "image/jpeg"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["content-disposition"] == 'inline; filename="red.jpg"'


def test_the_media_type_is_that_of_the_bytes(client: httpx.Client, index: FakeIndex) -> None:
    file = index.folder / "red.jpg"
    Image.new("RGB", (32, 32)).save(file, "PNG")
    assert client.get("/v1/photos/red/image").headers["content-type"] == "image/png"
    file.write_text("<script>alert(1)</script>")
    response = client.get("/v1/photos/red/image")
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("kind", ["image", "thumbnail"])
def test_an_unchanged_photo_is_not_sent_twice(client: httpx.Client, index: FakeIndex, kind: str) -> None:
    url = f"/v1/photos/red/{kind}"
    tag = client.get(url).headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = client.get(url, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    Image.new("RGB", (48, 48)).save(index.folder / "red.jpg")
    changed = client.get(url, headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


def test_a_thumbnail_is_small_upright_and_carries_no_metadata(client: httpx.Client) -> None:
    response = client.get("/v1/photos/red/thumbnail")
    assert response.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(response.content)) as image:
        assert image.size == (213, 320)
        assert not image.getexif()
        assert image.getpixel((100, 100)) == pytest.approx((230, 20, 20), abs=4)


@pytest.mark.parametrize("kind", ["image", "thumbnail"])
def test_a_file_that_is_gone_is_404(
    client: httpx.Client, index: FakeIndex, problem: Problem, kind: str
) -> None:
    (index.folder / "red.jpg").unlink()
    assert problem(client.get(f"/v1/photos/red/{kind}"), 404)["detail"] == "the photo's file is gone"


def test_a_file_that_is_damaged_has_no_thumbnail(
    client: httpx.Client, index: FakeIndex, problem: Problem
) -> None:
    (index.folder / "red.jpg").write_bytes(b"rubbish")
    detail = problem(client.get("/v1/photos/red/thumbnail"), 404)["detail"]
    assert detail.startswith("the photo's file can no longer be read")
