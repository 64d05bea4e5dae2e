"""Ten thousand damaged photos and requests: the service must not crash, hang, fail or grow.

    python -m benchmarks.robustness.fuzz                      # 10,000 cases by seed 0
    python -m benchmarks.robustness.fuzz --only 4711          # repeat one of them

A service process over a small index gets each case on its own connection: photos of every format with bits
flipped and parts cut, doubled, swapped or zeroed; headers with huge dimensions; PNG chunks that unpack to
huge sizes; a JPEG of ten thousand scans; SVG, HTML, PDF and ZIP files named as photos; wrong multipart
bodies, headers, chunks, methods, targets and parameters. Every complete request must be answered within 5 s,
without any 5xx except 503. The process must live, answer a control photo as before, and end with the memory
it had after the first quarter.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import io
import json
import os
import random
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from benchmarks.common import memory_mib
from indexer.build.run import build_index
from indexer.options import BuildOptions

PHOTOS = Path(__file__).parents[2] / "loci" / "demo" / "photos"
HANG_SECONDS = 5.0
Random = random.Random


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and whether it must be answered."""

    kind: str
    sent: bytes
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result: a status, 0 if the connection was closed without one, -1 after a time-out."""

    case: Case
    number: int
    status: int
    seconds: float


def base_images() -> list[bytes]:
    """One photo in every supported format, and some variants."""
    photo = Image.open(next(iter(sorted(PHOTOS.glob("*.jpg"))))).convert("RGB").resize((160, 120))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 0.0, 0.0), 3: "E", 4: (0.0, 15.0, 0.0)})
    variants: list[tuple[Image.Image, dict[str, object]]] = [
        (photo, {"format": "JPEG", "exif": exif}),
        (photo, {"format": "JPEG", "progressive": True}),
        (photo.convert("CMYK"), {"format": "JPEG"}),
        (photo, {"format": "PNG"}),
        (photo.convert("P"), {"format": "PNG"}),
        (photo.convert("RGBA"), {"format": "PNG"}),
        (photo.convert("L").convert("I;16"), {"format": "PNG"}),
        (photo, {"format": "WEBP"}),
        (photo, {"format": "WEBP", "lossless": True}),
        (photo, {"format": "AVIF"}),
        (photo, {"format": "TIFF"}),
        (photo, {"format": "TIFF", "compression": "tiff_lzw"}),
        (photo, {"format": "TIFF", "compression": "jpeg"}),
        (photo, {"format": "GIF"}),
        (photo, {"format": "BMP"}),
        (photo, {"format": "MPO", "save_all": True, "append_images": [photo]}),
    ]
    images = []
    for image, options in variants:
        out = io.BytesIO()
        image.save(out, **options)  # type: ignore[arg-type]
        images.append(out.getvalue())
    return images


def mutate(data: bytes, generator: Random) -> bytes:
    """Damage bytes in one to four ways."""
    for _ in range(generator.randint(1, 4)):
        data = generator.choice(MUTATIONS)(data, generator)
    return data


def flip(data: bytes, generator: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 4, 64))):
        if changed:
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def flip_head(data: bytes, generator: Random) -> bytes:
    return flip(data[:64], generator) + data[64:]


def truncate(data: bytes, generator: Random) -> bytes:
    return data[: generator.randrange(len(data) + 1)]


def cut(data: bytes, generator: Random) -> bytes:
    begin, end = sorted(generator.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + data[end:]


def double(data: bytes, generator: Random) -> bytes:
    begin, end = sorted(generator.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[begin:]


def zero(data: bytes, generator: Random) -> bytes:
    begin = generator.randrange(len(data) + 1)
    length = min(generator.choice((1, 4, 100, 5000)), len(data) - begin)
    return data[:begin] + generator.choice((b"\0", b"\xff")) * length + data[begin + length :]


def number(data: bytes, generator: Random) -> bytes:
    """Write a dangerous number where a length may be."""
    value = generator.choice(
        (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    )
    packed = struct.pack(generator.choice(("<I", ">I")), value)[: generator.choice((2, 4))]
    begin = generator.randrange(min(len(data), 512) + 1)
    return data[:begin] + packed + data[begin + len(packed) :]


MUTATIONS: tuple[Callable[[bytes, Random], bytes], ...] = (
    flip,
    flip_head,
    truncate,
    cut,
    double,
    zero,
    number,
)


def png(width: int, height: int, *chunks: tuple[bytes, bytes], rows: int = 0) -> bytes:
    """A grey PNG of these dimensions, with extra chunks and some rows of zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width & 0xFFFFFFFF, height & 0xFFFFFFFF, 8, 0, 0, 0, 0)
    packed = zlib.compress(bytes(width + 1) * rows, 9) if rows else b""
    inner = b"".join(chunk(name, data) for name, data in chunks)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + inner + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def scan_bomb(scans: int) -> bytes:
    """A progressive JPEG of 65,000×1,500 pixels with many scans; each scan is a few bytes for a pass over all
    pixels.
    """
    table = (
        bytes([0x10]) + bytes([0, 2]) + bytes(14) + bytes([0x00, 0xE0])
    )  # an EOBRUN of up to 32,767 blocks
    frame = struct.pack(">BHHB", 8, 1500, 65_000, 1) + bytes([1, 0x11, 0])

    def segment(marker: int, data: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    head = (
        b"\xff\xd8"
        + segment(0xDB, bytes([0]) + bytes([1] * 64))
        + segment(0xC2, frame)
        + segment(0xC4, table)
    )
    scan = segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0x00])) + bytes([0xFE] * 96).replace(b"\xff", b"\xff\0")
    return head + scan * scans + b"\xff\xd9"


