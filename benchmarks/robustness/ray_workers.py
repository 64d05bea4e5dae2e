"""Embedding on a Ray cluster of two nodes, one killed half-way, against a local run.

    python -m benchmarks.robustness.ray_workers ../shared/data/corridor --photos 200

Both nodes are on this machine, each with half of its cores. The second node's raylet and worker get SIGKILL
after half of the photos. Photos, descriptors and the ten nearest of every photo are compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from indexer.build import ray_embedder as workers
from indexer.build.report import BuildReport
from indexer.build.run import build_index
from indexer.index import Index
from indexer.options import BuildOptions
from indexer.photos.scan import scan
from indexer.progress import Silent

RAY = Path(sys.executable).parent / "ray"
GCS, CLIENT = 6_398, 9_997  # below the ports that Ray gives its workers
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}


def start(*arguments: str, cores: int) -> subprocess.Popen[bytes]:
    """A node, in its own process group."""
    command = [str(RAY), "start", "--block", f"--num-cpus={cores}", "--disable-usage-stats", *arguments]
    return subprocess.Popen(
        command,
        env=os.environ | QUIET,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def kill(node: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(node.pid, signal.SIGKILL)
    node.wait()


class Killing(Silent):
    """Kills a node after a number of photos."""

    def __init__(self, node: subprocess.Popen[bytes] | None, after: int) -> None:
        self._node, self._left = node, after
        self._counts = False

    def stage(self, name: str, total: int | None) -> None:  # noqa: ARG002
        self._counts = name.startswith("embedding")

    def advance(self, steps: int = 1) -> None:
        self._left -= steps * self._counts
        if self._left <= 0 and self._node is not None:
            kill(self._node)
            print("killed one of two nodes", file=sys.stderr)
            self._node = None


def indexed(
    photos: Path, into: Path, options: argparse.Namespace, progress: Silent, **more: Any
) -> BuildReport:
    return build_index([photos], into, BuildOptions(image_size=options.image_size, **more), progress)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=320)
    options = parser.parse_args()
    files = scan([options.folder]).files
    cores = max(1, (os.cpu_count() or 1) // 2)
    given: Counter[str] = Counter()
    give = workers.RayEmbedder._give

    def counted(self: Any, actor: Any, task: Any, reader: Any, stage: str) -> None:
        given.update(photo for photo, _ in task.items)
        give(self, actor, task, reader, stage)

    workers.RayEmbedder._give = counted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as temporary:
        photos = Path(temporary) / "photos"
        photos.mkdir()
        for file in files[:: max(1, len(files) // options.photos)][: options.photos]:
            shutil.copy(file.path, photos)
        local = indexed(photos, Path(temporary) / "local", options, Silent())
        head = start(
            "--head",
            f"--port={GCS}",
            f"--ray-client-server-port={CLIENT}",
            "--include-dashboard=false",
            cores=cores,
        )
        time.sleep(8)
        other = start(f"--address=127.0.0.1:{GCS}", cores=cores)
        time.sleep(8)
        try:
            address = f"ray://127.0.0.1:{CLIENT}"
            progress = Killing(other, local.photos // 2)
            far = indexed(photos, Path(temporary) / "ray", options, progress, workers=address)
        finally:
            kill(other)
            kill(head)
        compare(Path(temporary), local, far, given)


def compare(folder: Path, local: BuildReport, far: BuildReport, given: Counter[str]) -> None:
    one, other = (Index.open(folder / name) for name in ("local", "ray"))
    rows = [dict(zip(*index.descriptors(), strict=True)) for index in (one, other)]
    same = rows[0].keys() == rows[1].keys()
    ids = sorted(rows[0])
    a, b = (np.stack([each[photo] for photo in ids]) for each in rows)
    nearest = [np.argsort(-(m @ m.T), axis=1, kind="stable")[:, :10] for m in (a, b)]
    print(f"{local.photos} photos: here {local.seconds:.0f} s, on two nodes, one killed, {far.seconds:.0f} s")
    print(f"same photos: {same}; same model: {local.model == far.model}")
    equal = (a == b).all(1).sum()
    print(f"descriptors: {equal} of {len(ids)} equal to the bit, least cosine {(a * b).sum(1).min():.6f}")
    print(f"the same ten nearest, in their order: {(nearest[0] == nearest[1]).all(1).sum()} of {len(ids)}")
    print(f"photos by how often they were given to a worker: {dict(Counter(given.values()))}")


if __name__ == "__main__":
    main()
