"""Find where a photo was taken: `Index.open("my-index").query("photo.jpg")`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexer.filters import Filters as Filters
    from indexer.index import Index as Index
    from indexer.sequences.motion import Step as Step
    from service.client import AddedPhoto as AddedPhoto
    from service.client import Client as Client
    from service.client import ClientError as ClientError

    __version__: str

__all__ = ["AddedPhoto", "Client", "ClientError", "Filters", "Index", "Step", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, since Index brings PyTorch and FAISS along, and `loci --help` needs neither, nor the version.
    if name == "Index":
        from indexer.index import Index

        return Index
    if name == "Filters":
        from indexer.filters import Filters

        return Filters
    if name == "Step":
        from indexer.sequences.motion import Step

        return Step
    if name in ("AddedPhoto", "Client", "ClientError"):
        from service import client

        return getattr(client, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("geniusloci")
    raise AttributeError(f"module 'loci' has no attribute {name!r}")