def bombs() -> dict[str, bytes]:
    """Files that are very expensive to decode."""
    zeros = zlib.compress(bytes(50_000_000), 9)
    text = [(b"zTXt", b"k\0\0" + zeros), (b"iTXt", b"k\0\1\0\0\0" + zeros), (b"iCCP", b"k\0\0" + zeros)]
    named = {name.decode(): png(64, 64, (name, data), rows=64) for name, data in text}
    tiff = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 0xFFFF) + bytes(12 * 200)
    loop = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 256, 4, 1, 100, 8)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("photo.jpg", bytes(5_000_000))
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    entity = b"<!DOCTYPE x [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><svg>&b;</svg>"
    web = b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f\xff\xff\xff\x0f" + bytes(12)
    return named | {
        "many text chunks": png(
            64, 64, *[(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000), 9))] * 100, rows=64
        ),
        "excess pixels": png(64, 64, rows=500_000),
        "50,000 a side": png(50_000, 50_000),
        "2^31 a side": png(0x7FFFFFFF, 0x7FFFFFFF),
        "negative side": png(-1, 64),
        "no side": png(0, 0),
        "100 million pixels": png(10_000, 10_000, rows=10_000),
        "one long row": png(6_000_000, 16, rows=16),
        "scans": scan_bomb(10_000),
        "gif screen": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(768) + b";",
        "bmp": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 200, 0, 0, 54, 40, 100_000, -100_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "tiff entries": tiff,
        "tiff loop": loop,
        "webp canvas": web,
        "svg": svg,
        "svg entities": entity,
        "html": b"<!doctype html><script>alert(1)</script>",
        "gif and html": b"GIF89a/*<script>*/=1;alert(1)//",
        "pdf": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj",
        "zip": archive.getvalue(),
        "gzip": gzip.compress(bytes(5_000_000)),
        "elf": b"\x7fELF" + bytes(200),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(x) run\n",
        "empty": b"",
    }


def request(path: str, body: bytes, *headers: str, method: str = "POST", length: int | None = None) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + body


def image_case(kind: str, image: bytes, generator: Random) -> Case:
    """A request with an image, raw or multipart, of any image type, to any route that takes one."""
    path = generator.choice(("/v1/query", "/v1/query?k=1", "/v1/query/clip", "/v1/embed"))
    media = generator.choice(
        ("image/jpeg", "image/png", "image/svg+xml", "image/x", "application/octet-stream")
    )
    if generator.random() < 0.5:
        return Case(kind, request(path, image, f"Content-Type: {media}"))
    disposition = 'Content-Disposition: form-data; name="image"; filename="../../../x"'
    part = f"--cut\r\n{disposition}\r\nContent-Type: {media}\r\n\r\n"
    body = part.encode() + image + b"\r\n--cut--\r\n"
    return Case(kind, request(path, body, "Content-Type: multipart/form-data; boundary=cut"))


