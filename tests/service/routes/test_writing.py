"""Photos added and removed over HTTP."""

from __future__ import annotations

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
from PIL import Image

from indexer.build.run import build_index
from indexer.errors import IndexBusy, IndexerError, IndexLocked
from indexer.index import Index
from indexer.maintenance.check import check_index
from indexer.options import BuildOptions
from service.security.keys import KeyFile, Role
from service.settings import KEYS_FILE

if TYPE_CHECKING:
    from tests.service.conftest import FakeIndex, Start

Problem = Callable[..., dict[str, Any]]
MakePhoto = Callable[..., bytes]
Wait = Callable[[Callable[[], bool]], None]


def texture(seed: int, *, gps: tuple[float, float] | None = None) -> bytes:
    """A photo unlike all others, as the bytes of a file."""
    squares = np.random.default_rng(1000 + seed).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    exif = Image.Exif()
    if gps is not None:
        exif.get_ifd(0x8825).update({1: "N", 2: (gps[0], 0.0, 0.0), 3: "E", 4: (gps[1], 0.0, 0.0)})
    out = io.BytesIO()
    Image.fromarray(squares.repeat(8, axis=0).repeat(8, axis=1)).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


@pytest.fixture
def folder(real_index: Path, tmp_path: Path) -> Path:
    """A copy of the index to write to."""
    return Path(shutil.copytree(real_index, tmp_path / "written"))


@pytest.fixture
def serve(start: Start, folder: Path, wait: Wait) -> Callable[..., httpx.Client]:
    """Serve that copy, ready, to the holder of a key that writes."""
    key = KeyFile(folder / KEYS_FILE).create("writer", Role.WRITE)

    def serve(**settings: Any) -> httpx.Client:
        client = start(None, index=folder, device="cpu", **settings)
        client.headers["Authorization"] = f"Bearer {key}"
        wait(lambda: client.get("/readyz").status_code == 200)
        return client

    return serve


@pytest.fixture
def client(serve: Callable[..., httpx.Client]) -> httpx.Client:
    return serve()


def best(client: httpx.Client, photo: bytes, **params: Any) -> str:
    """Id of the photo that is most like this one."""
    answer = client.post("/v1/query", params=params, files={"image": photo})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["places"][0]["photos"][0]["id"])


def indexed(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("loci_index_photos ")).split()[1])


def test_a_photo_comes_and_goes(client: httpx.Client) -> None:
    photo = texture(0)
    fields = {"lat": "52.5", "lon": "0.5", "heading": "90", "taken_at": "2024-05-01T10:00:00+02:00"}
    response = client.post(
        "/v1/photos", files={"image": photo}, data={**fields, "place": "Tür", "name": "a.jpg"}
    )
    body = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/v1/photos/{body['id']}"
    assert body == {
        "id": body["id"],
        "path": "posted/a.jpg",
        "place": "Tür",
        "lat": 52.5,
        "lon": 0.5,
        "heading": 90.0,
        "taken_at": "2024-05-01T10:00:00+02:00",
        "width": 96,
        "height": 64,
        "status": "ok",
        "created": True,
    }
    assert best(client, photo) == body["id"]
    assert indexed(client) == 13
    image = client.get(f"{response.headers['location']}/image")
    assert image.content == photo
    assert image.headers["content-disposition"] == 'inline; filename="a.jpg"'
    assert image.headers["content-type"] == "image/jpeg"
    assert client.get("/v1/places").json()["total"] == 13

    again = client.post("/v1/photos", files={"image": photo}, data={"place": "other"})
    assert (again.status_code, again.json()) == (200, {**body, "created": False})
    assert again.headers["location"] == response.headers["location"]

    gone = client.delete(response.headers["location"])
    assert (gone.status_code, gone.content) == (204, b"")
    assert best(client, photo) != body["id"]
    assert indexed(client) == 12
    for request in (client.delete, client.get):
        assert request(response.headers["location"]).status_code == 404
    assert client.post("/v1/photos", files={"image": photo}).status_code == 201


def test_wrong_method_lists_the_allowed_ones(client: httpx.Client, problem: Problem) -> None:
    response = client.put("/v1/photos/red")
    problem(response, 405)
    assert response.headers["allow"] == "GET, DELETE"


def test_missing_metadata_comes_from_exif(client: httpx.Client) -> None:
    body = client.post("/v1/photos", files={"image": texture(1, gps=(10.0, 20.0))}).json()
    assert (body["lat"], body["lon"], body["heading"], body["place"]) == (10.0, 20.0, None, None)
    said = client.post(
        "/v1/photos", params={"lat": 1, "lon": 2}, files={"image": texture(2, gps=(10.0, 20.0))}
    )
    assert (said.json()["lat"], said.json()["lon"]) == (1.0, 2.0)
    raw = client.post(
        "/v1/photos", params={"place": "raw"}, content=texture(3), headers={"content-type": "image/jpeg"}
    )
    assert (raw.status_code, raw.json()["place"], raw.json()["lat"]) == (201, "raw", None)
    assert raw.json()["path"] == f"posted/{raw.json()['id']}.jpg"


