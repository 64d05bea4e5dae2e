"""`loci index` and `loci remove`: what is in an index."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loci.console import count, duration, facts, note, say, say_json
from loci.exit_codes import Interrupted, SomeUnreadable
from loci.options import DeviceOption, IndexArgument, JsonFlag, PrecisionOption, command_line
from loci.progress import pace, showing_progress

if TYPE_CHECKING:
    from indexer.build.run import BuildReport

PHOTOS, MODEL = "The photos", "The model, fitted by the first run and kept from then on"
SEARCH = "The search"


def index(
    photos: Annotated[
        list[Path],
        typer.Argument(metavar="PHOTOS", help="Folders of photos, or photos.", show_default=False),
    ],
    into: Annotated[
        Path, typer.Option(metavar="INDEX", help="The folder to keep the index in.", show_default=False)
    ],
    metadata: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV or GeoJSON that gives lat, lon, heading, taken_at or place by path or file.",
            rich_help_panel=PHOTOS,
        ),
    ] = None,
    places: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="What makes a place: gps, folder, frames:N, photo, or auto: gps where photos have it.",
            rich_help_panel=PHOTOS,
        ),
    ] = None,
    place_radius: Annotated[
        float | None,
        typer.Option(
            metavar="METRES",
            help="How far from its middle a place reaches. [default: 25]",
            rich_help_panel=PHOTOS,
        ),
    ] = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Drop vanished photos even if they are many.", rich_help_panel=PHOTOS),
    ] = False,
    rehash: Annotated[
        bool,
        typer.Option(
            "--rehash", help="Read files again whose size and time are as before.", rich_help_panel=PHOTOS
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="imagenet, a name that 'loci weights list' knows, or a model file. [default: imagenet]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How local descriptors become one: netvlad, vlad, ghostvlad, average, gem. "
            "[default: netvlad]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="What netvlad, vlad and ghostvlad pool: conv4_3+conv5_3, half of the clusters each, or "
            "conv5_3 alone. [default: conv4_3+conv5_3]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Clusters of netvlad, vlad, ghostvlad. [default: 64]", rich_help_panel=MODEL
        ),
    ] = None,
    ghosts: Annotated[
        int | None,
        typer.Option(
            metavar="G",
            help="Clusters of ghostvlad that are left out of the descriptor. [default: 8]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    netvlad_version: Annotated[
        int | None,
        typer.Option(
            metavar="V",
            help="1: assigned by direction, as published; 2: by distance, with a bias. [default: 1]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    vlad_normalisation: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Of vlad: intra (each cluster), ssr (signed square root), none. [default: intra]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    dim: Annotated[
        int | None,
        typer.Option(
            metavar="D", help="Numbers in a descriptor, at most. [default: 512]", rich_help_panel=MODEL
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Longest side that larger photos are shrunk to. [default: 640]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    min_image_size: Annotated[
        int | None,
        typer.Option(
            metavar="PIXELS",
            help="Longest side that smaller photos are enlarged to; 0 leaves them. [default: 256]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    local_features: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Features kept of each photo to verify answers by, 68 bytes each; 0: none. [default: 500]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    panoramas: Annotated[
        int | None,
        typer.Option(metavar="N", help="Cut 360° photos into N views.", rich_help_panel=MODEL),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(metavar="S", help="Seed of the random choices. [default: 0]", rich_help_panel=MODEL),
    ] = None,
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Fit again, and embed every photo anew.", rich_help_panel=MODEL),
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="What a search may keep in memory, such as 512M or 4G. [default: half of the machine's]",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option(
            metavar="R",
            help="Share of the nearest photos that a search of a large index is to find; 1: all, however "
            "long it takes. [default: 0.99]",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    graph: Annotated[
        bool | None,
        typer.Option(
            "--graph/--no-graph",
            help="Search a large index by an HNSW graph: several times as fast, by several times the memory, "
            "and longer to build. [default: no]",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Send snapshots to Milvus, too: milvus://HOST[:PORT][/NAME], or milvus:FILE.db; "
            "faiss: no more.",
            rich_help_panel=SEARCH,
        ),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    batch_size: Annotated[
        int | None, typer.Option(metavar="B", help="Photos in a batch; by default as the device likes it.")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Embed on a Ray cluster: ray://HOST:PORT, or ray://local to try it.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make an index of photos, or bring it up to date.

    Run it again whenever the photos change; a run that was stopped goes on where it stopped. Exit code 3
    says that some photos could not be read.
    """
    from indexer.build.run import build_index
    from indexer.options import BuildOptions

    options = BuildOptions(
        dim=dim,
        clusters=clusters,
        image_size=image_size,
        min_image_size=min_image_size,
        local_features=local_features,
        panoramas=panoramas,
        weights=weights,
        pooling=pooling,
        layers=layers,
        ghosts=ghosts,
        netvlad_version=netvlad_version,
        vlad_normalisation=vlad_normalisation,
        seed=seed,
        places=places,
        place_radius_m=place_radius,
        memory=memory,
        recall=recall,
        hnsw=graph,
        store=store,
        device=device,
        precision=precision,
        batch_size=batch_size,
        workers=workers,
        metadata=metadata,
        refit=refit,
        rehash=rehash,
        prune=prune,
    )
    with _resumable(), showing_progress() as progress:
        report = build_index(photos, into, options, progress)
    if as_json:
        say_json({"index": str(into)} | asdict(report))
    else:
        print_report(report, into)
        note(f"Next: {command_line('loci', 'query', 'PHOTO', '--index', into)}")
    if report.failed:
        raise SomeUnreadable


def remove(
    index: IndexArgument,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Photos, by path, by the end of a path, or by id.")
    ],
    as_json: JsonFlag = False,
) -> None:
    """Take photos out of an index.

    The files stay, and the next run does not bring them back.
    """
    from indexer.build.run import remove_photos

    removed = remove_photos(index, paths)
    if as_json:
        say_json({"index": str(index), "removed": removed})
    else:
        for path in removed:
            say(f"removed {path}")


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("interrupted; the same command goes on where it stopped") from None


def print_report(report: "BuildReport", into: Path) -> None:
    """Print what an indexing run did, with every photo that could not be read."""
    say(f"{count(report.photos, 'photo')} in {into}")
    facts(
        [
            ("  changes", _changes(report)),
            ("  places", f"{report.places:,}"),
            ("  descriptors", report.reduction),
            ("  model", f"{report.model}, snapshot {report.snapshot}"),
            ("  time", _time(report)),
        ]
    )
    for remark in report.notes:
        say(f"  {remark}")
    if report.failed:
        say(f"{count(len(report.failed), 'photo')} could not be read:")
        for failure in report.failed:
            say(f"  {failure.path}: {failure.reason}")


def _changes(report: "BuildReport") -> str:
    names = ("added", "changed", "moved", "removed", "unchanged")
    return ", ".join(f"{getattr(report, name):,} {name}" for name in names)


def _time(report: "BuildReport") -> str:
    if not report.embedded:
        return duration(report.seconds)
    return f"{duration(report.seconds)}, {report.embedded:,} embedded, {pace(report.photos_per_second)}"