def letters(generator: Random, most: int = 40) -> str:
    alphabet = "abcXYZ019 /\\%.:;,=?&#\"'<>{}[]()|^~`!@$*+-_\t\x7f\xe9\xff"
    return "".join(generator.choice(alphabet) for _ in range(generator.randint(0, most)))


HEADERS = [
    "Content-Type",
    "Content-Encoding",
    "Accept",
    "Range",
    "If-None-Match",
    "Authorization",
    "X-Request-ID",
    "Cookie",
    "Host",
    "X-Forwarded-For",
    "Expect",
    "Transfer-Encoding",
    "Content-Length",
    "Origin",
    "Upgrade",
    "Connection",
]
VALUES = ["multipart/form-data", f"multipart/form-data; boundary={'x' * 500}", "chunked", "bytes=0-,-1,5-2"]
VALUES += ["gzip, deflate", "100-continue", f"Bearer {'a' * 5000}", "0x10", "-1", "9" * 30, "websocket"]
VALUES += ["a" * 20_000, "\x00", ""]
METHODS = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "G E T", "", "X" * 99)
IDS = ["../../etc/passwd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%00", "a" * 300, "0" * 64, "\xff", "", "."]
TARGETS = [
    "/v1/photos/{}",
    "/v1/photos/{}/image",
    "/v1/photos/{}/thumbnail",
    "/v1/places/{}",
    "/{}",
    "/page/{}",
]
TARGETS += [
    "/docs/{}",
    "/v1/places?limit={}&offset=-1",
    "/v1/places?offset=9{}",
    "/v1/query?k={}",
    "{}",
    "//",
]
TARGETS += ["*", "http://localhost/v1/places/{}", f"/v1/places{'?' * 3000}", f"/v1/query?k={'9' * 400}"]


def odd_header(image: bytes, generator: Random) -> Case:
    """A request with a good photo and dangerous headers."""
    name = generator.choice([*HEADERS, letters(generator)])
    value = generator.choice([*VALUES, letters(generator, 200), f"text/html; charset={letters(generator)}"])
    return Case("header", request("/v1/query", image, f"{name}: {value}"), answered=False)


def odd_target(image: bytes, generator: Random) -> Case:
    """A request with a method and target that no route has."""
    method = generator.choice(METHODS)
    path = generator.choice(TARGETS).format(generator.choice([*IDS, letters(generator)]))
    return Case("target", request(path, image if method == "POST" else b"", method=method), answered=False)


def odd_multipart(image: bytes, generator: Random) -> Case:
    boundary = generator.choice(("cut", "x" * 70, "a b", letters(generator, 10)))
    head = generator.choice(
        (
            'Content-Disposition: form-data; name="image"',
            'Content-Disposition: form-data; name="image"; filename="' + letters(generator) + '"',
            "Content-Disposition: form-data; name*=utf-8''image",
            "Content-Disposition: " + letters(generator),
            "X: " + "y" * 50_000,
            "no header at all",
            "",
        )
    )
    mark = b"--" + boundary.encode("latin-1", "replace")
    part = mark + b"\r\n" + head.encode("latin-1", "replace") + b"\r\n\r\n" + image + b"\r\n"
    body = part * generator.choice((0, 1, 2, 100)) + mark + generator.choice((b"--\r\n", b"--", b"\r\n", b""))
    if generator.random() < 0.5:
        body = mutate(body, generator)
    return Case(
        "multipart",
        request("/v1/embed", body[:2_000_000], f"Content-Type: multipart/form-data; boundary={boundary}"),
    )


def many_parts(generator: Random) -> Case:
    part = b'--cut\r\nContent-Disposition: form-data; name="x"\r\n\r\n\r\n'
    body = part * generator.choice((1000, 20_000)) + b"--cut--\r\n"
    return Case("many parts", request("/v1/query", body, "Content-Type: multipart/form-data; boundary=cut"))


