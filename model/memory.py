"""Out of memory: recognise it, and free what is cached."""

import gc
from collections.abc import Iterator

import torch

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left, also as the cause of another error."""
    return any(
        isinstance(one, torch.OutOfMemoryError | MemoryError)
        or (isinstance(one, RuntimeError) and any(sign in str(one) for sign in OUT_OF_MEMORY))
        for one in causes(error)
    )


def free_memory() -> None:
    """Free cached memory that is not in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__
