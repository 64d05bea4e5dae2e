"""Starting and stopping the process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.errors import ServiceError
from service.security.keys import KeyFile, Role
from service.server import listen, serve
from service.settings import Settings

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from service.logs import set_up
from service.errors import ServiceError
from service.security.keys import KeyFile, Role
from service.server import serve
from service.settings import Settings
set_up("json")
{before}
try:
    serve(Settings.load(), announce=lambda url: print(url, flush=True))
except ServiceError as error:
    print(error)
    sys.exit(1)
print("ended well")
"""

Wait = Callable[[Callable[[], bool]], None]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


SLOW_NETWORK = """
import time
from model.embedder import Embedder
see = Embedder.see
Embedder.see = lambda self, clips: time.sleep({seconds}) or see(self, clips)
"""


def start(index: Path, before: str = "", **variables: str) -> subprocess.Popen[str]:
    """Start a process over an index, after the Python code `before`; its log goes beside the index."""
    environment = {
        **os.environ,
        "LOCI_INDEX": str(index),
        "LOCI_PORT": "0",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    with index.with_name("stderr").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM.replace("{before}", before)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )


def test_port_in_use_is_refused_before_opening_the_index(taken: int, tmp_path: Path) -> None:
    settings = Settings(index=tmp_path / "no-index", port=taken)
    with pytest.raises(ServiceError, match=rf"^port {taken} on 127\.0\.0\.1 is in use; .*--port$"):
        serve(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_public_address_without_key_is_refused(tmp_path: Path, host: str) -> None:
    with (
        pytest.raises(ServiceError, match=r"no API keys yet; make one .*--insecure"),
        listen(Settings(index=tmp_path, host=host, port=0)),
    ):
        pass


def test_public_address_is_allowed_with_a_key(tmp_path: Path) -> None:
    KeyFile(tmp_path / "keys.json").create("robot", Role.READ)
    with listen(Settings(index=tmp_path, host="0.0.0.0", port=0)) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("insecure", [False, True])
def test_a_damaged_keys_file_refuses_to_start(tmp_path: Path, host: str, insecure: bool) -> None:
    (tmp_path / "keys.json").write_text("{}")
    with (
        pytest.raises(ServiceError, match=r"^the keys file .*keys\.json is damaged"),
        listen(Settings(index=tmp_path, host=host, port=0, insecure=insecure)),
    ):
        pass


def test_public_address_is_allowed_with_insecure(tmp_path: Path) -> None:
    with listen(Settings(index=tmp_path, host="0.0.0.0", port=0, insecure=True)) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_foreign_address_is_refused(tmp_path: Path, host: str) -> None:
    with (
        pytest.raises(ServiceError, match="is not an address of this machine"),
        listen(Settings(index=tmp_path, host=host, port=0, insecure=True)),
    ):
        pass


def test_the_port_is_given_back(tmp_path: Path) -> None:
    with listen(Settings(index=tmp_path, host="localhost", port=0)) as listener:
        port = listener.getsockname()[1]
    with listen(Settings(index=tmp_path, port=port)) as again:
        assert again.getsockname()[1] == port


@contextlib.contextmanager
def running(
    index: Path, before: str = "", **variables: str
) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """Run a process until it is ready; gives it and a client."""
    process = start(index, before, **variables)
    try:
        url = process.stdout.readline().strip() if process.stdout else ""
        with httpx.Client(base_url=url, timeout=60) as client:
            for _ in range(600):
                if client.get("/readyz").status_code == 200:
                    break
                time.sleep(0.05)
            yield process, client
    finally:
        process.kill()
        process.wait()


def test_shutting_down_finishes_what_was_admitted(real_index: Path, real_photo: Path) -> None:
    before = SLOW_NETWORK.replace("{seconds}", "1")
    with running(real_index, before) as (process, client), ThreadPoolExecutor(4) as pool:
        photo = real_photo.read_bytes()
        asked = [pool.submit(client.post, "/v1/query", files={"image": photo}) for _ in range(4)]
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert [answer.result(30).status_code for answer in asked] == [200] * 4
        with pytest.raises(httpx.TransportError):
            client.get("/healthz")
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out.splitlines()[-1] == "ended well"


def test_hanging_device_ends_the_process(real_index: Path, real_photo: Path) -> None:
    before = SLOW_NETWORK.replace("{seconds}", "1000")
    limits = {"LOCI_STALL_SECONDS": "0.3", "LOCI_WEDGED_SECONDS": "1", "LOCI_SHUTDOWN_SECONDS": "2"}
    with running(real_index, before, **limits) as (process, client), ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, "/v1/query", files={"image": real_photo.read_bytes()})
        for _ in range(2000):  # it is busy for a second before it is given up
            ready = client.get("/readyz")
            if ready.status_code == 503:
                break
            time.sleep(0.01)
        assert "busy with one batch" in ready.json()["detail"]
        assert client.post("/v1/query", files={"image": real_photo.read_bytes()}).status_code == 503
        assert asked.result(30).status_code == 503, "whoever waits is told"
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert out.splitlines()[-1].endswith("did not come back")


