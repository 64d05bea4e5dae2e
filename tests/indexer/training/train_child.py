"""Runs `train_model` as `killing` says: orders name `photos`, `into` and `parts`; events are steps, too."""

from pathlib import Path

from indexer.options import BuildOptions
from indexer.training.options import TrainingOptions
from indexer.training.train import train_model
from model.training.trainer import Trainer, TrainOptions
from tests.indexer.killing import Killable, Order, serve

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


class Run(Killable):
    def epoch(self, line: str) -> None:
        self.write(["epoch", line])


def run(order: Order) -> None:
    told = Run(order)
    told.watch(lambda item: str(item.relative))
    Trainer._step = told.around(Trainer._step)  # type: ignore[method-assign]
    train_model([Path(order["photos"])], Path(order["into"]), options(order["parts"]), told)


if __name__ == "__main__":
    serve(run)
