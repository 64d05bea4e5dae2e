"""Token buckets by a clock of the test's own."""

import pytest

from service.security.rate_limit import RateLimit


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_burst_then_a_rate(clock: Clock) -> None:
    limit = RateLimit(2.0, 3, clock=clock)
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now = 0.25
    assert limit.take("a") == pytest.approx(0.25)
    clock.now = 0.5
    assert [limit.take("a"), limit.take("a")] == [0, 0.5]
    clock.now = 1000
    assert [limit.take("a") for _ in range(4)] == [0, 0, 0, 0.5], "no more than the burst is saved up"


def test_each_caller_has_its_own_bucket(clock: Clock) -> None:
    limit = RateLimit(1.0, 1, clock=clock)
    assert [limit.take("a"), limit.take("b"), limit.take("a")] == [0, 0, 1]


def test_no_limit(clock: Clock) -> None:
    limit = RateLimit(0, 1, clock=clock)
    assert [limit.take("a") for _ in range(100)] == [0] * 100
    assert len(limit) == 0


def test_rate_limiter_remembers_recent_callers(clock: Clock) -> None:
    limit = RateLimit(1.0, 1, callers=10, clock=clock)
    limit.take("a")
    for number in range(1000):
        limit.take(f"n{number}")
        assert limit.take("a") == 1
        assert len(limit) <= 10
