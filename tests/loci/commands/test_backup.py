"""`loci backup` and `loci restore`: files and pipes, what is said, how it ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

Loci = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[3]


def test_backup_is_restored(loci: Loci, own_index: Path, question: Path, tmp_path: Path) -> None:
    assert loci("keys", "create", "robot", "--index", own_index).exit_code == 0
    saved = loci("backup", own_index, "--output", tmp_path / "saved.tar")
    size = (tmp_path / "saved.tar").stat().st_size
    assert (saved.exit_code, saved.stdout) == (0, "")
    assert saved.stderr == f"backed up 16 photos, snapshot 01/000001: {size / 1e6:.1f} MB\n"
    restored = loci("restore", tmp_path / "saved.tar", "--into", tmp_path / "back")
    assert (restored.exit_code, restored.stdout) == (0, "")
    assert restored.stderr == f"restored 16 photos, snapshot 01/000001, in {tmp_path / 'back'}\n"
    assert loci("check", tmp_path / "back").stdout == f"{tmp_path / 'back'} is sound.\n"
    answers = [
        json.loads(loci("query", question, "--index", index, "--json").stdout)[0]["places"]
        for index in (own_index, tmp_path / "back")
    ]
    assert answers[0] == answers[1]
    assert loci("keys", "list", "--index", tmp_path / "back").stdout.splitlines()[-1].startswith("robot")


@pytest.mark.slow
def test_backup_through_a_pipe(real_index: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    loci = [sys.executable, "-m", "loci"]
    backup = [*loci, "backup", str(real_index)]
    with subprocess.Popen(backup, stdout=subprocess.PIPE, env=environment) as writing:
        command = [*loci, "restore", "-", "--into", str(tmp_path / "back")]
        reading = subprocess.run(command, stdin=writing.stdout, env=environment, timeout=300, check=False)
    assert (writing.returncode, reading.returncode) == (0, 0)
    assert (tmp_path / "back/CURRENT").read_text() == "01/000001\n"


@pytest.mark.slow
def test_closed_reader_is_one_sentence(process: Process, real_index: Path) -> None:
    code = (
        "import os, sys; r, w = os.pipe(); os.close(r); os.dup2(w, 1); sys.argv[1:1] = ['backup']; "
        "from loci.main import main; main()"
    )
    ended = process(real_index, code=code)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "loci: cannot write to the output: Broken pipe"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("backup", "nowhere"), 1, "no index in nowhere"),
        (("restore", "nothing.tar", "--into", "back"), 1, "nothing.tar cannot be read: No such file"),
        (("restore", "text", "--into", "back"), 1, "text is no backup, or is truncated"),
        (("restore", "text", "--into", "."), 1, ". is not empty: choose a new folder"),
        (("restore", "text"), 2, "Missing option '--into'"),
    ],
)
def test_wrong_usage_is_one_sentence(
    loci: Loci,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("no backup")
    ended = loci(*arguments)
    assert ended.exit_code == code
    assert ended.stderr.startswith(f"loci: {sentence}")
    assert len(ended.stderr.splitlines()) == 1
    assert not Path("back").exists()


def test_backup_to_a_terminal_is_refused(loci: Loci, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loci.commands.backup._is_terminal", lambda: True)
    ended = loci("backup", index)
    assert ended.exit_code == 2
    assert ended.stderr.startswith(
        "loci: Invalid value: a backup cannot be shown on a terminal: add --output FILE"
    )
