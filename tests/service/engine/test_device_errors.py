"""What failures of the device are told apart by."""

import pytest
import torch

from model.errors import ModelError
from model.memory import free_memory, is_out_of_memory
from service.engine.device_errors import is_broken


def caused(by: BaseException) -> Exception:
    error = ModelError("not enough memory on cuda for one image")
    error.__cause__ = by
    return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        caused(torch.OutOfMemoryError("CUDA out of memory")),
    ],
)
def test_out_of_memory(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_broken(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered\nmore"),
        RuntimeError("CUDA error: device-side assert triggered"),
        caused(RuntimeError("CUDA error: unspecified launch failure")),
    ],
)
def test_broken(error: Exception) -> None:
    assert is_broken(error)
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("CUDA error"), KeyError("x")])
def test_neither(error: Exception) -> None:
    assert not is_broken(error)
    assert not is_out_of_memory(error)


def test_freeing_memory_needs_no_gpu() -> None:
    free_memory()
