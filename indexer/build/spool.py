"""Temporary files with the network's outputs for photos that a model is fitted on."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.storage.files import map_array, save_array
from model.layers.local_features import Packed

Floats = NDArray[np.float32]


class Spool:
    """Arrays in fp16 by kind and photo. A file exists only when it is complete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, kind: str, photo: str, array: Floats) -> None:
        """Write an array. It is on disk at return."""
        path = self._path(kind, photo)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_array(
            path, torch.from_numpy(array).half().numpy()
        )  # several times as fast as NumPy's conversion

    def get(self, kind: str, photo: str) -> Floats:
        """Return an array."""
        array = torch.from_numpy(np.array(map_array(self._path(kind, photo), "spooled")))
        return array.float().numpy()

    def put_local(self, photo: str, local: Sequence[Packed]) -> None:
        """Write the local features of a photo's views. They are on disk at return."""
        path = self._path("local", photo)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_array(path, np.stack(local))

    def get_local(self, photo: str) -> list[Packed]:
        """Return the local features of a photo's views."""
        return list(np.array(map_array(self._path("local", photo), "spooled")))

    def shape(self, kind: str, photo: str) -> tuple[int, ...]:
        """Return the shape of an array without reading it."""
        shape: tuple[int, ...] = map_array(self._path(kind, photo), "spooled").shape
        return shape

    def has(self, kind: str, photo: str) -> bool:
        return self._path(kind, photo).exists()

    def drop(self, kind: str, photo: str) -> None:
        self._path(kind, photo).unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all files."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def model_path(self) -> Path:
        """Path of the model with clusters but without a reduction."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / "clustered.safetensors"

    def _path(self, kind: str, photo: str) -> Path:
        return self._folder / kind / f"{photo}.npy"
