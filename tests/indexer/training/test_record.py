"""The record of a training run."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from indexer.training.record import write_record
from model.training.trainer import State


def test_record_has_log_json_and_chart(tmp_path: Path) -> None:
    history: list[dict[str, Any]] = [
        {"epoch": 0, "loss": None, "recall": [0.5, 0.75, 1.0]},
        {"epoch": 1, "loss": 0.25, "recall": [0.625, 0.75, 1.0]},
        {"epoch": 2, "loss": 0.125, "recall": [0.5, 0.75, 1.0]},
    ]
    write_record(tmp_path, history)
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[1] == "epoch   1: loss 0.25000  held-out recall@1/5/10 62.5 / 75.0 / 100.0 %  best so far"
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == history
    chart = ElementTree.parse(tmp_path / "curve.svg").getroot()
    texts = [text.text for text in chart.iter("{http://www.w3.org/2000/svg}text")]
    for text in ("Held-out photos", "Training", "recall@1", "recall@5", "recall@10", "kept"):
        assert text in texts
    titles = [title.text for title in chart.iter("{http://www.w3.org/2000/svg}title")]
    assert "epoch 1: 62.5" in titles
    assert "epoch 2: 0.12500" in titles
    assert State(history=history).best is history[1]


def test_chart_of_one_untrained_epoch_has_no_loss(tmp_path: Path) -> None:
    write_record(tmp_path, [{"epoch": 0, "loss": None, "recall": [0.5, 0.75, 1.0], "accuracy": 0.5}])
    text = (tmp_path / "curve.svg").read_text()
    assert "accuracy" in text
    assert "Training</text>" not in text
