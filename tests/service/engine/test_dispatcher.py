"""The dispatcher by itself: batching, limits, and that everybody gets an answer."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.embedder import Seen
from model.gpu_decoding import Image
from service.engine.dispatcher import Dispatcher
from service.errors import NotReady, OutOfMemory, Overloaded

BAD = 255


class SlowNetwork:
    """Gives each image's first pixel as its descriptor, once `open` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = threading.Event()
        self.entered = threading.Event()
        self.fatal: BaseException | None = None
        self.failures: list[Exception] = []
        """Raised one a batch, in order, before anything is answered."""
        self.fail_above: int | None = None
        """Batches of more images find no memory."""

    def see(self, clips: Sequence[Sequence[Image]]) -> list[Seen]:
        values = [sum(int(image[0, 0, 0]) for image in clip) for clip in clips]
        self.batches.append(values)
        self.entered.set()
        self.open.wait(10)
        if self.fatal is not None:
            raise self.fatal
        if self.fail_above is not None and len(values) > self.fail_above:
            raise no_memory()
        if self.failures:
            raise self.failures.pop(0)
        if BAD in values:
            raise ValueError("a bad image")
        return [Seen(np.array([value], np.float32)) for value in values]


def picture(value: int) -> NDArray[np.uint8]:
    return np.full((4, 4, 3), value, dtype=np.uint8)


Make = Callable[..., Dispatcher]


@pytest.fixture
def network() -> Iterator[SlowNetwork]:
    network = SlowNetwork()
    yield network
    network.open.set()


