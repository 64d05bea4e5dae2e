"""`loci weights`, fetching from a server of this machine; the network is a tiny stand-in for VGG16."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat
from torch import nn
from typer.testing import Result

from model.modelfile import load_model
from model.weights import NAMED

Loci = Callable[..., Result]
K, LAYERS = 2, 33


def tiny_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 512, 2, stride=16))


def write_matlab(path: Path) -> Path:
    """The struct of the published weights, without whitening; its mean image makes it 3 MB."""
    rng = np.random.default_rng(0)

    def layer(*weights: Any) -> dict[str, Any]:
        cells = np.empty(len(weights), object)
        cells[:] = [np.asarray(array, np.float32) for array in weights]
        return {"weights": cells}

    struct = np.empty(LAYERS, object)
    struct[:] = [layer() for _ in range(LAYERS)]
    struct[0] = layer(rng.standard_normal((2, 2, 3, 512)), rng.standard_normal(512))
    struct[30] = layer(rng.standard_normal((512, K)), rng.standard_normal((512, K)))
    mean = np.broadcast_to(np.array([123.0, 116.0, 103.0]), (360, 360, 3))
    savemat(path, {"net": {"layers": struct, "meta": {"normalization": {"averageImage": mean}}}})
    return path


def write_checkpoint(path: Path) -> Path:
    """pytorch-NetVlad's, of assignment with a bias."""
    generator = torch.Generator().manual_seed(0)
    state = {f"encoder.{name}": tensor for name, tensor in tiny_network().state_dict().items()}
    state["pool.conv.weight"] = torch.randn((K, 512, 1, 1), generator=generator)
    state["pool.conv.bias"] = torch.randn((K,), generator=generator)
    state["pool.centroids"] = torch.randn((K, 512), generator=generator)
    torch.save({"state_dict": state}, path)
    return path


class Server(ThreadingHTTPServer):
    """What it serves, and after how many bytes it breaks off."""

    content = b""
    break_after: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/Pitts30K_struct.mat"
        self.asked: list[str | None] = []

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        if not server.content:
            self.send_error(404)
            return
        found = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        start = int(found[1]) if found else 0
        self.send_response(206 if found else 200)
        if found:
            whole = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.send_header("Content-Length", str(len(server.content) - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        self.wfile.write(server.content[start : server.break_after])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, no proxy, and the tiny network."""
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for module in ("model.modelfile", "model.published"):
        monkeypatch.setattr(f"{module}.vgg16_conv5", tiny_network)
    monkeypatch.setenv("LOCI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def matlab(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_matlab(tmp_path_factory.mktemp("matlab") / "a.mat").read_bytes()


@pytest.fixture
def published(server: Server, matlab: bytes, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The server, as the place where pitts30k lies."""
    server.content = matlab
    monkeypatch.setitem(NAMED, "pitts30k", dataclasses.replace(NAMED["pitts30k"], url=server.url))
    return server


def test_command_without_arguments_prints_help(loci: Loci) -> None:
    result = loci("weights")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == loci("weights", "--help").stdout
    commands = result.stdout.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in commands] == ["list", "pull", "import"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("list", "List the weights that can be downloaded by name."),
        ("pull", "An interrupted download is resumed."),
        ("import", "Convert published weights to a model file."),
    ],
)
def test_help(loci: Loci, command: str, words: str) -> None:
    result = loci("weights", command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: loci weights {command} ")
    assert words in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_list(loci: Loci, cache: Path) -> None:
    result = loci("weights", "list")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["name", "here", "what", "it", "is"]
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["imagenet", "yes"],
        ["pitts30k", "no"],
        ["tokyotm", "no"],
    ]
    assert lines[3].rstrip().endswith("NetVLAD trained on Pittsburgh's streets, 4,096-D")
    assert lines[5:] == ["", f"Downloaded weights are kept in {cache}"]
    assert not cache.exists()


@pytest.mark.usefixtures("published")
def test_list_json(loci: Loci, cache: Path, published: Server) -> None:
    loci("weights", "pull", "pitts30k")
    imagenet, pitts, tokyo = json.loads(loci("weights", "list", "--json").stdout)
    path = cache / "pitts30k.safetensors"
    assert pitts == {
        "name": "pitts30k",
        "here": True,
        "bytes": path.stat().st_size,
        "path": str(path),
        "url": published.url,
        "about": "NetVLAD trained on Pittsburgh's streets, 4,096-D",
    }
    assert (imagenet["here"], imagenet["bytes"], imagenet["path"], imagenet["url"]) == (True, *[None] * 3)
    assert (tokyo["here"], tokyo["bytes"], tokyo["path"]) == (
        False,
        None,
        str(cache / "tokyotm.safetensors"),
    )
    assert " yes " in loci("weights", "list").stdout.splitlines()[3]


def test_pull(loci: Loci, cache: Path, published: Server) -> None:
    result = loci("weights", "pull", "pitts30k")
    assert result.exit_code == 0
    path = cache / "pitts30k.safetensors"
    assert result.stdout.splitlines() == [
        f"pitts30k is in {path}; SHA-256 of the download: {published.sha256}",
        "To use it: loci index PHOTOS --into INDEX --weights pitts30k",
    ]
    assert result.stderr.splitlines() == ["downloading pitts30k (MB): 3"]
    assert [file.name for file in cache.iterdir()] == [path.name]
    config = load_model(path).config
    assert (config.weights, config.clusters, config.mean) == ("pitts30k", K, (123.0, 116.0, 103.0))
    again = loci("weights", "pull", "pitts30k", "--sha256", published.sha256, "--json")
    assert json.loads(again.stdout) == {
        "name": "pitts30k",
        "path": str(path),
        "sha256": published.sha256,
        "dim": 1024,
    }
    assert published.asked == [None]  # what is here is not fetched again


