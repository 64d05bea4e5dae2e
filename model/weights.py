"""Named weights: the list, where they are stored, and how a name or a file becomes a model."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from model.download import Told, download
from model.errors import ModelError
from model.modelfile import PlaceModel, load_model, read_header, save_model
from model.published import MATLAB, PYTORCH, read_published


@dataclass(frozen=True)
class Named:
    """Published weights that can be downloaded by name."""

    name: str
    url: str | None
    """None: they are in the package."""
    about: str


_HLOC = "https://cvg-data.inf.ethz.ch/hloc/netvlad"
NAMED = {
    named.name: named
    for named in (
        Named(
            "imagenet", None, "VGG16's ImageNet convolutions; pooling and reduction are fitted on your photos"
        ),
        Named("pitts30k", f"{_HLOC}/Pitts30K_struct.mat", "NetVLAD trained on Pittsburgh's streets, 4,096-D"),
        Named("tokyotm", f"{_HLOC}/TokyoTM_struct.mat", "NetVLAD trained on Tokyo's streets, 4,096-D"),
    )
}
"""The publisher gives no checksums: `pull` records that of the download."""


def cache_folder() -> Path:
    """Return the folder of downloads: $LOCI_CACHE, else `loci` in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("LOCI_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loci"


def fetched(name: str) -> Path:
    """Return the file of named weights after conversion."""
    return cache_folder() / f"{name}.safetensors"


def pull(name: str, *, sha256: str | None = None, told: Told | None = None) -> Path:
    """Download named weights once, convert them, and return the model's file.

    The download, now or earlier, is checked against `sha256` if given; its checksum is kept in the model's
    provenance. A file that was put at the place named in an error is used without a download. The download is
    deleted after conversion.

    Raises:
        ModelError: an unknown name, a failed download (see `download`), a file of another kind or checksum.
    """
    if name not in NAMED:
        raise _unknown(name)
    url = NAMED[name].url
    if url is None:
        raise ModelError(f"the weights {name} come with the package: there is nothing to fetch")
    model_file = fetched(name)
    if model_file.exists():
        _check_sum(model_file, load_model(model_file), sha256)
        return model_file
    source = cache_folder() / url.rsplit("/", 1)[1]
    if source.exists():
        model = read_published(source)
    else:
        download(url, source, sha256=sha256, told=told)
        model = _read_download(url, source)
    _check_sum(source, model, sha256)
    _save(model.fitted(weights=name), model_file)
    source.unlink()
    return model_file


def _read_download(url: str, path: Path) -> PlaceModel:
    """Read the download; a file of another kind is deleted, so that the next try can succeed."""
    try:
        return read_published(path)
    except ModelError as error:
        path.unlink()
        raise ModelError(f"what came from {url} was thrown away: {error}") from error


def _check_sum(path: Path, model: PlaceModel, sha256: str | None) -> None:
    found = model.config.provenance.get("sha256")
    if sha256 is not None and found != sha256:
        raise ModelError(f"{path} is of a file with SHA-256 {found}, not {sha256}: delete it to fetch anew")


def import_weights(source: Path, into: Path) -> PlaceModel:
    """Convert published weights to a model file of ours.

    Raises:
        ModelError: as in `read_published`; `into` is a folder, or exists and is not a model.
    """
    if into.is_dir():
        raise ModelError(f"{into} is a folder: name the model's file")
    if into.exists():
        try:
            read_header(into)
        except ModelError:
            raise ModelError(f"{into} is there already and is no model: name another") from None
    model = read_published(source)
    _save(model, into)
    return model


def load_weights(text: str, told: Told | None = None) -> PlaceModel:
    """Return the model of a name or a file; named weights are downloaded if needed.

    A file is a model of ours or published weights. The model's `config.weights` has name and fingerprint
    (`pitts30k@1f0c…`), so that two files of one name differ.

    Raises:
        ModelError: neither a name nor a file, or as in `pull` and `read_published`.
    """
    path = Path(text)
    if text in NAMED:
        model = load_model(pull(text, told=told))
    elif path.suffix.lower() in (*MATLAB, *PYTORCH) and path.is_file():
        model = read_published(path)
    elif path.is_file():
        model = load_model(path)
    else:
        raise _unknown(text)
    label = text if text in NAMED else path.name.split(".")[0]
    return model.fitted(weights=f"{label}@{model.fingerprint}")


def _save(model: PlaceModel, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, path)


def _unknown(text: str) -> ModelError:
    close = difflib.get_close_matches(text, NAMED, n=1)
    guess = f"did you mean {close[0]}?" if close else f"names are {', '.join(NAMED)}"
    return ModelError(f"no weights and no file {text!r}: {guess}")
