"""The record of a training run for people: a log, the same as JSON lines, and a chart."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from indexer.charts.chart import Chart, Dot, Line, Scale, Tick, linear, path, svg
from model.files import atomic_write

RANKS = (1, 5, 10)


def write_record(folder: Path, history: Sequence[dict[str, Any]]) -> None:
    """Write `log.txt`, `log.jsonl` and `curve.svg` of all epochs so far, each replaced as a whole."""
    lines = "".join(json.dumps(record) + "\n" for record in history)
    texts = {"log.txt": log_text(history), "log.jsonl": lines, "curve.svg": training_curve(history)}
    for name, text in texts.items():
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def log_text(history: Sequence[dict[str, Any]]) -> str:
    """Return one line for each epoch; the best is marked."""
    best = max(history, key=lambda record: (record["recall"], -record["epoch"]))
    return "".join(f"{log_line(r)}{'  best so far' if r is best else ''}\n" for r in history)


def log_line(record: dict[str, Any]) -> str:
    """Return the line of an epoch."""
    loss = "untrained    " if record["loss"] is None else f"loss {record['loss']:.5f} "
    recall = " / ".join(f"{100 * value:.1f}" for value in record["recall"])
    accuracy = f", accuracy {100 * record['accuracy']:.1f} %" if "accuracy" in record else ""
    return f"epoch {record['epoch']:>3}: {loss} held-out recall@1/5/10 {recall} %{accuracy}"


def training_curve(history: Sequence[dict[str, Any]]) -> str:
    """Return held-out recall and training loss over epochs, as an SVG."""
    epochs = [record["epoch"] for record in history]
    best = max(history, key=lambda record: (record["recall"], -record["epoch"]))["epoch"]
    last = max(1, epochs[-1])
    step = max(1, math.ceil(last / 10))
    x = linear(0, last, across=True)
    x_ticks = tuple(Tick(x(epoch), str(epoch)) for epoch in range(0, last + 1, step))

    def chart(id: str, title: str, y_label: str, y_ticks: Sequence[Tick], lines: Sequence[Line]) -> Chart:
        axes = ("epoch; 0 is before training", y_label, x_ticks, tuple(y_ticks))
        return Chart(id, title, "", *axes, tuple(lines), upright=Tick(x(best), "kept"))

    def line(name: str, y: Scale, values: Sequence[tuple[int, float]], digits: int) -> Line:
        dots = tuple(Dot(x(e), y(v), f"epoch {e}: {v:.{digits}f}") for e, v in values)
        return Line(name, path((dot.x, dot.y) for dot in dots), dots)

    percent = linear(0, 100, across=False)
    named = {f"recall@{n}": [100 * record["recall"][i] for record in history] for i, n in enumerate(RANKS)}
    if any("accuracy" in record for record in history):
        named["accuracy"] = [100 * record.get("accuracy", 0.0) for record in history]
    found = [line(name, percent, list(zip(epochs, values, strict=True)), 1) for name, values in named.items()]
    ticks = [Tick(percent(value), str(value)) for value in range(0, 101, 20)]
    charts = [chart("recall", "Held-out photos", "found, in %", ticks, found)]
    losses = [(record["epoch"], record["loss"]) for record in history if record["loss"] is not None]
    if losses:
        top = max(value for _, value in losses) or 1.0
        y = linear(0, top, across=False)
        ticks = [Tick(y(top * part / 4), f"{top * part / 4:.3g}") for part in range(5)]
        charts.append(chart("loss", "Training", "loss", ticks, [line("loss", y, losses, 5)]))
    return svg("Training curve", charts)
