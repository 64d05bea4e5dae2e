"""`loci index` and `loci remove`."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loci.console import count, duration, facts, note, say, say_json
from loci.exit_codes import Interrupted, SomeUnreadable
from loci.flags import with_flags
from loci.options import (
    MODEL,
    PHOTOS,
    SEARCH,
    ClustersOption,
    DeviceOption,
    DimOption,
    GhostsOption,
    HnswOption,
    ImageSizeOption,
    IndexArgument,
    JsonFlag,
    MemoryOption,
    MetadataOption,
    NetvladVersionOption,
    PanoramasOption,
    PhotosArgument,
    PlacesOption,
    PoolingOption,
    PrecisionOption,
    RecallOption,
    VladNormalisationOption,
    WeightsOption,
    command_line,
    option,
)
from loci.progress import pace, showing_progress

if TYPE_CHECKING:
    from indexer.build.report import BuildReport


def index(
    photos: PhotosArgument,
    into: Annotated[Path, option("The folder of the index, new or existing.", "INDEX", show_default=False)],
    metadata: MetadataOption = None,
    places: PlacesOption = None,
    place_radius: Annotated[
        float | None, option("Radius of a place, from its middle photo. [default: 25]", "METRES", PHOTOS)
    ] = None,
    panoramas: PanoramasOption = None,
    prune: Annotated[
        bool,
        option("Drop photos that have vanished, even if they are many.", None, PHOTOS, "--prune"),
    ] = False,
    rehash: Annotated[
        bool,
        option("Read files again even if size and time are unchanged.", None, PHOTOS, "--rehash"),
    ] = False,
    weights: WeightsOption = None,
    pooling: PoolingOption = None,
    layers: Annotated[
        str | None,
        option(
            "Layers that netvlad, vlad and ghostvlad pool: conv4_3+conv5_3 (half of the clusters each) or "
            "conv5_3. [default: conv4_3+conv5_3]",
            "NAMES",
            MODEL,
        ),
    ] = None,
    clusters: ClustersOption = None,
    ghosts: GhostsOption = None,
    netvlad_version: NetvladVersionOption = None,
    vlad_normalisation: VladNormalisationOption = None,
    dim: DimOption = None,
    image_size: ImageSizeOption = None,
    min_image_size: Annotated[
        int | None,
        option(
            "Longest side in pixels to which smaller photos are enlarged; 0 leaves them. [default: 256]",
            "PIXELS",
            MODEL,
        ),
    ] = None,
    local_features: Annotated[
        int | None,
        option(
            "Local features kept of each photo to verify answers, 68 bytes each; 0: none. [default: 500]",
            "N",
            MODEL,
        ),
    ] = None,
    seed: Annotated[int | None, option("Random seed. [default: 0]", "S", MODEL)] = None,
    refit: Annotated[
        bool, option("Fit the model again and embed all photos again.", None, MODEL, "--refit")
    ] = False,
    memory: MemoryOption = None,
    recall: RecallOption = None,
    hnsw: HnswOption = None,
    store: Annotated[
        str | None,
        option(
            "Also send snapshots to Milvus: milvus://HOST[:PORT][/NAME] or milvus:FILE.db; faiss stops that.",
            "ADDRESS",
            SEARCH,
        ),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    batch_size: Annotated[int | None, option("Photos in a batch. [default: by device]", "B")] = None,
    workers: Annotated[
        str | None,
        option("Embed on a Ray cluster: ray://HOST:PORT, or ray://local for this machine.", "ADDRESS"),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make or update an index of photos.

    Run it again when photos change. The options of the model are kept with the index. An interrupted run
    resumes when the same command is given again. Exit code 3: some photos could not be read.
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
        hnsw=hnsw,
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
    """Remove photos from an index.

    Their files stay. Later runs do not add the photos again.
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
        raise Interrupted("interrupted; run the same command again to resume") from None


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
        say(f"  {with_flags(remark)}")
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
