"""What the network made of the photos that a fit needs, kept until the fit is done: a file a photo."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from indexer.storage.files import map_array, save_array
from model.local_features import Packed

Floats = NDArray[np.float32]


class Spool:
    """Arrays by kind and photo, fp16; a file is there only when it is whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, kind: str, photo: str, array: Floats) -> None:
        """Keep an array; on disk when it returns."""
        path = self._path(kind, photo)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_array(path, torch.from_numpy(array).half().numpy())  # several times as fast as NumPy's

    def get(self, kind: str, photo: str) -> Floats:
        """An array that was put."""
        array = torch.from_numpy(np.array(map_array(self._path(kind, photo), "spooled")))
        return array.float().numpy()

    def put_local(self, photo: str, local: Sequence[Packed]) -> None:
        """Keep the local features of a photo's views; on disk when it returns."""
        path = self._path("local", photo)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_array(path, np.stack(local))

    def get_local(self, photo: str) -> list[Packed]:
        """What `put_local` kept."""
        return list(np.array(map_array(self._path("local", photo), "spooled")))

    def shape(self, kind: str, photo: str) -> tuple[int, ...]:
        """The shape of an array that was put, without reading it."""
        shape: tuple[int, ...] = map_array(self._path(kind, photo), "spooled").shape
        return shape

    def has(self, kind: str, photo: str) -> bool:
        return self._path(kind, photo).exists()

    def drop(self, kind: str, photo: str) -> None:
        self._path(kind, photo).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def model_path(self) -> Path:
        """Where the model lies between the fit of its clusters and that of its reduction."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / "clustered.safetensors"

    def _path(self, kind: str, photo: str) -> Path:
        return self._folder / kind / f"{photo}.npy"
