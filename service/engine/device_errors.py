"""Classify failures of the device that runs the network."""

import gc
from collections.abc import Iterator

import torch

OUT_OF_MEMORY = ("out of memory", "can't allocate memory")
BROKEN = ("CUDA error", "CUDA driver error")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine had no memory left, also as the cause of another error."""
    return any(
        isinstance(one, torch.OutOfMemoryError | MemoryError)
        or (isinstance(one, RuntimeError) and any(sign in str(one) for sign in OUT_OF_MEMORY))
        for one in _chain(error)
    )


def is_broken(error: BaseException) -> bool:
    """Whether the CUDA context is broken: then every later call fails, too."""
    return not is_out_of_memory(error) and any(
        isinstance(one, RuntimeError) and str(one).startswith(BROKEN) for one in _chain(error)
    )


def free_memory() -> None:
    """Free cached memory that is not in use."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
