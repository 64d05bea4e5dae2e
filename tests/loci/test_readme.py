"""What the README shows works as it is shown."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer.main

from loci.main import app

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def shown_commands() -> list[str]:
    """The `loci …` lines of all shell blocks, continued lines joined, without comments."""
    text = "\n".join(block for language in ("sh", "bash", "console", "") for block in blocks(language))
    lines = text.replace("\\\n", " ").splitlines()
    matches = [re.match(r"(?:\$ )?(?:scripts/)?loci (?P<rest>[^#|>]*)", line.strip()) for line in lines]
    return sorted({match["rest"].strip() for match in matches if match})


def test_the_readme_shows_python_and_commands() -> None:
    assert any("from loci import Index" in block for block in blocks("python"))
    assert len(shown_commands()) >= 3


@pytest.mark.parametrize("line", shown_commands())
def test_commands_exist_with_the_options_shown(line: str) -> None:
    name, *arguments = shlex.split(line)
    group: Any = typer.main.get_command(app)
    assert name in group.commands
    group.commands[name].make_context(name, arguments)


def test_the_python_example_runs_as_shown(
    index: Path, question: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = (block for block in blocks("python") if "from loci import Index" in block)
    monkeypatch.chdir(tmp_path)
    (opened,) = re.findall(r'Index\.open\("([^"]+)"', example)
    (asked,) = re.findall(r'\.query\("([^"]+)"', example)
    shutil.copytree(index, tmp_path / opened)
    shutil.copy(question, tmp_path / asked)
    names: dict[str, Any] = {}
    exec(compile(example, str(README), "exec"), names)
    answers = [value for value in names.values() if type(value).__name__ == "Answer"]
    assert [answer.places[0].photos[0].path for answer in answers] == ["photos/wall2/view1.jpg"]
