"""Runs `build_index` in processes that kill themselves, or are killed, at a moment told on the input.

Each line of input, a JSON object, is one run; each line of output is its exit status (negative: a signal).
Everything is imported once and each run is a fork of this process, since importing takes longer than a run.

    {"photos": …, "index": …, "log": …}             to the end
    … "stage": "embedding", "nth": 3, "late": true  killed at that stage's third event, after it happened
    … "seconds": 0.4                                killed by its parent after that time

Events are what leaves something behind: a file synced or renamed, something written to the catalogue, a batch
embedded. The log gets a line a batch before it goes through the network, and a line a stage.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import indexer.fit
from indexer.build import build_index
from indexer.catalogue import Catalogue
from indexer.options import BuildOptions
from model.embedder import Embedder

SAMPLE, REDUCTION, BATCH = 70, 132, 4
OPTIONS = BuildOptions(
    clusters=4, image_size=48, dim=24, batch_size=BATCH, device="cpu", precision="fp32", places="photo"
)


class Run:
    """Hears of a run's stages and events, and ends it where it is told to."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        self.name = "start"
        self.left = int(order.get("nth", 0))
        self.log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def stage(self, name: str, total: int | None) -> None:
        if name == "embedding (to fit)":  # twice, for the clusters and for the reduction
            clustered = Path(self.order["index"], "generations/01/spool/clustered.safetensors").exists()
            name += " 2" if clustered else " 1"
        self.name = name
        self.write(["stage", self.name, total])

    def advance(self, n: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self.write(["note", text])

    def write(self, line: list[Any]) -> None:
        os.write(self.log, (json.dumps(line) + "\n").encode())

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


def run(order: dict[str, Any]) -> None:
    told = Run(order)
    vars(indexer.fit).update(SAMPLE_PHOTOS=SAMPLE, REDUCTION_VIEWS=REDUCTION)
    os.fsync = told.around(os.fsync)
    os.replace = told.around(os.replace)
    Catalogue.put_file = told.around(Catalogue.put_file)  # type: ignore[method-assign]
    Catalogue.add_descriptors = told.around(Catalogue.add_descriptors)  # type: ignore[method-assign]
    Catalogue.replace_places = told.around(Catalogue.replace_places)  # type: ignore[method-assign]
    embed = Embedder._embed_batch

    def embed_batch(self: Embedder, batch: Any, stage: str) -> Any:
        told.write(["batch", [item[0] for item, _ in batch]])
        return told.around(embed)(self, batch, stage)

    Embedder._embed_batch = embed_batch  # type: ignore[method-assign]
    build_index([Path(order["photos"])], Path(order["index"]), OPTIONS, told)


def main() -> None:
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


if __name__ == "__main__":
    main()
