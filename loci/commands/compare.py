"""`loci compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loci.console import note, say, say_json
from loci.options import DeviceOption, JsonFlag, PrecisionOption

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


WITHOUT_INDEX = "imagenet-average"
"""The value of `model` if no index was given."""
HINT = (
    "Compared by averaged features of ImageNet's VGG16: different places of one kind look similar to it. "
    "Add --index to compare by the model of an index, which is fitted to tell its places apart."
)


def compare(
    first: Annotated[Path, typer.Argument(metavar="PHOTO", help="One photo.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="PHOTO", help="Another photo.", show_default=False)],
    index: Annotated[
        Path | None,
        typer.Option(metavar="INDEX", help="Use the model of this index.", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Compare two photos.

    Prints the cosine similarity of their descriptors; it is 1 for the same photo. Without --index, the
    descriptors are averaged features of ImageNet's network.
    """
    photos = (first, second)
    if index is None:
        model, descriptors = _by_average(photos, device, precision)
    else:
        model, descriptors = _by_index(index, photos, device, precision)
    similarity = float(descriptors[0] @ descriptors[1])
    if as_json:
        say_json({"photos": [str(photo) for photo in photos], "similarity": similarity, "model": model})
        return
    say(f"{similarity:.3f}")
    if index is None:
        note(HINT)


def _by_index(
    path: Path, photos: Sequence[Path], device: str, precision: str
) -> tuple[str, "NDArray[np.float32]"]:
    from indexer.index import Index

    index = Index.open(path, device=device, precision=precision)
    images = _read(photos, index.image_size, index.min_image_size)
    return index.model_fingerprint, index.embedder.embed(images)


def _read(photos: Sequence[Path], image_size: int, min_image_size: int) -> "list[NDArray[np.uint8]]":
    from model.errors import ImageError
    from model.images import read_photo

    images = []
    for photo in photos:
        try:
            images.append(read_photo(photo, image_size, min_image_size))
        except ImageError as error:
            raise type(error)(f"{photo}: {error}") from error
    return images


def _by_average(photos: Sequence[Path], device: str, precision: str) -> tuple[str, "NDArray[np.float32]"]:
    """Average conv5_3 after its ReLU: before it, a negative offset makes any two photos alike."""
    import numpy as np

    from model.embedder import Embedder
    from model.images import DEFAULT_IMAGE_SIZE, MIN_IMAGE_SIZE
    from model.modelfile import ModelConfig, PlaceModel

    images = _read(photos, DEFAULT_IMAGE_SIZE, MIN_IMAGE_SIZE)
    network = Embedder(PlaceModel.unfitted(ModelConfig()), device=device, precision=precision)
    maps = network.outputs(images, "maps")  # each D H W
    means = np.stack([np.maximum(part, 0.0).mean((1, 2)) for part in maps])  # 2 D
    return WITHOUT_INDEX, means / np.linalg.norm(means, axis=1, keepdims=True).clip(1e-12)
