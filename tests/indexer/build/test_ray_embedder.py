"""Embedding on many machines, with a fake Ray whose workers may die."""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from indexer.addresses import check_ray_address
from indexer.build import ray_embedder as workers
from indexer.build.ray_embedder import RayEmbedder, Worker
from indexer.errors import IndexerError, UsageError
from indexer.options import BuildOptions
from indexer.photos.reader import Reader
from model.embedder import Embedded, Seen


class RayError(Exception):
    pass


class TaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self._cause = cause

    def as_instanceof_cause(self) -> Exception:
        return self._cause


class Handle:
    """A worker, which dies from photos with certain bytes."""

    def __init__(self, ray: MadeUp, node: str, *_: Any) -> None:
        self.ray, self.node, self.dead, self.done = ray, node, False, 0
        self.version = SimpleNamespace(remote=lambda: ("version", self))
        self.embed = SimpleNamespace(remote=self._embed)

    def _embed(self, number: int, model: Any, sent: Any, read: Any, stage: str) -> Any:  # noqa: ARG002
        self.ray.given.update(photo for photo, _ in sent)
        return _Reference(self, sent)


class _Reference:
    def __init__(self, worker: Handle, sent: Any) -> None:
        self.worker, self.sent = worker, sent


class MadeUp:
    """The parts of Ray that are used."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=TaskError, RuntimeEnvSetupError=TaskError)

    def __init__(self, nodes: int = 2) -> None:
        self.alive = [f"node{n}" for n in range(nodes)]
        self.given: Counter[str] = Counter()
        self.hired = 0
        self.versions = version("geniusloci")
        self.die_after: dict[str, int] = {}
        self.backwards = True

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": node, "Alive": True, "Resources": {"CPU": 2.0}} for node in self.alive]

    def remote(self, **_: Any) -> Any:
        def options(scheduling_strategy: Any) -> Any:
            def start(*_: Any) -> Handle:
                self.hired += 1
                return Handle(self, scheduling_strategy)

            return SimpleNamespace(remote=start)

        return lambda _: SimpleNamespace(options=options)

    def kill(self, handle: Handle) -> None:
        handle.dead = True

    def wait(self, references: list[Any], num_returns: int, timeout: float) -> Any:  # noqa: ARG002
        chosen = references[-1] if self.backwards else references[0]  # later tasks are done first
        return [chosen], [each for each in references if each is not chosen]

    def get(self, reference: Any, timeout: float | None = None) -> Any:  # noqa: ARG002
        if isinstance(reference, tuple):
            return self.versions
        worker: Handle = reference.worker
        if worker.done >= self.die_after.get(worker.node, 10**9):
            worker.dead = True
            if worker.node in self.alive:
                self.alive.remove(worker.node)
        if worker.dead or any(content == b"deadly" for _, content in reference.sent):
            worker.dead = True
            raise RayError("the worker died")
        if any(content == b"a bug" for _, content in reference.sent):
            raise TaskError(ValueError("a bug"))
        worker.done += 1
        return [
            Embedded(
                photo, (Seen(np.frombuffer(content.ljust(4, b"\0"), np.uint8)[:4].astype(np.float32), None),)
            )
            for photo, content in reference.sent
        ]

    def shutdown(self) -> None:
        pass


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    made_up = MadeUp()
    monkeypatch.setattr(workers, "check_ray_address", lambda _: None)
    monkeypatch.setattr(workers, "_connected", lambda _: made_up)
    monkeypatch.setattr(workers, "A_TASK", 4)
    monkeypatch.setattr(workers, "LOOK_S", 0.0)
    monkeypatch.setattr(workers, "PATIENCE_S", 0.1)
    monkeypatch.setattr(workers, "_node", lambda node: node)
    monkeypatch.setattr("indexer.build.ray_embedder.time.sleep", lambda _: None)
    return made_up


def photos(folder: Path, count: int, **contents: bytes) -> list[tuple[str, Path]]:
    items = []
    for number in range(count):
        name = f"p{number:03}"
        (folder / name).write_bytes(contents.get(name, name.encode()))
        items.append((name, folder / name))
    return items


READER = Reader(64)


def stream(items: list[tuple[str, Path]]) -> list[Embedded[tuple[str, Path]]]:
    model: Any = None
    embedder = RayEmbedder(model, "ray://made-up:1")
    return [embedded for batch in embedder.stream(items, READER) for embedded in batch]


def test_results_keep_order_of_photos(ray: MadeUp, tmp_path: Path) -> None:
    items = photos(tmp_path, 50)
    found = stream(items)
    assert [embedded.item for embedded in found] == items
    assert [bytes(embedded.outputs[0].astype(np.uint8)) for embedded in found] == [
        name.encode() for name, _ in items
    ]
    assert set(ray.given.values()) == {1}
    assert ray.hired == 2


def test_only_tasks_of_dead_node_are_repeated(ray: MadeUp, tmp_path: Path) -> None:
    items = photos(tmp_path, 80)
    ray.die_after = {"node1": 3}
    found = stream(items)
    assert [embedded.item for embedded in found] == items
    assert not any(embedded.error for embedded in found)
    again = [photo for photo, times in ray.given.items() if times > 1]
    assert 0 < len(again) <= workers.IN_FLIGHT * workers.A_TASK
    assert max(ray.given.values()) == 2


def test_new_nodes_get_workers(ray: MadeUp, tmp_path: Path) -> None:
    ray.alive = ["node0"]
    embedder = RayEmbedder(None, "ray://made-up:1")  # type: ignore[arg-type]
    stream_of = embedder.stream(photos(tmp_path, 60), READER)
    next(stream_of)
    ray.alive.append("late")
    assert sum(len(batch) for batch in stream_of) == 56
    assert ray.hired == 2


@pytest.mark.parametrize("backwards", [True, False])
def test_photo_that_kills_workers_is_left_out(ray: MadeUp, tmp_path: Path, backwards: bool) -> None:
    ray.backwards = backwards
    items = photos(tmp_path, 40, p013=b"deadly")
    found = stream(items)
    assert [embedded.item for embedded in found] == items
    failed = {embedded.item[0]: embedded.error for embedded in found if embedded.error}
    assert failed == {"p013": "3 workers in turn died while they embedded it"}


def test_worker_errors_are_raised(ray: MadeUp, tmp_path: Path) -> None:  # noqa: ARG001
    with pytest.raises(ValueError, match="a bug"):
        stream(photos(tmp_path, 9, p005=b"a bug"))


def test_no_worker_is_an_error(ray: MadeUp, tmp_path: Path) -> None:
    items = photos(tmp_path, 30)
    ray.die_after = {"node0": 1, "node1": 1}
    with pytest.raises(IndexerError, match="no worker is left on ray://made-up:1: start one there"):
        stream(items)


def test_worker_of_another_version_is_refused(ray: MadeUp, tmp_path: Path) -> None:
    ray.versions = "0.0.1"
    with pytest.raises(IndexerError, match=r"has loci 0\.0\.1, this is .*: install the same version there"):
        stream(photos(tmp_path, 3))


def test_missing_file_is_reported_by_worker(tmp_path: Path) -> None:
    assert workers._content(tmp_path / "gone.jpg") == tmp_path / "gone.jpg"


@pytest.mark.parametrize("address", ["", "ray://", "http://head:1", "head:10001", "ray://head/index"])
def test_invalid_addresses_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match="`workers` must be ray://HOST:PORT or ray://local"):
        check_ray_address(address)


def test_missing_ray_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indexer.addresses.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"`workers` needs Ray.*pip install 'geniusloci\[ray\]'"):
        check_ray_address("ray://head:10001")


def test_unreachable_cluster_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed")

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(IndexerError, match="ray://nowhere:1 cannot be reached: ray client connection"):
        workers._connected("ray://nowhere:1")


def test_worker_equals_embedder(opened: Any, made: Any) -> None:
    """A worker gives the same descriptors in the given order, and errors for unreadable photos."""
    worker = Worker(1, "cpu", "fp32", 2)
    paths = sorted(made.photos.rglob("*.png")) or sorted(made.photos.rglob("*.jpg"))
    sent = [(str(number), path.read_bytes()) for number, path in enumerate(paths)]
    found = worker.embed(
        1, opened.embedder.model, [*sent, ("bad", b"no photo")], opened.reader, "descriptors"
    )
    assert [embedded.item for embedded in found] == [*(name for name, _ in sent), "bad"]
    assert found[-1].error == "not an image that can be read"
    rows = np.stack([embedded.outputs[0] for embedded in found[:-1]])
    np.testing.assert_allclose(rows, opened.embed(paths), atol=1e-5)


def test_build_options_take_workers() -> None:
    assert BuildOptions(workers="ray://head:10001").workers == "ray://head:10001"
