"""The network's passes over small batches, recorded as CUDA graphs.

Python may take as long to launch the hundred steps of one photo as a GPU takes to run them; a recorded pass
is one launch. Large batches would gain nothing, and keep their memory.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Outputs = tuple[Tensor, ...]
Pass = Callable[[Tensor], Outputs]
Record = Callable[[Pass, Tensor], tuple[Outputs, Callable[[], None]]]

IMAGES = 4
"""Largest batch that is recorded."""
KEPT = 16
"""Most passes that are kept; the least recently used one goes."""
WARM_UPS = 3
TOLERANCE = 0.01
"""Largest difference of a replay from the pass itself, as a share of its length."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Recorded:
    """A recorded pass, and the memory that it reads and writes."""

    images: Tensor
    outputs: Outputs
    replay: Callable[[], None]


class Graphs:
    """Records a pass when its shape comes for the second time, and replays it afterwards; for one thread.

    If recording fails, or a replay gives another result, all passes run directly.

    Args:
        record: records a pass over images at a fixed address; returns its outputs and what replays it. CUDA's
            by default.
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record = record or CudaRecorder()
        self._kept: OrderedDict[tuple[object, ...], _Recorded | None] = OrderedDict()
        self._works = True

    def __call__(self, stage: str, run: Pass, images: Tensor) -> Outputs:
        """Return what `run` makes of images (B 3 H W); valid until the next call.

        Args:
            stage: the name of what `run` computes.
        """
        if len(images) > IMAGES or not self._works:
            return run(images)
        key = (stage, *images.shape)
        again, recorded = key in self._kept, self._kept.pop(key, None)
        if recorded is not None:
            recorded.images.copy_(images)
            recorded.replay()
            outputs = recorded.outputs
        else:
            outputs = run(images)
            recorded = self._recorded(run, images, outputs) if again else None
        self._kept[key] = recorded
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return outputs

    def clear(self) -> None:
        """Free their memory."""
        self._kept.clear()

    def _recorded(self, run: Pass, images: Tensor, wanted: Outputs) -> _Recorded | None:
        still = images.clone()
        try:
            outputs, replay = self._record(run, still)
            replay()
            away = float((outputs[0].float() - wanted[0].float()).norm() / wanted[0].float().norm())
        except RuntimeError as error:
            self._done_without(f"it cannot record the network ({str(error).splitlines()[0]})")
            return None
        if not away <= TOLERANCE:
            self._done_without(f"a recorded pass is {away:.3f} of its length off")
            return None
        return _Recorded(still, outputs, replay)

    def _done_without(self, why: str) -> None:
        log.warning("single photos take longer than they could on this GPU: %s", why)
        self._works = False
        self.clear()


class CudaRecorder:
    """Records passes as CUDA graphs on the current device; they share their working memory."""

    def __init__(self) -> None:
        self._made: tuple[torch.cuda.Stream, Any] | None = None

    def __call__(self, run: Pass, images: Tensor) -> tuple[Outputs, Callable[[], None]]:
        """Return the outputs' memory, which each replay writes to, and what replays the pass."""
        if self._made is None:
            self._made = torch.cuda.Stream(), torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
        stream, pool = self._made
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):  # cuDNN's and cuBLAS's choices and allocations must not be recorded
                run(images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads go on decoding, which a capture of the whole process would forbid
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            outputs = run(images)
        return outputs, graph.replay