@pytest.mark.parametrize(
    ("params", "fields", "field", "detail"),
    [
        ({"lat": 1}, {}, "lon", "lon is missing, though lat is given"),
        ({"lat": 91, "lon": 1}, {}, "lat", "lat: Input should be less than or equal to 90"),
        ({}, {"lat": "91", "lon": "1"}, "lat", "lat must be -90 to 90, not 91"),
        ({}, {"lat": "north", "lon": "1"}, "lat", "lat must be a number, not 'north'"),
        ({}, {"heading": "nan"}, "heading", "heading must be 0 to 360, not nan"),
        ({"place": "a"}, {"place": "a"}, "place", "place is given twice, in the query and in the form"),
        (
            {"taken_at": "soon"},
            {},
            "taken_at",
            "taken_at must be a time such as 2024-09-23T16:06:58, not 'soon'",
        ),
        ({}, {"name": "\n"}, "name", "name must be 1 to 200 printable characters, not ''"),
        ({}, {"place": "x" * 2001}, "place", "place is longer than 2000 bytes"),
        ({}, {"place": ["a", "b"]}, "place", "place comes twice"),
        ({}, {"place": b"\xff"}, "place", "place is not UTF-8 text"),
    ],
)
def test_invalid_metadata_is_422(
    client: httpx.Client,
    problem: Problem,
    folder: Path,
    params: dict[str, Any],
    fields: dict[str, Any],
    field: str,
    detail: str,
) -> None:
    response = client.post("/v1/photos", params=params, data=fields, files={"image": texture(4)})
    assert problem(response, 422, field)["detail"] == detail
    assert not (folder / "photos").exists()


