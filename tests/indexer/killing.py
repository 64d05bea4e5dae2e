"""What runs that kill themselves, or are killed, at a moment told on the input have in common.

Each line of input, a JSON object, is one run; each line of output is its exit status (negative: a signal).
Everything is imported once and each run is a fork of this process, since importing takes longer than a run.

    {"log": …, …}                                   to the end
    … "stage": "embedding", "nth": 3, "late": true  killed at that stage's third event, after it happened
    … "seconds": 0.4                                killed by its parent after that time

Events are what leaves something behind. The log gets a line a batch before it goes through the network, and
a line a stage.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from model.embedder import Embedder
from tests.small_shards import make_shards_small

Order = dict[str, Any]


class Told:
    """Hears of a run's stages and events, and ends it where it is told to."""

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
        """Take as events what is synced, renamed and embedded; `photo` names an item of a batch."""
        os.fsync = self.around(os.fsync)
        os.replace = self.around(os.replace)
        embed = Embedder._send_batch

        def embed_batch(embedder: Embedder, batch: Any, stage: str) -> Any:
            self.write(["batch", [photo(item) for item, _ in batch]])
            return self.around(embed)(embedder, batch, stage)

        Embedder._send_batch = embed_batch  # type: ignore[method-assign, assignment]

    def around(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """`act` as an event."""

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
    """Take orders until the input ends."""
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
