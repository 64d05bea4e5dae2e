"""Find where a photo was taken: `Index.open("my-index").query("photo.jpg")`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexer.filters import Filters as Filters
    from indexer.index import Index as Index

    __version__: str

__all__ = ["Filters", "Index", "__version__"]


def __getattr__(name: str) -> Any:
    # Late, since Index brings PyTorch and FAISS along, and `loci --help` needs neither, nor the version.
    if name == "Index":
        from indexer.index import Index

        return Index
    if name == "Filters":
        from indexer.filters import Filters

        return Filters
    if name == "__version__":
        from importlib.metadata import version

        return version("geniusloci")
    raise AttributeError(f"module 'loci' has no attribute {name!r}")
