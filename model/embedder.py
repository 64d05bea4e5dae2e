"""Runs the network: device and precision, batches of equal shape, decoding overlapped, memory survived."""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from model.backbone import VGG16
from model.errors import ImageError, ModelError
from model.int8 import Int8VGG16, activation_ranges, computes_int8, has_runtime
from model.local_features import Packed
from model.modelfile import PlaceModel

T = TypeVar("T")
Image = NDArray[np.uint8]

STAGES = ("maps", "sums", "pooled", "descriptors")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Seen:
    """What the network made of one photo or clip."""

    descriptor: NDArray[np.float32]
    """d, unit length; in `Embedder.stream`, what its stage makes."""
    local: Packed | None = None
    """The photo's local features; None of a clip, and where the model keeps none."""


@dataclass(frozen=True)
class Embedded(Generic[T]):
    """One item of a stream with what became of each of its images, or with the reason it has none."""

    item: T
    seen: tuple[Seen, ...] = ()
    error: str | None = None

    @property
    def outputs(self) -> tuple[NDArray[np.float32], ...]:
        """What the stage made of each image."""
        return tuple(seen.descriptor for seen in self.seen)


class Embedder:
    """Owns a model on a device. One thread at a time may use it.

    Args:
        device: "auto" (CUDA where there is one, else CPU) or a PyTorch device name.
        precision: of the backbone: "auto" (the fastest: int8 on a CPU that multiplies in it, where OpenVINO
            is installed and the model knows its ranges; else bf16 where the processor or GPU computes in it,
            fp16 on older GPUs, fp32), "fp32", "bf16", "fp16" or "int8". Pooling and reduction are always in
            fp32.
        batch_size: images of equal shape that go through together; None chooses by device.

    Raises:
        ModelError: an unknown or absent device, an unknown precision, or int8 where it cannot be.
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
        self.batch_size = batch_size or (32 if self.device.type == "cuda" else 4)
        self.set_model(model)

    def set_model(self, model: PlaceModel) -> None:
        """Run another model from now on, with the same device and precision."""
        self.precision = _precision(self._asked, self.device, model)
        self.model = model  # as given: a copy in bf16 would be saved as other weights
        self._running = copy.deepcopy(model).to(self.device).eval()
        if self.precision == "int8":
            backbone, ranges = cast(VGG16, model.backbone), model.config.activation_ranges
            self._running.backbone = Int8VGG16(backbone, ranges, threads=torch.get_num_threads())
        else:
            self._running.backbone.to(DTYPES[self.precision]).to(memory_format=torch.channels_last)

    def with_model(self, model: PlaceModel) -> Embedder:
        """Another embedder for another model, on the same device in the same precision."""
        return Embedder(model, device=str(self.device), precision=self._asked, batch_size=self.batch_size)

    def describe(self) -> dict[str, str]:
        """Device and precision in words."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        names = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "int8": "int8"}
        return {"device": name, "precision": names[self.precision]}

    def ranges(self, images: Sequence[Image]) -> tuple[float, ...]:
        """How far activations reach on these images: `model.int8.activation_ranges`."""
        batches = (self._running.prepared(self._stacked([image])) for image in images)
        return activation_ranges(self._running.backbone, batches)

    def embed(self, images: Sequence[Image]) -> NDArray[np.float32]:
        """Descriptors (B d, unit length) of images (uint8, H W 3), in their order."""
        if not images:
            return np.empty((0, self.model.config.output_dim), np.float32)
        return np.stack(self.outputs(images, "descriptors"))

    def embed_clips(self, clips: Sequence[Sequence[Image]]) -> NDArray[np.float32]:
        """Descriptors (B d, unit length) of clips, each of one frame or more, whose order does not matter.

        A clip's frames are pooled as one (ActionVLAD: Girdhar et al., CVPR 2017), so that its descriptor
        lives in the same space as a photo's, and a clip of one frame has that photo's.

        Raises:
            ModelError: a clip without frames.
        """
        if not clips:
            return self.embed([])
        return np.stack([seen.descriptor for seen in self.see(clips)])

    def see(self, clips: Sequence[Sequence[Image]]) -> list[Seen]:
        """The descriptors of clips as `embed_clips` has them, and a photo's local features.

        Raises:
            ModelError: a clip without frames.
        """
        if not all(len(clip) for clip in clips):
            raise ModelError("a clip needs at least one frame, got none")
        if all(len(clip) == 1 for clip in clips):
            return self._see([clip[0] for clip in clips], "descriptors")
        frames = iter(self._see([frame for clip in clips for frame in clip], "sums"))
        parts = [[next(frames) for _ in clip] for clip in clips]
        # In fp64, so that the order of the frames is lost in rounding.
        added = [np.sum([frame.descriptor for frame in part], axis=0, dtype=np.float64) for part in parts]
        with torch.inference_mode():
            rows = torch.from_numpy(np.stack(added).astype(np.float32)).to(self.device)  # B S
            descriptors = self._running.reduce(self._running.pooling.finish(rows)).cpu().numpy()
        return [
            Seen(descriptor, part[0].local if len(part) == 1 else None)
            for descriptor, part in zip(descriptors, parts, strict=True)
        ]

    def outputs(self, images: Sequence[Image], stage: str) -> list[NDArray[np.float32]]:
        """What a stage makes of each image, in their order; images of one shape go through together.

        Stages: "maps" (D H W), "sums" (what the pooling adds up), "pooled" (unreduced), "descriptors" (d).
        """
        return [seen.descriptor for seen in self._see(images, stage)]

    def _see(self, images: Sequence[Image], stage: str) -> list[Seen]:
        if stage not in STAGES:
            raise ModelError(f"unknown stage {stage!r}: one of {', '.join(STAGES)}")
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(image.shape, []).append(index)
        outputs: dict[int, Seen] = {}
        for indices in groups.values():
            while indices:  # the batch size shrinks where memory runs out
                batch, indices = indices[: self.batch_size], indices[self.batch_size :]
                outputs.update(zip(batch, self._run([images[i] for i in batch], stage), strict=True))
        return [outputs[i] for i in range(len(images))]

    def stream(
        self, items: Iterable[T], read: Callable[[T], Sequence[Image]], stage: str = "descriptors"
    ) -> Iterator[list[Embedded[T]]]:
        """Embed items a batch at a time, reading ahead in threads while the network runs.

        `read` gives an item's images (several for a panorama) or raises `ImageError`; what else it
        raises is raised here. Batches come as they fill: a batch holds images of one shape where
        there are enough.
        """
        threads = min(4, os.cpu_count() or 1)
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        try:
            for batch in self._batches(_read_ahead(pool, items, read, 2 * self.batch_size + threads)):
                yield self._embed_batch(batch, stage)
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, nothing more is read

    def _batches(
        self, read: Iterator[tuple[T, Future[Sequence[Image]]]]
    ) -> Iterator[list[tuple[T, Sequence[Image] | ImageError]]]:
        """Group by shape; a shape that waits longer than four batches goes as it is."""
        waiting: dict[object, list[tuple[T, Sequence[Image] | ImageError]]] = {}
        for item, future in read:
            try:
                images: Sequence[Image] | ImageError = future.result()
            except ImageError as error:
                images = error
            key = None if isinstance(images, ImageError) else tuple(i.shape for i in images)
            group = waiting.setdefault(key, [])
            group.append((item, images))
            if len(group) * len(key or (1,)) >= self.batch_size:
                yield waiting.pop(key)
            elif sum(map(len, waiting.values())) > 4 * self.batch_size:
                yield waiting.pop(next(iter(waiting)))
        yield from waiting.values()

    def _embed_batch(
        self, batch: list[tuple[T, Sequence[Image] | ImageError]], stage: str
    ) -> list[Embedded[T]]:
        images = [image for _, found in batch if not isinstance(found, ImageError) for image in found]
        seen = iter(self._see(images, stage))
        return [
            Embedded(item, error=str(found))
            if isinstance(found, ImageError)
            else Embedded(item, tuple(next(seen) for _ in found))
            for item, found in batch
        ]

    def _run(self, images: list[Image], stage: str) -> list[Seen]:
        """One batch of one shape; out of memory, each half by itself."""
        try:
            return self._forward(images, stage)
        except (RuntimeError, MemoryError) as error:
            if not _out_of_memory(error):
                raise
            if len(images) == 1:
                raise ModelError(
                    f"not enough memory on {self.device} for one image of {images[0].shape[1]}×"
                    f"{images[0].shape[0]}: use a smaller --image-size"
                ) from error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(images) // 2
        self.batch_size = max(half, 1)
        return self._run(images[:half], stage) + self._run(images[half:], stage)

    def _stacked(self, images: Sequence[Image]) -> torch.Tensor:
        return torch.from_numpy(np.stack(images)).to(self.device).permute(0, 3, 1, 2)  # B 3 H W

    @torch.inference_mode()
    def _forward(self, images: list[Image], stage: str) -> list[Seen]:
        output, local = self._running.maps_and_local(self._stacked(images))
        if stage == "sums":
            output = self._running.pooling.accumulate(output)
        elif stage != "maps":
            output = self._running.pool(output)
        if stage == "descriptors":
            output = self._running.reduce(output)
        rows = output.float().cpu().numpy()
        return [Seen(row, None if local is None else local[i]) for i, row in enumerate(rows)]


def with_ranges(model: PlaceModel, images: Sequence[Image], device: str = "auto") -> PlaceModel:
    """The model with its ranges for int8, measured on these images; one that is not VGG16 as it is.

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
        raise ModelError("int8 takes OpenVINO, which is not installed: pip install 'loci[int8]'")
    if not model.config.activation_ranges:
        raise ModelError(
            "this model does not know its ranges for int8: those of an index are measured when it is made "
            "('loci index --refit' makes it anew)"
        )
    if not computes_int8():
        raise ModelError(
            "this processor does not compute in int8: it has neither VNNI nor AMX, without which sums of "
            "8-bit products overflow"
        )


def _cpu_computes_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _out_of_memory(error: RuntimeError | MemoryError) -> bool:
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "can't allocate memory" in str(error)
