"""Rebuilding: the next snapshot from the catalogue, without scanning folders or embedding photos."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from indexer.build.compact import compact
from indexer.build.publish import publish
from indexer.milvus.sync import send
from indexer.options import load_options
from indexer.snapshots.manifest import Manifest, read_manifest
from indexer.storage.catalogue import Catalogue
from indexer.storage.folder import os_errors_explained
from indexer.storage.layout import Layout, generation_of
from indexer.storage.lock import write_lock
from indexer.storage.stored_files import sweep


def rebuild(index: Path) -> Manifest:
    """Publish a snapshot that contains all changes since the last one.

    Raises:
        IndexLocked: a run is writing to the index, and will publish a snapshot itself.
        IndexerError: no photo is left, or the disk cannot be written. The last snapshot keeps answering.
    """
    layout = Layout(index)
    with os_errors_explained(index), write_lock(index):
        manifest = read_manifest(layout, layout.current())
        with closing(Catalogue(index, create=True)) as catalogue:
            sweep(catalogue)
            return republish(layout, catalogue, manifest)


def republish(layout: Layout, catalogue: Catalogue, manifest: Manifest) -> Manifest:
    """Compact the shards of the current generation, and publish its next snapshot."""
    generation = generation_of(manifest.snapshot)
    compact(layout, catalogue, generation, manifest.dim)
    options = load_options(layout.options(generation))
    model, dim = manifest.model, manifest.dim
    made = publish(layout, catalogue, generation, model, dim, options.places, search=options.search)
    if options.search.store is not None:
        send(layout, catalogue, made, options.search.store, options.search.recall)
    return made