def odd_chunks(image: bytes, generator: Random) -> Case:
    size = generator.choice((1, 7, 1000))
    image = image[:3000]
    parts = [
        b"%x\r\n%s\r\n" % (len(image[i : i + size]), image[i : i + size]) for i in range(0, len(image), size)
    ]
    body = b"".join(parts) + b"0\r\n" + generator.choice((b"\r\n", b"X: y\r\n\r\n", b""))
    if generator.random() < 0.6:
        body = mutate(body, generator)
    head = b"POST /v1/query HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n"
    return Case("chunks", head + body, answered=False)


def odd_bytes(image: bytes, generator: Random) -> Case:
    """A request with a damaged head."""
    whole = request("/v1/query", image, "Content-Type: image/jpeg", "X-A: b")
    head, _, body = whole.partition(b"\r\n\r\n")
    return Case("bytes", mutate(head, generator) + b"\r\n\r\n" + body, answered=False)


def half(image: bytes, generator: Random) -> Case:
    whole = request("/v1/query", image, "Content-Type: image/jpeg")
    return Case("half", whole[: generator.randrange(len(whole))], answered=False)


ODD = (odd_header, odd_target, odd_multipart, odd_chunks, odd_bytes, half)


def make_case(seed: int, number: int, images: list[bytes], made: dict[str, bytes]) -> Case:
    """The case of a number: of ten, six are damaged photos, three odd requests, and one is a bomb."""
    generator = random.Random(f"{seed}-{number}")
    image = generator.choice(images)
    draw = generator.random()
    if draw < 0.6:
        return image_case("photo", mutate(image, generator), generator)
    if draw < 0.9:
        return generator.choice(ODD)(image, generator)
    if draw < 0.91:
        return many_parts(generator)
    name = generator.choice(sorted(made))
    bomb = made[name]
    if generator.random() < 0.3 and len(bomb) < 1_000_000:
        return image_case(f"bomb: {name}", flip_head(bomb, generator), generator)
    return image_case(f"bomb: {name}", bomb, generator)


def send(address: tuple[str, int], case: Case, number: int, patience: float = 60) -> Outcome:
    """Send a case on its own connection, and wait for the answer."""
    begun = time.perf_counter()
    status = 0
    wait = patience if case.answered else 0.3
    connecting = contextlib.closing(socket.create_connection(address, timeout=patience))
    with contextlib.suppress(ConnectionError), connecting as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(case.sent)
        connection.settimeout(wait)
        try:
            answer = b""
            while part := connection.recv(65536):
                answer = answer or part
            status = int(answer[9:12]) if answer[9:12].isdigit() else 0
        except TimeoutError:
            status = -1
    return Outcome(case, number, status, time.perf_counter() - begun)


