"""Embedding on many machines by Ray. `RayEmbedder` has the same `stream` as `Embedder`.

Only the run itself writes to the index. It reads the photos' files and sends their bytes to the workers.
There is one worker on each node, which decodes photos and runs the network. Results come in the order of the
photos. If a worker dies, it is replaced, and its photos go to another worker. No other photo is embedded
again.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from indexer.addresses import RAY_LOCAL, check_ray_address
from indexer.errors import IndexerError
from indexer.photos.reader import Reader
from model.embedder import Embedded, Embedder
from model.gpu_decoding import Read
from model.images import read_photo
from model.modelfile import PlaceModel

A_TASK = 16
"""Photos in a task."""
IN_FLIGHT = 2
"""Tasks of a worker at a time, so that it never waits for the next one."""
AHEAD = 8
"""Finished tasks for each worker that may wait for an earlier task."""
ATTEMPTS = 3
"""Workers that may die from a photo before it is left out."""
LOOK_S = 5.0
"""Seconds between searches for new nodes."""
PATIENCE_S = 60.0
"""Seconds that a cluster may be without a worker."""

Item = tuple[str, Path]
Sent = tuple[str, bytes | Path]
Outcome = list[Embedded[str]]

log = logging.getLogger(__name__)


class Worker:
    """Actor on a node: an embedder and its current model."""

    def __init__(self, threads: int, device: str, precision: str, batch_size: int | None) -> None:
        import torch

        torch.set_num_threads(threads)
        self._settings: dict[str, Any] = {"device": device, "precision": precision, "batch_size": batch_size}
        self._embedder: Embedder | None = None
        self._number = 0

    def version(self) -> str:
        """Return the version of this program on the node."""
        return version("geniusloci")

    def embed(
        self, number: int, model: PlaceModel, sent: Sequence[Sent], reader: Reader, stage: str
    ) -> Outcome:
        """Embed photos as `Embedder.stream` does, and return the results in the same order.

        Args:
            number: number of the model. A new number replaces the worker's model.
        """
        if self._embedder is None:
            self._embedder = Embedder(model, **self._settings)
        elif number != self._number:
            self._embedder.set_model(model)
        self._number = number
        results = {
            embedded.item[0]: Embedded(embedded.item[0], embedded.seen, embedded.error)
            for batch in self._embedder.stream(sent, replace(reader, read=self._embedder.read), stage)
            for embedded in batch
        }
        return [results[photo] for photo, _ in sent]


@dataclass
class _Task:
    """Photos for one worker."""

    items: list[Item]
    deaths: int = 0
    """Workers that died during this task."""
    alone: bool = False
    """Whether its worker gets no other task, so that the cause of a death is clear."""
    outcome: Outcome | None = None


@dataclass
class _Actor:
    """A worker as the run sees it."""

    handle: Any
    node: str
    tasks: dict[Any, _Task] = field(default_factory=dict)
    """Tasks by Ray's reference to the result."""


