"""`loci check`: read every byte of an index and report problems."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from indexer.errors import IndexerError
from indexer.options import load_options
from indexer.snapshots.manifest import Manifest, read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.files import sha256_of
from indexer.storage.layout import Layout, generation_of
from indexer.storage.local_shards import read_local
from indexer.storage.shards import read_slots
from model.errors import ModelError
from model.modelfile import load_model

LENGTH_TOLERANCE = 0.01  # of fp16 descriptors, whose length is 1


def check_index(path: Path) -> list[str]:
    """Read every byte of an index, and return its problems, one sentence each.

    Checks the pages of the catalogue, the fingerprint of the model, the digests of the snapshot, that every
    descriptor is in its shard and has length 1, and that the files of POSTed photos have the right digests.
    If there is a problem, the next run checks everything, too.

    Raises:
        IndexMissing: there is no index.
        FormatTooNew: a newer version wrote the index.
    """
    layout = Layout(path)
    manifest = read_manifest(layout, layout.current())
    with closing(Catalogue(path)) as catalogue:
        integrity = catalogue.integrity()
        problems = [
            *([] if integrity == "ok" else [f"the catalogue is damaged: {integrity}"]),
            *_model_problems(layout, manifest),
            *manifest.files.problems(layout.snapshot(manifest.snapshot)),
            *_descriptor_problems(layout, catalogue, manifest),
            *_local_problems(layout, catalogue, manifest),
            *(_stored_problems(catalogue) if integrity == "ok" else []),
        ]
        if problems:
            layout.mark_damaged()
        return problems


def _model_problems(layout: Layout, manifest: Manifest) -> list[str]:
    path = layout.model(generation_of(manifest.snapshot))
    try:
        fingerprint = load_model(path).fingerprint
    except ModelError as error:
        return [str(error)]
    if fingerprint != manifest.model:
        return [f"the model file {path} is {fingerprint}, but the snapshot was made by {manifest.model}"]
    return []


def _descriptor_problems(layout: Layout, catalogue: Catalogue, manifest: Manifest) -> list[str]:
    generation = generation_of(manifest.snapshot)
    problems = []
    bad = 0
    try:
        live = catalogue.live_descriptors(generation)
        for block in read_slots(layout.shards(generation), [slot for *_, slot in live], manifest.dim):
            lengths = np.linalg.norm(block, axis=1)
            bad += int((~(np.abs(lengths - 1) < LENGTH_TOLERANCE)).sum())
    except IndexerError as error:
        problems.append(f"the descriptors cannot be read: {error}")
    if bad:
        problems.append(
            f"{bad} descriptors do not have length 1: run 'loci index' with `refit` to make them again"
        )
    return problems


def _local_problems(layout: Layout, catalogue: Catalogue, manifest: Manifest) -> list[str]:
    generation = generation_of(manifest.snapshot)
    if not load_options(layout.options(generation)).fit.local_features:
        return []
    try:
        slots = [slot for *_, slot in catalogue.live_descriptors(generation)]
    except IndexerError:  # it is among the problems of the descriptors
        return []
    try:
        missing = sum(local is None for local in read_local(layout.local(generation), slots))
    except IndexerError as error:
        return [str(error)]
    if not missing:
        return []
    return [
        f"{missing} descriptors have no local features, so their photos are not verified: run 'loci index' "
        "with `refit` to make them again"
    ]


def _stored_problems(catalogue: Catalogue) -> list[str]:
    problems = []
    for photo, name in catalogue.stored().items():
        path = catalogue.folder / name
        if not path.is_file():
            problems.append(f"the file {path} of the POSTed photo {photo} is missing: POST it again")
        elif sha256_of(path) != path.stem:
            problems.append(f"the file {path} of the POSTed photo {photo} is damaged: POST it again")
    return problems
