"""Time of runs on a catalogue of 100,000 photos, and of a run with nothing to do.

    loci index ../shared/data/*/ --into real --image-size 320
    python -m benchmarks.speed.catalogue real --photos 100000

The folder holds that many tiny files, 500 to a folder. The index looks as `loci index` would have left it,
with the model of a real index and drawn descriptors: photos 8 m apart along streets, without local features.
Each step runs in its own process, after its imports. A stand-in replaces the network, so everything else is
measured.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DescriptorSource, memory_mib, stored_descriptors
from indexer.build.publish import publish
from indexer.build.rebuild import rebuild
from indexer.build.run import build_index
from indexer.filters import Filters
from indexer.index import Index
from indexer.options import BuildOptions, Options, PlaceOptions, SearchOptions, load_options, save_options
from indexer.photos.metadata import PhotoMetadata
from indexer.posting.new_photo import read_new
from indexer.search.folder import Folder
from indexer.snapshots.manifest import read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.layout import Layout
from indexer.storage.rows import FileRow, PhotoFacts
from indexer.storage.shards import ShardWriter
from model.embedder import Embedded, Embedder, Seen
from model.modelfile import load_model, read_header

A_FOLDER = 500
CHUNK = 10_000
COUNTED = ("counting after a first POST", "counting after a second POST")
FEW = 1000
"""Photos to add, and to delete."""


def picture(number: int) -> bytes:
    """A tiny PNG, different for each number."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (24, 18), tuple(number.to_bytes(3, "big"))).save(file, "PNG")
    return file.getvalue()


def relative(number: int) -> str:
    return f"street{number // A_FOLDER:05}/{number:08}.png"


def metadata(number: int) -> PhotoMetadata:
    """Streets of 500 photos, 8 m apart; streets are 200 m apart."""
    street, house = divmod(number, A_FOLDER)
    return PhotoMetadata(
        lat=48.0 + street % 300 * 0.0018,
        lon=2.0 + street // 300 * 0.06 + house * 0.000108,
        heading=float(number * 7 % 360),
        taken_at=f"2024-05-{1 + street % 28:02}T{house // 60:02}:{house % 60:02}:00",
    )


def make(folder: Path, source: Path, count: int, *, files: bool) -> None:
    """Make the folder of photos, and their index."""
    layout, of = Layout(folder / "index"), Layout(source)
    layout.folder.mkdir(parents=True)
    manifest = read_manifest(of, of.current())
    layout.generation(1).mkdir(parents=True)
    shutil.copy(of.model(1), layout.model(1))
    fitted = load_options(of.options(1)).fit
    save_options(layout.options(1), Options(fitted, PlaceOptions(), SearchOptions()))
    drawn, generator = DescriptorSource(stored_descriptors(source)), np.random.default_rng(0)
    catalogue = Catalogue(layout.folder, create=True)
    writer = ShardWriter(layout.shards(1), manifest.dim, None)
    photos = folder / "photos"
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        slots = writer.append(drawn.draw(len(numbers), generator))
        made = []
        with catalogue.transaction() as db:
            for number in numbers:
                data = picture(number) if files else str(number).encode()
                facts = PhotoFacts(hashlib.sha256(data).hexdigest(), 24, 18, metadata(number))
                row = FileRow(len(data), 1, facts.id)
                if files:
                    row = write(photos / relative(number), data, facts.id)
                catalogue.put_photo(db, facts)
                catalogue.put_file(db, str(photos), relative(number), row)
                made.append(facts.id)
            catalogue.put_descriptors(
                db, 1, [(photo, 0, 0.0, slot) for photo, slot in zip(made, slots, strict=True)]
            )
    photos.mkdir(exist_ok=True)
    begun = time.perf_counter()
    fingerprint = read_header(layout.model(1))["fingerprint"]
    publish(layout, catalogue, 1, fingerprint, manifest.dim, PlaceOptions())
    print(f"the first snapshot of {count:,} took {time.perf_counter() - begun:.1f} s", flush=True)


def write(path: Path, data: bytes, photo: str) -> FileRow:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    found = path.stat()
    return FileRow(found.st_size, found.st_mtime_ns, photo)


def walk(photos: Path) -> int:
    """Read the size and time of every file, as cheaply as Python can."""
    found = 0
    waiting = [str(photos)]
    while waiting:
        with os.scandir(waiting.pop()) as listing:
            for entry in listing:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    entry.stat(follow_symlinks=False)
                    found += 1
    return found


