"""Run the network: device and precision, batches of equal shape, reading ahead, out-of-memory handling.

On a GPU, copies overlap with computing: images go up on their own stream, and results come down into pinned
memory.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.cuda_graphs import Graphs, Outputs
from model.errors import ImageError, ModelError
from model.gpu_decoding import GpuReader, Image, reader
from model.int8 import Int8VGG16, activation_ranges, computes_int8, has_runtime
from model.layers.backbone import VGG16
from model.layers.local_features import STRIDE, Packed, pack
from model.memory import free_memory, is_out_of_memory
from model.modelfile import PlaceModel

T = TypeVar("T")
_Opened = tuple[T, Sequence[Image] | ImageError]
"""An item with its images, or why there are none."""

STAGES = ("maps", "sums", "pooled", "descriptors")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Seen:
    """The output of the network for one photo or clip."""

    descriptor: NDArray[np.float32]
    """d, unit length; in `Embedder.stream`, the output of its stage."""
    local: Packed | None = None
    """Local features of the photo; None for a clip, or if the model keeps none."""


@dataclass(frozen=True)
class Embedded(Generic[T]):
    """An item of a stream with the output of each of its images, or why it has none."""

    item: T
    seen: tuple[Seen, ...] = ()
    error: str | None = None

    @property
    def outputs(self) -> tuple[NDArray[np.float32], ...]:
        """The stage's output for each image."""
        return tuple(seen.descriptor for seen in self.seen)


