"""Batches of augmented pictures and labels from a pose store, decoded and warped by DALI on the CPU or the GPU."""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch

from hpe_fast.data.augment import NO_AUGMENTATION, Augmentation, Draw, Labels, draw, transform_labels
from hpe_fast.data.counter import permutation
from hpe_fast.data.dali import Steps, build_pipeline, pipeline_inputs, undecodable
from hpe_fast.data.schema import DataError
from hpe_fast.data.store import PoseStore
from hpe_fast.device import resolve_device

__all__ = ["Batch", "ImageLoader"]


@dataclass
class Batch:
    """A batch on the loader's device.

    Attributes:
        images: uint8 [B,H,W,3], RGB.
        keypoints: float32 [B,17,2], pixels of ``images``, index coordinates.
        weights: float32 [B,17], 1 where visible and inside the picture.
        pose3d: float32 [B,17,3], mm, camera frame, turned and mirrored with the picture; NaN where unknown.
        intrinsics: float32 [B,4], fx, fy, cx, cy of ``images``; NaN where unknown.
        color: float32 [B,3,4] for :func:`hpe_fast.ops.prepare_images`, or ``None``.
        noise_std: float32 [B] for the same, 0..1 scale, or ``None``.
        sample_ids: int64 [B], unique to epoch and row: the key of the noise.
        rows: int64 [B], rows of the store.

    Example:
        >>> [name for name in Batch.__dataclass_fields__][:3]
        ['images', 'keypoints', 'weights']
    """

    images: torch.Tensor
    keypoints: torch.Tensor
    weights: torch.Tensor
    pose3d: torch.Tensor
    intrinsics: torch.Tensor
    color: torch.Tensor | None
    noise_std: torch.Tensor | None
    sample_ids: torch.Tensor
    rows: torch.Tensor


@dataclass
class _Pending:
    """Labels of a batch whose pictures DALI is working on."""

    rows: np.ndarray
    drawn: Draw
    labels: Labels


