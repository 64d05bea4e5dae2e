"""Snapshots in Milvus: a collection each, with all that an answer needs as fields, and what is said about it.

Searching, filtering and reading are here; `indexer.milvus.sync` fills the collections, and
`indexer.milvus.replica` answers from them. The server keeps its order by alias; milvus-lite has none, and a
row says which collection answers.
"""

from __future__ import annotations

import base64
import logging
import os
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from indexer.addresses import Address
from indexer.answers import Photo, Place
from indexer.errors import IndexerError, StoreUnavailable
from indexer.filters import Filters
from indexer.geo import band_degrees
from indexer.search.filter_columns import Columns, PlaceNumbers, columns_of
from indexer.snapshots.store import Floats, Ids
from indexer.storage.rows import Hit

NOWHERE = 1e15
"""In the place of a number that a photo lacks: Milvus 2.3 has no nulls, and no comparison reaches it."""
LARGEST = 65_535
"""Characters of a field."""
ASKED = 100
"""Questions at a time."""
INSERTED = 500
"""Entities at a time: below the 64 MiB of a request, with 46 kB of local features each."""
GRAPH, FLAT = "HNSW", "FLAT"
EXACT = 20_000
"""Descriptors from which on a server searches by a graph."""
UNSEALED = 2000
"""Changes after which a collection is sealed. Of up to 5,000 new descriptors a server compares all; more it
searches, where a graph is due, by lists of its own, which find less than half (2.3)."""
TIMEOUT = 20.0
"""Seconds that a server may take to begin."""
PATIENCE = 600
"""Seconds without any progress after which a server that makes a graph is given up."""
LEAST_INDEXED = 1024
"""Descriptors of a sealed part from which on a server makes a graph of it."""
MOST = 16_384
"""Entities that Milvus finds at most."""

_TEXTS = ("photo", "path", "taken_at", "given_place", "place", "place_name")
_NUMBERS = (
    *("lat", "lon", "heading", "yaw", "direction", "clock", "seconds", "place_lat", "place_lon"),
    *("width", "height"),
)
FIELDS = ("id", *_TEXTS, *_NUMBERS)
Entity = dict[str, Any]


