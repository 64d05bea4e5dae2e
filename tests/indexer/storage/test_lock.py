"""The lock of an index: one run at a time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from indexer.build.run import remove_photos
from indexer.errors import IndexLocked
from indexer.storage.lock import write_lock

if TYPE_CHECKING:
    from tests.indexer.conftest import World

HOLD = """
import sys, pathlib
from indexer.storage.lock import write_lock
with write_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
def test_second_run_names_holder_until_it_is_killed(world: World) -> None:
    with holder(world.index) as process:
        held = (
            rf"is being written by process {process.pid} on .*, since \d{{4}}-.* UTC: wait until it is done"
        )
        with pytest.raises(IndexLocked, match=held):
            world.build()
        with pytest.raises(IndexLocked, match=held):
            remove_photos(world.index, ["wall0/view0.jpg"])
        assert len(world.open().photos()) == 8  # readers need no lock
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    assert (world.index / "LOCK.holder").exists()  # stale
    assert world.build().photos == 8
    assert not (world.index / "LOCK.holder").exists()


@pytest.mark.slow
def test_new_index_of_another_run_is_kept(empty: World) -> None:
    empty.index.mkdir()
    with holder(empty.index) as process:
        with pytest.raises(IndexLocked, match=str(process.pid)):
            empty.build()
        assert (empty.index / "LOCK.holder").exists()
        process.communicate("", timeout=10)
    assert empty.build().photos == 4


def test_unknown_holder_is_another_run(tmp_path: Path) -> None:
    with write_lock(tmp_path):
        (tmp_path / "LOCK.holder").unlink()
        with pytest.raises(IndexLocked, match="is being written by another run: wait"), write_lock(tmp_path):
            pass
        (tmp_path / "LOCK.holder").write_bytes(b"\xff\xfe")
        with pytest.raises(IndexLocked, match="is being written by"), write_lock(tmp_path):
            pass


def test_failed_run_releases_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), write_lock(tmp_path):
        raise KeyError
    with write_lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / "LOCK.holder").read_text()
