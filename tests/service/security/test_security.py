"""docs/security.md names a test for each threat; and the tests that have no better place."""

from __future__ import annotations

import io
import os
import re
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

if TYPE_CHECKING:
    from tests.service.conftest import Start

Problem = Callable[..., dict[str, Any]]
MakePhoto = Callable[..., bytes]

ROOT = Path(__file__).parents[3]
DOCUMENT = ROOT / "docs" / "security.md"
CANARY = "canary7f3a"


def test_every_test_that_the_document_names_exists() -> None:
    rows = [
        line for line in DOCUMENT.read_text().partition("## Threats")[2].splitlines() if line.startswith("| ")
    ]
    assert len(rows) > 30
    for row in rows[1:]:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert named, f"no test: {row}"
        for file, test in named:
            texts = [path.read_text() for path in (ROOT / "tests").rglob(file)]
            assert any(f"\ndef {test}(" in text for text in texts), f"{file}::{test}"


def test_every_setting_that_the_document_names_exists() -> None:
    settings = (ROOT / "service" / "settings.py").read_text()
    for name in set(re.findall(r"`LOCI_([A-Z_]+)`", DOCUMENT.read_text())):
        assert f"    {name.lower()}: " in settings, name


@pytest.fixture
def touched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Every path that this process opens, lists or asks about, while the test runs."""
    seen: list[str] = []
    on = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if on and (event == "open" or event.startswith(("os.", "shutil.", "glob.", "pathlib.", "sqlite3."))):
            seen.extend(str(argument) for argument in arguments)

    sys.addaudithook(hook)  # it cannot be taken away again, only told to rest
    for name in ("stat", "lstat", "access", "readlink"):  # which are not audited
        real = getattr(os, name)

        def asked(path: object, *more: object, _real: Any = real, **extra: object) -> Any:
            seen.append(str(path))
            return _real(path, *more, **extra)

        monkeypatch.setattr(os, name, asked)
    yield seen
    on = False


@pytest.mark.slow
def test_nothing_of_a_request_reaches_the_file_system(
    start: Start, real_index: Path, touched: list[str]
) -> None:
    client = start(None, index=real_index, device="cpu")
    while client.get("/readyz").status_code != 200:
        pass
    photo = client.get("/v1/places").json()["places"][0]["id"]
    client.get(f"/v1/places/{photo}")
    assert any(path.endswith("catalogue.sqlite") for path in touched), "the watch works"
    odd = (
        CANARY,
        f"..%2f{CANARY}",
        f"%2e%2e/{CANARY}",
        f"%2fetc%2f{CANARY}",
        f"{CANARY}%00.jpg",
        f"~{CANARY}",
    )
    for name in odd:
        for below in ("", "v1/photos/", "v1/places/", "page/", "docs/", "static-offline-docs/"):
            for end in ("", "/image", "/thumbnail"):
                response = client.get(f"/{below}{name}{end}")
                assert response.status_code in (401, 404), response.text
    image = io.BytesIO()
    Image.new("RGB", (64, 64)).save(image, "JPEG")
    for name in (f"../{CANARY}.jpg", f"/{CANARY}", f"C:\\{CANARY}"):
        part = (name, image.getvalue(), "image/jpeg")
        headers = {"X-Request-ID": CANARY, "Authorization": f"Bearer {CANARY}", "If-None-Match": CANARY}
        response = client.post("/v1/query", files={"image": part}, params={"path": name}, headers=headers)
        assert response.status_code == 200
    assert [path for path in touched if CANARY in path] == []


@pytest.mark.slow
def test_an_upload_is_not_written_anywhere(
    start: Start, real_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = start(None, index=real_index, device="cpu")
    while client.get("/readyz").status_code != 200:
        pass
    written: list[str] = []
    on = True

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if on and event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or (isinstance(mode, str) and set(mode) & set("wax+")):
                written.append(str(path))

    def no_file(*_: object, **__: object) -> None:
        raise AssertionError("a temporary file")

    for name in ("TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile", "mkstemp"):
        monkeypatch.setattr(tempfile, name, no_file)
    sys.addaudithook(hook)
    image = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).convert("RGB").save(image, "PNG")
    assert len(image.getvalue()) > 2_000_000
    for path in ("/v1/query", "/v1/embed", "/v1/query/clip"):
        assert client.post(path, files={"image": image.getvalue()}).status_code == 200
        assert client.post(path, content=image.getvalue()).status_code == 200
    on = False
    assert written == []


def _segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def scan_bomb(scans: int) -> bytes:
    """A progressive JPEG whose every scan is a few bytes, and a pass over all its 65,000×1,300 pixels."""
    table = bytes([0x10, 0, 2, *[0] * 14, 0x00, 0xE0])  # an EOBRUN of up to 32,767 blocks
    frame = struct.pack(">BHHB", 8, 1300, 65_000, 1) + bytes([1, 0x11, 0])
    head = b"\xff\xd8" + _segment(0xDB, bytes([0, *[1] * 64])) + _segment(0xC2, frame) + _segment(0xC4, table)
    scan = _segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0x00])) + bytes([0xFE] * 96)
    return head + scan * scans + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_refused(client: httpx.Client, problem: Problem) -> None:
    response = client.post("/v1/query", files={"image": scan_bomb(10_000)})
    assert problem(response, 400, "image")["detail"] == "a JPEG of 10000 scans, 200 at most are read"


@pytest.mark.parametrize("name", [b"zTXt", b"iTXt", b"iCCP"])
def test_chunks_that_unpack_to_far_more_are_refused(
    client: httpx.Client, make_photo: MakePhoto, problem: Problem, name: bytes
) -> None:
    packed = zlib.compress(bytes(50_000_000), 9)
    data = (b"k\0\1\0\0\0" if name == b"iTXt" else b"k\0\0") + packed
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    photo = make_photo(kind="PNG")
    response = client.post("/v1/query", files={"image": photo[:33] + chunk + photo[33:]})
    assert "too large" in problem(response, 400, "image")["detail"]


def test_a_progressive_photo_is_still_read(client: httpx.Client) -> None:
    out = io.BytesIO()
    Image.new("RGB", (96, 64), (20, 230, 20)).save(out, "JPEG", progressive=True)
    assert client.post("/v1/query", files={"image": out.getvalue()}).json()["places"][0]["id"] == "green"
