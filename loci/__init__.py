"""Find where a photo was taken: `Index.open("my-index").query("photo.jpg")`."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indexer.index import Index as Index

__all__ = ["Index", "__version__"]

try:
    __version__ = version("geniusloci")
except PackageNotFoundError:  # run from a copied source tree
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    # Late, since Index brings PyTorch and FAISS along, and `loci --help` needs neither.
    if name == "Index":
        from indexer.index import Index

        return Index
    raise AttributeError(f"module 'loci' has no attribute {name!r}")
