"""Downloads from a server of this machine that resumes, does not, changes its mind, breaks off."""

import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from model.download import download
from model.errors import ModelError

CONTENT = bytes(range(256)) * 2000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """What it serves, and how."""

    content = CONTENT
    etag = '"one"'
    ranges = True
    break_after: int | None = None
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/weights.mat"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.seen.append((self.path, wanted))
        if server.status != 200:
            self.send_error(server.status)
            return
        start = 0
        if wanted and server.ranges and self.headers.get("If-Range") == server.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore
            if start >= len(server.content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header(
                "Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}"
            )
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body if server.break_after is None else body[: server.break_after])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.mat"


def broken_off(server: Server, file: Path, after: int = 100_000) -> None:
    server.break_after = after
    with pytest.raises(ModelError, match=r"broke off after 100,000 of 512,000 bytes; the next try goes on"):
        download(server.url, file)
    server.break_after = None
    assert not file.exists()
    assert file.with_name("weights.mat.part").stat().st_size == after


def test_download(server: Server, file: Path) -> None:
    told: list[tuple[int, int | None]] = []
    assert (
        download(server.url, file, sha256=SHA256, told=lambda now, total: told.append((now, total))) == SHA256
    )
    assert file.read_bytes() == CONTENT
    assert [path.name for path in file.parent.iterdir()] == ["weights.mat"]
    assert told[-1] == (len(CONTENT), len(CONTENT))


def test_download_is_resumed(server: Server, file: Path) -> None:
    broken_off(server, file)
    assert download(server.url, file) == SHA256
    assert server.seen[-1][1] == "bytes=100000-"


def test_a_server_that_cannot_resume(server: Server, file: Path) -> None:
    broken_off(server, file)
    server.ranges = False
    assert download(server.url, file) == SHA256


def test_a_file_that_changed_meanwhile_is_fetched_from_the_start(server: Server, file: Path) -> None:
    broken_off(server, file)
    server.etag, server.content = '"two"', CONTENT[::-1]
    assert download(server.url, file) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_part_without_version_is_not_resumed(server: Server, file: Path) -> None:
    file.parent.mkdir()
    file.with_name("weights.mat.part").write_bytes(b"x" * 1000)
    assert download(server.url, file) == SHA256
    assert server.seen == [("/weights.mat", None)]


def test_a_part_that_is_too_long_starts_over(server: Server, file: Path) -> None:
    broken_off(server, file)
    file.with_name("weights.mat.part").write_bytes(CONTENT)
    assert download(server.url, file) == SHA256
    assert [wanted for _, wanted in server.seen[1:]] == ["bytes=512000-", None]


def test_another_checksum(server: Server, file: Path) -> None:
    with pytest.raises(ModelError, match=f"has SHA-256 {SHA256}, not {'0' * 64}, and was thrown away"):
        download(server.url, file, sha256="0" * 64)
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_dead_link(server: Server, file: Path, status: int) -> None:
    server.status = status
    with pytest.raises(ModelError) as caught:
        download(server.url, file)
    text = str(caught.value)
    assert text.startswith(f"cannot download {server.url}: the server answers {status} ")
    assert text.endswith(f"; to fetch it another way, put the file at {file}")


def test_nobody_listens(file: Path) -> None:
    with Server() as gone:
        url = gone.url
    with pytest.raises(ModelError, match=f"cannot download {url}: .*Connection refused"):
        download(url, file)


def test_through_a_proxy(server: Server, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/weights.mat"))
    assert download("http://weights.example/weights.mat", file) == SHA256
    assert server.seen == [("http://weights.example/weights.mat", None)]


def test_a_full_disk(server: Server, file: Path) -> None:
    file.parent.mkdir()
    file.with_name("weights.mat.part").symlink_to("/dev/full")
    with pytest.raises(ModelError, match=f"cannot download {server.url}: .*No space left on device"):
        download(server.url, file)
