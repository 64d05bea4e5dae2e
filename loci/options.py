"""Options that several commands share, and checks of their values."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

PHOTOS, MODEL, SEARCH = "Photos", "Model", "Search"


def option(help: str, metavar: str | None = None, panel: str | None = None, *names: str, **more: Any) -> Any:
    """Return a typer option; its name is the parameter's if `names` are not given."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=panel, **more)


def at_least(least: float) -> Callable[[float], float]:
    """Return a check of an option's value (typer's own check shows its bounds as `x>=1` in the help)."""

    def check(value: float) -> float:
        if not value >= least:
            raise typer.BadParameter(f"it must be at least {least}, not {value}")
        return value

    return check


def check_port(value: int | None) -> int | None:
    """Check a port."""
    if value is not None and not 0 <= value <= 65535:
        raise typer.BadParameter(f"a port is 0 to 65535, not {value}")
    return value


def check_share(value: float | None) -> float | None:
    """Check a share that is neither 0 nor 1."""
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"it must lie between 0 and 1, not {value}")
    return value


Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
TrainPrecision = Literal["auto", "fp32", "bf16", "fp16"]
"""A network that learns needs gradients, and 8 bits are too few for them."""

PhotosArgument = Annotated[
    list[Path], typer.Argument(metavar="PHOTOS", help="Folders of photos, or photos.", show_default=False)
]
IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="The index's folder.")]
IndexOption = Annotated[Path, option("The index's folder.", "INDEX", None, "--index")]
ModelOption = Annotated[
    Path | None, option("The model file; needed if INDEX is milvus://HOST/NAME.", "FILE", None, "--model")
]
JsonFlag = Annotated[bool, option("Print the result as JSON.", None, None, "--json")]
DeviceOption = Annotated[
    str, option("Device for the network: auto (a GPU if there is one), cpu, cuda, cuda:1 …", "NAME")
]
PrecisionOption = Annotated[
    Precision,
    option(
        "Number format of the network: auto (the fastest safe one), fp32, bf16, fp16, int8 (CPU).", "FORMAT"
    ),
]
TrainPrecisionOption = Annotated[
    TrainPrecision,
    option("Number format of the network: auto (the fastest safe one), fp32, bf16, fp16.", "FORMAT"),
]
KnownShareOption = Annotated[
    float,
    option(
        "Share of queries that show a place in the index; confidence depends on it.",
        "SHARE",
        callback=check_share,
    ),
]
VerifyOption = Annotated[
    bool,
    option(
        "Compare the nearest photos again by local features, if the index keeps them.",
        None,
        None,
        "--verify/--no-verify",
    ),
]

# How an index or a model is made

MetadataOption = Annotated[
    Path | None,
    option("CSV or GeoJSON with lat, lon, heading, taken_at or place for each path or file.", "FILE", PHOTOS),
]
PlacesOption = Annotated[
    str | None,
    option(
        "What makes a place: gps, folder, frames:N (N neighbours by name), photo, or auto: gps if photos "
        "have positions, else the metadata's place. [default: auto]",
        "HOW",
        PHOTOS,
    ),
]
WeightsOption = Annotated[
    str | None,
    option("imagenet, a name from 'loci weights list', or a model file. [default: imagenet]", "NAME", MODEL),
]
PoolingOption = Annotated[
    str | None,
    option(
        "Pooling of local descriptors: netvlad, vlad, ghostvlad, average, gem. [default: netvlad]",
        "NAME",
        MODEL,
    ),
]
ClustersOption = Annotated[
    int | None, option("Clusters of netvlad, vlad and ghostvlad. [default: 64]", "K", MODEL)
]
GhostsOption = Annotated[
    int | None, option("Ghost clusters of ghostvlad, left out of the descriptor. [default: 8]", "G", MODEL)
]
NetvladVersionOption = Annotated[
    int | None,
    option(
        "NetVLAD's assignment: 1, by direction, as published; 2, by distance, with a bias. [default: 1]",
        "V",
        MODEL,
    ),
]
VladNormalisationOption = Annotated[
    str | None,
    option(
        "Normalisation of vlad: intra (each cluster), ssr (signed square root), none. [default: intra]",
        "HOW",
        MODEL,
    ),
]
DimOption = Annotated[int | None, option("Most dimensions of a descriptor. [default: 512]", "D", MODEL)]
ImageSizeOption = Annotated[
    int | None, option("Longest side in pixels; larger photos are shrunk. [default: 640]", "PIXELS", MODEL)
]
PanoramasOption = Annotated[int | None, option("Cut each 360° photo into N views.", "N", PHOTOS)]
MemoryOption = Annotated[
    str | None,
    option(
        "Memory that a search may use, such as 512M or 4G. [default: half of this machine's]", "BYTES", SEARCH
    ),
]
RecallOption = Annotated[
    float | None,
    option(
        "Recall that a search must reach: the share of the true nearest photos that it finds; 1 compares all "
        "photos. [default: 0.99]",
        "R",
        SEARCH,
    ),
]
HnswOption = Annotated[
    bool | None,
    option(
        "Search a large index by an HNSW graph: several times as fast, for several times the memory and a "
        "longer build. [default: no]",
        None,
        SEARCH,
        "--hnsw/--no-hnsw",
    ),
]


def command_line(*words: object) -> str:
    """Return a command to type, each word quoted if the shell needs it."""
    return shlex.join(str(word) for word in words)
