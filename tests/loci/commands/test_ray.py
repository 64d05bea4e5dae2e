"""An index embedded on a Ray cluster of two nodes, one of which is killed: the same as made here."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indexer.build.report import BuildReport
from indexer.build.run import build_index
from indexer.index import Index
from indexer.options import BuildOptions
from indexer.progress import Silent

pytestmark = pytest.mark.slow

pytest.importorskip("ray", reason="Ray is not installed")
DEMO = Path(__file__).parents[3] / "loci/demo/photos"
GCS, CLIENT = 6_397, 9_996  # below the ports that Ray gives its workers
SMALL: dict[str, Any] = {
    "image_size": 96,
    "clusters": 4,
    "precision": "fp32",
    "device": "cpu",
    "layers": "conv5_3",
    "local_features": 20,
}


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    """A node of one core, in a process group of its own."""
    ray = str(Path(sys.executable).parent / "ray")
    return subprocess.Popen(
        [ray, "start", "--block", "--num-cpus=1", "--disable-usage-stats", *arguments],
        env=os.environ | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def listening(port: int) -> None:
    """Wait until something listens on a port."""
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    pytest.fail(f"nothing listens on port {port}")


def kill(node: "subprocess.Popen[bytes]") -> None:
    with suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()


@pytest.fixture
def nodes() -> "Iterator[list[subprocess.Popen[bytes]]]":
    """The head, and another."""
    head = start("--head", f"--port={GCS}", f"--ray-client-server-port={CLIENT}", "--include-dashboard=false")
    listening(GCS)
    found = [head, start(f"--address=127.0.0.1:{GCS}")]
    listening(CLIENT)
    time.sleep(5)  # for the other to join; should it take longer, it gets its worker later
    yield found
    for node in reversed(found):
        kill(node)


class Killing(Silent):
    """Kills a node once so many photos are embedded."""

    def __init__(self, node: "subprocess.Popen[bytes]", after: int) -> None:
        self.node, self.left, self.embeds = node, after, False

    def stage(self, name: str, total: int | None) -> None:  # noqa: ARG002
        self.embeds = name.startswith("embedding")

    def advance(self, n: int = 1) -> None:
        self.left -= n * self.embeds
        if self.left <= 0 and self.node.returncode is None:
            kill(self.node)


def test_cluster_makes_the_same_index_if_a_node_is_killed(
    nodes: "list[subprocess.Popen[bytes]]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.build.ray_embedder.A_TASK", 4)
    photos = tmp_path / "photos"
    shutil.copytree(DEMO, photos)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff no photo")

    def indexed(name: str, progress: Silent, **more: Any) -> tuple[BuildReport, dict[str, Any]]:
        report = build_index([photos], tmp_path / name, BuildOptions(**SMALL, **more), progress)
        ids, rows = Index.open(tmp_path / name, device="cpu").descriptors()
        return report, dict(zip(ids, rows, strict=True))

    here, expected = indexed("here", Silent())
    killing = Killing(nodes[1], here.photos // 2)
    there, found = indexed("there", killing, workers=f"ray://127.0.0.1:{CLIENT}")
    assert nodes[1].returncode == -signal.SIGKILL
    assert nodes[0].poll() is None
    assert (there.photos, there.embedded, there.failed) == (here.photos, here.embedded, here.failed)
    assert [failure.reason for failure in there.failed] == ["not an image that can be read"]
    assert found.keys() == expected.keys()
    for photo, row in expected.items():
        assert float(row @ found[photo]) > 0.9999
    one, other = (np.stack([rows[photo] for photo in expected]) for rows in (expected, found))
    assert ((one @ one.T).argsort(1)[:, -3:] == (other @ other.T).argsort(1)[:, -3:]).mean() > 0.99
