"""`loci train`: from photos with known places to a model that distinguishes places better.

The run's folder is next to the model: outputs of the frozen layers, the start of training, checkpoints, log
and curve. The same command resumes the run.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from indexer.errors import IndexerError, UsageError
from indexer.photos.metadata_table import MetadataTable, read_table, unused_rows
from indexer.photos.scan import ScanResult, no_photos, scan
from indexer.storage.files import replace_text
from indexer.storage.lock import write_lock
from indexer.training.dataset import find_photos, training_set
from indexer.training.options import TrainingOptions, TrainProgress, TrainReport
from indexer.training.run import TrainingRun
from model.errors import ModelError
from model.modelfile import read_header


def train_model(
    sources: Sequence[Path], into: Path, options: TrainingOptions, progress: TrainProgress
) -> TrainReport:
    """Train on the photos in `sources` and write the best epoch's model to `into`.

    Raises:
        UsageError: a bad option, or a bad column in the metadata table.
        IndexLocked: another run is training it.
        IndexerError, ModelError: nothing to train on, another run's folder, an unwritable target.
    """
    started = time.perf_counter()
    _check_target(into)
    progress.stage("scanning", None)
    scanned = scan(sources)
    if not scanned.files:
        raise no_photos(sources)
    folder = into.with_name(f"{into.name}.training")
    wanted = _wanted(sources, options)
    if not options.restart:
        _refuse_another(folder, wanted)
        finished = _finished(folder, options)
        if finished is not None and into.exists():
            return finished
    # check everything before anything is written
    table = read_table(options.metadata) if options.metadata else None
    photos, unreadable = find_photos(scanned, table)
    data = training_set(photos, options.supervision)
    run = TrainingRun(folder, into, options, progress)
    folder.mkdir(parents=True, exist_ok=True)
    with write_lock(folder, "training run"):
        _begin(folder, wanted, restart=options.restart)
        failed = run.keep_inputs(photos)
        if failed:
            without = {path for path, _ in failed}
            photos = [photo for photo in photos if str(photo.path) not in without]
            data = training_set(photos, options.supervision)
        state, model = run.train(data, [photo.id for photo in photos])
        trained_on = len(np.union1d(data.queries, data.database))
        report = TrainReport(
            model=model.fingerprint,
            photos=len(photos),
            trained_on=trained_on,
            held_out=len(data.held_queries),
            left_out=len(photos) - trained_on - len(data.held_queries),
            epochs=state.history[-1]["epoch"],
            best_epoch=state.best["epoch"],
            recall_before=state.history[0]["recall"],
            recall_after=state.best["recall"],
            accuracy=state.best.get("accuracy"),
            seconds=time.perf_counter() - started,
            failed=sorted(unreadable + failed),
            notes=_notes(scanned, table),
        )
        replace_text(folder / "finished.json", json.dumps({"report": asdict(report), **_length(options)}))
        shutil.rmtree(run.inputs_folder, ignore_errors=True)
        return report


def _notes(scanned: ScanResult, table: MetadataTable | None) -> list[str]:
    notes = [f"{path}: {reason}" for path, reason in scanned.problems]
    if table is not None and table.unused():
        notes.append(unused_rows(table))
    return notes


def _check_target(into: Path) -> None:
    if into.is_dir():
        raise UsageError(f"`into` must be a model file, but {into} is a folder")
    if into.exists():
        try:
            read_header(into)
        except ModelError:
            raise IndexerError(f"{into} exists and is not a model: use another file") from None
    into.parent.mkdir(parents=True, exist_ok=True)


def _wanted(sources: Sequence[Path], options: TrainingOptions) -> dict[str, Any]:
    """Return the training data and options, as in `options.json`."""
    paths = [str(Path(source).absolute()) for source in sources]
    wanted: dict[str, Any] = json.loads(json.dumps({"sources": paths, **options.identity()}))
    return wanted


def _refuse_another(folder: Path, wanted: dict[str, Any]) -> None:
    path = folder / "options.json"
    if not path.exists():
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = {}
    if found != wanted:
        raise IndexerError(
            f"{folder} holds a run with other options ({_differences(found, wanted)}): use the same "
            "options to resume it, or set `restart` to start over"
        )


def _begin(folder: Path, wanted: dict[str, Any], *, restart: bool) -> None:
    """Record the data and options; refuse a run with others, or drop it on restart."""
    if restart:
        for child in folder.iterdir():
            if child.is_dir():
                shutil.rmtree(child)
            elif not child.name.startswith("LOCK"):
                child.unlink()
    _refuse_another(folder, wanted)
    replace_text(folder / "options.json", json.dumps(wanted, indent=1))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the names of what differs, each once; the kind of held-out photos follows from the loss."""
    names: list[str] = []
    for name in new if old else ():
        if isinstance(new[name], dict) and isinstance(old.get(name), dict):
            keys = [*new[name], *old[name]]
            names += [key for key in keys if old[name].get(key) != new[name].get(key) and key != "classify"]
        elif old.get(name) != new[name]:
            names.append(name)
    words = dict.fromkeys(name.removesuffix("_m").replace("_", " ") for name in names)
    return ", ".join(words) or "unreadable"


def _length(options: TrainingOptions) -> dict[str, int]:
    return {"epochs": options.train.epochs, "patience": options.train.patience}


def _finished(folder: Path, options: TrainingOptions) -> TrainReport | None:
    path = folder / "finished.json"
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        report = TrainReport(**found["report"] | {"finished_before": True})
    except (ValueError, KeyError, TypeError):  # damaged: made again
        return None
    if {name: found.get(name) for name in ("epochs", "patience")} != _length(options):
        return None
    return dataclasses.replace(report, failed=[(path, reason) for path, reason in report.failed])
