"""The service against the library: throughput with many clients, latency of one.

    loci index ../shared/data/campus-phone/small --into /tmp/index --image-size 224
    python -m benchmarks.speed.serving /tmp/index ../shared/data/campus-phone/small

A service process and this process answer the same photos from the same index, in turns. Results are medians
of the ratios of rounds. If other processes use more than `--others` of the processors during a round, it is
repeated, because waiting threads distort the ratio.

Throughput: photos a second over `--clients` keep-alive connections, against `Embedder.stream` from files to
descriptors, and against the network alone on decoded photos. Latency: single requests against `Index.query`
on the same bytes. One thread sends prepared bytes for all clients.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.index import Index

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Round:
    """Photos a second, and the seconds of each photo of one client."""

    served: float
    offline: float
    network: float
    over_http: list[float]
    in_process: list[float]

    def __str__(self) -> str:
        rates = f"{self.served:.2f} over HTTP, {self.offline:.2f} files to descriptors"
        one = f"one client {p50(self.over_http):.1f} and {p50(self.in_process):.1f} ms"
        return f"{rates}, {self.network:.2f} network; {one}"


class Client:
    """A connection that sends prepared requests and counts answers by status."""

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""
        self._wanted: int | None = None

    def send(self, request: bytes) -> None:
        self.socket.sendall(request)

    def receive(self) -> int | None:
        """Receive data; return the status if an answer is complete."""
        part = self.socket.recv(1 << 18)
        if not part:
            raise ConnectionError("the service closed the connection")
        self._received += part
        if self._wanted is None:
            head, end, _ = self._received.partition(b"\r\n\r\n")
            if not end:
                return None
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            self._wanted = len(head) + 4 + int(length)
        if len(self._received) < self._wanted:
            return None
        status = int(self._received[9:12])
        self._received, self._wanted = b"", None
        return status


def prepare(photo: bytes, *, verify: bool) -> bytes:
    """The bytes of one POST /v1/query."""
    path = f"/v1/query?verify={'true' if verify else 'false'}"
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
    return f"{head}Content-Length: {len(photo)}\r\n\r\n".encode() + photo


@contextlib.contextmanager
def serving(index: Path) -> Iterator[tuple[int, Address]]:
    """Start a service process on a free port; return its number and address when it is ready."""
    command = [sys.executable, "-m", "loci", "serve", "--index", str(index), "--port", "0"]
    environment = os.environ | {"LOCI_RATE_LIMIT": "0", "LOCI_KEEP_ALIVE_SECONDS": "600"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if line.startswith("Serving on ")).split()[2]
            host, _, port = url.removeprefix("http://").rpartition(":")
            address = (host, int(port))
            while not is_ready(address):
                time.sleep(0.1)
            yield process.pid, address
        finally:
            process.terminate()


def is_ready(address: Address) -> bool:
    client = Client(address)
    client.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    while (status := client.receive()) is None:
        pass
    client.socket.close()
    return status == 200


def throughput(address: Address, requests: list[bytes], clients: int, count: int) -> float:
    """Photos a second that many clients get answered, over `count` queries."""
    with selectors.DefaultSelector() as selector:
        sent = done = 0
        begun = time.perf_counter()
        for number in range(clients):
            client = Client(address)
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.send(requests[number % len(requests)])
            sent += 1
        while done < count:
            for key, _ in selector.select():
                client = key.data
                status = client.receive()
                if status is None:
                    continue
                if status != 200:
                    raise RuntimeError(f"status {status}")
                done += 1
                if sent < count:
                    client.send(requests[sent % len(requests)])
                    sent += 1
                else:
                    selector.unregister(client.socket)
                    client.socket.close()
        seconds = time.perf_counter() - begun
    return count / seconds


def offline(index: Index, paths: list[Path], count: int) -> float:
    """Photos a second from files to descriptors."""
    asked = [paths[number % len(paths)] for number in range(count)]
    begun = time.perf_counter()
    done = sum(len(batch) for batch in index.embedder.stream(asked, lambda path: [index.read(path)]))
    return done / (time.perf_counter() - begun)


def bare(index: Index, paths: list[Path], count: int) -> float:
    """Photos a second through the network alone."""
    images = [index.read(path) for path in paths]
    asked = [images[number % len(images)] for number in range(count)]
    begun = time.perf_counter()
    index.embedder.embed(asked)
    return count / (time.perf_counter() - begun)


def latency(
    address: Address, index: Index, photos: list[bytes], *, verify: bool
) -> tuple[list[float], list[float]]:
    """Seconds of each photo over HTTP and in this process, in turns."""
    client = Client(address)
    served, asked = [], []
    for photo in photos:
        request = prepare(photo, verify=verify)
        begun = time.perf_counter()
        client.send(request)
        while client.receive() is None:
            pass
        answered = time.perf_counter()
        index.query(photo, verify=verify)
        asked.append(time.perf_counter() - answered)
        served.append(answered - begun)
    client.socket.close()
    return served, asked


def p50(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)


def measure(
    address: Address, index: Index, paths: list[Path], requests: list[bytes], options: argparse.Namespace
) -> Round:
    """One round: half of the library, the service, the other half, and one client."""
    half = options.photos // 2
    before = offline(index, paths, half)
    served = throughput(address, requests, options.clients, options.photos)
    after = offline(index, paths, half)
    network = bare(index, paths, half)
    photos = [path.read_bytes() for path in paths[:half]]
    return Round(
        served, 2 / (1 / before + 1 / after), network, *latency(address, index, photos, verify=options.verify)
    )


class Others:
    """Start measuring the share of other processes."""

    def __init__(self, service: int) -> None:
        self._service = service
        self._begun = self._now()

    def share(self) -> float:
        """Return their share of all processor time since then."""
        busy, total, own = (now - then for now, then in zip(self._now(), self._begun, strict=True))
        return max(0.0, (busy - own) / total)

    def _now(self) -> tuple[int, int, int]:
        line = Path("/proc/stat").read_text().partition("\n")[0]
        ticks = [int(field) for field in line.split()[1:9]]
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, sum(ticks), _ticks(os.getpid()) + _ticks(self._service)


def _ticks(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--photos", type=int, default=160, help="asked about in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tries", type=int, default=20, help="rounds at most, those not counted included")
    parser.add_argument("--others", type=float, default=0.05, help="what others may take of the processors")
    parser.add_argument("--verify", action="store_true", help="ask for verified answers")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    photos = [path.read_bytes() for path in paths]
    requests = [prepare(photo, verify=options.verify) for photo in photos]
    index = Index.open(options.index)
    print(
        f"{len(paths)} photos of {sum(map(len, photos)) / len(photos) / 1000:.0f} kB on average, image size "
        f"{index.image_size}, {os.cpu_count()} cores"
    )
    with serving(options.index) as (service, address):
        offline(index, paths, 32)
        throughput(address, requests, options.clients, 2 * options.clients)
        latency(address, index, photos[:8], verify=options.verify)
        counted: list[Round] = []
        for _ in range(options.tries):
            others = Others(service)
            measured = measure(address, index, paths, requests, options)
            share = others.share()
            calm = share <= options.others
            counted += [measured] * calm
            print(
                f"  {measured}; others {share:.0%}{'' if calm else ', not counted'}",
                file=sys.stderr,
                flush=True,
            )
            if len(counted) == options.rounds:
                break
    print(f"{len(counted)} rounds of {options.photos} photos, others below {options.others:.0%}")
    names = (f"{options.clients} clients over HTTP", "files to descriptors", "network alone")
    rates = ([r.served for r in counted], [r.offline for r in counted], [r.network for r in counted])
    for name, column in zip(names, rates, strict=True):
        print(f"{name:24} {statistics.median(column):6.2f} photos/s (rounds: {rounds(column)})")
    ratios = [r.served / r.offline for r in counted]
    to_bare = [r.served / r.network for r in counted]
    print(f"HTTP / files to descriptors  {statistics.median(ratios):.3f} (rounds: {rounds(ratios)})")
    print(f"HTTP / network alone         {statistics.median(to_bare):.3f} (rounds: {rounds(to_bare)})")
    here = [seconds for r in counted for seconds in r.over_http]
    there = [seconds for r in counted for seconds in r.in_process]
    ratio = p50(here) / p50(there)
    print(
        f"one client, p50: {p50(here):.1f} ms over HTTP, {p50(there):.1f} ms in process: {ratio:.3f}", end=""
    )
    print(f" (rounds: {rounds([p50(r.over_http) / p50(r.in_process) for r in counted])})", flush=True)


def rounds(column: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in column)


if __name__ == "__main__":
    main()
