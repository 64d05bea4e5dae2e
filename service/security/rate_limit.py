"""Token buckets that limit the requests of a caller."""

import time
from collections import OrderedDict
from collections.abc import Callable

CALLERS = 10_000


class RateLimit:
    """A bucket for each caller: at most `burst` tokens, `rate` new ones a second, one for each request.

    Only the `callers` that came last are remembered, so memory stays bounded; a forgotten one starts with a
    full bucket.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        *,
        callers: int = CALLERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._callers = callers
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, caller: str) -> float:
        """Take a token; return 0, or the seconds until there is one. A rate of 0 sets no limit."""
        if self._rate == 0:
            return 0.0
        now = self._clock()
        tokens, last = self._buckets.pop(caller, (self._burst, now))
        tokens = min(self._burst, tokens + (now - last) * self._rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / self._rate
        self._buckets[caller] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > self._callers:
            self._buckets.popitem(last=False)
        return wait
