"""`loci connections`: the cost of full, local, tiled and convolutional connections."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from loci.console import say, say_json, table
from loci.options import JsonFlag, at_least

COLUMNS = (
    ("connection", "left"),
    ("weights", "right"),
    ("biases", "right"),
    ("multiplies", "right"),
    ("receptive field", "right"),
    ("output", "right"),
)
COUNTABLE = 2**60
"""Most weights: PyTorch counts their bytes in 63 bits."""


@dataclass(frozen=True)
class Layer:
    """The sizes of two maps and of the connection between them."""

    name: str | None
    input: tuple[int, int, int]
    """Channels, height, width."""
    outputs: int
    kernel: int
    stride: int
    padding: int
    tile: int


def connections(
    input: Annotated[
        str, typer.Option(metavar="CxHxW", help="Channels, height and width of the input map.")
    ] = ("16x63x63"),
    outputs: Annotated[
        int, typer.Option(metavar="N", callback=at_least(1), help="Channels of the output map.")
    ] = 16,
    kernel: Annotated[
        int, typer.Option(metavar="N", callback=at_least(1), help="Kernel size in pixels.")
    ] = 9,
    stride: Annotated[int, typer.Option(metavar="N", callback=at_least(1), help="Stride in pixels.")] = 1,
    padding: Annotated[
        int, typer.Option(metavar="N", callback=at_least(0), help="Zero padding on each side.")
    ] = 0,
    tile: Annotated[
        int,
        typer.Option(metavar="N", callback=at_least(1), help="Kernels per side that the tiled kind repeats."),
    ] = 2,
    deepface: Annotated[
        bool, typer.Option("--deepface", help="Use the sizes of DeepFace's layers L4, L5 and L6.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare kinds of layer connections.

    For full, local, tiled and convolutional connections between two maps: weights, biases, multiplications
    for each image, receptive field and output size.
    """
    from indexer.errors import UsageError
    from model.errors import ModelError

    own = Layer(None, _parse(input), outputs, kernel, stride, padding, tile)
    if _most_weights(own) > COUNTABLE:
        raise UsageError("these sizes are too large to count; use smaller ones")
    layers = _deepface(tile) if deepface else [own]
    try:
        compared = [(layer, _compare(layer)) for layer in layers]
    except ModelError as error:
        raise UsageError(str(error)) from error
    if as_json:
        say_json([vars(layer) | {"connections": rows} for layer, rows in compared])
        return
    for i, (layer, rows) in enumerate(compared):
        if i:
            say("")
        say(_headline(layer))
        table(COLUMNS, [_row(row) for row in rows])


def _compare(layer: Layer) -> list[dict[str, Any]]:
    """Return the cost of each kind, from sizes alone: no weights are allocated."""
    import torch

    from model.layers.connections import CONNECTIONS, build_connection

    rows = []
    channels, *size = layer.input
    for kind in CONNECTIONS:
        with torch.device("meta"):
            made = build_connection(
                *(kind, channels, layer.outputs, (size[0], size[1]), layer.kernel),
                stride=layer.stride,
                padding=layer.padding,
                tile=layer.tile,
            )
        rows.append(
            {
                "kind": kind,
                "weights": made.weights,
                "biases": made.biases,
                "multiplies": made.multiplies,
                "receptive_field": list(made.receptive_field),
                "output": [layer.outputs, *made.output_size],
            }
        )
    return rows


def _most_weights(layer: Layer) -> int:
    """Return an upper bound for all kinds: the padded input times an output of the same size."""
    channels, height, width = layer.input
    padded = (height + 2 * layer.padding) * (width + 2 * layer.padding)
    return channels * padded * layer.outputs * padded


def _deepface(tile: int) -> list[Layer]:
    from model.layers.deepface import LOCAL_LAYERS, MAPS

    return [
        Layer(name, (MAPS, size, size), MAPS, kernel, stride, 0, tile)
        for name, (size, kernel, stride) in LOCAL_LAYERS.items()
    ]


def _parse(text: str) -> tuple[int, int, int]:
    """Parse `16x63x63`."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 3 or not all(map(_is_number, parts)):
        raise typer.BadParameter(
            f"expected channels, height and width like 16x63x63, not {text!r}", param_hint="'--input'"
        )
    channels, height, width = map(int, parts)
    return channels, height, width


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _headline(layer: Layer) -> str:
    name = "" if layer.name is None else f"{layer.name}: "
    padding = f", padding {layer.padding}" if layer.padding else ""
    return (
        f"{name}{_times(layer.input)} to {layer.outputs} channels, "
        f"kernel {layer.kernel}×{layer.kernel}, stride {layer.stride}{padding}, "
        f"tiles of {layer.tile}×{layer.tile}"
    )


def _row(row: dict[str, Any]) -> Sequence[object]:
    numbers = (f"{row[name]:,}" for name in ("weights", "biases", "multiplies"))
    return row["kind"], *numbers, _times(row["receptive_field"]), _times(row["output"])


def _times(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
