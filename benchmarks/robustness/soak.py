"""64 clients, photos that come and go, new snapshots: no wrong answer, no lost photo, constant memory.

    python -m benchmarks.robustness.soak ../shared/data/campus-phone/small

A process serves an index of part of the photos. The other photos are added over HTTP, deleted and added again
all the time. `loci index` runs beside the service and publishes snapshots. 64 clients send queries until
there are 1,000 answers. A tenth of the requests is cut off at a random moment, and a tenth is invalid.

Each answer is compared with the scores of the same model in this process. A photo that is just being added or
deleted may or may not be in an answer. So: every photo in an answer has its offline score and may have been
in the collection; the best one is no worse than every photo that surely was. At the end, answers must equal
`Index.query` on the folder, and all acknowledged photos must be there.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import memory_mib
from indexer.build.run import build_index
from indexer.index import Index
from indexer.options import BuildOptions
from indexer.storage.files import sha256_of
from service.security.keys import KeyFile, Role

PRECISION, TOLERANCE = "fp32", 0.003
"""Tolerance of a score. In bf16 the second digit depends on the rest of the batch."""
Address = tuple[str, int]


@dataclass
class Presence:
    """When a photo was surely in the collection, and when it may have been, by time.monotonic()."""

    changes: list[tuple[float, float, bool]] = field(default_factory=list)
    """Requested at, acknowledged at (infinity until then), added (else deleted)."""

    def may_be_there(self, begun: float, ended: float) -> bool:
        """Whether it may have been there at a moment between `begun` and `ended`."""
        state, possible = False, False
        for asked, done, added in self.changes:
            if asked > ended:
                break
            if done < begun:
                state = added
            elif added:
                possible = True
        return state or possible

    def is_there(self, begun: float, ended: float) -> bool:
        """Whether it was there all the time from `begun` to `ended`."""
        state = False
        for asked, done, added in self.changes:
            if asked > ended:
                break
            state = added and done < begun
        return state


@dataclass
class Soak:
    """Offline scores, and results so far."""

    ids: list[str]
    """Presence of the photos by number."""
    bodies: list[bytes]
    scores: NDArray[np.float32]
    """Score of photo m for query n, N N."""
    presence: list[Presence]
    wanted: int
    lock: threading.Lock = field(default_factory=threading.Lock)
    answers: int = 0
    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    snapshots: set[str] = field(default_factory=set)
    left: int = 0

    @property
    def done(self) -> bool:
        return self.answers >= self.wanted

    def check(self, query: int, answer: dict[str, Any], begun: float, ended: float) -> None:
        """Compare an answer with the offline scores."""
        number = {id: n for n, id in enumerate(self.ids)}
        complaints = []
        best = -1.0
        for photo in (photo for place in answer["places"] for photo in place["photos"]):
            n = number.get(photo["id"])
            if n is None or not self.presence[n].may_be_there(begun, ended):
                complaints.append(f"photo {photo['id']} was not there")
                continue
            if abs(photo["score"] - float(self.scores[query, n])) > TOLERANCE:
                complaints.append(f"score {photo['score']}, offline {self.scores[query, n]:.4f}")
            best = max(best, photo["score"])
        sure = [float(self.scores[query, n]) for n, p in enumerate(self.presence) if p.is_there(begun, ended)]
        if best < max(sure) - TOLERANCE:
            complaints.append(f"the best is {best}, offline {max(sure):.4f}")
        with self.lock:
            self.answers += 1
            self.snapshots.add(answer["snapshot"])
            self.wrong += [f"query {query}: {complaint}" for complaint in complaints]


def ask(address: Address, method: str, path: str, body: bytes = b"", key: str = "") -> tuple[int, bytes]:
    """Send one request on its own connection; a body is a photo."""
    connection = http.client.HTTPConnection(*address, timeout=300)
    with contextlib.closing(connection):
        headers = {"Content-Type": "image/jpeg"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request(method, path, body or None, headers)
        response = connection.getresponse()
        return response.status, response.read()


def client(address: Address, soak: Soak, generator: random.Random) -> None:
    """Send queries, cut-off queries and invalid ones until there are enough answers."""
    while not soak.done:
        query = generator.randrange(len(soak.bodies))
        body = soak.bodies[query]
        draw = generator.random()
        if draw < 0.1:
            leave(address, body, generator)
            with soak.lock:
                soak.left += 1
            continue
        if draw < 0.2:
            begin = generator.randrange(len(body))
            body = generator.choice((b"", b"rubbish", body[:begin], body[begin:], bytes(1000)))
        begun = time.monotonic()
        status, sent = ask(address, "POST", "/v1/query?verify=false", body)
        with soak.lock:
            soak.statuses[status] += 1
        if status == 200 and draw >= 0.2:
            soak.check(query, json.loads(sent), begun, time.monotonic())
        elif status == 503:
            time.sleep(generator.random())


def leave(address: Address, body: bytes, generator: random.Random) -> None:
    """Send part of a query, or all of it, and disconnect."""
    head = f"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    whole = head + body
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=30) as connection:
        connection.sendall(whole[: generator.randrange(len(whole) + 1)])
        time.sleep(generator.random() / 5)


def change(address: Address, soak: Soak, key: str, numbers: list[int], generator: random.Random) -> None:
    """Add and delete these photos until there are enough answers; leave them added."""
    there = dict.fromkeys(numbers, False)
    while not soak.done or not all(there.values()):
        number = generator.choice([n for n in numbers if not there[n]] if soak.done else numbers)
        presence, add = soak.presence[number], not there[number]
        asked = time.monotonic()
        presence.changes.append((asked, float("inf"), add))
        if add:
            status, sent = ask(address, "POST", "/v1/photos", soak.bodies[number], key)
            good = status == 201 and json.loads(sent)["id"] == soak.ids[number]
        else:
            status, sent = ask(address, "DELETE", f"/v1/photos/{soak.ids[number]}", key=key)
            good = status == 204
        with soak.lock:
            soak.statuses[status] += 1
        if good:
            presence.changes[-1] = (asked, time.monotonic(), add)
            there[number] = add
        elif status != 503:
            with soak.lock:
                soak.wrong.append(f"{'POST' if add else 'DELETE'} of photo {number}: {status} {sent[:200]!r}")
        time.sleep(generator.random() / 2)


def publish(soak: Soak, folder: Path, index: Path, more: list[Path], numbers: list[int]) -> None:
    """Let `loci index` index one more file at a time, and so publish snapshots."""
    for path, number in zip(more, numbers, strict=True):
        if soak.done:
            return
        soak.presence[number].changes.append((time.monotonic(), float("inf"), True))
        shutil.copy(path, folder)
        command = [sys.executable, "-m", "loci", "index", str(folder), "--into", str(index)]
        command += ["--precision", PRECISION]
        subprocess.run(command, check=True, capture_output=True)
        time.sleep(2)  # the service looks for it twice a second


@contextlib.contextmanager
def serving(index: Path) -> Iterator[tuple[subprocess.Popen[str], Address]]:
    """Start a service process on a free port; return it when ready."""
    command = [sys.executable, "-m", "loci", "serve", "--index", str(index), "--port", "0"]
    command += ["--precision", PRECISION]
    environment = os.environ | {"LOCI_RATE_LIMIT": "0", "LOCI_REFRESH_SECONDS": "0.5"}
    with (index.parent / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if line.startswith("Serving on ")).split()[2]
            host, _, port = url.removeprefix("http://").rpartition(":")
            address = (host, int(port))
            while ask(address, "GET", "/readyz")[0] != 200:
                time.sleep(0.2)
            yield process, address
        finally:
            process.terminate()
            process.wait()


def watch(process: subprocess.Popen[str], soak: Soak, megabytes: list[tuple[int, float]]) -> None:
    """Record the service's memory with the number of answers."""
    while not soak.done and process.poll() is None:
        megabytes.append((soak.answers, memory_mib("VmRSS", process.pid)))
        time.sleep(0.5)