def test_other_files_are_refused_and_not_stored(
    client: httpx.Client, problem: Problem, folder: Path, make_photo: MakePhoto
) -> None:
    whole = texture(5)
    problem(client.post("/v1/photos", files={"image": b"<html>"}), 400, "image")
    problem(client.post("/v1/photos", files={"image": whole[: len(whole) // 2]}), 400, "image")
    problem(client.post("/v1/photos", files={"image": make_photo(size=(8, 8))}), 400, "image")
    problem(client.post("/v1/photos"), 422, "image")
    problem(client.post("/v1/photos", files=[("image", whole), ("image", whole)]), 422, "image")
    problem(client.post("/v1/photos", content=b"a", headers={"content-type": "text/plain"}), 415, "image")
    assert not list((folder / "photos").glob("*"))
    assert indexed(client) == 12


def test_limits_are_those_of_queries(serve: Callable[..., httpx.Client], problem: Problem) -> None:
    client = serve(max_upload_mb=0.5, max_pixels=6000)
    problem(client.post("/v1/photos", files={"image": bytes(600_000)}), 413, "image")
    problem(client.post("/v1/photos", files={"image": texture(6)}), 413, "image")


def test_a_full_disk_is_507(
    client: httpx.Client, problem: Problem, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("indexer.storage.shards.ShardWriter._write", full)
        body = problem(client.post("/v1/photos", files={"image": texture(7)}), 507)
    assert body["detail"] == "the disk of the index has no room for it"
    assert list((folder / "photos").iterdir()) == []
    assert client.post("/v1/photos", files={"image": texture(7)}).status_code == 201


def test_an_index_that_takes_no_photos_says_so(
    start: Start, index: FakeIndex, problem: Problem, make_photo: MakePhoto, tmp_path: Path
) -> None:
    client = start(index, keys=tmp_path / "keys.json")
    key = KeyFile(tmp_path / "keys.json").create("writer", Role.WRITE)
    client.headers["Authorization"] = f"Bearer {key}"
    problem(client.post("/v1/photos", files={"image": make_photo()}), 501)
    problem(client.delete("/v1/photos/red"), 501)


@pytest.mark.parametrize(
    ("error", "status"), [(IndexBusy("database is locked"), 503), (IndexerError("read-only"), 501)]
)
def test_busy_or_read_only_index_refuses_posts(
    client: httpx.Client, problem: Problem, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr("indexer.index.Index.posting", fail)
    for response in (
        client.post("/v1/photos", files={"image": texture(9)}),
        client.delete("/v1/photos/a"),
    ):
        problem(response, status)
        assert response.headers.get("retry-after") == ("5" if status == 503 else None)


def test_more_than_can_wait_to_be_stored_is_503(
    serve: Callable[..., httpx.Client], problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = serve(queue_size=1)
    entered, leave = threading.Semaphore(0), threading.Event()

    def remove(*_: object) -> None:
        entered.release()
        leave.wait(10)

    monkeypatch.setattr("indexer.posting.posting.Posting.remove", remove)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(client.delete, "/v1/photos/first")
        assert entered.acquire(timeout=10)
        others = [pool.submit(client.delete, f"/v1/photos/{n}") for n in range(7)]
        # None that was let in can be answered yet, so that the first answer is a refusal.
        refused = next(as_completed(others, timeout=10)).result()
        leave.set()
        assert problem(refused, 503)["detail"].startswith("too many photos are waiting to be stored")
        assert refused.headers["retry-after"] == "1"
        assert {answer.result(10).status_code for answer in (first, *others)} == {204, 503}


# Filters


def test_filters_narrow_the_answer(client: httpx.Client) -> None:
    photo = texture(8)
    ids = [
        client.post(
            "/v1/photos",
            params={"lat": lat, "lon": 1, "heading": heading, "taken_at": taken_at, "place": place},
            files={"image": texture(number)},
        ).json()["id"]
        for number, (lat, heading, taken_at, place) in enumerate(
            ((1, 0, "2024-05-01T10:00:00", "Gate"), (2, 90, "2024-06-01T10:00:00Z", "Hall")), 8
        )
    ]
    assert best(client, photo) == ids[0]
    for params in (
        {"lat": 2, "lon": 1, "radius_m": 1},
        {"taken_after": "2024-05-02"},
        {"heading": 100},
        {"place": "Hall"},
    ):
        assert best(client, photo, **params) == ids[1]
        clip = client.post("/v1/query/clip", params=params, files=[("image", photo), ("image", photo)])
        assert [place["photos"][0]["id"] for place in clip.json()["places"]] == [ids[1]]
    told = client.post("/v1/query", params={"lat": 1, "lon": 1}, files={"image": photo}).json()
    assert told["places"][0]["distance_m"] == 0
    assert told["places"][-1]["distance_m"] is None
    nothing = client.post("/v1/query", params={"place": "nowhere"}, files={"image": photo}).json()
    assert (nothing["places"], nothing["position"]) == ([], None)
    assert nothing["note"].endswith("no photo passes the filters")


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"radius_m": 5}, "radius_m"),
        ({"lat": 5}, "lon"),
        ({"lat": 5, "lon": 181}, "lon"),
        ({"lat": 5, "lon": 1, "radius_m": 0}, "radius_m"),
        ({"lat": "nan", "lon": 1}, "lat"),
        ({"taken_after": "yesterday"}, "taken_after"),
        ({"taken_before": "2024", "taken_after": "2025-01-01"}, "taken_before"),
        ({"heading": 361}, "heading"),
        ({"heading": 1, "heading_tolerance": 181}, "heading_tolerance"),
        ({"place": ""}, "place"),
    ],
)
@pytest.mark.parametrize("route", ["/v1/query", "/v1/query/clip"])
def test_invalid_filters_are_422(
    start: Start,
    index: FakeIndex,
    problem: Problem,
    make_photo: MakePhoto,
    route: str,
    params: dict[str, Any],
    field: str,
) -> None:
    problem(start(index).post(route, params=params, files={"image": make_photo()}), 422, field)


# Beside others


def test_a_photo_added_by_another_process_is_found(client: httpx.Client, folder: Path) -> None:
    """Without any new snapshot, and before the service looks for one."""
    photo = texture(20)
    other = Index.open(folder, device="cpu")
    from indexer.photos.metadata import PhotoMetadata
    from indexer.posting.new_photo import read_new

    new = read_new(photo, PhotoMetadata())
    other.posting().add(new, other.embedder.embed(other.posting().reader((new.id, new.data))))
    assert best(client, photo) == new.id


@pytest.mark.slow
def test_the_next_snapshot_is_made_in_the_background(
    serve: Callable[..., httpx.Client], folder: Path, wait: Wait
) -> None:
    client = serve(rebuild_share=0.2, rebuild_seconds=0.05, refresh_seconds=60)
    ids = []
    for number in range(30, 34):
        ids.append(client.post("/v1/photos", files={"image": texture(number)}).json()["id"])
        assert best(client, texture(number)) == ids[-1]
    wait(lambda: client.get("/readyz").json()["snapshot"] != "01/000001")
    assert [best(client, texture(number)) for number in range(30, 34)] == ids
    assert indexed(client) == 16
    index = Index.open(folder, device="cpu")
    assert index.drift() < 0.2
    assert check_index(folder) == []


def test_a_rebuild_that_fails_stops_nothing(
    serve: Callable[..., httpx.Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = threading.Semaphore(0)

    def rebuild(_: object) -> None:
        tries.release()
        raise (IndexLocked if tries._value % 2 else OSError)("no")

    monkeypatch.setattr("indexer.index.Index.rebuild", rebuild)
    client = serve(rebuild_share=0.01, rebuild_seconds=0.02)
    created = client.post("/v1/photos", files={"image": texture(40)}).json()
    for _ in range(3):
        assert tries.acquire(timeout=10), "it goes on looking"
    assert best(client, texture(40)) == created["id"]


@pytest.mark.slow
def test_posts_while_the_index_is_fitted_again(
    serve: Callable[..., httpx.Client], folder: Path, real_photos: list[Path]
) -> None:
    """No POST fails, none is lost, each is found at once, by the old model and by the new one."""
    client = serve(refresh_seconds=3600)  # it learns of the new model from its own POSTs only
    options = BuildOptions(dim=4, clusters=5, image_size=96, device="cpu", refit=True)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(build_index, [real_photos[0].parent], folder, options)
        ids: dict[int, str] = {}
        while not run.done() or len(ids) < 3:
            number = 50 + len(ids)
            response = client.post("/v1/photos", files={"image": texture(number)})
            assert response.status_code == 201
            ids[number] = response.json()["id"]
            assert best(client, texture(number)) == ids[number]
        assert run.result().snapshot == "02/000001"
    last = client.post("/v1/photos", files={"image": texture(49)})
    assert last.status_code == 201
    assert client.get("/readyz").json()["snapshot"] == "02/000001"
    ids[49] = last.json()["id"]
    assert [best(client, texture(number)) for number in ids] == list(ids.values())
    assert indexed(client) == 12 + len(ids)
    assert check_index(folder) == []


@pytest.mark.slow
def test_many_callers_add_delete_and_ask(serve: Callable[..., httpx.Client], folder: Path) -> None:
    client = serve(rebuild_share=0.01, rebuild_seconds=0.05, refresh_seconds=0.05)

    def work(caller: int) -> list[str]:
        kept = []
        for number in range(caller * 100, caller * 100 + 6):
            photo = texture(number)
            response = client.post("/v1/photos", files={"image": photo})
            assert response.status_code == 201
            assert best(client, photo) == response.json()["id"]
            if number % 2:
                assert client.delete(response.headers["location"]).status_code == 204
                assert best(client, photo) != response.json()["id"]
            else:
                kept.append(response.json()["id"])
        return kept

    with ThreadPoolExecutor(4) as pool:
        kept = [id for ids in pool.map(work, range(1, 5)) for id in ids]
    assert indexed(client) == 12 + len(kept) == 24
    assert {file.name[:16] for file in (folder / "photos").iterdir()} == set(kept)


# A real process, killed

PROGRAM = """
from tests.small_shards import make_shards_small
from service.server import serve
from service.settings import Settings
make_shards_small()
serve(Settings.load(), announce=lambda url: print(url, flush=True))
"""


@pytest.fixture
def launch(folder: Path) -> Iterator[Callable[[], tuple[subprocess.Popen[str], httpx.Client]]]:
    processes: list[subprocess.Popen[str]] = []
    clients: list[httpx.Client] = []
    key = KeyFile(folder / KEYS_FILE).create("writer", Role.WRITE)

    def launch() -> tuple[subprocess.Popen[str], httpx.Client]:
        variables = {
            "LOCI_INDEX": str(folder),
            "LOCI_PORT": "0",
            "LOCI_DEVICE": "cpu",
            "OMP_NUM_THREADS": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        url = process.stdout.readline().strip() if process.stdout else ""
        client = httpx.Client(base_url=url, timeout=60, headers={"Authorization": f"Bearer {key}"})
        clients.append(client)
        deadline = time.monotonic() + 60
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return process, client

    yield launch
    for client in clients:
        client.close()
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_acknowledged_posts_survive_a_kill(
    launch: Callable[[], tuple[subprocess.Popen[str], httpx.Client]], folder: Path
) -> None:
    process, client = launch()
    acknowledged: dict[int, str] = {}

    def post(number: int) -> None:
        try:
            response = client.post("/v1/photos", files={"image": texture(number)})
        except httpx.TransportError:
            return  # cut off by the kill
        assert response.status_code == 201
        acknowledged[number] = response.json()["id"]
        if len(acknowledged) == 15:
            process.send_signal(signal.SIGKILL)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(post, range(300, 340)))
    assert process.wait(10) == -signal.SIGKILL
    client.close()
    assert 15 <= len(acknowledged) < 40
    assert check_index(folder) == []
    _, again = launch()
    for number, id in acknowledged.items():
        assert again.get(f"/v1/photos/{id}/image").content == texture(number)
        assert best(again, texture(number)) == id
    assert indexed(again) >= 12 + len(acknowledged)
    again.close()
