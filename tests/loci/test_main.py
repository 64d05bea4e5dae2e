"""What holds for every command: help, usage errors, exit codes, and what is imported when."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from indexer.errors import IndexLocked, IndexMissing, ModelMismatch, UsageError
from loci import __version__
from loci.exit_codes import Interrupted, SomeUnreadable, explain
from model.errors import ImageError, ModelError
from service.errors import ServiceError

Loci = Callable[..., Result]
Process = Callable[..., "subprocess.CompletedProcess[str]"]

COMMANDS = [
    *("demo", "index", "query", "compare", "serve", "evaluate", "geotag", "train", "plan"),
    *("info", "check", "remove", "export", "backup", "restore", "connections", "keys", "weights"),
]


def test_without_arguments_it_lists_the_commands(loci: Loci) -> None:
    result = loci()
    assert result.exit_code == 0
    listed = result.stdout.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == COMMANDS
    assert result.stderr == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_whole_sentences_that_fit_80_columns(loci: Loci, command: str) -> None:
    result = loci(command, "--help")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: loci {command} ")
    assert "..." not in result.stdout.partition("\n")[2]  # nothing cut off
    assert not any(mark in result.stdout for mark in "<>{}")  # no Python types
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert loci(command, "-h").stdout == result.stdout


def test_the_list_of_commands_cuts_no_sentence_short(loci: Loci) -> None:
    commands = loci("--help").stdout.split("Commands:\n")[1].splitlines()
    assert all(line.endswith(".") and not line.endswith("...") for line in commands)


def test_version(loci: Loci) -> None:
    assert loci("--version").stdout == f"loci {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["query"], "Missing argument 'PHOTO'; see loci query --help"),
        (["query", "a.jpg"], "Missing option '--index'; see loci query --help"),
        (["index", "photos"], "Missing option '--into'; see loci index --help"),
        (["serve"], "Missing option '--index'; see loci serve --help"),
        (
            ["export", "i"],
            "Missing option '--format'. Choose from: geojson, csv, numpy, hloc, colmap, kapture; "
            "see loci export --help",
        ),
        (["querry"], "No such command 'querry'. Did you mean 'query'?; see loci --help"),
        (["--colour"], "No such option: --colour; see loci --help"),
        (["info", "i", "--xyz"], "No such option: --xyz; see loci info --help"),
        (
            ["query", "a.jpg", "--index", "i", "-k", "0"],
            "Invalid value for '-k': it must be at least 1, not 0; see loci query --help",
        ),
        (
            ["serve", "--index", "i", "--port", "65536"],
            "Invalid value for '--port': a port is 0 to 65535, not 65536; see loci serve --help",
        ),
        (
            ["index", "p", "--into", "i", "--precision", "fp8"],
            "Invalid value for '--precision': 'fp8' is not one of 'auto', 'fp32', 'bf16', 'fp16', 'int8'; "
            "see loci index --help",
        ),
        (["index", "p", "--into", "i", "--dim", "0"], "--dim must be at least 1, got 0"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    loci: Loci, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.delenv("LOCI_INDEX", raising=False)
    result = loci(*arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"loci: {sentence}"
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (UsageError("m.csv has no column lat"), 2, "m.csv has no column lat"),
        (IndexMissing("no index in i"), 1, "no index in i"),
        (IndexLocked("another run"), 1, "another run"),
        (ModelMismatch("other model"), 1, "other model"),
        (ModelError("no device 'tpu' here"), 1, "no device 'tpu' here"),
        (ImageError("a.jpg: truncated image"), 1, "a.jpg: truncated image"),
        (ServiceError("port 80 is in use"), 1, "port 80 is in use"),
        (OSError(28, "No space left on device", "/x/y"), 1, "/x/y: No space left on device"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (Interrupted("interrupted"), 130, "interrupted"),
        (SomeUnreadable(), 3, None),
        (BrokenPipeError(32, "Broken pipe"), 1, None),
    ],
)
def test_failures_are_one_sentence_and_an_exit_code(
    error: Exception, exit_code: int, sentence: str | None
) -> None:
    failure = explain(error)
    assert failure is not None
    assert (failure.exit_code, failure.sentence) == (exit_code, sentence)


def test_unexpected_error_shows_traceback(loci: Loci, monkeypatch: pytest.MonkeyPatch) -> None:
    assert explain(KeyError("x")) is None

    def broken(_path: Path) -> list[str]:
        raise KeyError("x")

    monkeypatch.setattr("indexer.maintenance.check.check_index", broken)
    with pytest.raises(KeyError):
        loci("check", "index")


def test_interruption_is_reported(loci: Loci, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("indexer.maintenance.check.check_index", interrupted)
    monkeypatch.setattr("indexer.build.run.build_index", interrupted)
    result = loci("check", "index")
    assert (result.exit_code, result.stderr) == (130, "loci: interrupted\n")
    result = loci("index", "photos", "--into", "index")
    assert result.exit_code == 130
    assert result.stderr == "loci: interrupted; run the same command again to resume\n"


@pytest.mark.slow
def test_help_imports_nothing_heavy(process: Process) -> None:
    code = """
import sys
from loci.main import main
for arguments in (["--help"], ["index", "--help"], ["query"]):
    sys.argv[1:] = arguments
    try:
        main()
    except SystemExit:
        pass
heavy = {"torch", "faiss", "numpy", "PIL", "fastapi", "pydantic_settings", "indexer.index", "service.app"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""
    result = process(code=code)
    assert result.stdout.splitlines()[-1] == "heavy: []"
    assert result.returncode == 0


@pytest.mark.slow
def test_importing_loci_is_cheap(process: Process) -> None:
    code = """
import sys
import loci
assert "torch" not in sys.modules
from loci import Index
import indexer.index
assert Index is indexer.index.Index
try:
    loci.Indexx
except AttributeError as error:
    print(error)
"""
    result = process(code=code)
    assert (result.stdout, result.stderr) == ("module 'loci' has no attribute 'Indexx'\n", "")


@pytest.mark.slow
def test_closed_output_pipe_ends_quietly(real_index: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as closed:
        command = [sys.executable, "-m", "loci", "info", str(real_index), "--json"]
        result = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert result.stderr == ""
    assert result.returncode == 1