class ImageLoader:
    """Batches of a pose store's pictures; the pictures of a batch are prepared while the one before is used.

    A sample's pixels depend on (seed, epoch, row) alone: not on batch size, rank, world, threads or where the epoch
    was entered. On a GPU nothing waits for the device: tensors are ordered on torch's current stream.

    Output smaller than half the stored size aliases (linear sampling without a filter): store smaller pictures then.

    Args:
        store: with pictures.
        batch_size: of this rank.
        image_size: ``(height, width)`` or one int of the output in pixels; ``None``: as stored.
        augmentation: ranges and probabilities.
        seed: of order and augmentation.
        shuffle: another order each epoch.
        device: "cpu", "cuda" or "cuda:i".
        rank, world: this process and how many there are. Every rank has equally many batches: rows that do not fill the
            last round are left out with ``drop_last``; without, the first rows fill it up a second time (see
            :attr:`Batch.rows`).
        threads: of the CPU, for decoding and warping.
        drop_last: leave out a batch that is not full.
        skip_bad: decode every picture once now (on one thread), leave out the bad ones, list them in ``skipped``.

    Attributes:
        wait_seconds: how long the consumer has waited for batches.
        skipped: row to what is wrong with it (file, row and picture named).

    Raises:
        ValueError: for an argument out of range, a store without pictures, or a GPU that is not there.
        ImportError: where there is no DALI.

    Example:
        >>> import cv2, tempfile
        >>> from hpe_fast.data.store import PoseStoreWriter
        >>> path = tempfile.mkdtemp() + "/poses.h5"
        >>> jpeg = cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes()
        >>> with PoseStoreWriter(path, (64, 64)) as writer:
        ...     for _ in range(6):
        ...         writer.append(jpeg, np.full((17, 2), 30.0), np.ones(17))
        >>> loader = ImageLoader(PoseStore(path), batch_size=4)
        >>> [tuple(batch.images.shape) for batch in loader.epoch()]
        [(4, 64, 64, 3), (2, 64, 64, 3)]
    """

    def __init__(
        self,
        store: PoseStore,
        batch_size: int,
        *,
        image_size: int | tuple[int, int] | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
        seed: int = 0,
        shuffle: bool = False,
        device: str | torch.device = "cpu",
        rank: int = 0,
        world: int = 1,
        threads: int = 2,
        drop_last: bool = False,
        skip_bad: bool = False,
    ) -> None:
        if not store.has_images:
            raise ValueError(f"store {store.path} has poses only, no pictures")
        for name, value in (("batch_size", batch_size), ("world", world), ("threads", threads)):
            if not isinstance(value, Integral) or value < 1:
                raise ValueError(f"{name} must be an int and at least 1, got {value!r}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in [0, {world}), got {rank}")
        self.store, self.augmentation = store, augmentation
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world, self.threads = rank, world, threads
        self.device = resolve_device(device)
        self.image_size = _output_size(image_size, store.image_size)
        self.wait_seconds = 0.0
        self.skipped = undecodable(store, np.arange(len(store))) if skip_bad else {}
        self._rows = np.setdiff1d(np.arange(len(store)), list(self.skipped))
        if len(self) == 0:
            few = f"{len(self._rows)} usable rows for {world} ranks"
            raise ValueError(f"batch_size {batch_size} is too large: store {store.path} has {few}")
        self._steps = self._plan_steps()
        self._feed: _Feed | None = None
        self._pipeline = self._build()

    def __len__(self) -> int:
        """Batches an epoch, the same on every rank."""
        if self.drop_last:
            return len(self._rows) // self.world // self.batch_size
        return math.ceil(math.ceil(len(self._rows) / self.world) / self.batch_size)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch.

        Args:
            epoch: decides order and augmentation.
            start: batches to leave out at the beginning, to go on where a run stopped.

        Returns:
            An iterator; asking for another epoch ends it.

        Raises:
            ValueError: for an argument out of range.
            DataError: at the batch that cannot be read or decoded; it names file, row and picture.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}")
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be in [0, {len(self)}], got {start}")
        self._abandon()
        self._feed = _Feed(self, epoch, self._order(epoch)[start:])
        return self._batches(self._feed)

    def _batches(self, feed: _Feed) -> Iterator[Batch]:
        while True:
            if feed is not self._feed:
                raise RuntimeError("this epoch was ended by another call of epoch()")
            began = time.perf_counter()
            images = self._next_images(feed)
            self.wait_seconds += time.perf_counter() - began
            if images is None:
                return
            yield self._batch(images, feed)

    def _next_images(self, feed: _Feed) -> torch.Tensor | None:
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        try:
            # With a stream the outputs are ordered on it; without, run() would wait for the GPU.
            (images,) = self._pipeline.run(stream)
        except StopIteration:
            self._pipeline.reset()
            self._feed = None
            if feed.error is not None:
                raise feed.error from None
            return None
        except RuntimeError as error:
            self._pipeline, self._feed = self._build(), None
            raise self._explained(error, feed) from error
        return torch.from_dlpack(images.as_tensor())

    def _explained(self, error: RuntimeError, feed: _Feed) -> Exception:
        for pending in feed.pending:
            bad = undecodable(self.store, pending.rows)
            if bad:
                more = f" (and {len(bad) - 1} more in this batch)" if len(bad) > 1 else ""
                return DataError(bad[min(bad)] + more)
        return error

    def _abandon(self) -> None:
        """Take back the batches of an epoch that was not finished."""
        if self._feed is None:
            return
        self._feed.batches.clear()
        try:
            while True:
                self._pipeline.run()
        except StopIteration:
            self._pipeline.reset()
        except RuntimeError:  # a picture nobody wants any more
            self._pipeline = self._build()

    def _batch(self, images: torch.Tensor, feed: _Feed) -> Batch:
        pending = feed.pending.popleft()
        labels = [self._to_device(array) for array in pending.labels]
        return Batch(
            images,
            *labels,
            color=self._to_device(pending.drawn.color) if self.augmentation.recolors else None,
            noise_std=self._to_device(pending.drawn.noise_std) if self.augmentation.noise else None,
            sample_ids=self._to_device(feed.epoch * len(self.store) + pending.rows),
            rows=self._to_device(pending.rows),
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _order(self, epoch: int) -> list[np.ndarray]:
        """Rows of this rank's batches."""
        rows = self._rows[permutation(self.seed, epoch, len(self._rows))] if self.shuffle else self._rows
        if not self.drop_last:
            rows = np.resize(rows, math.ceil(len(rows) / self.world) * self.world)
        mine = rows[self.rank :: self.world]
        return [mine[i * self.batch_size : (i + 1) * self.batch_size] for i in range(len(self))]

    def _plan_steps(self) -> Steps:
        return Steps(
            size=self.image_size,
            warp=self.augmentation.moves or self.image_size != self.store.image_size,
            nearest=self.augmentation.is_exact(self.store.image_size, self.image_size),
            erase=self.augmentation.occludes,
            fill=self.augmentation.fill,
        )

    def _build(self) -> Any:
        # Weak: a pipeline that kept its loader alive would keep its memory until the next garbage collection.
        loader = weakref.proxy(self)
        # DALI's own count of epochs and batches does not know of abandoned ones, so the feed has its own.
        return build_pipeline(
            lambda info: next(loader._feed), self._steps, self.batch_size, self.threads, self.device.index
        )


class _Feed:
    """The batches of one epoch on their way into DALI."""

    def __init__(self, loader: ImageLoader, epoch: int, batches: list[np.ndarray]) -> None:
        self.loader = weakref.proxy(loader)
        self.epoch = epoch
        self.batches = deque(batches)
        self.pending: deque[_Pending] = deque()
        self.error: DataError | None = None

    def __next__(self) -> tuple:
        if not self.batches:
            raise StopIteration
        rows = self.batches.popleft()
        loader, store = self.loader, self.loader.store
        try:
            jpegs = [store.read_jpeg(row) for row in rows.tolist()]
        except DataError as error:
            # Raised when the batches before this one have been used; DALI would raise it ahead of them.
            self.error = error
            self.batches.clear()
            raise StopIteration from error
        points, visible, sizes = store.pose2d[rows], store.visible[rows], (store.image_size, loader.image_size)
        drawn = draw(loader.augmentation, loader.seed, self.epoch, rows, points, visible, *sizes)
        labels = transform_labels(drawn, points, visible, store.pose3d[rows], store.intrinsics[rows], sizes[1])
        self.pending.append(_Pending(rows, drawn, labels))
        return pipeline_inputs(loader._steps, jpegs, drawn)


def _output_size(size: int | tuple[int, int] | None, stored: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return stored
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, Integral) and side > 0 for side in sides):
        raise ValueError(f"image_size must be a positive int or (height, width), got {size!r}")
    return int(sides[0]), int(sides[1])