@pytest.fixture
def make(network: Any) -> Iterator[Make]:
    made: list[Dispatcher] = []

    def make(
        max_batch: int = 4,
        queue_size: int = 16,
        stall_seconds: float = 60.0,
        wedged_seconds: float = 300.0,
        on_death: Callable[[Exception], None] | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> Dispatcher:
        dispatcher = Dispatcher(
            max_batch=max_batch,
            queue_size=queue_size,
            stall_seconds=stall_seconds,
            wedged_seconds=wedged_seconds,
            probe_seconds=0.05,
            on_death=on_death,
            on_batch=on_batch,
        )
        dispatcher.start()
        made.append(dispatcher)
        return dispatcher

    yield make
    network.open.set()
    for dispatcher in made:
        dispatcher.stop(5)


async def busy(dispatcher: Dispatcher, network: Any) -> "asyncio.Task[Seen]":
    """Keep the network busy with an image of its own until it is opened."""
    first = asyncio.create_task(dispatcher.see([picture(0)], network))
    await asyncio.to_thread(network.entered.wait, 10)
    return first


async def submit(dispatcher: Dispatcher, network: Any, values: Sequence[int]) -> "list[asyncio.Task[Seen]]":
    tasks = [asyncio.create_task(dispatcher.see([picture(value)], network)) for value in values]
    await asyncio.sleep(0)  # each task runs up to its wait
    return tasks


def test_busy_network_batches_queued_images(make: Make, network: Any) -> None:
    sizes: list[int] = []
    dispatcher = make(max_batch=4, on_batch=sizes.append)

    async def run() -> list[float]:
        first = await busy(dispatcher, network)
        rest = await submit(dispatcher, network, range(1, 8))
        assert dispatcher.queued == 7
        network.open.set()
        return [float(row.descriptor[0]) for row in await asyncio.gather(first, *rest)]

    assert asyncio.run(run()) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert sizes == [1, 4, 3]


def test_a_clip_counts_by_its_images(make: Make, network: Any) -> None:
    sizes: list[int] = []
    dispatcher = make(max_batch=4, on_batch=sizes.append)

    async def run() -> list[float]:
        tasks = [await busy(dispatcher, network)]
        clips = ([1, 2, 3], [4], [5, 6, 7, 8, 9], [10])
        tasks += [asyncio.create_task(dispatcher.see([picture(v) for v in clip], network)) for clip in clips]
        await asyncio.sleep(0)
        assert dispatcher.queued == 10
        network.open.set()
        return [float(row.descriptor[0]) for row in await asyncio.gather(*tasks)]

    assert asyncio.run(run()) == [0, 6, 4, 35, 10]
    assert network.batches == [[0], [6, 4], [35], [10]]
    assert sizes == [1, 4, 5, 1]


def test_a_full_queue_is_overloaded_and_says_when_to_return(make: Make, network: Any) -> None:
    dispatcher = make(queue_size=2)

    async def run() -> None:
        first = await busy(dispatcher, network)
        rest = await submit(dispatcher, network, [1, 2])
        with pytest.raises(Overloaded, match="2 images are waiting already") as caught:
            await dispatcher.see([picture(3)], network)
        assert caught.value.retry_after == 1
        network.open.set()
        await asyncio.gather(first, *rest)

    asyncio.run(run())


def test_a_cancelled_caller_leaves_its_place_and_its_batch_alone(make: Make, network: Any) -> None:
    dispatcher = make(queue_size=3)

    async def run() -> list[float]:
        first = await busy(dispatcher, network)
        one, two, three = await submit(dispatcher, network, [1, 2, 3])
        two.cancel()
        await asyncio.sleep(0)
        (four,) = await submit(dispatcher, network, [4])  # takes the place that was left
        network.open.set()
        answers = await asyncio.gather(first, one, three, four)
        assert two.cancelled()
        return [float(row.descriptor[0]) for row in answers]

    assert asyncio.run(run()) == [0, 1, 3, 4]
    assert network.batches == [[0], [1, 3, 4]]


def test_cancelled_caller_does_not_disturb_others(make: Make, network: Any) -> None:
    dispatcher = make()

    async def run() -> None:
        first = await busy(dispatcher, network)
        first.cancel()
        (rest,) = await submit(dispatcher, network, [1])
        network.open.set()
        assert (await rest).descriptor == [1]
        assert first.cancelled()

    asyncio.run(run())
    assert dispatcher.trouble() is None


def test_a_bad_image_fails_only_its_own_request(make: Make, network: Any) -> None:
    dispatcher = make()

    async def run() -> list[object]:
        first = await busy(dispatcher, network)
        rest = await submit(dispatcher, network, [1, BAD, 2])
        network.open.set()
        return list(await asyncio.gather(first, *rest, return_exceptions=True))

    zero, one, bad, two = asyncio.run(run())
    values = [seen.descriptor for seen in (zero, one, two) if isinstance(seen, Seen)]
    assert values == [[0], [1], [2]]
    assert isinstance(bad, ValueError)
    assert network.batches == [[0], [1, BAD, 2], [1], [BAD], [2]]
    assert dispatcher.trouble() is None


def test_a_batch_has_one_model(make: Make, network: Any) -> None:
    dispatcher = make()
    newer = SlowNetwork()
    newer.open.set()

    async def run() -> None:
        first = await busy(dispatcher, network)
        old = await submit(dispatcher, network, [1])
        new = await submit(dispatcher, newer, [2, 3])
        network.open.set()
        await asyncio.gather(first, *old, *new)

    asyncio.run(run())
    assert network.batches == [[0], [1]]
    assert newer.batches == [[2, 3]]


def test_callers_are_told_when_the_thread_dies(make: Make, network: Any) -> None:
    deaths: list[Exception] = []
    dispatcher = make(max_batch=1, on_death=deaths.append)
    network.fatal = SystemExit("the device is gone")

    async def run() -> None:
        first = await busy(dispatcher, network)
        rest = await submit(dispatcher, network, [1])
        network.open.set()
        for caller in (first, *rest):
            with pytest.raises(NotReady, match="the dispatcher died of SystemExit"):
                await caller
        with pytest.raises(NotReady):
            await dispatcher.see([picture(2)], network)

    asyncio.run(run())
    dispatcher.stop(5)
    assert dispatcher.trouble() == "the dispatcher died of SystemExit"
    assert [str(death) for death in deaths] == ["the dispatcher died of SystemExit"]


def test_a_network_that_takes_too_long_is_trouble(make: Make, network: Any) -> None:
    dispatcher = make(stall_seconds=0.05)

    async def run() -> None:
        first = await busy(dispatcher, network)
        await asyncio.sleep(0.1)
        assert (dispatcher.trouble() or "").startswith("the network has been busy with one batch for")
        network.open.set()
        await first

    asyncio.run(run())


def test_idle_network_is_not_stalled(make: Make, network: Any) -> None:
    dispatcher = make(stall_seconds=0.2, wedged_seconds=0.2)
    network.open.set()
    for _ in range(40):
        time.sleep(0.02)
        dispatcher.check()
        assert dispatcher.trouble() is None
    assert asyncio.run(dispatcher.see([picture(1)], network)).descriptor == [1]


def test_stopping_finishes_what_was_admitted(make: Make, network: Any) -> None:
    dispatcher = make()

    async def run() -> list[float]:
        first = await busy(dispatcher, network)
        rest = await submit(dispatcher, network, [1, 2])
        stop = asyncio.create_task(asyncio.to_thread(dispatcher.stop, 10))
        await asyncio.sleep(0.05)
        with pytest.raises(NotReady, match="not running"):
            await dispatcher.see([picture(3)], network)
        network.open.set()
        await stop
        return [float(row.descriptor[0]) for row in await asyncio.gather(first, *rest)]

    assert asyncio.run(run()) == [0, 1, 2]
    assert dispatcher.trouble() == "the dispatcher is not running"


def no_memory() -> Exception:
    return RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_callers_of_a_batch_without_memory_are_told_and_the_next_ones_answered(
    make: Make, network: Any
) -> None:
    dispatcher = make(max_batch=4)

    async def run() -> list[object]:
        first = await busy(dispatcher, network)
        network.failures = [no_memory()]
        rest = await submit(dispatcher, network, range(1, 5))
        network.open.set()
        return list(await asyncio.gather(first, *rest, return_exceptions=True))

    refused, *answers = asyncio.run(run())
    assert isinstance(refused, OutOfMemory)
    values = [seen.descriptor[0] for seen in answers if isinstance(seen, Seen)]
    assert values == [1, 2, 3, 4]
    # The first image fails and is probed: the device has memory again.
    assert network.batches == [[0], [0], [1, 2, 3, 4]]
    assert dispatcher.trouble() is None


def test_device_without_memory_is_given_up_after_a_while(make: Make, network: Any) -> None:
    deaths: list[Exception] = []
    dispatcher = make(on_death=deaths.append)
    network.fail_above = 0
    network.open.set()

    async def run() -> None:
        with pytest.raises(OutOfMemory) as caught:
            await dispatcher.see([picture(1)], network)
        assert caught.value.retry_after == 5
        assert dispatcher.trouble() == "the device is out of memory"
        while dispatcher.trouble() == "the device is out of memory":
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert dispatcher.trouble() == "the device is out of memory and did not recover"
    dispatcher.stop(5)
    assert [str(death) for death in deaths] == ["the device is out of memory and did not recover"]


def test_broken_device_is_given_up_at_once(make: Make, network: Any) -> None:
    deaths: list[Exception] = []
    dispatcher = make(max_batch=1, on_death=deaths.append)

    async def run() -> None:
        first = await busy(dispatcher, network)
        rest = await submit(dispatcher, network, [1, 2])
        network.failures = [RuntimeError("CUDA error: an illegal memory access was encountered\nmore")]
        network.open.set()
        for caller in (first, *rest):
            with pytest.raises(
                NotReady, match=r"^the device is broken: CUDA error: an illegal memory access"
            ):
                await caller

    asyncio.run(run())
    dispatcher.stop(5)
    assert network.batches == [[0]]
    assert len(deaths) == 1
    assert "\n" not in str(deaths[0])


def test_stalled_network_refuses_until_it_recovers(
    make: Make, network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.dispatcher.BEAT_SECONDS", 0.02)
    dispatcher = make(stall_seconds=0.5)

    async def run() -> None:
        first = await busy(dispatcher, network)
        await asyncio.sleep(0.6)
        with pytest.raises(NotReady, match="busy with one batch"):
            await dispatcher.see([picture(1)], network)
        dispatcher.check()  # not wedged yet
        network.open.set()
        await first

        assert (await dispatcher.see([picture(1)], network)).descriptor == [1]

    asyncio.run(run())
    assert dispatcher.trouble() is None


def test_hanging_network_is_given_up(make: Make, network: Any) -> None:
    deaths: list[Exception] = []
    dispatcher = make(wedged_seconds=0.05, on_death=deaths.append)

    async def run() -> None:
        first = await busy(dispatcher, network)
        rest = await submit(dispatcher, network, [1])
        await asyncio.sleep(0.1)
        dispatcher.check()
        for caller in (first, *rest):
            with pytest.raises(NotReady, match="did not come back"):
                await caller
        assert dispatcher.stuck
        network.open.set()  # too late: nobody waits, and nothing more is taken

    asyncio.run(run())
    dispatcher.check()
    assert [str(death) for death in deaths] == [
        "the network was busy with one batch for 0 s and did not come back"
    ]
    assert (dispatcher.trouble() or "").endswith("did not come back")
