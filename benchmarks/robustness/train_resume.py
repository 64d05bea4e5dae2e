"""A training run killed at random moments, against an undisturbed one.

    python -m benchmarks.robustness.train_resume ../shared/data/cambridge-street/database --photos 160

Trains on the first photos of a folder, kills the run with SIGKILL ten times at random moments, lets it
finish, and compares the tensors of model and checkpoint, the log, and how often each photo passed the frozen
layers.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from indexer.options import BuildOptions
from indexer.photos.scan import scan
from indexer.training.options import TrainingOptions
from indexer.training.train import train_model
from model.embedder import Embedder
from model.training.checkpoint import load_checkpoint
from model.training.trainer import TrainOptions


class Log:
    """Logs each stage, and each batch before it passes the frozen layers."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, *line: object) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def stage(self, name: str, total: int | None) -> None:
        self.write("stage", name, total)

    def advance(self, n: int = 1) -> None:
        self.write("advance", n)

    def note(self, text: str) -> None:
        pass

    def epoch(self, line: str) -> None:
        pass


def child(options: argparse.Namespace) -> None:
    """Train, and log events."""
    into, path = options.child
    log = Log(path)
    embed = Embedder._send_batch

    def logged(self: Embedder, batch: list, stage: str) -> list:  # type: ignore[type-arg]
        log.write("batch", [item.relative for item, _ in batch])
        return embed(self, batch, stage)

    Embedder._send_batch = logged  # type: ignore[method-assign, assignment]
    photos = [file.path for file in scan([options.folder]).files[: options.photos]]
    told = TrainingOptions(
        fit=BuildOptions(image_size=options.image_size),
        parts=options.parts,
        train=TrainOptions(epochs=options.epochs, patience=options.epochs, refresh=options.refresh),
        precision=options.precision,
    )
    train_model(photos, into, told, log)


def run_killed(command: list[str], log: Path, kills: int, work: int, rng: random.Random) -> list[str]:
    """Run `command` until it finishes, and kill it `kills` times during `work`; return the stages of the
    kills.

    Each kill comes a moment after a random number of batches. Batches are counted instead of seconds, so a
    busy machine changes nothing.
    """
    stages: list[str] = []
    while True:
        wanted = batches(log) + rng.randint(1, max(2, 3 * work // (2 * kills)))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while process.poll() is None and (len(stages) == kills or batches(log) < wanted):
            time.sleep(0.02)
        if process.poll() is None:
            time.sleep(rng.uniform(0.0, 0.5))
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            return stages
        stages.append([line[1] for line in read(log) if line[0] == "stage"][-1])


def batches(log: Path) -> int:
    """Photos that passed the frozen layers or were trained on, over all runs."""
    return log.read_text().count('["advance"') if log.exists() else 0


def read(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def difference(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> str:
    """The difference of two files' tensors, in words."""
    most = max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in theirs)
    equal = sum(ours[name].equal(theirs[name]) for name in theirs)
    return f"{equal} of {len(theirs)} equal, largest absolute difference {most:g}"


def compare(options: argparse.Namespace, work: Path) -> None:
    def command(name: str) -> list[str]:
        (work / name).mkdir(exist_ok=True)
        base = [sys.executable, __file__, str(options.folder), "--precision", options.precision]
        for flag in ("photos", "image_size", "epochs", "refresh", "parts"):
            base += [f"--{flag.replace('_', '-')}", str(getattr(options, flag))]
        return [*base, "--child", str(work / name / "model.safetensors"), str(work / f"{name}.log")]

    begun = time.perf_counter()
    subprocess.run(command("whole"), check=True)
    seconds = time.perf_counter() - begun
    rng = random.Random(options.seed)
    length = batches(work / "whole.log")
    stages = run_killed(command("killed"), work / "killed.log", options.kills, length, rng)
    models = [work / name / "model.safetensors" for name in ("killed", "whole")]
    folders = [model.with_name("model.safetensors.training") for model in models]
    logs = [(folder / "log.jsonl").read_text() for folder in folders]
    seen = Counter(photo for line in read(work / "killed.log") if line[0] == "batch" for photo in line[1])
    print(f"{len(seen)} photos, {seconds:.0f} s unbroken, killed {len(stages)} times, in:")
    for stage, times in Counter(stages).items():
        print(f"  {stage}: {times}")
    print(f"tensors of the model: {difference(*map(load_file, models))}")
    checkpoints = [load_checkpoint(folder / "checkpoint.safetensors")[0] for folder in folders]
    print(f"tensors of the last checkpoint: {difference(*checkpoints)}")
    print(f"same log of {logs[1].count(chr(10))} epochs: {logs[0] == logs[1]}")
    print(f"photos by how often the frozen layers saw them: {dict(sorted(Counter(seen.values()).items()))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photos", type=int, default=160)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--refresh", type=int, default=40)
    parser.add_argument("--parts", default="head")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    with tempfile.TemporaryDirectory() as work:
        compare(options, Path(work))


if __name__ == "__main__":
    main()
