"""Cost and gain of verification: the same queries with and without it.

    python -m benchmarks.accuracy.verification INDEX QUERIES [--truth FILE] [--frames N] [--photos 100]

Each photo is queried both ways in turns, with decoding and network.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from indexer.evaluation import compare, evaluate
from indexer.evaluation.queries import find_queries
from indexer.index import Index


def timed(index: Index, photo: Path, *, verify: bool) -> tuple[float, float]:
    """Milliseconds of a query, and of its verification."""
    start = time.perf_counter()
    answer = index.query(photo, verify=verify)
    return 1000 * (time.perf_counter() - start), answer.timings_ms.get("verify") or 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--frames", type=int)
    parser.add_argument("--photos", type=int, default=60, help="how many are timed")
    options = parser.parse_args()
    index = Index.open(options.index)
    files = find_queries(options.queries)
    photos = [file.path for file in files[:: max(1, len(files) // options.photos)]]
    timed(index, photos[0], verify=True)  # warm-up
    pairs = []
    for number, photo in enumerate(photos):
        turns = (False, True) if number % 2 else (True, False)
        took = {verify: timed(index, photo, verify=verify) for verify in turns}
        pairs.append((took[False][0], took[True][0], took[True][1]))
    without, with_it, alone = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b, _ in pairs)
    print(
        f"{len(photos)} photos, medians: {without:.0f} ms without, {with_it:.0f} ms with, ratio {ratio:.2f};"
    )
    print(f"verification alone {alone:.0f} ms")
    told = {"truth": options.truth, "frames": options.frames}
    plain, verified = (evaluate(index, options.queries, **told, verify=verify) for verify in (False, True))
    found = compare(verified, plain, options.index).differences["1"]
    low, high = found.low, found.high
    print(f"recall@1 {plain.recall['1']:.3f} without, {verified.recall['1']:.3f} with: ", end="")
    print(f"{found.difference:+.3f} (95 %: {low:+.3f} to {high:+.3f})")


if __name__ == "__main__":
    main()
