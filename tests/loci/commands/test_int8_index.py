"""An index made and asked in int8, by the real network on the demo's photos."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from indexer.build import fit
from indexer.build.run import build_index
from indexer.build.spool import Spool
from indexer.index import Index
from indexer.options import BuildOptions, FitOptions
from indexer.storage.layout import Layout
from model.errors import ModelError
from model.int8 import computes_int8
from model.modelfile import PlaceModel, load_model, save_model

pytest.importorskip("openvino", reason="OpenVINO is not installed")
pytestmark = pytest.mark.skipif(not computes_int8(), reason="this processor has neither VNNI nor AMX")
DEMO = Path(__file__).parents[3] / "loci/demo/photos"
SMALL = {"image_size": 160, "clusters": 4, "device": "cpu"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "photos"
    folder.mkdir()
    for photo in sorted(DEMO.glob("*.jpg"))[::5]:
        shutil.copy(photo, folder)
    return folder


@pytest.fixture(scope="module")
def made(photos: Path) -> Path:
    into = photos.parent / "index"
    build_index([photos], into, BuildOptions(precision="int8", **SMALL))  # type: ignore[arg-type]
    return into


def test_int8_index_answers_in_every_precision(made: Path, photos: Path) -> None:
    files = sorted(photos.iterdir())
    assert len(files) >= 10
    rows = {}
    for precision in ("int8", "fp32"):
        index = Index.open(made, device="cpu", precision=precision)
        assert index.info()["precision"] == {"int8": "int8", "fp32": "float32"}[precision]
        for file in files:
            (best, *_) = index.query(file).places[0].photos
            assert Path(best.path).name == file.name
            assert best.score > 0.99
        rows[precision] = index.embed(files)
    cosines = (rows["int8"] * rows["fp32"]).sum(1)
    assert cosines.min() > 0.98
    assert cosines.max() < 1


def test_precision_is_not_part_of_the_model(made: Path, photos: Path) -> None:
    model = load_model(Layout(made).model(1))
    assert len(model.config.activation_ranges) == 13
    other = model.fitted(activation_ranges=())
    assert other.fingerprint == model.fingerprint
    build_index([photos], made, BuildOptions(precision="fp32", **SMALL))  # type: ignore[arg-type]
    assert Index.open(made, device="cpu", precision="fp32").model_fingerprint == model.fingerprint


def test_resumed_run_keeps_int8_ranges(made: Path, tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    known = load_model(Layout(made).model(1))
    shutil.copy(Layout(made).model(1), spool.model_path)
    unfitted = PlaceModel.unfitted(BuildOptions().fit_over(FitOptions()).model_config())
    found = fit.measured(unfitted, spool, [], None, "cpu")  # type: ignore[arg-type]
    assert found.config.activation_ranges == known.config.activation_ranges


def test_index_without_calibration_says_why(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "index")
    path = Layout(tmp_path / "index").model(1)
    save_model(load_model(path).fitted(activation_ranges=()), path)
    with pytest.raises(ModelError, match="does not know its ranges for int8"):
        Index.open(tmp_path / "index", device="cpu", precision="int8")
    index = Index.open(tmp_path / "index", device="cpu")
    assert index.info()["precision"] in ("bfloat16", "float32")
    assert np.isfinite(index.embedder.embed([np.zeros((64, 64, 3), np.uint8)])).all()
