"""Runs `train_model` in processes that kill themselves, or are killed, at a moment told on the input.

Each line of input, a JSON object, is one run; each line of output is its exit status (negative: a signal).
Everything is imported once and each run is a fork of this process, since importing takes longer than a run.

    {"photos": …, "into": …, "log": …}             to the end
    … "stage": "training", "nth": 3, "late": true  killed at that stage's third event, after it happened
    … "seconds": 0.4                               killed by its parent after that time

Events are what leaves something behind: a file synced or renamed, a batch embedded, a step taken. The log
gets a line a batch before it goes through the frozen layers, and a line a stage.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indexer.options import BuildOptions
from indexer.train import train_model
from indexer.training_options import TrainingOptions
from model.embedder import Embedder
from model.training.trainer import Trainer, TrainOptions

EPOCHS = 2


def options(parts: str) -> TrainingOptions:
    """Three rounds an epoch; in fp32, where a photo's bits depend on its batch."""
    return TrainingOptions(
        fit=BuildOptions(clusters=4, image_size=64),
        parts=parts,
        train=TrainOptions(epochs=EPOCHS, patience=EPOCHS, refresh=14, negatives=3, lr=0.01),
        device="cpu",
        precision="fp32",
    )


class Run:
    """Hears of a run's stages and events, and ends it where it is told to."""

    def __init__(self, order: dict[str, Any]) -> None:
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

    def epoch(self, line: str) -> None:
        self.write(["epoch", line])

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
    os.fsync = told.around(os.fsync)
    os.replace = told.around(os.replace)
    Trainer._step = told.around(Trainer._step)  # type: ignore[method-assign]
    embed = Embedder._embed_batch

    def embed_batch(self: Embedder, batch: Any, stage: str) -> Any:
        told.write(["batch", [item.relative for item, _ in batch]])
        return told.around(embed)(self, batch, stage)

    Embedder._embed_batch = embed_batch  # type: ignore[method-assign]
    train_model([Path(order["photos"])], Path(order["into"]), options(order["parts"]), told)


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
