"""The keys file, and the keys as a running service sees them."""

import hashlib
import json
import os
import stat
import threading
from pathlib import Path

import pytest

from service.errors import KeysUnreadable, ServiceError
from service.security.keys import Key, KeyFile, KeyRing, Role


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_random_and_recognisable_and_only_its_hash_is_kept(path: Path) -> None:
    file = KeyFile(path)
    one, two = file.create("robot", Role.READ), file.create("editor", Role.WRITE)
    assert one != two
    for key in (one, two):
        assert key.startswith("loci_")
        assert len(key) == len("loci_") + 43  # 256 bits in base64
        assert key not in path.read_text()
    robot, editor = file.read()
    assert (robot.name, robot.role, robot.sha256) == (
        "robot",
        Role.READ,
        hashlib.sha256(one.encode()).hexdigest(),
    )
    assert (editor.name, editor.role) == ("editor", Role.WRITE)
    assert json.loads(path.read_text())["format"] == 1


def test_only_the_owner_can_read_the_file_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        KeyFile(path).create("robot", Role.READ)
        path.chmod(0o666)
        KeyFile(path).create("editor", Role.WRITE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.glob("*.partial")] == []


def test_a_file_left_half_written_by_a_killed_run_does_not_matter(path: Path) -> None:
    partial = path.with_name("keys.json.partial")
    partial.write_text("{")
    partial.chmod(0o666)
    KeyFile(path).create("robot", Role.READ)
    assert [key.name for key in KeyFile(path).read()] == ["robot"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_name_is_given_once(path: Path) -> None:
    file = KeyFile(path)
    file.create("robot", Role.READ)
    with pytest.raises(ServiceError, match=r"^there is a key named robot already: remove it first"):
        file.create("robot", Role.WRITE)


@pytest.mark.parametrize("name", ["", " ", "-x", "a b", "a\nb", "ä", "x" * 65, "../x"])
def test_a_name_is_plain(path: Path, name: str) -> None:
    with pytest.raises(ServiceError, match="names no key: take 1 to 64 letters"):
        KeyFile(path).create(name, Role.READ)
    assert not path.exists()


def test_a_removed_key_is_gone_and_an_unknown_one_is_named(path: Path) -> None:
    file = KeyFile(path)
    file.create("robot", Role.READ)
    file.remove("robot")
    assert file.read() == ()
    assert path.exists(), "an empty list, not a missing file"
    with pytest.raises(ServiceError, match=r"^there is no key named robot in .*keys\.json$"):
        file.remove("robot")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"^there is no folder .*nowhere to keep the keys in$"):
        KeyFile(tmp_path / "nowhere" / "keys.json").create("robot", Role.READ)


def test_keys_made_at_once_are_all_kept(path: Path) -> None:
    def make(name: str) -> None:
        KeyFile(path).create(name, Role.READ)

    threads = [threading.Thread(target=make, args=(f"robot{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in KeyFile(path).read()) == [f"robot{n}" for n in range(8)]


GOOD = {"name": "robot", "role": "read", "sha256": "0" * 64, "created_at": "2026-01-01T00:00:00+00:00"}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        '{"format": 1}',
        '{"format": 2, "keys": []}',
        '{"format": 1, "keys": [7]}',
        json.dumps({"format": 1, "keys": [{"name": "robot"}]}),
        json.dumps({"format": 1, "keys": [GOOD | {"role": "admin"}]}),
        json.dumps({"format": 1, "keys": [GOOD | {"sha256": "0"}]}),
        json.dumps({"format": 1, "keys": [GOOD | {"name": 7}]}),
        json.dumps({"format": 1, "keys": [GOOD | {"extra": 1}]}),
        json.dumps({"format": 1, "keys": [GOOD, GOOD]}),
        "[" * 100_000,
    ],
)
def test_a_damaged_file_is_refused_and_never_overwritten(path: Path, content: str) -> None:
    path.write_text(content)
    for attempt in (KeyFile(path).read, lambda: KeyFile(path).create("x", Role.READ)):
        with pytest.raises(ServiceError, match=r"^the keys file .*keys\.json is damaged: restore it"):
            attempt()
    assert path.read_text() == content
    with pytest.raises(KeysUnreadable, match="is damaged"):
        KeyRing(path).find("loci_x")


def test_a_file_that_cannot_be_read_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(KeysUnreadable, match="cannot be read: Is a directory"):
        KeyRing(path).keys()


def test_a_ring_follows_the_file(path: Path) -> None:
    ring = KeyRing(path)
    assert ring.keys() == ()
    key = KeyFile(path).create("robot", Role.READ)
    found = ring.find(key)
    assert found is not None
    assert found.name == "robot"
    for wrong in ("", "loci_", key[:-1], key + "x", key.upper(), found.sha256, "ä", "\udcff"):
        assert ring.find(wrong) is None
    KeyFile(path).remove("robot")
    assert ring.find(key) is None


def test_every_entry_is_compared_in_constant_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [KeyFile(path).create(f"robot{n}", Role.READ) for n in range(3)]
    compared: list[str] = []

    def compare(one: str, two: str) -> bool:
        compared.append(one)
        return one == two

    monkeypatch.setattr("service.security.keys.hmac.compare_digest", compare)
    ring = KeyRing(path)
    for sent in (keys[0], "loci_unknown"):
        compared.clear()
        ring.find(sent)
        assert compared == [key.sha256 for key in KeyFile(path).read()]


def test_damaged_or_missing_keys_are_trouble_until_restored(path: Path) -> None:
    key = KeyFile(path).create("robot", Role.READ)
    ring = KeyRing(path)
    assert ring.trouble() is None
    whole = path.read_bytes()
    path.unlink()
    assert ring.trouble() == f"the keys file {path} has vanished"
    path.write_bytes(whole[:-20])
    with pytest.raises(KeysUnreadable, match="is damaged"):
        ring.find(key)
    path.unlink()
    assert ring.trouble() == f"the keys file {path} has vanished"
    path.write_bytes(whole)
    assert ring.find(key) is not None


def test_write_opens_reading_and_read_does_not_open_writing() -> None:
    assert Role.WRITE.opens(Role.READ)
    assert Role.WRITE.opens(Role.WRITE)
    assert Role.READ.opens(Role.READ)
    assert not Role.READ.opens(Role.WRITE)
    assert Key("a", Role.READ, "0", "").role == "read"
