"""The service over an index as `loci index` makes it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from indexer.build.run import build_index
from indexer.index import Index
from indexer.options import BuildOptions

pytestmark = pytest.mark.slow

if TYPE_CHECKING:
    from tests.service.conftest import Start

Problem = Callable[..., dict[str, Any]]
Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture(scope="module")
def opened(real_index: Path) -> Index:
    return Index.open(real_index, device="cpu", precision="auto")


@pytest.fixture
def client(start: Start, opened: Index) -> httpx.Client:
    return start(opened)


def test_http_answers_as_python_does(client: httpx.Client, opened: Index, real_photo: Path) -> None:
    response = client.post("/v1/query", params={"k": 3}, files={"image": real_photo.read_bytes()})
    served = response.json()
    asked = opened.query(real_photo, k=3).to_json()
    assert list(served) == list(asked)
    assert all(served["timings_ms"][stage] > 0 for stage in ("decode", "embed", "search"))
    del served["timings_ms"], asked["timings_ms"]
    assert served == asked
    best = served["places"][0]["photos"][0]
    assert best["path"].endswith(real_photo.name)
    assert best["score"] == pytest.approx(1, abs=0.01)


def test_clip_is_answered_as_the_library_does(
    client: httpx.Client, opened: Index, real_photos: list[Path]
) -> None:
    frames = real_photos[2:5]
    files = [("image", frame.read_bytes()) for frame in frames]
    served = client.post("/v1/query/clip", files=files).json()
    asked = opened.query_clip(frames).to_json()
    del served["timings_ms"], asked["timings_ms"]
    assert served == asked


def test_embed_gives_the_indexs_own_descriptors(
    client: httpx.Client, opened: Index, real_photos: list[Path]
) -> None:
    response = client.post("/v1/embed", files=[("image", photo.read_bytes()) for photo in real_photos[:3]])
    body = response.json()
    assert body["model"] == opened.model_fingerprint
    expected = opened.embed(real_photos[:3])
    assert np.shape(body["descriptors"]) == expected.shape == (3, body["dim"])
    cosines = (np.asarray(body["descriptors"]) * expected).sum(axis=1)
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_places_and_photos_of_the_answer_can_be_fetched(client: httpx.Client, real_photo: Path) -> None:
    answer = client.post("/v1/query", files={"image": real_photo.read_bytes()}).json()
    place = answer["places"][0]
    photo = place["photos"][0]
    shown = client.get(f"/v1/places/{place['id']}").json()
    assert photo["id"] in [member["id"] for member in shown["photos"]]
    assert shown["photo_count"] == len(shown["photos"])
    described = client.get(f"/v1/photos/{photo['id']}").json()
    assert described["path"] == photo["path"]
    assert client.get(f"/v1/photos/{photo['id']}/image").content == real_photo.read_bytes()
    thumbnail = client.get(f"/v1/photos/{photo['id']}/thumbnail")
    with Image.open(io.BytesIO(thumbnail.content)) as image:
        assert max(image.size) <= 320


def test_places_are_counted(client: httpx.Client, opened: Index) -> None:
    body = client.get("/v1/places").json()
    assert body["total"] == opened.info()["places"] == len(body["places"])
    assert f"loci_index_photos {float(opened.info()['photos'])}" in client.get("/metrics").text


def test_unknown_ids_are_404(client: httpx.Client, problem: Problem) -> None:
    for path in ("/v1/photos/nothing", "/v1/photos/nothing/image", "/v1/places/nothing"):
        problem(client.get(path), 404)


def test_the_page_is_told_of_the_index(client: httpx.Client, opened: Index) -> None:
    told = client.get("/page/index.json").json()
    assert told == {name: opened.info()[name] for name in ("photos", "places", "dim", "model", "snapshot")}


def test_concurrent_queries_get_their_own_answers(client: httpx.Client, real_photos: list[Path]) -> None:
    def ask(photo: Path) -> str:
        answer = client.post("/v1/query", files={"image": photo.read_bytes()}).json()
        return str(answer["places"][0]["photos"][0]["path"])

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, real_photos))
    assert [Path(path).name for path in found] == [photo.name for photo in real_photos]


def test_a_run_beside_the_service_is_picked_up(
    start: Start, real_index: Path, tmp_path: Path, make_photo: Callable[..., bytes], wait: Wait
) -> None:
    folder = tmp_path / "index"
    shutil.copytree(real_index, folder)
    client = start(None, index=folder, refresh_seconds=0.05, device="cpu")
    wait(lambda: client.get("/readyz").status_code == 200)
    before = client.get("/readyz").json()["snapshot"]
    added = tmp_path / "more" / "added.jpg"
    added.parent.mkdir()
    added.write_bytes(make_photo("green", (96, 64)))

    build_index([added.parent], folder, BuildOptions(dim=4, clusters=4, image_size=96, device="cpu"))
    wait(lambda: client.get("/readyz").json()["snapshot"] != before)
    answer = client.post("/v1/query", files={"image": added.read_bytes()}).json()
    assert answer["snapshot"] != before
    assert answer["places"][0]["photos"][0]["path"].endswith("added.jpg")
    assert client.get("/v1/places").json()["total"] == 13
