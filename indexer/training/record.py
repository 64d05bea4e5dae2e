"""What a person reads of a training run: a log, the same as JSON lines, and a picture of its curves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RANKS = (1, 5, 10)


def write_record(folder: Path, history: Sequence[dict[str, Any]]) -> None:
    """`log.txt`, `log.jsonl` and `curve.png` of all epochs so far, each replaced whole."""
    _replace(folder / "log.txt", lambda path: path.write_text(log_text(history), encoding="utf-8"))
    lines = "".join(json.dumps(record) + "\n" for record in history)
    _replace(folder / "log.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))
    _replace(folder / "curve.png", lambda path: draw_curve(path, history))


def log_text(history: Sequence[dict[str, Any]]) -> str:
    """A line an epoch, the best marked."""
    best = max(history, key=lambda record: (record["recall"], -record["epoch"]))
    return "".join(f"{log_line(r)}{'  best so far' if r is best else ''}\n" for r in history)


def log_line(record: dict[str, Any]) -> str:
    """One epoch in words."""
    loss = "untrained    " if record["loss"] is None else f"loss {record['loss']:.5f} "
    recall = " / ".join(f"{100 * value:.1f}" for value in record["recall"])
    accuracy = f", accuracy {100 * record['accuracy']:.1f} %" if "accuracy" in record else ""
    return f"epoch {record['epoch']:>3}: {loss} held-out recall@1/5/10 {recall} %{accuracy}"


def draw_curve(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Held-out recall and training loss over epochs, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    epochs = [record["epoch"] for record in history]
    for i, rank in enumerate(RANKS):
        above.plot(
            epochs, [100 * record["recall"][i] for record in history], "o-", ms=4, label=f"recall@{rank}"
        )
    if any("accuracy" in record for record in history):
        accuracy = [100 * record.get("accuracy", 0.0) for record in history]
        above.plot(epochs, accuracy, "s--", ms=4, label="accuracy", color="tab:purple")
    best = max(history, key=lambda record: (record["recall"], -record["epoch"]))
    above.axvline(best["epoch"], color="grey", ls=":", label="kept")
    above.set_ylabel("held-out photos, %")
    above.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    trained = [record for record in history if record["loss"] is not None]
    below.plot([r["epoch"] for r in trained], [r["loss"] for r in trained], "o-", ms=4, color="tab:red")
    below.axvline(best["epoch"], color="grey", ls=":")
    below.set_ylabel("training loss")
    below.set_xlim(-0.3, max(1, epochs[-1]) + 0.3)  # whole epochs, even before the first
    if not trained:
        below.set_yticks([])
    below.set_xlabel("epoch; 0 is before training")
    below.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png", dpi=120)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    partial.replace(path)
