"""Streams: reading ahead in threads, errors an item, and no hanging."""

import itertools
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from model.embedder import Embedded, Embedder
from model.errors import ImageError, ModelError, TooManyPixels
from model.modelfile import PlaceModel

Photo = NDArray[np.uint8]
SHAPES = ((48, 64), (64, 48), (32, 32))
BATCH = 4


def photo(item: int, shape: tuple[int, int] = (32, 48)) -> Photo:
    return np.random.default_rng(item).integers(0, 256, (*shape, 3), np.uint8)


@pytest.fixture
def embedder(small_model: PlaceModel) -> Embedder:
    return Embedder(small_model, device="cpu", precision="fp32", batch_size=BATCH)


def flat(batches: Iterator[list[Embedded[int]]]) -> list[Embedded[int]]:
    return [one for batch in batches for one in batch]


def decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_every_item_comes_once_with_its_own_descriptor(embedder: Embedder) -> None:
    found = flat(embedder.stream(range(25), lambda i: [photo(i, SHAPES[i * i % 3])]))
    assert sorted(one.item for one in found) == list(range(25))
    for one in found:
        assert one.error is None
        assert len(one.outputs) == 1
        want = embedder.embed([photo(one.item, SHAPES[one.item * one.item % 3])])[0]
        assert float(one.outputs[0] @ want) >= 0.9999
    assert not decoders()


def test_batches_are_full_and_in_order_where_shapes_are_equal(embedder: Embedder) -> None:
    batches = list(embedder.stream(range(10), lambda i: [photo(i)]))
    assert [[one.item for one in batch] for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_no_items(embedder: Embedder) -> None:
    assert list(embedder.stream([], lambda i: [photo(i)])) == []


def test_stage(embedder: Embedder) -> None:
    (one,) = flat(embedder.stream([3], lambda i: [photo(i)], "maps"))
    assert one.outputs[0].shape == (512, 2, 3)
    with pytest.raises(ModelError, match="unknown stage"):
        list(embedder.stream([3], lambda i: [photo(i)], "conv5"))


def test_unreadable_items_carry_their_reason(embedder: Embedder) -> None:
    def read(item: int) -> Sequence[Photo]:
        if item % 5 == 0:
            raise ImageError(f"damaged {item}")
        if item == 7:
            raise TooManyPixels("9×9 is more than 0 million pixels")
        return [photo(item, SHAPES[item % 3])]

    found = flat(embedder.stream(range(23), read))
    assert sorted(one.item for one in found) == list(range(23))
    for one in found:
        if one.item % 5 == 0 or one.item == 7:
            assert one.outputs == ()
            assert one.error == (
                "9×9 is more than 0 million pixels" if one.item == 7 else f"damaged {one.item}"
            )
        else:
            assert one.error is None
            assert (
                float(one.outputs[0] @ embedder.embed([photo(one.item, SHAPES[one.item % 3])])[0]) >= 0.9999
            )


def test_only_unreadable_items(embedder: Embedder) -> None:
    def read(_: int) -> Sequence[Photo]:
        raise ImageError("empty file")

    found = flat(embedder.stream(range(9), read))
    assert [(one.item, one.error, one.outputs) for one in found] == [(i, "empty file", ()) for i in range(9)]


def test_items_of_several_images(embedder: Embedder) -> None:
    """A panorama's views stay together and in order, beside plain photos and one without any view."""

    def read(item: int) -> Sequence[Photo]:
        views = {0: 6, 1: 1, 2: 3}[item % 3] if item != 8 else 0
        return [photo(100 * item + view, SHAPES[view % 2]) for view in range(views)]

    found = flat(embedder.stream(range(12), read))
    assert sorted(one.item for one in found) == list(range(12))
    for one in found:
        want = embedder.embed(read(one.item))
        assert len(one.outputs) == len(want)
        for a, b in zip(one.outputs, want, strict=True):
            assert float(a @ b) >= 0.9999


def test_reading_runs_only_a_bounded_number_ahead(embedder: Embedder) -> None:
    reads = itertools.count()
    started = 0

    def read(item: int) -> Sequence[Photo]:
        nonlocal started
        started = next(reads) + 1
        return [photo(0, SHAPES[item % 3])]

    stream = embedder.stream(itertools.count(), read)  # without end
    delivered = 0
    for batch in itertools.islice(stream, 30):
        delivered += len(batch)
        # Two batches and a few threads ahead, four batches waiting for more of their shape.
        assert started - delivered <= 2 * BATCH + 5 + 4 * BATCH
    stream.close()  # type: ignore[attr-defined]
    assert delivered > 60
    assert not decoders()


def test_rare_shape_does_not_wait_for_ever(embedder: Embedder) -> None:
    def read(item: int) -> Sequence[Photo]:
        return [photo(item, (64, 64) if item == 0 else (32, 32 + 16 * (item % 7)))]

    delivered: list[int] = []
    for batch in embedder.stream(range(100), read):
        delivered += [one.item for one in batch]
        if 0 in delivered:
            break
    assert len(delivered) <= 8 * BATCH


def test_other_errors_of_the_reader_are_raised_and_stop_the_reading(embedder: Embedder) -> None:
    gate, reads = threading.Event(), set()

    def read(item: int) -> Sequence[Photo]:
        reads.add(item)
        if item == 5:
            raise ZeroDivisionError("a bug in the reader")
        if item > 5:
            gate.wait(10)
        return [photo(item)]

    stream = embedder.stream(range(1000), read)
    assert [one.item for one in next(stream)] == [0, 1, 2, 3]
    later = threading.Timer(1, gate.set)  # by then the error has cancelled what was not yet begun
    later.start()
    with pytest.raises(ZeroDivisionError, match="a bug in the reader"):
        next(stream)
    later.join()
    assert max(reads) <= 5 + 4  # four threads at most
    assert not decoders()


def test_errors_of_the_items_are_raised(embedder: Embedder) -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise OSError("the list of photos broke off")

    with pytest.raises(OSError, match="the list of photos broke off"):
        list(embedder.stream(items(), lambda i: [photo(i)]))
    assert not decoders()


def test_errors_of_the_network_are_raised(embedder: Embedder) -> None:
    with pytest.raises(RuntimeError, match=r"[Kk]ernel size"):  # smaller than the network's stride
        list(embedder.stream(range(50), lambda i: [photo(i, (8, 8))]))
    assert not decoders()


def test_stream_that_is_left_early_stops_reading(embedder: Embedder) -> None:
    gate, entered = threading.Event(), threading.Semaphore(0)

    def read(item: int) -> Sequence[Photo]:
        if item >= BATCH:
            entered.release()
            gate.wait(10)
        return [photo(item)]

    # The first batch needs no more than its own photos, once enough items were handed out.
    stream = embedder.stream(range(10_000), read)
    first = next(stream)
    assert [one.item for one in first] == [0, 1, 2, 3]
    entered.acquire(timeout=10)
    gate.set()
    stream.close()  # type: ignore[attr-defined]
    assert not decoders()
    with pytest.raises(StopIteration):
        next(stream)


def test_embedder_serves_on_after_a_failed_stream(embedder: Embedder) -> None:
    def read(item: int) -> Sequence[Photo]:
        raise KeyError(item)

    with pytest.raises(KeyError):
        list(embedder.stream(range(3), read))
    assert embedder.embed([photo(0)])[0].shape == (8,)
    assert len(flat(embedder.stream(range(3), lambda i: [photo(i)]))) == 3