def test_a_broken_device_ends_the_process(real_index: Path, real_photo: Path) -> None:
    before = """
from model.embedder import Embedder
def broken(self, clips):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")
Embedder.see = broken
"""
    with running(real_index, before) as (process, client):
        answer = client.post("/v1/query", files={"image": real_photo.read_bytes()})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert (
        out.splitlines()[-1] == "the device is broken: CUDA error: an illegal memory access was encountered"
    )


def test_log_has_one_json_line_for_each_request(real_index: Path) -> None:
    with running(real_index) as (process, client):
        client.get("/v1/places?key=secret", headers={"X-Request-ID": "r-1"})
        with socket.create_connection((client.base_url.host, client.base_url.port or 0)) as rubbish:
            rubbish.sendall(b"rubbish\r\n\r\n")
            rubbish.recv(1000)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    text = real_index.with_name("stderr").read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    (line,) = (entry for entry in entries if entry.get("request_id") == "r-1")
    assert (line["method"], line["path"], line["status"]) == ("GET", "/v1/places", 200)
    assert line["client"] == "127.0.0.1"
    assert line["milliseconds"] > 0
    assert "secret" not in text


def test_metrics_have_an_address_of_their_own(real_index: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with running(real_index, LOCI_METRICS_ADDRESS=address) as (process, client):
        assert client.get("/metrics").status_code == 404
        text = httpx.get(f"http://{address}/metrics").text
        assert "loci_index_photos 12.0" in text
        assert "loci_connections 1.0" in text
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_metrics_address_in_use_is_one_sentence(taken: int, real_index: Path) -> None:
    settings = Settings(index=real_index, port=0, metrics_address=f"127.0.0.1:{taken}")
    with pytest.raises(
        ServiceError, match=rf"^the metrics cannot be served on 127\.0\.0\.1:{taken}: Address"
    ):
        serve(settings)


def test_a_process_without_an_index_ends_with_the_reason(tmp_path: Path) -> None:
    process = start(tmp_path / "no-index")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    url, reason = out.splitlines()
    assert url.startswith("http://127.0.0.1:")
    assert "no-index" in reason


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_process_answers_and_ends_well(
    real_index: Path, real_photo: Path, wait: Wait, by: signal.Signals
) -> None:
    process = start(real_index)
    try:
        url = process.stdout.readline().strip() if process.stdout else ""
        with httpx.Client(base_url=url, timeout=60) as client:
            assert client.get("/healthz").status_code == 200
            wait(lambda: client.get("/readyz").status_code == 200)
            answer = client.post("/v1/query", files={"image": real_photo.read_bytes()})
            assert answer.status_code == 200
        process.send_signal(by)
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    assert out.splitlines()[-1] == "ended well"
