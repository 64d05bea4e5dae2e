"""`loci export`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from loci.console import count, note
from loci.options import IndexArgument, at_least

Format = Literal["geojson", "csv", "numpy", "hloc", "colmap", "kapture"]


def export(
    index: IndexArgument,
    format: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="geojson, csv: photos and positions, readable by --metadata; numpy: descriptors as .npz; "
            "hloc, kapture: pairs of similar photos; colmap: lists of images and positions.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The file to write. [default: stdout]"),
    ] = None,
    neighbours: Annotated[
        int,
        typer.Option(metavar="N", callback=at_least(1), help="Pairs for each photo, for hloc and kapture."),
    ] = 20,
) -> None:
    """Export an index to other formats."""
    from indexer.export.write import export as write
    from indexer.index import Index

    if output is None and format == "numpy" and sys.stdout.isatty():
        raise typer.BadParameter("numpy arrays cannot be shown on a terminal: add --output FILE")
    opened = Index.open(index, device="cpu")
    photos, (ids, descriptors) = opened.photos(), opened.descriptors()
    target = output or sys.stdout.buffer
    done = write(photos, ids, descriptors, format, target, neighbours=neighbours)
    sys.stdout.flush()
    for file in done.files:
        note(f"wrote {file}: {count(done.photos, 'photo')}")
    for path in done.left_out:
        note(f"left out {path}: {format} cannot hold such a name")
