"""Acknowledged photos after a service is killed again and again while photos are POSTed to it.

    python -m benchmarks.robustness.durability ../shared/data/campus-phone/small --image-size 224

A service on a free port has an index of some photos. `--callers` clients post other photos. After each
`--posts`/`--kills` acknowledgements, SIGKILL comes at a random moment, and the service starts again. After
each start, every acknowledged photo is fetched and compared. At the end each is queried and must find itself.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import httpx
from PIL import Image

from indexer.build.run import build_index
from indexer.index import Index
from indexer.maintenance.check import check_index
from indexer.options import BuildOptions
from indexer.photos.scan import scan
from service.security.keys import KeyFile, Role
from service.settings import KEYS_FILE


@dataclass
class Posted:
    """What the clients know."""

    acknowledged: dict[str, bytes] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    cut_off: int = 0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def variant(path: Path, number: int) -> bytes:
    """A crop of a photo with new bytes, different for each number."""
    with Image.open(path) as image:
        left, top = 3 * (number % 40), 3 * (number // 40 % 40)
        image.draft("RGB", (640, 640))
        size = (image.width * 3 // 4, image.height * 3 // 4)
        cut = image.convert("RGB").crop((left, top, left + size[0], top + size[1]))
    out = io.BytesIO()
    cut.save(out, "JPEG", quality=90, comment=f"number {number}".encode())
    return out.getvalue()


def start(index: Path, headers: dict[str, str]) -> tuple[subprocess.Popen[str], httpx.Client, float]:
    """Start the service on a free port; return it when ready, and the seconds that took."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "loci", "serve", "--index", str(index), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    line = process.stdout.readline() if process.stdout else ""
    url = next(word for word in line.split() if word.startswith("http://127.0.0.1:"))
    client = httpx.Client(base_url=url, timeout=120, headers=headers)
    while client.get("/readyz").status_code != 200:
        time.sleep(0.2)
    return process, client, time.perf_counter() - begun


def post(client: httpx.Client, photo: bytes, posted: Posted) -> None:
    begun = time.perf_counter()
    try:
        response = client.post("/v1/photos", files={"image": photo})
    except httpx.TransportError:
        with posted.lock:
            posted.cut_off += 1
        return
    with posted.lock:
        if response.status_code in (200, 201):
            posted.acknowledged[response.json()["id"]] = photo
            posted.seconds.append(time.perf_counter() - begun)
        else:
            posted.refused += 1


def until_killed(
    process: subprocess.Popen[str],
    client: httpx.Client,
    photos: Iterator[bytes],
    goal: int,
    posted: Posted,
    callers: int,
) -> None:
    """Post until the goal is acknowledged, then kill the service amid requests."""

    def call() -> None:
        while process.poll() is None:
            with posted.lock:
                photo = next(photos)
            post(client, photo, posted)

    with ThreadPoolExecutor(callers) as pool:
        calls = [pool.submit(call) for _ in range(callers)]
        while len(posted.acknowledged) < goal and not any(done.done() for done in calls):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        for done in calls:
            done.result()
    process.wait()


def missing(client: httpx.Client, posted: Posted) -> int:
    """Number of acknowledged photos that are not there, byte for byte."""
    return sum(
        client.get(f"/v1/photos/{id}/image").content != photo for id, photo in posted.acknowledged.items()
    )


def finds_itself(client: httpx.Client, id: str, photo: bytes) -> bool:
    places = client.post("/v1/query", params={"k": 1}, files={"image": photo}).json()["places"]
    return bool(places[0]["photos"][0]["id"] == id)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--posts", type=int, default=200)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--indexed", type=int, default=40)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        run(options, Path(work))


def run(options: argparse.Namespace, work: Path) -> None:
    files = [file.path for file in scan([options.folder]).files]
    (work / "photos").mkdir()
    for file in files[: options.indexed]:
        shutil.copy(file, work / "photos")
    index = work / "index"
    build_index([work / "photos"], index, BuildOptions(image_size=options.image_size))
    before = Index.open(index).counts().photos

    dice = random.Random(options.seed)
    key = KeyFile(index / KEYS_FILE).create("durability", Role.WRITE)
    headers = {"Authorization": f"Bearer {key}"}
    posted, lost, starts = Posted(), 0, []
    photos = (variant(files[n % len(files)], n) for n in count())
    for kill in range(options.kills):
        process, client, seconds = start(index, headers)
        starts.append(seconds)
        lost += missing(client, posted)
        share = options.posts // options.kills
        goal = options.posts if kill == options.kills - 1 else share * kill + dice.randint(share // 2, share)
        until_killed(process, client, photos, goal, posted, options.callers)
        client.close()

    process, client, seconds = start(index, headers)
    starts.append(seconds)
    lost += missing(client, posted)
    found = sum(finds_itself(client, *item) for item in posted.acknowledged.items())
    process.send_signal(signal.SIGTERM)
    process.wait()
    client.close()
    there = Index.open(index).counts().photos - before
    acknowledged = len(posted.acknowledged)
    print(f"{options.kills} kills amid {acknowledged} acknowledged POSTs, {options.callers} at a time")
    print(f"acknowledged and missing after a start: {lost}")
    print(f"acknowledged and first in the answer to themselves: {found} of {acknowledged}")
    extra = there - acknowledged
    print(f"cut off by a kill: {posted.cut_off}, of which stored all the same: {extra}")
    print(f"refused (503): {posted.refused}")
    print(f"problems that loci check finds: {len(check_index(index))}")
    print(f"files without a photo: {len(list((index / 'photos').iterdir())) - there}, swept by the next run")
    quantiles = statistics.quantiles(posted.seconds, n=20)
    print(
        f"POST, {options.callers} at a time: median {quantiles[9]:.2f} s, 95 % within {quantiles[18]:.2f} s"
    )
    print(f"ready after a start: {statistics.median(starts):.1f} s (median), of which the index is a part")
    print(f"on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
