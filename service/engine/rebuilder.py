"""Make the next snapshot in the background after enough changes."""

import asyncio
import logging

from indexer.errors import IndexerError, IndexLocked
from indexer.index import Index
from service.engine.live_index import LiveIndex

logger = logging.getLogger(__name__)


class Rebuilding:
    """Checks every `seconds` whether the changed share of the snapshot is at least `share`."""

    def __init__(self, live: LiveIndex, share: float, seconds: float) -> None:
        self._live = live
        self._share = share
        self._seconds = seconds

    async def watch(self) -> None:
        """Check periodically; ends only by cancellation."""
        while True:
            await asyncio.sleep(self._seconds)
            if self._live.trouble() is None:
                await self._look(self._live.current)

    async def _look(self, index: Index) -> None:
        if not index.writable:
            return
        try:
            if await asyncio.to_thread(index.drift) < self._share:
                return
            logger.info("making the next snapshot, for much has changed since %s", index.snapshot)
            await asyncio.to_thread(index.rebuild)
            await self._live.renew()
        except IndexLocked as error:
            logger.info("no snapshot is made now: %s", error)
        except IndexerError as error:
            logger.warning("the next snapshot was not made: %s", error)
        except Exception:
            logger.exception("the next snapshot could not be made, %s goes on serving", index.snapshot)
