"""The state of a training run as one file: tensors, and JSON in the header. No pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.errors import ModelError
from model.files import atomic_write


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write both atomically.

    Raises:
        ModelError: it cannot be written, for example on a full disk.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        with atomic_write(path) as partial:
            save_file(whole, partial, metadata={"state": json.dumps(state)})
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot write {path}: {error}") from error


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and state. Raises ModelError for a file that is damaged or something else."""
    try:
        with safe_open(path, "pt") as file:
            state: dict[str, Any] = json.loads((file.metadata() or {})["state"])
        return load_file(path), state
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(
            f"the checkpoint {path} cannot be read: {error}; set `restart` to start over"
        ) from error
