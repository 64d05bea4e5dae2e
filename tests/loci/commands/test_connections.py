"""`loci connections`."""

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

Loci = Callable[..., Result]


def test_connections_are_compared(loci: Loci) -> None:
    result = loci(
        *("connections", "--input", "2x9x7", "--outputs", 3, "--kernel", 3),
        *("--stride", 2, "--padding", 1, "--tile", 2),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    first, heading, _rule, *rows = result.stdout.splitlines()
    assert first == "2×9×7 to 3 channels, kernel 3×3, stride 2, padding 1, tiles of 2×2"
    assert heading.split() == [
        *("connection", "weights", "biases", "multiplies"),
        *("receptive", "field", "output"),
    ]
    assert [row.split() for row in rows] == [
        ["full", "7,560", "60", "7,560", "9×7", "3×5×4"],
        ["local", "1,080", "60", "1,080", "3×3", "3×5×4"],
        ["tiled", "216", "12", "1,080", "3×3", "3×5×4"],
        ["convolution", "54", "3", "1,080", "3×3", "3×5×4"],
    ]


def test_json(loci: Loci) -> None:
    result = loci("connections", "--input", "2X9×7", "--outputs", 3, "--kernel", 3, "--json")
    assert result.exit_code == 0
    (layer,) = json.loads(result.stdout)
    compared = layer.pop("connections")
    assert layer == {
        "name": None,
        "input": [2, 9, 7],
        "outputs": 3,
        "kernel": 3,
        "stride": 1,
        "padding": 0,
        "tile": 2,
    }
    assert [row["kind"] for row in compared] == ["full", "local", "tiled", "convolution"]
    assert compared[1] == {
        "kind": "local",
        "weights": 35 * 3 * 18,
        "biases": 35 * 3,
        "multiplies": 35 * 3 * 18,
        "receptive_field": [3, 3],
        "output": [3, 7, 5],
    }


def test_deepface(loci: Loci) -> None:
    lines = loci("connections", "--deepface").stdout.splitlines()
    assert [line for line in lines if ": " in line] == [
        "L4: 16×63×63 to 16 channels, kernel 9×9, stride 1, tiles of 2×2",
        "L5: 16×55×55 to 16 channels, kernel 7×7, stride 2, tiles of 2×2",
        "L6: 16×25×25 to 16 channels, kernel 5×5, stride 1, tiles of 2×2",
    ]
    local = [line.split()[1] for line in lines if line.startswith("local")]
    assert local == ["62,726,400", "7,840,000", "2,822,400"]
    layers = json.loads(loci("connections", "--deepface", "--tile", 3, "--json").stdout)
    assert [(layer["name"], layer["tile"]) for layer in layers] == [("L4", 3), ("L5", 3), ("L6", 3)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--input", "16x63"],
            "Invalid value for '--input': expected channels, height and width like 16x63x63, not '16x63'; "
            "see loci connections --help",
        ),
        (
            ["--input", "16x-6x6"],
            "Invalid value for '--input': expected channels, height and width like 16x63x63, "
            "not '16x-6x6'; see loci connections --help",
        ),
        (
            ["--stride", "0"],
            "Invalid value for '--stride': it must be at least 1, not 0; see loci connections --help",
        ),
        (
            ["--input", "1x5x5"],
            "FullyConnected's kernel (9, 9) is larger than its input: in_size (5, 5) with a padding of 0",
        ),
        (
            ["--input", "0x9x9"],
            "FullyConnected needs channels, sizes, kernel, stride and tile of at least 1 and a padding of at "
            "least 0, got 0 → 16 channels, in_size (9, 9), kernel (9, 9), stride 1, tile 2, padding 0",
        ),
        (
            ["--input", "16x999999x9999999999"],
            "these sizes are too large to count; use smaller ones",
        ),
    ],
)
def test_wrong_usage(loci: Loci, arguments: list[str], sentence: str) -> None:
    result = loci("connections", *arguments)
    assert result.exit_code == 2
    assert result.stderr == f"loci: {sentence}\n"
    assert result.stdout == ""