class Milvus:
    """One store; raises StoreUnavailable where it cannot be reached, or refuses."""

    def __init__(self, address: Address) -> None:
        self.address = address
        from pymilvus import MilvusClient

        token = os.environ.get("MILVUS_TOKEN", "")
        with _Explained(address, "reached"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # milvus-lite's use of setuptools is not for users to mend
            logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what matters is raised
            self._client: Any = MilvusClient(uri=address.uri, token=token, timeout=TIMEOUT)
        self._is_file = not address.uri.startswith("http")
        self._about = f"{address.name}_about"

    # Which collection answers

    def current(self) -> str | None:
        """The collection that answers; None before there is one."""
        with _Explained(self.address, "read"):
            if self._is_file:
                return self.said("current")
            if not self._has_alias():
                return None
            return str(self._client.describe_alias(self.address.name)["collection_name"])

    def point(self, collection: str) -> None:
        """Let a collection answer from now on."""
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
        """All of the store's, but the one about them."""
        with _Explained(self.address, "read"):
            names = self._client.list_collections()
        pattern = re.compile(rf"{self.address.name}_\d+_\d+")
        return [name for name in names if pattern.fullmatch(name)]

    # What is said about collections

    def say(self, key: str, value: str) -> None:
        """Remember a text, as long as it may be, in parts."""
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
        """What was said; None where nothing was."""
        with _Explained(self.address, "read"):
            if not self._client.has_collection(self._about):
                return None
            rows = self._client.query(
                self._about, filter=f'of == "{key}"', output_fields=["key", "parts", "value"]
            )
        rows = sorted(rows, key=lambda row: str(row["key"]))
        if not rows:
            return None
        return "".join(row["value"] for row in rows[: rows[0]["parts"]])  # more are of a longer one before

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
        """Whether of so many descriptors each is compared, where such a recall is wanted."""
        return self._is_file or count < EXACT or recall >= 1

    def create(self, collection: str, dim: int, exact: bool) -> None:
        """An empty collection, searched exactly or by a graph; one of this name goes."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        for name in _TEXTS:
            schema.add_field(name, DataType.VARCHAR, max_length=LARGEST if name == "path" else 1024)
        for name in _NUMBERS:
            schema.add_field(name, DataType.DOUBLE)
        schema.add_field("local", DataType.VARCHAR, max_length=LARGEST)
        self.drop(collection)
        with _Explained(self.address, "written"):
            self._create(collection, schema, "vector", exact)

    def put(self, collection: str, entities: Sequence[Entity]) -> None:
        """Insert entities, or replace those of the same ids."""
        with _Explained(self.address, "written"):
            for start in range(0, len(entities), INSERTED):
                self._client.upsert(collection, list(entities[start : start + INSERTED]))

    def seal(self, collection: str, timeout: float = TIMEOUT) -> None:
        """Let the server make a graph of what was put so far, in its own time."""
        if not self._is_file:
            with _Explained(self.address, "written"):
                self._client.flush(collection, timeout=timeout)

    def settle(self, collection: str) -> None:
        """Seal it, and wait until it is searched by the graph. Raises StoreUnavailable where that stalls."""
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
                    f"the Milvus store {self.address.uri} ({self.address.name}) has made a graph of "
                    f"{ready:,} of {count:,} descriptors, and of no more for {PATIENCE} s: run again"
                )
            time.sleep(1)

    def delete(self, collection: str, ids: Sequence[int]) -> None:
        """Delete entities, where they are there."""
        with _Explained(self.address, "written"):
            for start in range(0, len(ids), 1000):
                self._client.delete(collection, ids=list(ids[start : start + 1000]))

    def drop(self, collection: str) -> None:
        """Delete a collection, where it is there."""
        with _Explained(self.address, "written"):
            if self._client.has_collection(collection):
                self._client.drop_collection(collection)

    def count(self, collection: str, expression: str = "") -> int:
        """How many entities there are."""
        with _Explained(self.address, "read"):
            found = self._client.query(collection, filter=expression, output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    # Asking

    def search(
        self, collection: str, descriptor: Floats, k: int, expression: str, effort: int
    ) -> list[Entity]:
        """The k entities whose descriptors are nearest to one (d), with their vectors.

        Args:
            effort: nodes of a graph that are kept in sight (ef), k at least; an exact search looks at all.
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
        """Ids (B k) of the descriptors nearest to queries (B d), or −1; see `search`."""
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
        """How many descriptors photos have."""
        if not photos:
            return Counter()
        names = ", ".join(f'"{photo}"' for photo in photos)
        with _Explained(self.address, "read"):
            rows = self._client.query(collection, filter=f"photo in [{names}]", output_fields=["photo"])
        return Counter(str(row["photo"]) for row in rows)

    def local(self, collection: str, ids: Sequence[int]) -> dict[int, bytes]:
        """The packed local features of descriptors, where they have some."""
        if not ids:
            return {}
        with _Explained(self.address, "read"):
            rows = self._client.get(collection, ids=list(ids), output_fields=["local"])
        return {int(row["id"]): base64.b64decode(row["local"]) for row in rows if row["local"]}

    def entities(self, collection: str, expression: str = "") -> Iterator[Entity]:
        """All entities, without their vectors."""
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
    """Whether a part of a collection has its graph, or is so small that the server makes none."""
    return bool(segment.state_name == "Sealed" and (segment.index_name or segment.num_rows < LEAST_INDEXED))


class _Explained:
    """Turns whatever Milvus, gRPC or the network has to say into StoreUnavailable."""

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


# Entities


def entity(number: int, vector: Floats, hit: Hit, packed: bytes | None) -> Entity:
    """A descriptor with all that an answer needs of it."""
    photo, place = hit.photo, hit.place
    columns = columns_of([hit.row(number)], PlaceNumbers())
    return {
        "id": number,
        "vector": vector.tolist(),
        "photo": photo.id,
        "path": photo.path,
        "taken_at": photo.taken_at or "",
        "given_place": photo.place or "",
        "place": place.id if place else "",
        "place_name": (place.name if place else None) or "",
        "lat": _number(photo.lat),
        "lon": _number(photo.lon),
        "heading": _number(photo.heading),
        "yaw": hit.yaw,
        "direction": _number(None if photo.heading is None else (photo.heading + hit.yaw) % 360.0),
        "clock": _number(float(columns.clock[0])),
        "seconds": _number(float(columns.clock[0] - np.nan_to_num(columns.offset[0]))),
        "place_lat": _number(place.lat if place else None),
        "place_lon": _number(place.lon if place else None),
        "width": float(photo.width),
        "height": float(photo.height),
        "local": base64.b64encode(packed).decode() if packed else "",
    }


def hit_of(row: Mapping[str, Any]) -> Hit:
    """The photo and place of an entity."""
    place = None
    if row["place"]:
        place = Place(
            row["place"], row["place_name"] or None, _known(row["place_lat"]), _known(row["place_lon"]), 0
        )
    photo = Photo(
        row["photo"],
        row["path"],
        row["given_place"] or None,
        _known(row["lat"]),
        _known(row["lon"]),
        _known(row["heading"]),
        row["taken_at"] or None,
        int(row["width"]),
        int(row["height"]),
        "ok",
    )
    return Hit(photo, place, float(row["yaw"]))


def vectors_of(rows: Sequence[Mapping[str, Any]]) -> Floats:
    """The descriptors (n d) of entities."""
    return np.array([row["vector"] for row in rows], np.float32)


def _number(value: float | None) -> float:
    return NOWHERE if value is None or value != value else float(value)


def _known(value: float) -> float | None:
    return None if value == NOWHERE else float(value)


# Filters


def expression_of(filters: Filters | None) -> str:
    """What Milvus can tell of filters; all that passes them passes this. `passing` does the rest."""
    if filters is None:
        return ""
    parts = []
    if filters.place is not None:
        name = filters.place.replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'(place == "{name}" or place_name == "{name}")')
    if filters.heading is not None and filters.heading_tolerance < 180:
        parts.append(_direction(filters.heading, filters.heading_tolerance))
    elif filters.heading is not None:
        parts.append("direction < 361.0")
    for bound, sign in ((filters.after, ">="), (filters.before, "<")):
        if bound is not None:
            field = "seconds" if bound.has_offset else "clock"
            parts.append(f"{field} {sign} {bound.seconds!r} and {field} < {NOWHERE!r}")
    if filters.position is not None and filters.radius_m is not None:
        parts.append(_box(*filters.position, filters.radius_m))
    return " and ".join(parts)