def run(
    process: subprocess.Popen[str], soak: Soak, threads: list[threading.Thread]
) -> list[tuple[int, float]]:
    """Run all threads to their end; return the memory."""
    megabytes: list[tuple[int, float]] = []
    threads.append(threading.Thread(target=watch, args=(process, soak, megabytes)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return megabytes


def lost(address: Address, soak: Soak) -> list[int]:
    """Photos that should be there and are not, by id and by querying themselves."""
    missing = []
    for number, presence in enumerate(soak.presence):
        now = time.monotonic()
        if not presence.is_there(now, now):
            continue
        by_id, _ = ask(address, "GET", f"/v1/photos/{soak.ids[number]}")
        _, answer = ask(address, "POST", "/v1/query?k=1", soak.bodies[number])
        photos = [photo["id"] for place in json.loads(answer)["places"] for photo in place["photos"]]
        if by_id != 200 or soak.ids[number] not in photos:
            missing.append(number)
    return missing


def differing(address: Address, index: Path, soak: Soak) -> list[int]:
    """Queries that are answered differently from `Index.query`, at the end."""
    opened = Index.open(index, precision=PRECISION)
    different = []
    for number, body in enumerate(soak.bodies):
        status, sent = ask(address, "POST", "/v1/query", body)
        served = json.loads(sent)
        if served.get("snapshot") != opened.snapshot:  # the last rebuild was still running
            opened = opened.latest()
        asked = opened.query(body).to_json()
        same = status == 200 and all(
            served[name] == asked[name] for name in ("known", "position", "model", "snapshot", "note")
        )
        if not same or listed(served) != listed(asked):
            different.append(number)
    return different


def listed(answer: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Places and photos of an answer in order."""
    return [(place["id"], [photo["id"] for photo in place["photos"]]) for place in answer["places"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    kept, added, beside = paths[: len(paths) // 2], paths[len(paths) // 2 : -5], paths[-5:]
    with tempfile.TemporaryDirectory() as work:
        folder, index = Path(work) / "photos", Path(work) / "index"
        folder.mkdir()
        for path in kept:
            shutil.copy(path, folder)
        build_index([folder], index, BuildOptions(image_size=options.image_size, precision=PRECISION))
        key = KeyFile(index / "keys.json").create("soak", Role.WRITE)
        descriptors = Index.open(index, precision=PRECISION).embed(paths)
        presence = [Presence([(0.0, 0.0, True)]) if path in kept else Presence() for path in paths]
        soak = Soak(
            ids=[sha256_of(path)[:16] for path in paths],
            bodies=[path.read_bytes() for path in paths],
            scores=descriptors @ descriptors.T,
            presence=presence,
            wanted=options.answers,
        )
        changing = [paths.index(path) for path in added]
        with serving(index) as (process, address):
            threads = [
                threading.Thread(target=client, args=(address, soak, random.Random(f"{options.seed}-{n}")))
                for n in range(options.clients)
            ]
            for n in range(2):
                arguments = (address, soak, key, changing[n::2], random.Random(f"{options.seed}-change-{n}"))
                threads.append(threading.Thread(target=change, args=arguments))
            more = [paths.index(path) for path in beside]
            threads.append(threading.Thread(target=publish, args=(soak, folder, index, beside, more)))
            megabytes = run(process, soak, threads)
            time.sleep(5)  # for the last snapshot
            missing, different = lost(address, soak), differing(address, index, soak)
            alive = process.poll() is None
    return report(soak, megabytes, missing, different, alive)


def report(
    soak: Soak,
    megabytes: list[tuple[int, float]],
    missing: list[int],
    different: list[int],
    alive: bool,
) -> int:
    """Print the results; return 1 if any is wrong."""
    failed = {s: n for s, n in soak.statuses.items() if s >= 500 and s != 503}
    quarter = [mb for answers, mb in megabytes if answers >= soak.wanted / 4]
    part = max(1, len(quarter) // 5)
    early, late = statistics.mean(quarter[:part]), statistics.mean(quarter[-part:])
    changes = sum(len(presence.changes) for presence in soak.presence)
    print(f"{soak.answers} answers, {soak.left} callers left, {changes} photos added or deleted")
    print(f"snapshots that answered: {len(soak.snapshots)}")
    print("statuses:", ", ".join(f"{status}: {count}" for status, count in sorted(soak.statuses.items())))
    print(
        f"5xx but 503: {sum(failed.values())}; wrong answers: {len(soak.wrong)}; lost photos: {len(missing)}"
    )
    print(f"answers that differ from Index.query when all is quiet: {len(different)}")
    print(f"memory: {early:.0f} MB after a quarter, {late:.0f} MB at the end ({late / early - 1:+.1%})")
    print(f"process alive: {alive}", flush=True)
    for complaint in soak.wrong[:20]:
        print(f"  {complaint}")
    return int(bool(failed or soak.wrong or missing or different or not alive or late > 1.05 * early))


if __name__ == "__main__":
    sys.exit(main())
