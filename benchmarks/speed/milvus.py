"""Answers from an index's folder and from Milvus: equality and cost.

    loci index ../shared/data/cambridge-street/database --into cambridge --image-size 320
    python -m benchmarks.speed.milvus cambridge ../shared/data/cambridge-street/queries milvus:file.db
    python -m benchmarks.speed.milvus cambridge ../shared/data/cambridge-street/queries milvus://127.0.0.1:19530/bench

The snapshot is sent to Milvus. Then each query is embedded once and runs on both, with and without
verification, and with filters. Answers are compared whole. Search and verification are timed, in turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np

from indexer.filters import Filters
from indexer.index import Index
from indexer.milvus.sync import send
from indexer.options import RECALL
from indexer.photos.scan import scan
from indexer.storage.layout import Layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("store")
    parser.add_argument("--most", type=int, default=1_000_000, help="queries")
    options = parser.parse_args()
    near, layout = Index.open(options.index), Layout(options.index)
    started = time.perf_counter()
    send(layout, near.catalogue, near.manifest, options.store, RECALL)
    print(f"{near.manifest.count} descriptors sent in {time.perf_counter() - started:.1f} s")
    model = layout.model(int(near.snapshot.split("/")[0]))
    far = Index.open(options.store, model=model)
    photos = [photo for photo in near.photos() if photo.lat is not None]
    middle = photos[len(photos) // 2]
    filters = {
        "no filter": None,
        "within 100 m": Filters(lat=middle.lat, lon=middle.lon, radius_m=100),
        "looking north": Filters(heading=0, heading_tolerance=45),
        "of one place": Filters(place=near.places()[0].id),
    }
    seen = [near.see(file.path) for file in scan([options.queries]).files[: options.most]]
    found = [
        len(
            {hit.id for hit in near.nearest(each.descriptor, 10)}
            & {hit.id for hit in far.nearest(each.descriptor, 10)}
        )
        for each in seen
    ]
    print(
        f"{far.manifest.factory}, ef {far.manifest.probes}: recall {far.manifest.recall} when it was sent, "
        f"{np.mean(found) / 10:.4f} by these queries"
    )
    print("| | answers | differ | ms here, p50 | ms there, p50 | ratio |\n|---|---|---|---|---|---|")
    for name, narrow in filters.items():
        for verify in (False, True):
            differ, taken = 0, {near: [], far: []}  # type: ignore[var-annotated]
            for each in seen:
                answers = []
                for index in (near, far):
                    started = time.perf_counter()
                    answer = index.answer(each, 5, filters=narrow, verify=verify, matched=verify)
                    taken[index].append(time.perf_counter() - started)
                    answers.append(dataclasses.replace(answer, timings_ms={}))
                differ += answers[0] != answers[1]
            here, there = (1000 * float(np.median(taken[index])) for index in (near, far))
            words = f"{name}, {'' if verify else 'not '}verified"
            print(
                f"| {words} | {len(seen)} | {differ} | {here:.1f} | {there:.1f} | {there / here:.2f} |",
                flush=True,
            )
    print(f"places equal: {near.places() == far.places()}, photos equal: {near.photos() == far.photos()}")


if __name__ == "__main__":
    main()