def free(self: Embedder, items: Iterable[Any], *_: Any) -> Iterator[list[Any]]:
    """Stand-in for `Embedder.stream`: random descriptors at no cost."""
    generator = np.random.default_rng(1)
    left = list(items)
    for start in range(0, len(left), 8):
        rows = generator.standard_normal((8, self.model.config.output_dim)).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        yield [
            Embedded(item, (Seen(row, None),))
            for item, row in zip(left[start : start + 8], rows, strict=False)
        ]


def step(name: str, folder: Path) -> Callable[[], object]:
    """Return the timed step of a name; its preparation runs first."""
    photos, into = folder / "photos", folder / "index"
    if name == "walk and stat":
        return lambda: walk(photos)
    if name == "walk and stat again":
        walk(photos)
        return lambda: walk(photos)
    if name in ("run with nothing to do", "run that adds 1,000", "run that deletes 1,000"):
        return lambda: build_index([photos], into, BuildOptions(device="cpu"))
    if name == "rebuild after 1,000 deletions":
        return lambda: rebuild(into)
    embedder = Embedder(load_model(Layout(into).model(1)), device="cpu")
    asked = np.random.default_rng(2).standard_normal(embedder.model.config.output_dim).astype(np.float32)
    asked /= np.linalg.norm(asked)

    def first() -> Index:
        index = Index.over(Folder.open(into), embedder)
        index.answer(asked)
        return index

    if name == "open, first answer":
        return first
    index = first()
    if name in COUNTED:
        for number in range(1 + COUNTED.index(name)):
            index.counts()  # of the previous photo
            data = picture(2**24 - 1 - number)
            index.posting().add(read_new(data, PhotoMetadata()), asked[None])
        return index.counts
    filters = Filters(lat=48.0, lon=2.02, radius_m=500, heading=90)
    if name == "first filtered answer":
        return lambda: index.answer(asked, filters=filters)
    if name == "filtered answer":
        index.answer(asked, filters=filters)
        return lambda: index.answer(asked, filters=filters)
    return lambda: index.answer(asked)


STEPS: dict[str, Callable[[Path, int], None] | None] = {
    "walk and stat": None,
    "walk and stat again": None,
    "run with nothing to do": None,
    "open, first answer": None,
    "answer": None,
    "first filtered answer": None,
    "filtered answer": None,
    "run that adds 1,000": lambda photos, count: add(photos, count),
    "run that deletes 1,000": lambda photos, count: delete(photos, count),
    "rebuild after 1,000 deletions": lambda photos, count: remove(photos.parent / "index", count),
    **dict.fromkeys(COUNTED),
}
"""Steps in order, each with the change made before it."""


def add(photos: Path, count: int) -> None:
    for number in range(count, count + FEW):
        write(photos / relative(number), picture(number), "")


def delete(photos: Path, count: int) -> None:
    for number in range(0, count, count // FEW):
        (photos / relative(number)).unlink()


def remove(index: Path, count: int) -> None:
    layout = Layout(index)
    manifest = read_manifest(layout, layout.current())
    from indexer.posting.posting import Posting

    posting = Posting(layout, 1, manifest.dim)
    for number in range(1, count, count // FEW):
        posting.remove(hashlib.sha256(picture(number)).hexdigest()[:16])


def child(name: str, folder: Path) -> dict[str, float]:
    Embedder.stream = free  # type: ignore
    act = step(name, folder)
    before = memory_mib("RssAnon")
    begun = time.perf_counter()
    act()
    taken = time.perf_counter() - begun
    return {"seconds": taken, "mib": memory_mib("RssAnon") - before, "peak": memory_mib("VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path, help="an index of real photos")
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where the photos and their index are, or are to be")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--no-files", action="store_true", help="no folder: only what needs none")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.folder)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)) / str(options.photos)
        if not folder.exists():
            make(folder, options.index, options.photos, files=not options.no_files)
        run(folder, options.photos, options.steps)


def run(folder: Path, count: int, steps: Sequence[str]) -> None:
    print(f"{count:,} photos\n\n| | s | to walk and stat | MiB that it takes | peak MiB of the process |")
    print("|---|---|---|---|---|")
    base = float("nan")
    for name in steps:
        change = STEPS[name]
        if change is not None:
            change(folder / "photos", count)
        command = [sys.executable, __file__, "-", "--folder", str(folder), "--child", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        if name == "walk and stat again":
            base = found["seconds"]
        cells = (f"{found['seconds']:.3f}", f"{found['seconds'] / base:.1f}", f"{found['mib']:,.0f}")
        print(f"| {name} | {' | '.join(cells)} | {found['peak']:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