@contextlib.contextmanager
def serving(index: Path) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """A service process on a free port; its log goes next to the index."""
    command = [sys.executable, "-m", "loci", "serve", "--index", str(index), "--port", "0"]
    with (index.parent / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"LOCI_RATE_LIMIT": "0"}
        )
        try:
            assert process.stdout is not None
            url = next(line for line in process.stdout if line.startswith("Serving on ")).split()[2]
            host, _, port = url.removeprefix("http://").rpartition(":")
            address = (host, int(port))
            ready = Case("", b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            while send(address, ready, 0).status != 200:
                time.sleep(0.1)
            yield process, address
        finally:
            process.terminate()
            process.wait()


def processor_seconds(process: subprocess.Popen[str]) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def judge(
    process: subprocess.Popen[str], address: tuple[str, int], outcome: Outcome
) -> tuple[Outcome, float]:
    """Send a slow case again, alone; return the service's processor seconds."""
    before = processor_seconds(process)
    again = send(address, outcome.case, outcome.number, patience=120)
    return again, processor_seconds(process) - before


def control(address: tuple[str, int]) -> object:
    """The service's answer to a good photo, without timings."""
    photo = sorted(PHOTOS.glob("*.jpg"))[7].read_bytes()
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(request("/v1/query", photo, "Content-Type: image/jpeg"))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    return {name: value for name, value in body.items() if name != "timings_ms"}


def unexplained(log: Path) -> dict[str, int]:
    """Exceptions in the log, with their counts."""
    entries = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return collections.Counter(
        f"{entry['message'][:60]}: {entry['exception'].splitlines()[-1]}"
        for entry in entries
        if "exception" in entry
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="send this case alone, and say what came")
    parser.add_argument("--threads", type=int, default=4)
    options = parser.parse_args()
    images, made = base_images(), bombs()
    numbers = range(options.cases) if options.only is None else [options.only]
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        build_index([PHOTOS], index, BuildOptions(image_size=64, clusters=8, dim=16))
        with serving(index) as (process, address):
            before = control(address)
            outcomes: list[Outcome] = []
            grown: list[float] = []
            with ThreadPoolExecutor(options.threads) as pool:
                for begin in range(0, len(numbers), max(1, len(numbers) // 20)):
                    group = numbers[begin : begin + max(1, len(numbers) // 20)]
                    outcomes += pool.map(
                        lambda n: send(address, make_case(options.seed, n, images, made), n), group
                    )
                    grown.append(memory_mib("VmRSS", process.pid))
                    print(f"  {len(outcomes)} sent, {grown[-1]:.0f} MB", file=sys.stderr, flush=True)
                    if process.poll() is not None:
                        break
            slow = [o for o in outcomes if o.case.answered and o.seconds > HANG_SECONDS]
            again = [judge(process, address, outcome) for outcome in slow]
            alive = process.poll() is None
            same = alive and control(address) == before
        exceptions = unexplained(index.parent / "log")
    print(f"{len(outcomes)} cases by seed {options.seed}")
    return report(outcomes, grown, again, alive=alive, same=same, exceptions=exceptions)


def report(
    outcomes: list[Outcome],
    grown: list[float],
    again: list[tuple[Outcome, float]],
    *,
    alive: bool,
    same: bool,
    exceptions: dict[str, int],
) -> int:
    """Print the results; return 1 if any is wrong."""
    answered = [outcome for outcome in outcomes if outcome.case.answered]
    failed = [o for o in outcomes if o.status in range(500, 600) and o.status not in (501, 503)]
    silent = [outcome for outcome in answered if outcome.status <= 0 and outcome.case.kind != "multipart"]
    hung = [outcome for outcome, seconds in again if seconds > HANG_SECONDS or outcome.status <= 0]
    late = grown[len(grown) // 4 :]
    before, after = statistics.mean(late[:3]), statistics.mean(late[-3:])
    statuses = collections.Counter(outcome.status for outcome in outcomes)
    seconds = sorted(outcome.seconds for outcome in answered)
    print(f"{len(answered)} complete requests, {len(outcomes) - len(answered)} odd ones")
    named = {0: "closed", -1: "left waiting for more"}
    print("statuses:", ", ".join(f"{named.get(s, s)} {count}" for s, count in sorted(statuses.items())))
    print(f"answers after {1000 * seconds[len(seconds) // 2]:.0f} ms (median), {seconds[-1]:.1f} s (slowest)")
    print(f"over {HANG_SECONDS:g} s: {len(again)}; sent again alone, the most took", end=" ")
    print(f"{max((cpu for _, cpu in again), default=0.0):.1f} s of the service's processor time")
    print(f"memory, of three readings: {before:.0f} MB after a quarter, ", end="")
    print(f"{after:.0f} MB at the end ({after / before - 1:+.1%}); most {max(grown):.0f} MB")
    print(f"5xx but 501 and 503: {len(failed)}; unanswered: {len(silent)}; exceptions: {len(exceptions)}")
    print(f"process alive: {alive}; control photo answered as before: {same}", flush=True)
    for exception, count in exceptions.items():
        print(f"  {count} times {exception}")
    for outcome in [*hung, *failed, *silent][:20]:
        print(f"  {outcome.number} ({outcome.case.kind}): {outcome.status} after {outcome.seconds:.2f} s")
    return int(bool(hung or failed or silent or exceptions or not same or after > 1.05 * before))


if __name__ == "__main__":
    sys.exit(main())