def test_failed_download_shows_url_and_target(loci: Loci, cache: Path, published: Server) -> None:
    published.content = b""
    result = loci("weights", "pull", "pitts30k")
    assert (result.exit_code, result.stdout) == (1, "")
    place = cache / "Pitts30K_struct.mat"
    assert result.stderr == (
        f"loci: cannot download {published.url}: the server answers 404 Not Found; to fetch it another "
        f"way, put the file at {place}\n"
    )


def test_file_in_place_needs_no_download(loci: Loci, cache: Path, published: Server, matlab: bytes) -> None:
    cache.mkdir()
    (cache / "Pitts30K_struct.mat").write_bytes(matlab)
    wrong = loci("weights", "pull", "pitts30k", "--sha256", "0" * 64)
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert "Pitts30K_struct.mat is of a file with SHA-256" in wrong.stderr
    assert (cache / "Pitts30K_struct.mat").exists()  # somebody's own: not thrown away
    assert loci("weights", "pull", "pitts30k").exit_code == 0
    assert published.asked == []


def test_interrupted_download_is_resumed(loci: Loci, cache: Path, published: Server) -> None:
    published.break_after = 1_500_000
    result = loci("weights", "pull", "pitts30k")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        f"loci: cannot download {published.url}: the connection broke off after 1,500,000 of "
        f"{len(published.content):,} bytes; the next try goes on; to fetch it another way, put the file at "
        f"{cache / 'Pitts30K_struct.mat'}"
    )
    published.break_after = None
    result = loci("weights", "pull", "pitts30k", "--sha256", published.sha256)
    assert result.exit_code == 0
    assert published.asked == [None, "bytes=1500000-"]
    assert [file.name for file in cache.iterdir()] == ["pitts30k.safetensors"]


def test_wrong_checksum_is_refused(loci: Loci, cache: Path, published: Server) -> None:
    wanted = "0" * 64
    result = loci("weights", "pull", "pitts30k", "--sha256", wanted)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.splitlines()[-1] == (
        f"loci: cannot download {published.url}: what came has SHA-256 {published.sha256}, not {wanted}, "
        f"and was thrown away; to fetch it another way, put the file at {cache / 'Pitts30K_struct.mat'}"
    )
    assert list(cache.iterdir()) == []
    loci("weights", "pull", "pitts30k")
    result = loci("weights", "pull", "pitts30k", "--sha256", wanted)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == (
        f"loci: {cache / 'pitts30k.safetensors'} is of a file with SHA-256 {published.sha256}, not {wanted}: "
        "delete it to fetch anew\n"
    )


def test_downloaded_web_page_is_rejected(loci: Loci, cache: Path, published: Server) -> None:
    """As a hotel's network gives it: the next try must not take it for the file."""
    weights, published.content = published.content, b"<html>Please sign in</html>"
    result = loci("weights", "pull", "pitts30k")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"loci: what came from {published.url} was thrown away: {cache}")
    published.content = weights
    assert loci("weights", "pull", "pitts30k").exit_code == 0


def test_ctrl_c_is_reported(loci: Loci, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("model.weights.download", interrupted)
    result = loci("weights", "pull", "tokyotm")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "loci: interrupted; run the same command again to resume\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        (["pull"], 2, "Missing argument 'NAME'; see loci weights pull --help"),
        (["pul"], 2, "No such command 'pul'. Did you mean 'pull'?; see loci weights --help"),
        (["pull", "pits30k"], 1, "no weights and no file 'pits30k': did you mean pitts30k?"),
        (["pull", "xyz"], 1, "no weights and no file 'xyz': names are imagenet, pitts30k, tokyotm"),
        (
            ["pull", "imagenet"],
            1,
            "the weights imagenet come with the package: there is nothing to fetch",
        ),
        (["import", "a.mat"], 2, "Missing option '--into'; see loci weights import --help"),
        (["import", "/no/a.mat", "--into", "m"], 1, "no file /no/a.mat"),
    ],
)
def test_invalid_values_are_refused(loci: Loci, arguments: list[str], exit_code: int, sentence: str) -> None:
    result = loci("weights", *arguments)
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert result.stderr == f"loci: {sentence}\n"


def test_import(loci: Loci, tmp_path: Path) -> None:
    source, into = write_checkpoint(tmp_path / "checkpoint.pth.tar"), tmp_path / "models/street.safetensors"
    result = loci("weights", "import", source, "--into", into)
    assert (result.exit_code, result.stderr) == (0, "")
    model = load_model(into)
    assert result.stdout.splitlines() == [
        f"{into}: model {model.fingerprint}, 2 clusters, not reduced",
        f"To use it: loci index PHOTOS --into INDEX --weights {into}",
    ]
    again = loci("weights", "import", source, "--into", into, "--json")
    assert json.loads(again.stdout) == {
        "into": str(into),
        "model": model.fingerprint,
        "clusters": 2,
        "dim": 1024,
        "netvlad_version": 2,
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }


def test_import_never_overwrites_other_files(loci: Loci, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "checkpoint.pth.tar")
    (tmp_path / "notes.txt").write_text("mine")
    for into, sentence in (
        (tmp_path / "notes.txt", f"{tmp_path / 'notes.txt'} is there already and is no model: name another"),
        (tmp_path, f"{tmp_path} is a folder: name the model's file"),
    ):
        result = loci("weights", "import", source, "--into", into)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == f"loci: {sentence}\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"
