"""`loci keys`: the file it keeps, what it prints, and a service that knows its keys."""

import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from service.security.keys import KeyRing, Role

Loci = Callable[..., Result]


def test_key_is_created_listed_and_removed(loci: Loci, tmp_path: Path) -> None:
    made = loci("keys", "create", "robot", "--index", tmp_path)
    assert made.exit_code == 0
    (key,) = made.stdout.splitlines()
    assert key.startswith("loci_")
    assert made.stderr == "Key robot, for reading. It is shown only once:\n"
    entry = KeyRing(tmp_path / "keys.json").find(key)
    assert entry is not None
    assert (entry.name, entry.role) == ("robot", Role.READ)
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600

    writing = loci("keys", "create", "editor", "--write", "--index", tmp_path, "--json")
    shown = json.loads(writing.stdout)
    assert (shown["name"], shown["role"]) == ("editor", "write")
    listed = loci("keys", "list", "--index", tmp_path)
    assert [line.split()[0] for line in listed.stdout.splitlines()[-2:]] == ["robot", "editor"]
    assert "reading and writing" in listed.stdout
    as_json = json.loads(loci("keys", "list", "--index", tmp_path, "--json").stdout)
    assert [(one["name"], one["role"]) for one in as_json] == [("robot", "read"), ("editor", "write")]
    for output in (listed.stdout, json.dumps(as_json)):
        assert key not in output
        assert shown["key"] not in output

    removed = loci("keys", "remove", "robot", "--index", tmp_path)
    assert (removed.exit_code, removed.stderr) == (0, "removed the key robot\n")
    assert KeyRing(tmp_path / "keys.json").find(key) is None


def test_key_file_can_be_anywhere(loci: Loci, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loci("keys", "create", "one", "--keys", tmp_path / "a.json")
    monkeypatch.setenv("LOCI_KEYS", str(tmp_path / "a.json"))
    assert loci("keys", "list").stdout.splitlines()[-1].split()[0] == "one"


def test_no_keys_yet(loci: Loci, tmp_path: Path) -> None:
    listed = loci("keys", "list", "--index", tmp_path)
    assert (listed.exit_code, listed.stdout, listed.stderr) == (0, "", "there are no keys yet\n")
    assert not (tmp_path / "keys.json").exists()


def test_wrong_usage_and_failures_are_one_sentence(loci: Loci, tmp_path: Path) -> None:
    nowhere = loci("keys", "list")
    assert nowhere.exit_code == 2
    assert "give --index INDEX" in nowhere.stderr
    loci("keys", "create", "robot", "--index", tmp_path)
    twice = loci("keys", "create", "robot", "--index", tmp_path)
    assert (twice.exit_code, twice.stdout) == (1, "")
    assert twice.stderr == ("loci: there is a key named robot already: remove it first, or choose another\n")
    unknown = loci("keys", "remove", "nobody", "--index", tmp_path)
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("loci: there is no key named nobody in ")
    (tmp_path / "keys.json").write_text("{")
    damaged = loci("keys", "create", "x", "--index", tmp_path)
    assert damaged.exit_code == 1
    assert "is damaged" in damaged.stderr
    assert loci("keys").exit_code == 0
