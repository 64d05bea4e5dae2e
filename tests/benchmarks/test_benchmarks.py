"""Every benchmark starts, and RESULTS.md names only benchmarks that exist."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common import DescriptorSource, median_seconds, memory_mib, unit

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "benchmarks").glob("*/*.py") if path.name != "__init__.py")


def module(script: Path) -> str:
    return ".".join(script.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("script", SCRIPTS, ids=module)
def test_help_of_every_benchmark(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module(script), run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_results_name_existing_benchmarks() -> None:
    quoted = re.findall(r"python -m (benchmarks\.[\w.]+)", (ROOT / "benchmarks/RESULTS.md").read_text())
    assert set(quoted) == {module(script) for script in SCRIPTS}


def test_benchmarks_import_only_common_of_each_other() -> None:
    for script in SCRIPTS:
        imported = re.findall(r"^from (benchmarks\S*) import", script.read_text(), re.MULTILINE)
        assert set(imported) <= {"benchmarks.common"}, script


def test_median_leaves_out_the_first_round() -> None:
    calls: list[str] = []
    times = median_seconds({"one": lambda: calls.append("one"), "two": lambda: calls.append("two")}, 2)
    assert calls == ["one", "two"] * 3
    assert set(times) == {"one", "two"}


def test_drawn_descriptors_have_length_one() -> None:
    generator = np.random.default_rng(0)
    source = DescriptorSource(unit(generator.standard_normal((20, 8)).astype(np.float32)))
    drawn = source.draw(5, generator)
    assert drawn.shape == (5, 8)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1, atol=1e-6)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_of_this_process() -> None:
    assert memory_mib("VmHWM") >= memory_mib("VmRSS") > 10
