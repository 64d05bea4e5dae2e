"""Options that several commands share."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer


def at_least(least: float) -> Callable[[float], float]:
    """Give a check for an option's value (typer's own shows its bounds as `x>=1` in the help)."""

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


Precision = Literal["auto", "fp32", "bf16", "fp16", "int8"]

IndexArgument = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder that holds the index.")]
IndexOption = Annotated[
    Path, typer.Option("--index", metavar="INDEX", help="The folder that holds the index.")
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        metavar="FILE",
        help="The model file, where INDEX is milvus://HOST/NAME and no folder.",
    ),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Where the network runs: cpu, cuda, cuda:1 …; auto takes a GPU where there is one.",
    ),
]
TrainPrecision = Literal["auto", "fp32", "bf16", "fp16"]
"""A network that learns has gradients, for which 8 bits are too few."""
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        "--precision",
        metavar="FORMAT",
        help="Number format of the network: auto (the fastest safe one), fp32, bf16, fp16, or int8 (CPUs).",
    ),
]


def check_share(value: float | None) -> float | None:
    """Check a share that is neither none nor all."""
    if value is not None and not 0 < value < 1:
        raise typer.BadParameter(f"it must lie between 0 and 1, not {value}")
    return value


KnownShareOption = Annotated[
    float,
    typer.Option(
        "--known-share",
        metavar="SHARE",
        callback=check_share,
        help="Share of the photos asked about that show a place of the index: confidence holds for it.",
    ),
]


VerifyOption = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Look at the nearest photos once more, by their local features, where the index keeps them.",
    ),
]


def command_line(*words: object) -> str:
    """Give a command to type, each word quoted where the shell needs it."""
    return shlex.join(str(word) for word in words)
