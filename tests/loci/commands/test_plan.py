"""`loci plan`."""

import json
from collections.abc import Callable

import pytest
from typer.testing import Result

from indexer.build.plan import Pace

Loci = Callable[..., Result]


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.build.plan.measure_pace", lambda *_: Pace(4.0, 5e10))


def test_plan_of_a_million_photos(loci: Loci) -> None:
    result = loci("plan", "--photos", "1000000", "--within", "24", "--memory", "4G")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    speed = "69 h 26 min at 4.0 photos/s, the speed of this machine"
    assert lines[0].split(maxsplit=1) == ["embedding", speed]
    assert lines[1].split(maxsplit=1) == ["machines", "3 such machines to embed in that time (--workers)"]
    assert lines[2].startswith("building the search")
    assert lines[2].endswith(", IVF4096,RaBitQfs")
    found = dict(line.strip().split("  ", 1) for line in lines[3:])
    assert found["disk"].strip() == "36.0 GB, and 4.7 GB more until the model is fitted"
    assert found["descriptors"].strip() == "1.0 GB"
    assert found["memory"].strip().endswith("to serve it")


def test_as_json(loci: Loci) -> None:
    found = json.loads(loci("plan", "--photos", "1000", "--json").stdout)
    assert (found["photos"], found["embedding_s"], found["factory"]) == (1000, 250.0, "Flat")
    assert found["disk"] >= found["shards"] + found["local_features"]
    assert found["photos_per_second"] == 4.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--photos", "0"], "--photos must be at least 1, got 0"),
        (["--photos", "9", "--within", "0"], "--within must be above 0 hours"),
        (["--photos", "9", "--recall", "1.5"], "--recall must be above 0 and at most 1, got 1.5"),
        (["--photos", "9", "--memory", "lots"], "--memory must be a number of bytes such as 512M or 4G"),
        (["--photos", "9000000", "--memory", "1M"], "--memory is too small for 9,000,000 descriptors"),
    ],
)
def test_invalid_options_are_refused_before_measuring(
    loci: Loci, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.setattr("indexer.build.plan.measure_pace", lambda *_: pytest.fail("measured"))
    result = loci("plan", *arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