class Embedder:
    """Owns a model on a device. For one thread at a time.

    Args:
        device: "auto" (CUDA if available, else CPU) or a PyTorch device name.
        precision: of the backbone: "fp32", "bf16", "fp16", "int8", or "auto", the fastest: int8 on a CPU that
            computes in it, if OpenVINO is installed and the model has ranges; else bf16 if the processor or
            GPU computes in it, fp16 on older GPUs, or fp32. Pooling and reduction are always in fp32.
        batch_size: images of equal shape in a batch; None chooses by device.

    Raises:
        ModelError: an unknown or absent device, an unknown precision, or int8 where it is impossible.
    """

    def __init__(
        self,
        model: PlaceModel,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
    ) -> None:
        self.device = _device(device)
        self._asked = precision
        if batch_size is not None and batch_size < 1:
            raise ModelError(f"the batch size must be at least 1, got {batch_size}")
        self.batch_size = batch_size or (32 if self._is_gpu else 4)
        self.set_model(model)
        self.read = reader(self.device)
        """`read_photo`, on the GPU if it decodes; from any thread."""
        if self._is_gpu:
            self._uploads = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    @property
    def _is_gpu(self) -> bool:
        return self.device.type == "cuda"

    def set_model(self, model: PlaceModel) -> None:
        """Use another model from now on, with the same device and precision."""
        self.precision = _precision(self._asked, self.device, model)
        self.model = model  # as given: a copy in bf16 would be saved as other weights
        self._running = copy.deepcopy(model).to(self.device).eval()
        self._graphs = Graphs() if self._is_gpu else None  # those of another network do not fit
        if self.precision == "int8":
            backbone, ranges = cast(VGG16, model.backbone), model.config.activation_ranges
            self._running.backbone = Int8VGG16(backbone, ranges, threads=torch.get_num_threads())
        else:
            self._running.backbone.to(DTYPES[self.precision]).to(memory_format=torch.channels_last)

    def with_model(self, model: PlaceModel) -> Embedder:
        """Return an embedder for another model, with the same device and precision."""
        return Embedder(model, device=str(self.device), precision=self._asked, batch_size=self.batch_size)

    def describe(self) -> dict[str, str]:
        """Return device, precision and JPEG decoder in words."""
        name = torch.cuda.get_device_name(self.device) if self._is_gpu else "CPU"
        names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
        decoding = "GPU" if isinstance(self.read, GpuReader) else "CPU"
        return {"device": name, "precision": names[self.precision], "decoding": decoding}

    def ranges(self, images: Sequence[Image]) -> tuple[float, ...]:
        """Return the ranges of activations on these images: `model.int8.activation_ranges`."""
        batches = (self._running.prepared(self._stacked([image])) for image in images)
        with self._on_device():
            return activation_ranges(self._running.backbone, batches)

    def embed(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Return descriptors (B d, unit length) of images (uint8, H W 3), in order."""
        if not images:
            return np.empty((0, self.model.config.output_dim), np.float32)
        return np.stack(self.outputs(images, "descriptors"))

    def see(self, clips: Sequence[Sequence[Image]]) -> list[Seen]:
        """Return descriptors of clips, each of one or more frames in any order, and local features of photos.

        A clip's frames are pooled as one (ActionVLAD: Girdhar et al., CVPR 2017). So its descriptor lies in
        the same space as a photo's, and a clip of one frame equals that photo.

        Raises:
            ModelError: a clip without frames.
        """
        if not all(len(clip) for clip in clips):
            raise ModelError("a clip needs at least one frame, got none")
        if all(len(clip) == 1 for clip in clips):
            return self._see([clip[0] for clip in clips], "descriptors")
        frames = iter(self._see([frame for clip in clips for frame in clip], "sums"))
        parts = [[next(frames) for _ in clip] for clip in clips]
        # in fp64, so that the order of the frames vanishes in rounding
        added = [np.sum([frame.descriptor for frame in part], axis=0, dtype=np.float64) for part in parts]
        with torch.inference_mode():
            rows = torch.from_numpy(np.stack(added).astype(np.float32)).to(self.device)  # B S
            descriptors = self._running.reduce(self._running.pooling.finish(rows)).cpu().numpy()
        return [
            Seen(descriptor, part[0].local if len(part) == 1 else None)
            for descriptor, part in zip(descriptors, parts, strict=True)
        ]

    def outputs(self, images: Sequence[Image], stage: str) -> list[NDArray[np.float32]]:
        """Return the output of a stage for each image, in order; images of one shape run together.

        Stages: "maps" (D H W), "sums" (of the pooling), "pooled" (unreduced), "descriptors" (d).
        """
        return [seen.descriptor for seen in self._see(images, stage)]

    def _see(self, images: Sequence[Image], stage: str) -> list[Seen]:
        return _arrived(self._send(images, stage))

    def _send(self, images: Sequence[Image], stage: str) -> list[_Sent]:
        """Start the device on images: those of one shape together, in batches."""
        if stage not in STAGES:
            raise ModelError(f"unknown stage {stage!r}: one of {', '.join(STAGES)}")
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(tuple(image.shape), []).append(index)
        sent: list[_Sent] = []
        for indices in groups.values():
            while indices:  # the batch size shrinks without memory
                batch, indices = indices[: self.batch_size], indices[self.batch_size :]
                sent += self._run(batch, images, stage)
        return sent

    def stream(
        self, items: Iterable[T], read: Callable[[T], Sequence[Image]], stage: str = "descriptors"
    ) -> Iterator[list[Embedded[T]]]:
        """Embed items in batches, reading ahead in threads while the network runs.

        `read` returns an item's images (several for a panorama), best with this embedder's own `read`, or
        raises `ImageError`; other errors are raised here. Batches come when full: a batch has images of one
        shape if there are enough.
        """
        threads = min(16 if self._is_gpu else 4, os.cpu_count() or 1)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        ahead = 1 if self._is_gpu else 0  # batches on the device beside the one that is waited for
        under_way: deque[tuple[list[_Opened[T]], list[_Sent]]] = deque()
        try:
            for batch in self._batches(_read_ahead(pool, items, read, 2 * self.batch_size + threads)):
                under_way.append((batch, self._send_batch(batch, stage)))
                if len(under_way) > ahead:
                    yield _embedded(*under_way.popleft())
            while under_way:
                yield _embedded(*under_way.popleft())
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, nothing more is read

    def _batches(self, read: Iterator[tuple[T, Future[Sequence[Image]]]]) -> Iterator[list[_Opened[T]]]:
        """Group by shape; a shape that waits longer than four batches goes as it is."""
        waiting: dict[object, list[_Opened[T]]] = {}
        for item, future in read:
            try:
                images: Sequence[Image] | ImageError = future.result()
            except ImageError as error:
                images = error
            key = None if isinstance(images, ImageError) else tuple(tuple(i.shape) for i in images)
            group = waiting.setdefault(key, [])
            group.append((item, images))
            if len(group) * len(key or (1,)) >= self.batch_size:
                yield waiting.pop(key)
            elif sum(map(len, waiting.values())) > 4 * self.batch_size:
                yield waiting.pop(next(iter(waiting)))
        yield from waiting.values()

    def _send_batch(self, batch: Sequence[_Opened[T]], stage: str) -> list[_Sent]:
        found = (images for _, images in batch if not isinstance(images, ImageError))
        return self._send([image for images in found for image in images], stage)

    def _run(self, indices: list[int], images: Sequence[Image], stage: str) -> list[_Sent]:
        """Run one batch of one shape; without memory, run each half."""
        try:
            return [self._forward(indices, [images[i] for i in indices], stage)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self._graphs is not None:
                self._graphs.clear()
            free_memory()
            if len(indices) == 1:
                height, width = images[indices[0]].shape[:2]
                raise ModelError(
                    f"not enough memory on {self.device} for one image of {width}×{height}: "
                    "use a smaller `image_size`"
                ) from error
        half = len(indices) // 2
        self.batch_size = max(half, 1)
        return self._run(indices[:half], images, stage) + self._run(indices[half:], images, stage)

    def _stacked(self, images: Sequence[Image]) -> Tensor:
        """Return images of one shape on the device, B 3 H W."""
        if not self._is_gpu:
            stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        elif any(isinstance(image, Tensor) for image in images):
            stacked = torch.stack([self._decoded(image) for image in images])
        else:
            stacked = self._uploaded(cast(Sequence[NDArray[np.uint8]], images))
        return stacked.permute(0, 3, 1, 2)

    def _decoded(self, image: Image) -> Tensor:
        """Return an image on the GPU, which must not be overwritten before the network has read it."""
        if not isinstance(image, Tensor):
            return torch.from_numpy(image).to(self.device)
        image.record_stream(torch.cuda.current_stream())  # its memory belongs to the decoding thread
        return image

    def _uploaded(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Return images on the GPU, copied while it computes something else."""
        pinned = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=True)
        np.stack(images, out=pinned.numpy())
        with torch.cuda.stream(self._uploads):
            stacked = pinned.to(self.device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._uploads)
        stacked.record_stream(torch.cuda.current_stream())
        return stacked

    @torch.inference_mode()
    def _forward(self, indices: list[int], images: list[Image], stage: str) -> _Sent:
        height, width = images[0].shape[:2]
        with self._on_device():
            stacked = self._stacked(images)
            if self._graphs is None:
                outputs = self._outputs(stacked, stage)
            else:
                outputs = self._graphs(stage, lambda given: self._outputs(given, stage), stacked)
            sent = _Sent(indices, outputs, self._running.config.local_features, (height, width))
            if self._is_gpu:
                sent.bring_down()
            return sent

    def _outputs(self, images: Tensor, stage: str) -> Outputs:
        """Return the stage's output for images, B 3 H W, in fp32, and their local features."""
        output, local = self._running.maps_and_local(images)
        if stage == "sums":
            output = self._running.pooling.accumulate(output)
        elif stage != "maps":
            output = self._running.pool(output)
        if stage == "descriptors":
            output = self._running.reduce(output)
        return output.float(), *(local or ())

    def _on_device(self) -> AbstractContextManager[object]:
        return torch.cuda.device(self.device) if self._is_gpu else nullcontext()


