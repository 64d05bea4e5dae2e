"""What docs/http.md shows: every curl command is run against a real service, and answers as shown."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from indexer.build.run import build_index
from indexer.index import Index
from indexer.options import BuildOptions
from service.app import create_app
from service.errors import Problem
from service.routes.openapi import EXAMPLES
from service.security.keys import KeyFile, Role
from service.settings import Settings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
DEMO = ROOT / "loci" / "demo"
SHOWN_URL = "http://127.0.0.1:8000"
SHOWN_PHOTO, SHOWN_PLACE, SHOWN_ADDED = "51c0cda4f25811e1", "p0f039d73f70c", "9d0c2f2b7a1e4b60"

Wait = Callable[[Callable[[], bool]], None]


@dataclasses.dataclass(frozen=True)
class Example:
    """A command, the status that it should give, and the JSON shown after it, if any."""

    command: str
    status: int
    shown: Any


def examples() -> list[Example]:
    """The commands of the shell blocks, in order; what follows a block belongs to its last command."""
    found = []
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    for (language, block), (after, answer) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language != "sh":
            continue
        lines = [line for line in block.splitlines() if line.startswith("curl ")]
        for line in lines:
            command, _, status = line.partition("   # ")
            shown = json.loads(answer) if after == "json" and line is lines[-1] else None
            found.append(Example(command, int(status or 200), shown))
    return found


@dataclasses.dataclass(frozen=True)
class Service:
    """A service over a small index of the demo's photos, and what stands there for what the text names."""

    url: str
    folder: Path
    names: dict[str, str]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Index:
    photos = tmp_path_factory.mktemp("collection") / "photos"
    photos.mkdir()
    for photo in sorted((DEMO / "photos").iterdir())[:8]:
        shutil.copy(photo, photos)
    folder = tmp_path_factory.mktemp("served") / "index"
    build_index([photos], folder, BuildOptions(dim=4, clusters=4, image_size=96, device="cpu"))
    return Index.open(folder, device="cpu")


@pytest.fixture(scope="module")
def service(opened: Index, tmp_path_factory: pytest.TempPathFactory, wait: Wait) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("here")
    photo, another, *_ = sorted((DEMO / "queries").iterdir())
    shutil.copy(photo, folder / "photo.jpg")
    shutil.copy(another, folder / "another.jpg")
    settings = Settings(index=opened.path)
    key = KeyFile(settings.keys_file).create("writer", Role.WRITE)
    app = create_app(settings, opened)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait(lambda: server.started)
    names = {SHOWN_PHOTO: opened.photos()[0].id, SHOWN_PLACE: opened.places()[0].id, "$KEY": key}
    yield Service(f"http://127.0.0.1:{listener.getsockname()[1]}", folder, names)
    server.should_exit = True
    thread.join()
    listener.close()


def run(service: Service, example: Example) -> tuple[int, str]:
    """Run a command as shown, in the service's folder; gives the status and what came."""
    command = example.command.replace(SHOWN_URL, service.url)
    for shown, real in service.names.items():
        command = command.replace(shown, real)
    arguments = ["-sS", "-w", "\n%{http_code}", "--noproxy", "*"]
    done = subprocess.run(
        [*shlex.split(command), *arguments], cwd=service.folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), body


def assert_alike(shown: Any, real: Any, where: str = "answer") -> None:
    """The same names in the same order and the same kinds of values; null may stand for any."""
    if shown is None or real is None:
        return
    if isinstance(shown, dict):
        assert list(shown) == list(real), where
        for name, value in shown.items():
            assert_alike(value, real[name], f"{where}.{name}")
    elif isinstance(shown, list):
        assert real, where
        assert_alike(shown[0], real[0], f"{where}[0]")
    else:
        numbers = (int, float)
        assert isinstance(real, numbers if isinstance(shown, numbers) else type(shown)), where


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_every_command_answers_as_shown(service: Service) -> None:
    assert len(examples()) >= 20
    for example in examples():
        status, body = run(service, example)
        assert status == example.status, f"{example.command}: {body}"
        if example.shown is not None:
            assert_alike(example.shown, json.loads(body), example.command)
        if "/v1/photos " in f"{example.command} " and status == 201:
            service.names[SHOWN_ADDED] = json.loads(body)["id"]


def test_every_operation_is_shown(opened: Index) -> None:
    shown = set()
    for example in examples():
        words = shlex.split(example.command)
        posts = any(word in ("-F", "--data-binary") for word in words)
        method = "delete" if "DELETE" in words else "post" if posts else "get"
        path = next(word for word in words if word.startswith(SHOWN_URL)).removeprefix(SHOWN_URL)
        shown.add(
            (method, re.sub(rf"{SHOWN_PHOTO}|{SHOWN_PLACE}|{SHOWN_ADDED}", "{id}", path.partition("?")[0]))
        )
    described = create_app(Settings(index=opened.path)).openapi()["paths"]
    assert {(method, path) for path, methods in described.items() for method in methods} <= shown


def test_filters_are_those_that_the_page_sends() -> None:
    table = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`(?:lat|taken|heading|place).*?) \|", TEXT, re.M)))
    )
    sent = re.search(r"NAMES = \[(.*?)\]", (ROOT / "service" / "page" / "filters.js").read_text(), re.DOTALL)
    assert sent
    assert set(re.findall(r'"(\w+)"', sent[1])) - {"k"} == table


def test_the_python_example_runs_as_shown(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(service.folder)
    exec(compile(example.replace(SHOWN_URL, service.url), "docs/http.md", "exec"), {})
    position, refusal = capsys.readouterr().out.splitlines()
    assert position.startswith("Position(lat=30.17")
    assert refusal == "404 no photo 'no-such-photo' in this index"


def test_every_kind_of_problem_is_in_the_table() -> None:
    rows = re.findall(r"^\| (\d{3}(?:, \d{3})*) \|.*\| (.*) \|$", TEXT, re.M)
    shown = {kind: statuses for statuses, kinds in rows for kind in re.findall(r"`…:([\w-]+)`", kinds)}
    for status, (kind, *_) in EXAMPLES.items():
        assert str(status) in shown[kind], kind
    for problem in Problem.__subclasses__():
        assert str(problem.status) in shown[problem.kind], problem.kind
