"""Make the projection of conv4_3 in `model.layers.local_features` from the demo's photos.

python -m model.data.conv4_projection model/data/conv4-projection-fp16.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from model.images import read_photo
from model.layers.backbone import VGG16
from model.layers.local_features import DIM
from model.modelfile import ModelConfig, PlaceModel

PHOTOS = Path("loci/demo")
CELLS = 500  # drawn of a photo


def main() -> None:
    target = Path(sys.argv[1])
    model = PlaceModel.unfitted(ModelConfig()).eval()
    backbone = model.backbone
    if not isinstance(backbone, VGG16):
        raise TypeError(f"expected VGG16, got {type(backbone).__name__}")
    generator = torch.Generator().manual_seed(0)
    moment = torch.zeros(512, 512, dtype=torch.float64)
    photos = sorted(PHOTOS.rglob("*.jpg"))
    for photo in photos:
        image = torch.from_numpy(read_photo(photo, 480)[None]).permute(0, 3, 1, 2)
        with torch.inference_mode():
            middle = backbone.both(model.prepared(image))[0][0].flatten(1).T  # N 512
        drawn = middle[torch.randperm(len(middle), generator=generator)[:CELLS]]
        cells = F.normalize(drawn.double(), dim=1)
        moment += cells.T @ cells
    values, vectors = torch.linalg.eigh(moment)
    order = values.argsort(descending=True)[1 : DIM + 1]  # the first is shared by all cells
    save_file({"projection": vectors[:, order].half().contiguous()}, target)
    print(f"{target}: {len(photos)} photos, {values[order].sum() / values.sum():.3f} of the second moment")


if __name__ == "__main__":
    main()
