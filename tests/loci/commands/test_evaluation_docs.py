"""What docs/evaluation.md shows works as it is shown."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

DOCS = Path(__file__).parents[3] / "docs" / "evaluation.md"
COMMANDS = re.findall(r"^loci (.+)$", DOCS.read_text(encoding="utf-8"), re.MULTILINE)

Loci = Callable[..., Result]


@pytest.fixture
def folder(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photograph: Any) -> Path:
    """Where the examples are run: an index, a copy of it as another, and queries."""
    shutil.copytree(index, tmp_path / "my-index")
    shutil.copytree(index, tmp_path / "other-index")
    for wall in range(2):
        photograph(tmp_path / "queries" / f"{wall}.jpg", wall, 1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_runs(loci: Loci, folder: Path, line: str) -> None:
    result = loci(*shlex.split(line))
    assert result.exit_code == 0, result.stderr
    for name in re.findall(r"--(?:report|per-query) (\S+)", line):
        assert (folder / name).stat().st_size > 0


def test_every_key_is_explained(loci: Loci, folder: Path) -> None:
    assert folder.is_dir()
    values = json.loads(
        loci("evaluate", "queries", "--index", "my-index", "--compare", "other-index", "--json").stdout
    )
    table = DOCS.read_text(encoding="utf-8").split("| key |")[1].split("\n\n")[0]
    explained = {key for row in table.splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert set(values) == explained


def test_the_python_example_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = re.findall(
        r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    exec(compile(example, str(DOCS), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1.0 1.0 {'queries': 2, 'p25': ")
    assert lines[1] == "[]"
    assert "<title>My index</title>" in (folder / "report.html").read_text(encoding="utf-8")
