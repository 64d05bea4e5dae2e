"""Starting and stopping the process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.errors import ServiceError
from service.server import listen, serve
from service.settings import Settings

PROGRAM = """
import sys
from service.errors import ServiceError
from service.server import serve
from service.settings import Settings
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


def start(index: Path, **variables: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "LOCI_INDEX": str(index),
        "LOCI_PORT": "0",
        "OMP_NUM_THREADS": "1",
        **variables,
    }
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def test_a_port_in_use_is_refused_before_the_index_is_looked_at(taken: int, tmp_path: Path) -> None:
    settings = Settings(index=tmp_path / "no-index", port=taken)
    with pytest.raises(ServiceError, match=rf"^port {taken} on 127\.0\.0\.1 is in use; .*--port$"):
        serve(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", ""])
def test_an_address_that_others_reach_is_refused(tmp_path: Path, host: str) -> None:
    with (
        pytest.raises(ServiceError, match=r"no API keys yet; make one .*--insecure"),
        listen(Settings(index=tmp_path, host=host, port=0)),
    ):
        pass


def test_an_address_that_others_reach_can_be_insisted_on(tmp_path: Path) -> None:
    with listen(Settings(index=tmp_path, host="0.0.0.0", port=0, insecure=True)) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_an_address_that_is_not_ours_is_refused(tmp_path: Path, host: str) -> None:
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
