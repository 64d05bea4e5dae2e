"""Addresses of Milvus stores and Ray clusters, as options contain them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from indexer.errors import UsageError

SCHEME = "milvus:"
PORT = 19530
NAME = "loci"
RAY_SCHEME = "ray://"
RAY_LOCAL = "ray://local"
"""Address of a Ray cluster on this machine alone, started for the run."""


@dataclass(frozen=True)
class Address:
    """Address of a Milvus store."""

    uri: str
    """URL of a server, or path of a file of milvus-lite."""
    name: str
    """Prefix of its collections' names; on a server, also the alias of the collection that answers."""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read milvus://HOST[:PORT][/NAME], or milvus:FILE.db for a file.

        Raises:
            UsageError: it is neither, or pymilvus is not installed.
        """
        rest = text.removeprefix(SCHEME)
        if text.startswith(SCHEME) and rest.endswith(".db"):
            address = cls(str(Path(rest).absolute()), NAME)
        else:
            # pathlib turns the two slashes into one.
            match = re.fullmatch(
                r"milvus://?([\w.-]+|\[[\da-fA-F:]+\])(?::(\d{1,5}))?(?:/([A-Za-z_]\w*))?/?", text
            )
            if match is None:
                raise UsageError(
                    f"a Milvus store is milvus://HOST[:PORT][/NAME] or milvus:FILE.db, not {text!r}"
                )
            address = cls(f"http://{match[1]}:{match[2] or PORT}", match[3] or NAME)
        if find_spec("pymilvus") is None:
            raise UsageError(
                "Milvus needs pymilvus, which is not installed: pip install 'geniusloci[milvus]'"
            )
        return address


def check_ray_address(address: str) -> None:
    """Check the address of a Ray cluster.

    Raises:
        UsageError: it is no ray://HOST:PORT, or Ray is not installed.
    """
    host = address.removeprefix(RAY_SCHEME)
    if not address.startswith(RAY_SCHEME) or not host or "/" in host:
        raise UsageError(f"`workers` must be ray://HOST:PORT or {RAY_LOCAL}, not {address!r}")
    if find_spec("ray") is None:
        raise UsageError("`workers` needs Ray, which is not installed: pip install 'geniusloci[ray]'")
