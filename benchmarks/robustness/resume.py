"""An indexing run killed at random moments, against an undisturbed one.

    set=../shared/data/thumbs/SPED_Test
    python -m benchmarks.robustness.resume $set/reference --queries $set/query

Kills the run with SIGKILL ten times, lets it finish, and compares photo ids, descriptors, answers, and how
often each photo passed the network.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from indexer.build.run import build_index
from indexer.index import Index
from indexer.options import BuildOptions
from indexer.photos.scan import scan
from model.embedder import Embedder


def child(folder: Path, into: Path, log: Path, image_size: int) -> None:
    """Index, and log each photo's id before the network gets it."""
    embed = Embedder._send_batch

    def logged(self: Embedder, batch: list, stage: str) -> list:  # type: ignore[type-arg]
        with log.open("a") as file:
            file.write(json.dumps([item[0] for item, _ in batch]) + "\n")
        return embed(self, batch, stage)

    Embedder._send_batch = logged  # type: ignore[method-assign, assignment]
    build_index([folder], into, BuildOptions(image_size=image_size))


def run_killed(command: list[str], kills: int, seconds: float, rng: random.Random) -> int:
    """Run `command` until it finishes, and kill the first `kills` runs; return how many were killed."""
    killed = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        if killed < kills:
            time.sleep(rng.uniform(3.0, 3.0 + seconds / 8))  # importing PyTorch takes the first seconds
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
        if process.wait() == 0:
            return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--queries", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=480)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        into, log = options.child
        child(options.folder, into, log, options.image_size)
        return
    with tempfile.TemporaryDirectory() as work:
        compare(options, Path(work))


def unit(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows scaled to length 1: fp16 storage changes lengths by some ten-thousandths."""
    lengths: NDArray[np.float32] = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors / lengths


def compare(options: argparse.Namespace, work: Path) -> None:
    def command(name: str) -> list[str]:
        base = [sys.executable, __file__, str(options.folder), "--queries", str(options.queries)]
        base += ["--image-size", str(options.image_size)]
        return [*base, "--child", str(work / name), str(work / f"{name}.log")]

    begun = time.perf_counter()
    subprocess.run(command("whole"), check=True)
    seconds = time.perf_counter() - begun
    killed = run_killed(command("killed"), options.kills, seconds, random.Random(options.seed))
    whole, resumed = Index.open(work / "whole"), Index.open(work / "killed")
    ids, descriptors = whole.descriptors()
    ids_resumed, descriptors_resumed = resumed.descriptors()
    rows = {photo: row for row, photo in enumerate(ids_resumed)}
    cosines = np.sum(unit(descriptors) * unit(descriptors_resumed[[rows[photo] for photo in ids]]), axis=1)
    files = scan([options.queries]).files
    same = sum(
        [hit.id for hit in whole.nearest(d, 10)] == [hit.id for hit in resumed.nearest(e, 10)]
        for d, e in ((whole.embed([file.path])[0], resumed.embed([file.path])[0]) for file in files)
    )
    seen = Counter(
        photo for line in (work / "killed.log").read_text().splitlines() for photo in json.loads(line)
    )
    again = Counter(seen.values())
    print(f"{len(ids)} photos, killed {killed} times")
    print(f"same photo ids: {set(ids) == set(ids_resumed)}")
    print(f"cosine of descriptors: least {cosines.min():.6f}, mean {cosines.mean():.6f}")
    print(f"queries with the same ten nearest photos in the same order: {same} of {len(files)}")
    print(f"photos by how often the network saw them: {dict(sorted(again.items()))}")
    print(f"photos seen again: {sum(n - 1 for n in seen.values())}, at most {killed} batches of 4 in flight")


if __name__ == "__main__":
    main()