class _Sent:
    """A batch on the device, whose output is copied when it is there."""

    def __init__(
        self, indices: list[int], outputs: Outputs, local_features: int, size: tuple[int, int]
    ) -> None:
        """`indices`: of the images among those given; `size`: their height and width."""
        self.indices = indices
        self._local_features = local_features
        self._size = size
        self._outputs = outputs
        self._there: torch.cuda.Event | None = None

    def bring_down(self) -> None:
        """Start copying the outputs to the CPU; does not wait."""
        self._outputs = tuple(_pinned(output) for output in self._outputs)
        self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._there.record()

    def seen(self) -> list[Seen]:
        """Return the output of each image; waits for it."""
        if self._there is not None:
            self._there.synchronize()
        rows, *local = self._outputs
        if not local:
            return [Seen(row) for row in rows.numpy()]
        height, width = (side // STRIDE for side in self._size)
        packed = pack(local[0], local[1], self._local_features, height, width)
        return [Seen(row, one) for row, one in zip(rows.numpy(), packed, strict=True)]


def _pinned(output: Tensor) -> Tensor:
    pinned = torch.empty_like(output, device="cpu", pin_memory=True)
    return pinned.copy_(output, non_blocking=True)


def _arrived(sent: Iterable[_Sent]) -> list[Seen]:
    """Return the outputs of all images that were sent, in order."""
    seen = {i: one for batch in sent for i, one in zip(batch.indices, batch.seen(), strict=True)}
    return [seen[i] for i in range(len(seen))]


def _embedded(batch: Sequence[_Opened[T]], sent: Sequence[_Sent]) -> list[Embedded[T]]:
    seen = iter(_arrived(sent))
    return [
        Embedded(item, error=str(images))
        if isinstance(images, ImageError)
        else Embedded(item, tuple(next(seen) for _ in images))
        for item, images in batch
    ]


def with_ranges(model: PlaceModel, images: Sequence[Image], device: str = "auto") -> PlaceModel:
    """Return the model with int8 ranges measured on these images; other networks than VGG16 unchanged.

    Raises:
        ModelError: no such device.
    """
    if not isinstance(model.backbone, VGG16) or not images:
        return model
    runs = Embedder(model.fitted(activation_ranges=()), device=device)
    return model.fitted(activation_ranges=runs.ranges(images))


def _read_ahead(
    pool: ThreadPoolExecutor, items: Iterable[T], read: Callable[[T], Sequence[Image]], depth: int
) -> Iterator[tuple[T, Future[Sequence[Image]]]]:
    pending: deque[tuple[T, Future[Sequence[Image]]]] = deque()
    for item in items:
        pending.append((item, pool.submit(read, item)))
        if len(pending) > depth:
            yield pending.popleft()
    while pending:
        yield pending.popleft()


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ModelError(f"no device {name!r} here: {str(error).splitlines()[0]}") from error
    return device


def _precision(asked: str, device: torch.device, model: PlaceModel) -> str:
    if asked not in PRECISIONS:
        raise ModelError(f"unknown precision {asked!r}: one of {', '.join(PRECISIONS)}")
    if asked == "int8":
        _check_int8(device, model)
    if asked != "auto":
        return asked
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "cpu" and model.config.activation_ranges and computes_int8() and has_runtime():
        return "int8"
    return "bf16" if _cpu_computes_bf16() else "fp32"


def _check_int8(device: torch.device, model: PlaceModel) -> None:
    if device.type != "cpu":
        raise ModelError(f"int8 runs on a CPU, not on {device}")
    if not has_runtime():
        raise ModelError("int8 needs OpenVINO, which is not installed: pip install 'geniusloci[int8]'")
    if not model.config.activation_ranges:
        raise ModelError(
            "this model has no int8 ranges: they are measured when an index is made (set `refit` to "
            "make it again)"
        )
    if not computes_int8():
        raise ModelError(
            "this processor cannot compute in int8: without VNNI or AMX, sums of 8-bit products overflow"
        )


def _cpu_computes_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
