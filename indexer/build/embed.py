"""Embedding of pending photos: descriptors and local features are written to shards and to the catalogue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from indexer.build.fit import GenerationRun, Pending, sample_order
from indexer.storage.local_shards import write_local
from indexer.storage.shards import RUN, ShardWriter
from model.embedder import Embedded, Seen
from model.layers.local_features import Packed

SPOOLED_BATCH = 64


def embed_pending(run: GenerationRun) -> int:
    """Embed all pending photos of a generation, and return how many now have descriptors.

    Photos whose unreduced descriptors are in the spool come first. They only need to be reduced.
    """
    writer = ShardWriter(
        run.layout.shards(run.generation),
        run.embedder.model.config.output_dim,
        run.catalogue.last_slot(run.generation, RUN),
    )
    pending = sample_order(run.catalogue.pending(run.generation), run.options.seed)
    spooled = [photo for photo in pending if run.spool.has("pooled", photo[0])]
    rest = [photo for photo in pending if not run.spool.has("pooled", photo[0])]
    stored = sum(_store(run, writer, batch) for batch in _reduced(run, spooled))
    run.progress.stage("embedding", len(rest))
    for batch in run.embedder.stream(rest, run.reader):
        stored += _store(run, writer, batch)
        run.progress.advance(len(batch))
    return stored


def _reduced(run: GenerationRun, photos: Sequence[Pending]) -> Iterator[list[Embedded[Pending]]]:
    for start in range(0, len(photos), SPOOLED_BATCH):
        batch = []
        for photo in photos[start : start + SPOOLED_BATCH]:
            whole = torch.from_numpy(run.spool.get("pooled", photo[0])[:, 0])  # V K·D
            with torch.inference_mode():
                descriptors = run.embedder.model.reduce(whole).numpy()
            local: Sequence[Packed | None] = [None] * len(descriptors)
            if run.spool.has("local", photo[0]):
                local = run.spool.get_local(photo[0])
            batch.append(Embedded(photo, tuple(map(Seen, descriptors, local))))
        yield batch


def _store(run: GenerationRun, writer: ShardWriter, batch: Sequence[Embedded[Pending]]) -> int:
    rows = [
        (embedded.item[0], view, yaw, seen)
        for embedded in batch
        for view, (seen, yaw) in enumerate(
            zip(embedded.seen, run.reader.yaws(len(embedded.seen)), strict=True)
        )
    ]
    if rows:
        slots = writer.append(np.stack([row[3].descriptor for row in rows]))
        write_local(run.layout.local(run.generation), slots, [row[3].local for row in rows])
        run.catalogue.add_descriptors(
            run.generation, [(*row[:3], slot) for row, slot in zip(rows, slots, strict=True)]
        )
    failed = [embedded for embedded in batch if embedded.error is not None]
    with run.catalogue.transaction() as db:
        for embedded in failed:
            run.catalogue.set_failed(db, embedded.item[0], str(embedded.error))
    return len(batch) - len(failed)
