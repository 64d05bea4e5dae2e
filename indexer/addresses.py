"""Where a store that is no folder is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from indexer.errors import UsageError

SCHEME = "milvus:"
PORT = 19530
NAME = "loci"


@dataclass(frozen=True)
class Address:
    """Where a store is."""

    uri: str
    """Of a server, or a file of milvus-lite."""
    name: str
    """What its collections' names begin with; on a server, the alias of the one that answers."""

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
            # A path of pathlib has lost one of the slashes.
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
