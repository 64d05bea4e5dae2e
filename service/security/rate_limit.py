"""Token buckets: how many requests one caller may make."""

import time
from collections import OrderedDict
from collections.abc import Callable

CALLERS = 10_000


class RateLimit:
    """A bucket a caller: `burst` tokens at most, `rate` new ones a second, one taken a request.

    Remembers the `callers` that asked last; one that was forgotten begins with a full bucket, so that
    memory stays bounded whoever comes.
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
        """Take a token; gives 0, or the seconds after which there will be one. A rate of 0 sets no limit."""
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