def _direction(heading: float, tolerance: float) -> str:
    # A thousandth of a degree more: rounding is left to `passing`.
    low, high = (heading - tolerance - 1e-3) % 360.0, (heading + tolerance + 1e-3) % 360.0
    if low <= high:
        return f"direction >= {low!r} and direction <= {high!r}"
    return f"(direction >= {low!r} and direction < 361.0 or direction <= {high!r})"


def _box(lat: float, lon: float, radius_m: float) -> str:
    """A box around a circle; as wide as the earth where it touches a pole."""
    band = band_degrees(radius_m)
    parts = [f"lat >= {lat - band!r} and lat <= {lat + band!r}"]
    if abs(lat) + band < 89.0:
        half = band / float(np.cos(np.radians(abs(lat) + band)))
        if half < 180.0:
            west, east = lon - half, lon + half
            if west < -180.0:
                parts.append(f"(lon >= {west + 360.0!r} and lon < 181.0 or lon <= {east!r})")
            elif east > 180.0:
                parts.append(f"(lon >= {west!r} and lon < 181.0 or lon <= {east - 360.0!r})")
            else:
                parts.append(f"lon >= {west!r} and lon <= {east!r}")
    return " and ".join(parts)


def passing(filters: Filters, hits: Mapping[int, Hit]) -> set[int]:
    """Ids of those that pass filters, judged as every other store's are."""
    numbers = PlaceNumbers()
    columns: Columns = columns_of([hit.row(number) for number, hit in hits.items()], numbers)
    wanted = {
        hit.place.id
        for hit in hits.values()
        if hit.place is not None and filters.place in (hit.place.id, hit.place.name)
    }
    mask: NDArray[np.bool_] = columns.passing(filters, numbers.known(sorted(wanted)))
    return set(columns.ids[mask].tolist())
