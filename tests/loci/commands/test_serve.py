"""`loci serve`: a real process on a real port."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import Result

pytestmark = pytest.mark.slow


@pytest.fixture
def index(real_index: Path) -> Path:
    return real_index


Loci = Callable[..., Result]

WITHOUT_SETTINGS = {name: value for name, value in os.environ.items() if not name.startswith("LOCI_")}


@contextlib.contextmanager
def serving(*arguments: object, **environment: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run the service; gives the process and the address that it says it serves on."""
    command = [sys.executable, "-m", "loci", *map(str, arguments)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=WITHOUT_SETTINGS | {"OMP_NUM_THREADS": "1"} | environment,
    )
    with process:
        try:
            assert process.stdout is not None
            first = next((line for line in process.stdout if line.startswith("Serving on ")), "")
            assert first, "it never served"
            yield process, first.split()[2]
        finally:
            process.kill()


def wait_until_ready(client: httpx.Client) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if client.get("/readyz").status_code == 200:
                return
        time.sleep(0.1)
    raise TimeoutError("the service did not get ready")


def test_http_gives_the_same_answer_as_the_command_line(loci: Loci, index: Path, question: Path) -> None:
    with (
        serving("serve", "--index", index, "--port", 0) as (process, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        assert url.startswith("http://127.0.0.1:")
        wait_until_ready(client)
        response = client.post("/v1/query?k=3", files={"image": question.read_bytes()})
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    served = response.json()
    (asked,) = json.loads(loci("query", question, "--index", index, "-k", 3, "--json").stdout)
    assert asked.pop("query") == str(question)
    assert list(served) == list(asked)
    assert list(served.pop("timings_ms")) == list(asked.pop("timings_ms"))
    assert served == asked


def test_settings_come_from_environment_without_options(index: Path) -> None:
    with (
        serving("serve", LOCI_INDEX=str(index), LOCI_PORT="0", LOCI_DOCS="false") as (process, url),
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        wait_until_ready(client)
        assert client.get("/docs").status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_port_in_use_is_one_sentence(loci: Loci, index: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = loci("serve", "--index", index, "--port", port)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        f"loci: port {port} on 127.0.0.1 is in use; stop what uses it or choose another with --port"
    )
    assert result.stdout == ""


def test_public_address_without_keys_needs_insecure(loci: Loci, index: Path) -> None:
    result = loci("serve", "--index", index, "--host", "0.0.0.0", "--port", 0)
    assert result.exit_code == 1
    assert "--insecure" in result.stderr.splitlines()[-1]


def test_invalid_setting_is_named(loci: Loci, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCI_MAX_UPLOAD_MB", "-1")
    result = loci("serve", "--index", index)
    assert result.exit_code == 1
    assert "LOCI_MAX_UPLOAD_MB" in result.stderr
