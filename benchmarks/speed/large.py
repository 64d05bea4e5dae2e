"""Search of a million descriptors: build time, memory, query time, beside flat FAISS, hnswlib and usearch.

    loci index ../shared/data/*/ --into real --image-size 320
    pip install hnswlib usearch
    python -m benchmarks.speed.large real --count 1000000

`DescriptorSource` draws the descriptors and the queries from those of real photos. Every engine runs in its
own process, on the same shards, queries and threads. Queries run one at a time, for ten nearest; recall is
their share among the exact ten. hnswlib and usearch use the smallest of a doubling series of efforts that
reaches the recall on the first half of the queries; the second half is measured. Ours uses the effort that
`loci index` tuned without these queries.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Descriptors, DescriptorSource, memory_mib, stored_descriptors
from indexer.options import SearchOptions
from indexer.snapshots.saved_store import StoreKind, make_store, open_store
from indexer.storage.rows import Slot
from indexer.storage.shards import ShardWriter, read_slots

Search = Callable[[Descriptors], NDArray[np.int64]]
"""From a query (d) to the numbers of its K nearest."""
K = 10
BLOCK = 65_536
QUERIES = 1000


def make(folder: Path, index: Path, count: int) -> None:
    """Write shards of `count` descriptors, queries and their exact answers to a folder."""
    rows = stored_descriptors(index)
    source = DescriptorSource(rows)
    generator = np.random.default_rng(0)
    queries = source.draw(QUERIES, generator)
    writer = ShardWriter(folder / "shards", rows.shape[1], None)
    slots: list[Slot] = []
    best = np.full((QUERIES, K), -np.inf, np.float32)
    answers = np.zeros((QUERIES, K), np.int64)
    for start in range(0, count, BLOCK):
        block = source.draw(min(BLOCK, count - start), generator).astype(np.float16).astype(np.float32)
        slots += writer.append(block)
        found = np.concatenate([best, queries @ block.T], axis=1)
        numbers = np.concatenate(
            [answers, np.broadcast_to(np.arange(start, start + len(block)), (QUERIES, len(block)))], axis=1
        )
        kept = np.argpartition(-found, K, axis=1)[:, :K]
        best, answers = np.take_along_axis(found, kept, 1), np.take_along_axis(numbers, kept, 1)
    np.save(folder / "queries.npy", queries)
    np.save(folder / "answers.npy", answers)
    np.save(folder / "slots.npy", [(slot.shard, slot.row) for slot in slots])


class Collection:
    """The folder that `make` wrote, and where engines put their files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self.queries: Descriptors = np.load(folder / "queries.npy")
        self.answers = np.load(folder / "answers.npy")
        self.slots = [Slot(*slot) for slot in np.load(folder / "slots.npy").tolist()]
        self.dim = self.queries.shape[1]
        self.live = [(number, "", slot) for number, slot in enumerate(self.slots)]

    def blocks(self) -> Any:
        return read_slots(self.shards, self.slots, self.dim, block=BLOCK)

    def recall(self, search: Search, part: slice) -> float:
        """Recall of a search on a part of the queries."""
        pairs = zip(self.queries[part], self.answers[part], strict=True)
        return float(np.mean([len(np.intersect1d(search(query), exact)) / K for query, exact in pairs]))

    def milliseconds(self, search: Search) -> tuple[float, float]:
        """p50 and p99 of one search."""
        taken = []
        for query in self.queries[QUERIES // 2 :]:
            start = time.perf_counter()
            search(query)
            taken.append(1000 * (time.perf_counter() - start))
        return float(np.median(taken)), float(np.quantile(taken, 0.99))


@dataclasses.dataclass(frozen=True)
class Ours:
    """As `loci index` builds it and an opened index searches it."""

    graph: bool = False

    def build(self, of: Collection, options: argparse.Namespace) -> str:
        snapshot = of.folder / "snapshot"
        snapshot.mkdir(exist_ok=True)
        wanted = SearchOptions(recall=options.recall, hnsw=self.graph)
        _, kind = make_store(snapshot, of.shards, of.dim, of.live, wanted)
        (snapshot / "kind.json").write_text(json.dumps(dataclasses.asdict(kind)))
        looked = (
            f"{kind.probes} {'nodes' if self.graph else 'lists'} and {K * kind.depth} candidates looked at"
        )
        return f"{kind.factory}, {looked}, its own measure of recall {kind.recall}"

    def open(self, of: Collection, options: argparse.Namespace) -> Search:  # noqa: ARG002
        snapshot = of.folder / "snapshot"
        kind = StoreKind(**json.loads((snapshot / "kind.json").read_text()))
        size = (snapshot / "index.faiss").stat().st_size
        store = open_store(
            snapshot, of.shards, of.dim, len(of.live), size, kind, lambda: of.live, lambda: None
        )
        return lambda query: store.search(query[None], K)[1][0]


@dataclasses.dataclass(frozen=True)
class Flat:
    """FAISS's exact search."""

    factory: str

    def build(self, of: Collection, options: argparse.Namespace) -> str:  # noqa: ARG002
        index: Any = faiss.index_factory(of.dim, self.factory, faiss.METRIC_INNER_PRODUCT)
        for number, block in enumerate(of.blocks()):
            if not number:
                index.train(block)
            index.add(block)
        faiss.write_index(index, str(of.folder / f"{self.factory}.faiss"))
        return "exact"

    def open(self, of: Collection, options: argparse.Namespace) -> Search:  # noqa: ARG002
        index: Any = faiss.read_index(str(of.folder / f"{self.factory}.faiss"))
        return lambda query: np.asarray(index.search(query[None], K)[1][0], np.int64)


class Hnswlib:
    def build(self, of: Collection, options: argparse.Namespace) -> str:
        index = self._new(of)
        index.init_index(
            len(of.slots), M=options.connectivity, ef_construction=options.construction, random_seed=0
        )
        index.set_num_threads(options.threads)
        for block in of.blocks():
            index.add_items(block)
        index.save_index(str(of.folder / "hnswlib"))
        return f"M {options.connectivity}, ef_construction {options.construction}"

    def open(self, of: Collection, options: argparse.Namespace) -> Search:
        index = self._new(of)
        index.load_index(str(of.folder / "hnswlib"))
        index.set_num_threads(options.threads)

        def search(query: Descriptors) -> NDArray[np.int64]:
            return np.asarray(index.knn_query(query[None], K)[0][0], np.int64)

        return settled(of, options.recall, search, index.set_ef)

    def _new(self, of: Collection) -> Any:
        import hnswlib  # type: ignore

        return hnswlib.Index("ip", of.dim)


class Usearch:
    def build(self, of: Collection, options: argparse.Namespace) -> str:
        index, start = self._new(of, options), 0
        for block in of.blocks():
            index.add(np.arange(start, start + len(block)), block, threads=options.threads)
            start += len(block)
        index.save(str(of.folder / "usearch"))
        return f"f16, connectivity {options.connectivity}, expansion_add {options.construction}"

    def open(self, of: Collection, options: argparse.Namespace) -> Search:
        index = self._new(of, options)
        index.load(str(of.folder / "usearch"))

        def search(query: Descriptors) -> NDArray[np.int64]:
            return np.asarray(index.search(query, K, threads=1).keys, np.int64)

        return settled(of, options.recall, search, lambda effort: setattr(index, "expansion_search", effort))

    def _new(self, of: Collection, options: argparse.Namespace) -> Any:
        from usearch.index import Index  # type: ignore

        shape = {"connectivity": options.connectivity, "expansion_add": options.construction}
        return Index(ndim=of.dim, metric="ip", dtype="f16", **shape)


class Engine(Protocol):
    """An engine to measure."""

    def build(self, of: Collection, options: argparse.Namespace) -> str:
        """Write its files; return a description."""

    def open(self, of: Collection, options: argparse.Namespace) -> Search:
        """Read its files."""


ENGINES: dict[str, Engine] = {
    "loci": Ours(),
    "loci, by a graph": Ours(graph=True),
    "FAISS Flat": Flat("Flat"),
    "FAISS SQfp16": Flat("SQfp16"),
    "hnswlib": Hnswlib(),
    "usearch": Usearch(),
}


def settled(of: Collection, recall: float, search: Search, set_effort: Callable[[int], None]) -> Search:
    """The search with the least effort that reaches a recall on the first half of the queries."""
    for effort in (16, 32, 64, 128, 256, 512, 1024, 2048):
        set_effort(effort)
        if of.recall(search, slice(QUERIES // 2)) >= recall:
            break
    return search


def child(options: argparse.Namespace) -> dict[str, Any]:
    """One step of one engine, in its own process."""
    faiss.omp_set_num_threads(options.threads)
    of, engine = Collection(options.folder), ENGINES[options.child[0]]
    before, resident = memory_mib("RssAnon"), memory_mib("VmRSS")
    start = time.perf_counter()
    if options.child[1] == "build":
        told = engine.build(of, options)
        return {
            "told": told,
            "build_s": time.perf_counter() - start,
            "build_mib": memory_mib("VmHWM") - resident,
        }
    search = engine.open(of, options)
    for query in of.queries[: QUERIES // 2]:
        search(query)
    taken = memory_mib("RssAnon") - before
    p50, p99 = of.milliseconds(search)
    recall = of.recall(search, slice(QUERIES // 2, None))
    return {"p50": p50, "p99": p99, "recall": recall, "mib": taken}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path, help="an index of real photos")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--recall", type=float, default=0.99)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--connectivity", type=int, default=16, help="M of hnswlib and usearch")
    parser.add_argument("--construction", type=int, default=100, help="their effort in building")
    parser.add_argument("--folder", type=Path, help="where descriptors and engines' files are, or are to be")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        options.folder.mkdir(parents=True, exist_ok=True)
        if not (options.folder / "slots.npy").exists():
            make(options.folder, options.index, options.count)
        found = {engine: steps(engine, options) for engine in options.engines}
    report(found, options)


def steps(engine: str, options: argparse.Namespace) -> dict[str, Any]:
    """Build and search in two processes; return both results."""
    found: dict[str, Any] = {}
    for step in ("build", "search"):
        command = [sys.executable, __file__, str(options.index), "--folder", str(options.folder)]
        for name in ("recall", "threads", "connectivity", "construction"):
            command += [f"--{name}", str(getattr(options, name))]
        command += ["--child", engine, step]
        run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found |= json.loads(run.stdout.splitlines()[-1])
    print(engine, found, file=sys.stderr, flush=True)
    return found


def report(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    print(f"{options.count:,} descriptors, {options.threads} threads\n")
    print(
        "| engine | build s | peak MiB of it | MiB once opened | p50 ms | p99 ms | recall@10 | p50 to loci |"
    )
    print("|---|---|---|---|---|---|---|---|")
    base = found.get("loci", {}).get("p50", float("nan"))
    for engine, of_it in found.items():
        build, search = (
            "{build_s:.0f} | {build_mib:,.0f}",
            "{mib:,.0f} | {p50:.2f} | {p99:.2f} | {recall:.4f}",
        )
        ratio = f"{of_it['p50'] / base:.1f}"
        cells = (f"{engine}: {of_it['told']}", build.format(**of_it), search.format(**of_it), ratio)
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
