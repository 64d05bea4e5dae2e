"""Runs that are killed at a given moment: the killed process, and `Runs`, which gives the orders.

A process reads orders, one JSON object a line, and writes the exit status of each run (negative: a signal).
Each run is a fork of this process, because importing takes longer than a run.

    {"log": …, …}                                   a run to the end
    … "stage": "embedding", "nth": 3, "late": true  killed after the third event of that stage
    … "seconds": 0.4                                killed by its parent after that time

Events are calls that change files. The log has a line for each stage, and one for each batch, which is
written before the batch goes through the network.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.embedder import Embedder
from tests.small_shards import make_shards_small

Order = dict[str, Any]


class Killable:
    """Progress of a run, which kills the run at the ordered event."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.name = "start"
        self.left = int(order.get("nth", 0))
        self.log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def stage(self, name: str, total: int | None) -> None:
        self.name = name
        self.write(["stage", name, total])

    def advance(self, n: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self.write(["note", text])

    def write(self, line: list[Any]) -> None:
        os.write(self.log, (json.dumps(line) + "\n").encode())

    def watch(self, photo: Callable[[Any], str]) -> None:
        """Make events of syncs, renames and batches; `photo` returns the name of a batch's item."""
        os.fsync = self.around(os.fsync)
        os.replace = self.around(os.replace)
        embed = Embedder._send_batch

        def embed_batch(embedder: Embedder, batch: Any, stage: str) -> Any:
            self.write(["batch", [photo(item) for item, _ in batch]])
            return self.around(embed)(embedder, batch, stage)

        Embedder._send_batch = embed_batch  # type: ignore[method-assign, assignment]

    def around(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """Make an event of `act`."""

        def event(*arguments: Any, **more: Any) -> Any:
            late = self.order.get("late")
            if not late:
                self.count()
            done = act(*arguments, **more)
            if late:
                self.count()
            return done

        return event

    def count(self) -> None:
        if self.name == self.order.get("stage"):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def serve(run: Callable[[Order], None]) -> None:
    """Run orders until the input ends."""
    make_shards_small()
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            run(order)
            os._exit(0)
        if "seconds" in order:
            time.sleep(order["seconds"])
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Runs:
    """Runs with the same files, one after another, each in a process of its own."""

    def __init__(
        self, folder: Path, zygote: "subprocess.Popen[str]", embedding: str | None = None, **where: str
    ) -> None:
        """Take the files of the runs.

        Args:
            embedding: the only stage whose last batch is lost when it is killed; None: all stages.
            where: entries of every order.
        """
        self._zygote = zygote
        self._embedding = embedding
        self.where = where
        self._folder = folder
        self.logs: list[list[Any]] = []
        self.statuses: list[int] = []

    def run(self, **order: Any) -> int:
        """Run to the end, or until killed, and return the exit status."""
        log = self._folder / f"log{len(self.logs)}"
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(self.where | {"log": str(log)} | order) + "\n")
        self._zygote.stdin.flush()
        self.statuses.append(int(self._zygote.stdout.readline()))
        lines = log.read_text().splitlines() if log.exists() else []
        self.logs.append([json.loads(line) for line in lines])
        return self.statuses[-1]

    def embedded(self) -> Counter[str]:
        """Count how often each photo was embedded, without the last batch of each killed run."""
        counts: Counter[str] = Counter()
        for log, status in zip(self.logs, self.statuses, strict=True):
            batches = [line[1] for line in log if line[0] == "batch"]
            lost = status and self._embedding in (None, last_stage(log))
            for batch in batches[:-1] if lost else batches:
                counts.update(batch)
        return counts

    def seen(self) -> set[str]:
        """All photos that were embedded, or were in a batch of a killed run."""
        return {photo for log in self.logs for line in log if line[0] == "batch" for photo in line[1]}

    def killed_in(self) -> list[str]:
        """The stage of each killed run."""
        return [last_stage(log) for log, status in zip(self.logs, self.statuses, strict=True) if status]


def last_stage(log: list[Any]) -> str:
    return ["start", *(str(line[1]) for line in log if line[0] == "stage")][-1]
