"""Snapshots on Milvus: one collection each, with all fields that an answer needs, and a table of texts.

`indexer.milvus.sync` fills the collections, and `indexer.milvus.replica` answers from them. An alias names
the current collection; milvus-lite has no aliases, so there a row names it.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from indexer.addresses import Address
from indexer.errors import IndexerError, StoreUnavailable
from indexer.milvus.entities import FIELDS, NUMBERS, TEXTS, Entity
from indexer.snapshots.store import Floats, Ids

LARGEST = 65_535
"""Most characters of a field."""
ASKED = 100
"""Queries in a request."""
INSERTED = 500
"""Entities in a request: below its 64 MiB, with 46 kB of local features each."""
GRAPH, FLAT = "HNSW", "FLAT"
EXACT = 20_000
"""Descriptors above which a server searches by HNSW."""
UNSEALED = 2000
"""Changes after which a collection is sealed. A server compares up to 5,000 new descriptors exactly; above
that it searches them by lists, which find less than half (Milvus 2.3).
"""
TIMEOUT = 20.0
"""Time limit for a server to start a request, in seconds."""
PATIENCE = 600
"""Seconds without progress after which waiting for HNSW is given up."""
LEAST_INDEXED = 1024
"""Descriptors of a sealed segment above which a server builds HNSW for it."""
MOST = 16_384
"""Most entities that Milvus returns."""


class Milvus:
    """One store. Raises StoreUnavailable if it cannot be reached, or refuses."""

    def __init__(self, address: Address) -> None:
        self.address = address
        from pymilvus import MilvusClient

        token = os.environ.get("MILVUS_TOKEN", "")
        with _Explained(address, "reached"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # milvus-lite's warnings about setuptools: users cannot fix them
            logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # errors are raised anyway
            self._client: Any = MilvusClient(uri=address.uri, token=token, timeout=TIMEOUT)
        self._is_file = not address.uri.startswith("http")
        self._about = f"{address.name}_about"

    # The current collection

    def current(self) -> str | None:
        """Return the current collection; None before there is one."""
        with _Explained(self.address, "read"):
            if self._is_file:
                return self.said("current")
            if not self._has_alias():
                return None
            return str(self._client.describe_alias(self.address.name)["collection_name"])

    def point(self, collection: str) -> None:
        """Make a collection current."""
        with _Explained(self.address, "written"):
            if self._is_file:
                self.say("current", collection)
            elif self._has_alias():
                self._client.alter_alias(collection, self.address.name)
            else:
                self._client.create_alias(collection, self.address.name)

    def _has_alias(self) -> bool:
        from pymilvus.exceptions import MilvusException

        try:
            self._client.describe_alias(self.address.name)
        except MilvusException as error:
            if "not found" in str(error) or "not exist" in str(error):
                return False
            raise
        return True

    def collections(self) -> list[str]:
        """Return all collections except the table of texts."""
        with _Explained(self.address, "read"):
            names = self._client.list_collections()
        pattern = re.compile(rf"{self.address.name}_\d+_\d+")
        return [name for name in names if pattern.fullmatch(name)]

    # The table of texts

    def say(self, key: str, value: str) -> None:
        """Store a text of any length, in parts."""
        with _Explained(self.address, "written"):
            if not self._client.has_collection(self._about):
                self._make_about()
            parts = [
                value[start : start + LARGEST // 4] for start in range(0, max(len(value), 1), LARGEST // 4)
            ]
            rows = [
                {
                    "key": f"{key}#{number:05}",
                    "of": key,
                    "parts": len(parts),
                    "value": part,
                    "nothing": [0.0, 0.0],
                }
                for number, part in enumerate(parts)
            ]
            for start in range(0, len(rows), INSERTED):
                self._client.upsert(self._about, rows[start : start + INSERTED])

    def said(self, key: str) -> str | None:
        """Return a stored text; None if there is none."""
        with _Explained(self.address, "read"):
            if not self._client.has_collection(self._about):
                return None
            rows = self._client.query(
                self._about, filter=f'of == "{key}"', output_fields=["key", "parts", "value"]
            )
        rows = sorted(rows, key=lambda row: str(row["key"]))
        if not rows:
            return None
        return "".join(
            row["value"] for row in rows[: rows[0]["parts"]]
        )  # more parts are of an older, longer text

    def _make_about(self) -> None:
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=300)
        schema.add_field("of", DataType.VARCHAR, max_length=300)
        schema.add_field("parts", DataType.INT64)
        schema.add_field("value", DataType.VARCHAR, max_length=LARGEST)
        schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)
        self._create(self._about, schema, "nothing", exact=True)

    def _create(self, collection: str, schema: Any, vector: str, exact: bool) -> None:
        from pymilvus import MilvusClient

        indexes = MilvusClient.prepare_index_params()
        kind, settings = (FLAT, {}) if exact else (GRAPH, {"M": 32, "efConstruction": 200})
        indexes.add_index(vector, index_type=kind, metric_type="IP", params=settings)
        self._client.create_collection(
            collection, schema=schema, index_params=indexes, consistency_level="Strong"
        )
        self._client.load_collection(collection)

    # Filling

    def is_exact(self, count: int, recall: float) -> bool:
        """Whether this many descriptors are compared exactly for such a recall."""
        return self._is_file or count < EXACT or recall >= 1

    def create(self, collection: str, dim: int, exact: bool) -> None:
        """Make an empty collection, exact or HNSW; one with this name is dropped."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        for name in TEXTS:
            schema.add_field(name, DataType.VARCHAR, max_length=LARGEST if name == "path" else 1024)
        for name in NUMBERS:
            schema.add_field(name, DataType.DOUBLE)
        schema.add_field("local", DataType.VARCHAR, max_length=LARGEST)
        self.drop(collection)
        with _Explained(self.address, "written"):
            self._create(collection, schema, "vector", exact)

    def put(self, collection: str, entities: Sequence[Entity]) -> None:
        """Insert entities, or replace those with the same ids."""
        with _Explained(self.address, "written"):
            for start in range(0, len(entities), INSERTED):
                self._client.upsert(collection, list(entities[start : start + INSERTED]))

    def seal(self, collection: str, timeout: float = TIMEOUT) -> None:
        """Let the server build HNSW for what was sent so far, in the background."""
        if not self._is_file:
            with _Explained(self.address, "written"):
                self._client.flush(collection, timeout=timeout)

    def settle(self, collection: str) -> None:
        """Seal the collection and wait for HNSW. Raises StoreUnavailable if that stalls."""
        self.seal(collection, PATIENCE)
        count, done, since = self.count(collection), -1, time.monotonic()
        while True:
            with _Explained(self.address, "read"):
                segments = self._client.list_loaded_segments(collection)
            ready = sum({one.segment_id: one.num_rows for one in segments if _is_ready(one)}.values())
            if ready >= count:
                return
            if ready > done:
                done, since = ready, time.monotonic()
            if time.monotonic() - since > PATIENCE:
                raise StoreUnavailable(
                    f"the Milvus store {self.address.uri} ({self.address.name}) has built HNSW for "
                    f"{ready:,} of {count:,} descriptors and made no progress for {PATIENCE} s: run again"
                )
            time.sleep(1)

    def delete(self, collection: str, ids: Sequence[int]) -> None:
        """Delete entities, if they exist."""
        with _Explained(self.address, "written"):
            for start in range(0, len(ids), 1000):
                self._client.delete(collection, ids=list(ids[start : start + 1000]))

    def drop(self, collection: str) -> None:
        """Delete a collection, if it exists."""
        with _Explained(self.address, "written"):
            if self._client.has_collection(collection):
                self._client.drop_collection(collection)

    def count(self, collection: str, expression: str = "") -> int:
        """Number of entities."""
        with _Explained(self.address, "read"):
            found = self._client.query(collection, filter=expression, output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    # Querying

    def search(
        self, collection: str, descriptor: Floats, k: int, expression: str, effort: int
    ) -> list[Entity]:
        """Return the k entities nearest to a descriptor (d), with their vectors.

        Args:
            effort: nodes of HNSW that are kept in view (ef), at least k; an exact search uses all.
        """
        with _Explained(self.address, "searched"):
            (found,) = self._client.search(
                collection,
                data=[descriptor.tolist()],
                limit=min(k, MOST),
                filter=expression,
                output_fields=[*FIELDS, "vector"],
                search_params=_parameters(k, effort),
            )
        return [{**hit["entity"], "id": hit["id"]} for hit in found]

    def nearest(self, collection: str, queries: Floats, k: int, effort: int) -> Ids:
        """Return ids (B k) of the descriptors nearest to queries (B d), or −1; see `search`."""
        ids = np.full((len(queries), k), -1, np.int64)
        with _Explained(self.address, "searched"):
            for start in range(0, len(queries), ASKED):
                part = queries[start : start + ASKED].tolist()
                found = self._client.search(
                    collection, data=part, limit=k, search_params=_parameters(k, effort)
                )
                for row, hits in zip(ids[start:], found, strict=False):
                    row[: len(hits)] = [hit["id"] for hit in hits]
        return ids

    def views(self, collection: str, photos: Sequence[str]) -> Counter[str]:
        """Number of descriptors of photos."""
        if not photos:
            return Counter()
        names = ", ".join(f'"{photo}"' for photo in photos)
        with _Explained(self.address, "read"):
            rows = self._client.query(collection, filter=f"photo in [{names}]", output_fields=["photo"])
        return Counter(str(row["photo"]) for row in rows)

    def local(self, collection: str, ids: Sequence[int]) -> dict[int, bytes]:
        """Return packed local features of descriptors that have some."""
        if not ids:
            return {}
        with _Explained(self.address, "read"):
            rows = self._client.get(collection, ids=list(ids), output_fields=["local"])
        return {int(row["id"]): base64.b64decode(row["local"]) for row in rows if row["local"]}

    def entities(self, collection: str, expression: str = "") -> Iterator[Entity]:
        """Return all entities, without vectors."""
        with _Explained(self.address, "read"):
            iterator = self._client.query_iterator(
                collection, batch_size=1000, filter=expression, output_fields=list(FIELDS)
            )
            while batch := iterator.next():
                yield from batch
            iterator.close()


def _parameters(k: int, effort: int) -> dict[str, Any]:
    return {"metric_type": "IP", "params": {"ef": max(k, effort)}}


def _is_ready(segment: Any) -> bool:
    """Whether a segment has HNSW, or is so small that the server builds none."""
    return bool(segment.state_name == "Sealed" and (segment.index_name or segment.num_rows < LEAST_INDEXED))


class _Explained:
    """Turns errors of Milvus, gRPC and the network into StoreUnavailable."""

    def __init__(self, address: Address, done: str) -> None:
        self._what = f"the Milvus store {address.uri} ({address.name}) cannot be {done}"

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if (
            error is None
            or isinstance(error, (IndexerError, GeneratorExit))
            or not isinstance(error, Exception)
        ):
            return
        words = " ".join((getattr(error, "message", "") or str(error)).split()) or type(error).__name__
        raise StoreUnavailable(f"{self._what}: {words[:300]}") from error