class RayEmbedder:
    """Embeds on the nodes of a Ray cluster.

    Raises:
        UsageError: the address is invalid, or Ray is not installed.
        IndexerError: the cluster cannot be reached, or has another version of this program.
    """

    def __init__(
        self,
        model: PlaceModel,
        address: str,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        check_ray_address(address)
        self._ray = _connected(address)
        self._address = address
        self._settings = (device, precision, batch_size)
        self._actors: list[_Actor] = []
        self._looked = 0.0
        self._number = 0
        self.read: Read = read_photo
        """Decoder for the run itself; workers have their own."""
        self.set_model(model)

    def set_model(self, model: PlaceModel) -> None:
        """Use another model from now on."""
        self.model = model
        self._number += 1
        self._sent = self._ray.put(model)

    def close(self) -> None:
        """Stop the workers, and leave the cluster."""
        for actor in self._actors:
            with suppress(Exception):
                self._ray.kill(actor.handle)
        self._actors = []
        self._ray.shutdown()

    def stream(
        self, items: Iterable[Item], reader: Reader, stage: str = "descriptors"
    ) -> Iterator[list[Embedded[Item]]]:
        """Yield results as `Embedder.stream` does, in the order of the items.

        Raises:
            IndexerError: no worker is left.
        """
        left = deque(_tasks(items))
        waiting: deque[_Task] = deque()  # in the order of the results
        again: deque[_Task] = deque()
        while left or waiting:
            self._look_for_nodes()
            while again or (left and len(waiting) < AHEAD * len(self._actors)):
                actor = self._free_for(again[0] if again else left[0])
                if actor is None:
                    break
                if not again:
                    waiting.append(left[0])
                self._give(actor, again.popleft() if again else left.popleft(), reader, stage)
            for task in self._collect():
                if task.outcome is None:
                    again.extend(_retried(task, waiting))
            while waiting and waiting[0].outcome is not None:
                task = waiting.popleft()
                yield [
                    Embedded(item, done.seen, done.error)
                    for item, done in zip(task.items, task.outcome or (), strict=True)
                ]

    def _free_for(self, task: _Task) -> _Actor | None:
        """Return the worker with the fewest tasks that may take another one; None if all are busy."""
        most = 0 if task.alone else IN_FLIGHT - 1
        free = [
            actor
            for actor in self._actors
            if len(actor.tasks) <= most and not any(other.alone for other in actor.tasks.values())
        ]
        return min(free, key=lambda actor: len(actor.tasks), default=None)

    def _give(self, actor: _Actor, task: _Task, reader: Reader, stage: str) -> None:
        sent = [(photo, _content(path)) for photo, path in task.items]
        reference = actor.handle.embed.remote(self._number, self._sent, sent, reader, stage)
        actor.tasks[reference] = task

    def _collect(self) -> list[_Task]:
        """Return tasks that are done, and tasks without an outcome whose worker died."""
        references = {reference: actor for actor in self._actors for reference in actor.tasks}
        if not references:
            time.sleep(0.1)
            return []
        ready, _ = self._ray.wait(list(references), num_returns=1, timeout=1.0)
        finished = []
        for reference in ready:
            actor = references[reference]
            if reference not in actor.tasks:  # its worker died during another task
                continue
            task = actor.tasks.pop(reference)
            try:
                task.outcome = self._ray.get(reference)
                finished.append(task)
            except self._ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except self._ray.exceptions.RayError as error:
                log.warning("a worker died; its photos go to other workers")
                log.debug("%s", error)
                lost = [task, *actor.tasks.values()]
                for each in lost:
                    each.deaths, each.alone = each.deaths + 1, True
                finished += lost
                self._dismiss(actor)
        return finished

    def _dismiss(self, actor: _Actor) -> None:
        with suppress(Exception):
            self._ray.kill(actor.handle)
        if actor in self._actors:
            self._actors.remove(actor)
        actor.tasks.clear()
        self._looked = 0.0  # look for nodes at once, to replace the worker

    def _look_for_nodes(self) -> None:
        """Start a worker on every node with processors that has none yet."""
        started = time.monotonic()
        while time.monotonic() - self._looked > LOOK_S or not self._actors:
            self._looked = time.monotonic()
            taken = {actor.node for actor in self._actors}
            for node in self._ray.nodes():
                cores = int(node["Resources"].get("CPU", 0))
                if node["Alive"] and cores and node["NodeID"] not in taken:
                    self._hire(node["NodeID"], cores, int(node["Resources"].get("GPU", 0)))
            if self._actors:
                return
            if time.monotonic() - started > PATIENCE_S:
                raise IndexerError(
                    f"no worker is left on {self._address}: start one there, and run the same command again"
                )
            time.sleep(1.0)

    def _hire(self, node: str, cores: int, gpus: int) -> None:
        remote = self._ray.remote(num_cpus=0, num_gpus=min(1, gpus), max_restarts=0)(Worker)
        handle = remote.options(scheduling_strategy=_node(node)).remote(cores, *self._settings)
        try:
            theirs = self._ray.get(handle.version.remote(), timeout=PATIENCE_S)
        except (self._ray.exceptions.RayTaskError, self._ray.exceptions.RuntimeEnvSetupError) as error:
            raise IndexerError(f"a worker on {self._address} cannot start: {_last_line(error)}") from None
        except self._ray.exceptions.RayError as error:  # the node may have left the cluster
            if "ModuleNotFoundError" in str(error):
                raise IndexerError(
                    f"loci is not installed on a worker of {self._address}: {_last_line(error)}"
                ) from None
            log.debug("no worker could be started on a node: %s", error)
            return
        if theirs != version("geniusloci"):
            raise IndexerError(
                f"a worker on {self._address} has loci {theirs}, this is {version('geniusloci')}: "
                "install the same version there"
            )
        self._actors.append(_Actor(handle, node))


AnyEmbedder = Embedder | RayEmbedder
"""Embedder of a run: in this process or on a cluster."""


def _connected(address: str) -> Any:
    """Connect to a cluster, and return the module `ray`."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # send no usage statistics
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == RAY_LOCAL:
            ray.init(include_dashboard=False, **quiet)
        else:
            ray.init(address, **quiet)
    except Exception as error:  # of many kinds: from gRPC, versions, name look-ups
        raise IndexerError(f"the Ray cluster {address} cannot be reached: {_last_line(error)}") from error
    return ray


def _node(node: str) -> Any:
    """Return the scheduling strategy that runs an actor on this node only."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id=node, soft=False)


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _tasks(items: Iterable[Item]) -> Iterator[_Task]:
    gathered: list[Item] = []
    for item in items:
        gathered.append(item)
        if len(gathered) == A_TASK:
            yield _Task(gathered)
            gathered = []
    if gathered:
        yield _Task(gathered)


def _retried(task: _Task, waiting: deque[_Task]) -> list[_Task]:
    """Return tasks to replace a failed one. After ATTEMPTS deaths, photos are tried singly, then given up."""
    if task.deaths < ATTEMPTS:
        return [task]
    if len(task.items) == 1:
        task.outcome = [
            Embedded(task.items[0][0], error=f"{ATTEMPTS} workers in turn died while they embedded it")
        ]
        return []
    parts = [_Task([item], alone=True) for item in task.items]
    at = waiting.index(task)
    waiting.remove(task)
    for offset, part in enumerate(parts):
        waiting.insert(at + offset, part)
    return parts


def _content(path: Path) -> bytes | Path:
    """Return a photo's bytes; if they cannot be read its path, for which the worker reports the error."""
    try:
        return path.read_bytes()
    except OSError:
        return path
