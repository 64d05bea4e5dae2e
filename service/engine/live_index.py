"""The served index: opened in the background, and replaced when a new snapshot appears."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from indexer.errors import IndexerError, StoreUnavailable
from indexer.index import Index
from model.errors import ModelError
from service.errors import STORE_UNAVAILABLE, NotReady

logger = logging.getLogger(__name__)

Opener = Callable[[], Index]
Listener = Callable[[dict[str, Any]], None]


_LOADING = "the index is being loaded"


class LiveIndex:
    """Holds the newest snapshot that could be opened.

    A request reads `current` once and keeps it, so one snapshot answers it.
    """

    def __init__(
        self,
        opener: Opener,
        refresh_seconds: float,
        *,
        index: Index | None = None,
        on_change: Listener,  # called with the new index's info
        on_failure: Callable[[Exception], None] | None = None,
    ) -> None:
        self._opener = opener
        self._refresh_seconds = refresh_seconds
        self._index = index
        self._on_change = on_change
        self._on_failure = on_failure
        self._trouble = _LOADING if index is None else None
        self._info: dict[str, Any] | None = None
        self._refreshing = asyncio.Lock()

    @property
    def current(self) -> Index:
        """The snapshot that answers.

        Raises:
            NotReady: none is loaded yet, or its store is unavailable; the message says why.
        """
        if self._index is None or self._trouble is not None:
            raise NotReady(self._trouble or _LOADING)
        return self._index

    async def info(self) -> dict[str, Any]:
        """Return the info of `current`; read once for each snapshot, because it may take a while."""
        if self._info is not None:
            return self._info
        return await asyncio.to_thread(self.current.info)

    def trouble(self) -> str | None:
        """Return why there is no index, or None."""
        return self._trouble

    async def watch(self) -> None:
        """Open the index, then check for a newer snapshot periodically; ends only by cancellation."""
        while True:
            await (self._open() if self._index is None else self._refresh(self._index))
            await asyncio.sleep(self._refresh_seconds)

    async def _open(self) -> None:
        try:
            index = await asyncio.to_thread(self._opener)
            await self._take(index)
        except Exception as error:
            self._trouble = str(error) or type(error).__name__
            explained = isinstance(error, IndexerError | ModelError)
            logger.error("the index cannot be opened: %s", self._trouble, exc_info=not explained)
            if self._on_failure is not None:
                self._on_failure(error)

    async def renew(self) -> None:
        """Load the newest snapshot now."""
        if self._index is not None:
            await self._refresh(self._index)

    async def recount(self) -> None:
        """Notify the listener of new counts after photos were added or removed."""
        index, info = self._index, self._info
        if info is None or index is None or not index.writable:
            return
        try:
            counts = await asyncio.to_thread(index.counts)
        except IndexerError as error:  # the photo is stored, even if it cannot be counted now
            logger.warning("the photos cannot be counted: %s", error)
            return
        if index is self._index and (counts.photos, counts.places) != (info["photos"], info["places"]):
            self._info = info | {"photos": counts.photos, "places": counts.places}
            self._on_change(self._info)

    async def _refresh(self, index: Index) -> None:
        try:
            async with self._refreshing:
                index = self._index or index
                newest = await asyncio.to_thread(index.latest)
                if newest is not index or self._info is None:
                    await self._take(newest)
            self._trouble = None
            await self.recount()
        except StoreUnavailable as error:
            self._lose(error)
        except Exception:
            self._trouble = None
            logger.exception("no newer snapshot could be opened, %s goes on serving", index.snapshot)

    def _lose(self, error: StoreUnavailable) -> None:
        if self._trouble is None:
            logger.error("%s; until it can, no query is answered", error)
        self._trouble = STORE_UNAVAILABLE

    async def _take(self, index: Index) -> None:
        info = await asyncio.to_thread(index.info)
        self._index, self._info, self._trouble = index, info, None
        self._on_change(info)
        logger.info("serving snapshot %s of model %s", index.snapshot, index.model_fingerprint)
