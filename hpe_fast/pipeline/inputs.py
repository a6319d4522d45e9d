"""Whatever users call a batch of pictures, as tensors; and the boxes that go with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

#: One tensor [B, H, W, C], or pictures [H, W, C] of different sizes; uint8, C in CHANNELS.
Pictures: TypeAlias = Tensor | list[Tensor]
#: Grey, RGB, RGBA.
CHANNELS = (1, 3, 4)
#: A box's longer side, in longer sides of its picture: what is beside the picture takes memory to make.
LARGEST_BOX = 4
WANTED = "uint8 [H, W], [H, W, C], [C, H, W], [B, H, W, C], [B, C, H, W] (C 1, 3 or 4), or a list of single pictures"


def as_pictures(batch: Any) -> Pictures:
    """A user's batch with a batch dimension and channels last, not copied where that is possible.

    Where the last and the second dimension could both be channels, the last one is.

    Raises:
        TypeError: not an array, a tensor or a sequence of them, or not uint8.
        ValueError: a shape that is no picture; the place in a list is named.

    Example:
        >>> as_pictures(np.zeros((2, 3, 48, 64), np.uint8)).shape
        torch.Size([2, 48, 64, 3])
        >>> [picture.shape[-1] for picture in as_pictures([np.zeros((5, 5), np.uint8), np.zeros((9, 9, 4), np.uint8)])]
        [1, 4]
    """
    if isinstance(batch, (Tensor, np.ndarray)):
        tensor = _tensor("batch", batch)
        return _channels_last("batch", tensor) if tensor.dim() == 4 else _single("batch", tensor)[None]
    if isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        return [_single(f"batch[{i}]", _tensor(f"batch[{i}]", picture)) for i, picture in enumerate(batch)]
    hint = "; PosePipeline.stream goes through iterators" if isinstance(batch, Iterator) else ""
    raise TypeError(f"batch must be {WANTED}; got {type(batch).__name__}{hint}")


def _tensor(name: str, value: Any) -> Tensor:
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8:
            raise TypeError(_dtype_message(name, value.dtype))
        # torch takes neither negative strides (the usual BGR to RGB flip) nor memory that must not be written to.
        usable = value.flags.writeable and all(stride >= 0 for stride in value.strides)
        return torch.from_numpy(value if usable else value.copy())
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a numpy array or a torch tensor, got {type(value).__name__}")
    if value.dtype != torch.uint8:
        raise TypeError(_dtype_message(name, value.dtype))
    return value


def _dtype_message(name: str, dtype: Any) -> str:
    return f"{name} must be uint8 (0..255), got {dtype}: if it is in 0..1, multiply by 255, round and convert"


def _single(name: str, tensor: Tensor) -> Tensor:
    """One picture as [H, W, C]."""
    if tensor.dim() == 2:
        tensor = tensor[..., None]
    if tensor.dim() != 3:
        raise ValueError(f"{name} must be {WANTED}; got {list(tensor.shape)}")
    return _channels_last(name, tensor)


def _channels_last(name: str, tensor: Tensor) -> Tensor:
    if tensor.shape[-1] not in CHANNELS:
        if tensor.shape[-3] not in CHANNELS:
            raise ValueError(f"{name} must be {WANTED}; got {list(tensor.shape)}")
        tensor = tensor.movedim(-3, -1)
    if 0 in tensor.shape[-3:]:
        raise ValueError(f"{name} must have at least one pixel, got {list(tensor.shape)}")
    return tensor


def to_rgb(pictures: Tensor) -> Tensor:
    """``[..., C]`` to ``[..., 3]``: grey is repeated, RGBA is laid over black (which also surrounds every picture).

    Example:
        >>> to_rgb(torch.tensor([[200, 100, 50, 128]], dtype=torch.uint8))
        tensor([[100,  50,  25]], dtype=torch.uint8)
    """
    channels = pictures.shape[-1]
    if channels == 3:
        return pictures
    if channels == 1:
        return pictures.expand(*pictures.shape[:-1], 3)
    color, alpha = pictures[..., :3].int(), pictures[..., 3:].int()
    return ((color * alpha + 127).div_(255, rounding_mode="floor")).to(torch.uint8)


def as_boxes(boxes: Any, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """A user's boxes as ``[N, 4]`` float64 and the picture ``[N]`` int64 each belongs to, both on the CPU.

    One array has one box for each picture, or any number of boxes for a single picture; a list has an array ``[P, 4]``
    for each picture.

    Raises:
        TypeError: not numbers.
        ValueError: a wrong shape; a box (named) that is not finite, has no area, lies outside its picture or is far
            larger than it.

    Example:
        >>> as_boxes([[0, 0, 5, 5], [2, 2, 4, 4]], torch.zeros(1, 8, 8, 3))[1]
        tensor([0, 0])
    """
    count = len(pictures)
    if isinstance(boxes, (list, tuple)) and boxes and all(_is_table(part) for part in boxes):
        if len(boxes) != count:
            raise ValueError(f"boxes must be a list of {count} arrays, one for each picture, got {len(boxes)}")
        parts = [_numbers(f"boxes[{i}]", part) for i, part in enumerate(boxes)]
        table = torch.cat(parts) if parts else torch.zeros(0, 4, dtype=torch.float64)
        owner = torch.repeat_interleave(torch.arange(count), torch.tensor([len(part) for part in parts]))
    else:
        table = _numbers("boxes", boxes)
        if count != 1 and len(table) != count:
            raise ValueError(
                f"boxes must be [{count}, 4], one for each picture, or a list of [P, 4]; got {list(table.shape)}"
            )
        owner = torch.arange(count) if count != 1 else torch.zeros(len(table), dtype=torch.int64)
    _check_boxes(table, owner, pictures)
    return table, owner


def _is_table(value: Any) -> bool:
    """Whether an element of a list of boxes is itself an array of boxes, rather than one box."""
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim == 2
    return isinstance(value, (list, tuple)) and all(isinstance(row, (list, tuple, Tensor, np.ndarray)) for row in value)


def _numbers(name: str, value: Any) -> Tensor:
    if isinstance(value, (list, tuple)):
        value = [row.tolist() if hasattr(row, "tolist") else row for row in value]
    try:
        table = torch.as_tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be numbers [N, 4] (x, y, width, height): {error}") from error
    if table.numel() == 0 and table.dim() < 3:
        return torch.zeros(0, 4, dtype=torch.float64)
    if table.dim() != 2 or table.shape[1] != 4:
        raise ValueError(f"{name} must be [N, 4] (x, y, width, height), got {list(table.shape)}")
    return table


def _check_boxes(table: Tensor, owner: Tensor, pictures: Pictures) -> None:
    for i, (box, picture) in enumerate(zip(table.tolist(), owner.tolist(), strict=True)):
        x, y, width, height = box
        if not all(np.isfinite(box)) or width <= 0 or height <= 0:
            raise ValueError(f"boxes: number {i} must be finite with positive width and height, got {box}")
        rows, columns = pictures[picture].shape[:2]
        if x >= columns or y >= rows or x + width <= 0 or y + height <= 0:
            raise ValueError(f"boxes: number {i}, {box}, lies outside its picture of {columns} x {rows} pixels")
        if max(width, height) > LARGEST_BOX * max(rows, columns):
            raise ValueError(
                f"boxes: number {i}, {box}, is more than {LARGEST_BOX} times as long as its picture of {columns} x "
                f"{rows} pixels; boxes are x, y, width, height in pixels"
            )
