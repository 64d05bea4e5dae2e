"""Classify failures of the device that runs the network."""

from model.memory import causes, is_out_of_memory

BROKEN = ("CUDA error", "CUDA driver error")


def is_broken(error: BaseException) -> bool:
    """Whether the CUDA context is broken: then every later call fails, too."""
    return not is_out_of_memory(error) and any(
        isinstance(one, RuntimeError) and str(one).startswith(BROKEN) for one in causes(error)
    )
