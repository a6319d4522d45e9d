"""The pipeline: pictures to crops to heatmaps to 2D joints to 3D joints, all on one device."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpe_fast.device import fast_dtype, resolve_device
from hpe_fast.models import HRNet, Lifter, SimpleBaseline, unit_crop
from hpe_fast.ops import (
    HeatmapCodec,
    Normalization,
    build_info,
    decode_heatmaps,
    prepare_images,
)
from hpe_fast.pipeline.crops import PADDING, box_crops, closer_crops, resample, to_picture, whole_crop
from hpe_fast.pipeline.inputs import Pictures, as_boxes, as_pictures
from hpe_fast.pipeline.packing import can_pack, pack
from hpe_fast.pipeline.settings import detector_settings, metadata_of
from hpe_fast.pipeline.speed import Graphs, fold_batchnorm
from hpe_fast.skeleton import FLIP_PERMUTATION, NUM_JOINTS


@dataclass(frozen=True, eq=False)
class Poses:
    """What was found, one row a person, on the pipeline's device.

    Example:
        >>> rows = torch.zeros(2, dtype=torch.int64)
        >>> poses = Poses(torch.zeros(2, 17, 2), torch.zeros(2, 17), torch.zeros(2, 17, 3), rows)
        >>> len(poses), poses.to("cpu").joints3d.shape
        (2, torch.Size([2, 17, 3]))
    """

    keypoints: Tensor
    """[N, 17, 2] float32, px of the picture given (index coordinates: (0, 0) is the centre of the top-left pixel)."""
    scores: Tensor
    """[N, 17] float32, the heatmaps' maxima."""
    joints3d: Tensor
    """[N, 17, 3] float32, mm, camera frame (x right, y down, z away), hip at the origin."""
    image_index: Tensor
    """[N] int64: which of the pictures given."""
    heatmaps: Tensor | None = None
    """[N, 17, h, w] float32 of the crops, if asked for; with flip_test those of the crop as it is."""

    def __len__(self) -> int:
        return len(self.keypoints)

    def to(self, device: str | torch.device) -> Poses:
        """The same on another device."""
        values = (getattr(self, field.name) for field in fields(self))
        return Poses(*(None if value is None else value.to(device) for value in values))


#: How sub-pixel positions are found where nothing else is asked for.
REFINE = "dark"
#: Score of a joint that says where the person is, as a share of a target's peak.
FOUND = 0.15
#: Mean error of the heatmaps in reduced precision, as a share of their spread, above which float32 is taken.
TOLERANCE = 0.1
#: People that go through the networks at once. More of them push a layer's activations out of a CPU's caches: HRNet-W32
#: took 28.7 ms a picture at 8, 33.0 at 32 and 35.0 at 64.
BATCH = {"cpu": 8, "cuda": 128}


class PosePipeline:
    """Finds 2D and 3D joints in pictures.

    A pipeline may be called from several threads at once.

    Args:
        detector: images ``[B, 3, h, w]`` to heatmaps ``[B, 17, h', w']``, e.g. ``models.hrnet``. Copied, not changed.
        lifter: keypoints ``[B, 17, 2]`` in crop units (``models.unit_crop``) to root-relative joints ``[B, 17, 3]`` mm.
        device: ``None`` is the first GPU, else the CPU.
        codec: what the detector's heatmaps are. ``None``: as its metadata say, else ``OFFICIAL``.
        normalization: of its input. ``None``: as its metadata say, else ``IMAGENET``.
        dtype: the detector computes in it (its last layer stays float32). ``None``: bfloat16 where the hardware
            multiplies it and a test picture's heatmaps stay what they are in float32 (else a warning says so), and
            float32 elsewhere.
        refine: ``"none"``, ``"quarter"`` or ``"dark"``, see ``ops.decode_heatmaps``. Dark measured lower errors than
            quarter, and half of its sensitivity to bfloat16.
        padding: how much larger than a box its crop is.
        compile: pass the detector through ``torch.compile``: faster after a first call that takes minutes. On a CPU
            in bfloat16 it gains little, since the layers are packed for oneDNN without it.
        max_graphs: CUDA graphs kept, one for each batch size; 0: none.

    Attributes:
        metadata: ``{"detector": ..., "lifter": ...}``, what the checkpoints say (``trained_on`` among it).
        image_size: ``(height, width)`` of the network's input.

    Raises:
        TypeError: a network is not a module, dtype not a floating point type.
        ValueError: an unknown device; a network for other joints than ``hpe_fast.skeleton``'s.

    Example:
        >>> import numpy as np
        >>> from hpe_fast.models import hrnet, lifter
        >>> from hpe_fast.ops import OFFICIAL
        >>> detector = hrnet(width=8, modules=(1, 1, 1), blocks=1)
        >>> pipeline = PosePipeline(detector, lifter(width=16), "cpu", codec=OFFICIAL.resized(64, 16))
        >>> pipeline(np.zeros((2, 90, 60, 3), np.uint8)).joints3d.shape
        torch.Size([2, 17, 3])
    """

    def __init__(
        self,
        detector: nn.Module,
        lifter: nn.Module,
        device: str | torch.device | None = None,
        *,
        codec: HeatmapCodec | None = None,
        normalization: Normalization | None = None,
        dtype: torch.dtype | None = None,
        refine: str = REFINE,
        padding: float = PADDING,
        compile: bool = False,
        max_graphs: int = 8,
    ) -> None:
        self.device = resolve_device(device)
        self.dtype = _float_dtype(dtype, self.device)
        if not 0 < padding < math.inf:
            raise ValueError(f"padding must be a positive number, got {padding!r}")
        self.metadata = metadata_of(detector, lifter)
        own_codec, own_normalization = detector_settings(self.metadata["detector"])
        self.codec, self.normalization = codec or own_codec, normalization or own_normalization
        decode_heatmaps(torch.zeros(0, NUM_JOINTS, *self.codec.heatmap_size), self.codec, refine=refine)  # refuses it
        self.refine = refine
        self.padding = padding
        self.image_size: tuple[int, int] = self.codec.image_size
        self._exact = _folded(detector).float().to(memory_format=torch.channels_last)
        self._detector = _fast(copy.deepcopy(self._exact), self.device, self.dtype)
        if dtype is None and self.dtype != torch.float32 and not self._is_faithful():
            self.dtype = torch.float32
            self._detector = _fast(copy.deepcopy(self._exact), self.device, self.dtype)
        self._lifter = _folded(lifter).to(self.device)
        self._swap = torch.tensor(FLIP_PERMUTATION, device=self.device)  # here, since no graph can copy from the host
        self._mirror = torch.tensor([-1.0, 1.0, 1.0], device=self.device)
        if compile:
            self._detector = torch.compile(self._detector)
        elif self.device.type == "cpu" and self.dtype == torch.bfloat16 and can_pack():
            self._detector = pack(self._detector)
        graphed = self.device.type == "cuda" and max_graphs > 0 and build_info()["cuda_kernels"]
        self._run = Graphs(self._networks, self.device, max_graphs) if graphed else self._networks

    def __call__(
        self,
        batch: Any,
        boxes: Any = None,
        *,
        flip_test: bool = False,
        looks: int = 1,
        return_heatmaps: bool = False,
        batch_size: int | None = None,
    ) -> Poses:
        """Find the joints of one person in each picture, or in each box.

        Pictures of another size than the network's are resampled (bicubic, antialiased), with black beside them where
        the aspect ratio differs. Grey becomes RGB; RGBA is laid over black.

        Args:
            batch: uint8 RGB, array or tensor on any device: ``[B, H, W, C]``, ``[B, C, H, W]``, one picture
                ``[H, W, C]``, ``[C, H, W]`` or ``[H, W]``, or a list of single pictures of any sizes; C is 1, 3 or 4.
            boxes: x, y, width, height in px, from pixel edges: (0, 0, W, H) is the whole picture. ``[B, 4]`` for one
                person a picture, ``[P, 4]`` for P people in a single picture, or a list of B arrays ``[P, 4]``.
                ``None``: every picture shows one person.
            flip_test: average heatmaps, and then 3D joints, with those of the mirrored crop; twice the work.
            looks: how often at most: where the person found is small in the crop, look again at a closer one. On a GPU
                each further look waits for the one before.
            return_heatmaps: keep them (of the last look); only then does memory grow by more than some numbers a
                person.
            batch_size: people that go through the networks at once. ``None``: 8, on a GPU 128.

        Returns:
            Poses in the order of the boxes or pictures; ``image_index`` tells the picture. Empty for an empty batch.

        Raises:
            TypeError: ``batch`` or ``boxes`` of another kind or dtype.
            ValueError: a wrong shape, a box without area or outside its picture, looks or batch_size that is not
                positive.

        Example:
            >>> import numpy as np
            >>> from hpe_fast.models import hrnet, lifter
            >>> from hpe_fast.ops import OFFICIAL
            >>> detector = hrnet(width=8, modules=(1, 1, 1), blocks=1)
            >>> pipeline = PosePipeline(detector, lifter(width=16), "cpu", codec=OFFICIAL.resized(64, 16))
            >>> two = np.array([[0, 0, 40, 60], [30, 10, 40, 60]])
            >>> poses = pipeline(np.zeros((90, 80, 3), np.uint8), two)
            >>> list(poses.keypoints.shape), poses.image_index.tolist()
            ([2, 17, 2], [0, 0])
        """
        if not isinstance(looks, int) or looks < 1:
            raise ValueError(f"looks must be a positive int, got {looks!r}")
        pictures = as_pictures(batch)
        crops, owner = self._crops(pictures, boxes)
        size = self._batch_size(batch_size)
        parts = []
        for start in range(0, len(owner), size):
            rows = slice(start, start + size)
            parts.append(self._chunk(pictures, crops[rows], owner[rows], looks, flip_test, return_heatmaps))
        return _joined(parts) if parts else self._nothing(return_heatmaps)

    def stream(
        self,
        images: Iterable[Any],
        boxes: Iterable[Any] | None = None,
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> Iterator[Poses]:
        """Go through pictures that do not fit into memory, e.g. a video's frames.

        Args:
            images: single pictures, as ``__call__`` takes in a list; never more than ``batch_size`` are held.
            boxes: for each picture an array ``[P, 4]``. ``None``: every picture shows one person.
            batch_size: pictures (and people) at a time. ``None``: 8, on a GPU 128.
            options: ``flip_test``, ``looks``, ``return_heatmaps``.

        Yields:
            For each ``batch_size`` pictures their Poses; ``image_index`` counts from the first picture of all.

        Raises:
            TypeError, ValueError: as ``__call__``; there are not as many arrays of boxes as pictures.

        Example:
            >>> import numpy as np
            >>> from hpe_fast.models import hrnet, lifter
            >>> from hpe_fast.ops import OFFICIAL
            >>> detector = hrnet(width=8, modules=(1, 1, 1), blocks=1)
            >>> pipeline = PosePipeline(detector, lifter(width=16), "cpu", codec=OFFICIAL.resized(64, 16))
            >>> frames = (np.zeros((48, 64, 3), np.uint8) for _ in range(5))
            >>> [poses.image_index.tolist() for poses in pipeline.stream(frames, batch_size=2)]
            [[0, 1], [2, 3], [4]]
        """
        size, first = self._batch_size(batch_size), 0
        pictures, tables = iter(images), None if boxes is None else iter(boxes)
        while chunk := list(islice(pictures, size)):
            table = None if tables is None else list(islice(tables, len(chunk)))
            if table is not None and len(table) != len(chunk):
                raise ValueError(f"boxes must have one array for each picture, they end after {first + len(table)}")
            poses = self(chunk, table, batch_size=size, **options)
            yield Poses(poses.keypoints, poses.scores, poses.joints3d, poses.image_index + first, poses.heatmaps)
            first += len(chunk)
        if tables is not None and next(tables, None) is not None:
            raise ValueError(f"boxes must have one array for each picture, there are more than {first}")

    def exact_detector(self) -> nn.Module:
        """The detector in float32 on the CPU with BatchNorm folded, as a copy: normalised images to heatmaps."""
        return copy.deepcopy(self._exact).to("cpu", memory_format=torch.contiguous_format)

    @torch.no_grad()
    def _is_faithful(self) -> bool:
        """Whether the fast detector's heatmaps of a test picture are the exact one's, but for rounding."""
        image = prepare_images(_test_picture(self.image_size), self.normalization)
        exact = self._exact(image.to(next(self._exact.parameters(), image).device)).float().cpu()
        fast = self._detector(image.to(self.device, self.dtype)).float().cpu()
        error = float((fast - exact).abs().mean() / exact.std().clamp(min=torch.finfo().tiny))
        if error <= TOLERANCE or not exact.isfinite().all():
            return True
        text = f"{self.dtype} moves this detector's heatmaps by {error:.0%} of their spread: float32 is used instead"
        warnings.warn(text, stacklevel=3)
        return False

    def _batch_size(self, batch_size: int | None) -> int:
        if batch_size is None:
            return BATCH.get(self.device.type, BATCH["cpu"])
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a positive int or None, got {batch_size!r}")
        return batch_size

    def _crops(self, pictures: Pictures, boxes: Any) -> tuple[Tensor, Tensor]:
        """Crops ``[N, 4]`` and the picture ``[N]`` each is cut from, on the CPU."""
        if boxes is not None:
            table, owner = as_boxes(boxes, pictures)
            return box_crops(table, self.image_size, self.padding), owner
        if isinstance(pictures, Tensor):
            crops = whole_crop(pictures.shape[1:3], self.image_size).expand(len(pictures), 4)
        else:
            crops = [whole_crop(picture.shape[:2], self.image_size) for picture in pictures]
            crops = torch.stack(crops) if crops else torch.zeros(0, 4, dtype=torch.int64)
        return crops, torch.arange(len(pictures))

    @torch.no_grad()
    def _chunk(
        self, pictures: Pictures, crops: Tensor, owner: Tensor, looks: int, flip_test: bool, heatmaps: bool
    ) -> Poses:
        poses = self._look(pictures, crops, owner, flip_test, heatmaps)
        for _ in range(looks - 1):
            found = poses.keypoints.cpu(), poses.scores.cpu()
            closer = closer_crops(*found, crops, self.image_size, FOUND * self.codec.amplitude)
            rows = (closer != crops).any(1)
            if not rows.any():
                break
            if self.device.type == "cuda":  # all of them: a graph is kept for each number of crops
                rows = torch.ones_like(rows)
            crops = closer
            again = self._look(pictures, crops[rows], owner[rows], flip_test, heatmaps)
            poses = _replaced(poses, rows.to(self.device), again)
        return poses

    def _look(self, pictures: Pictures, crops: Tensor, owner: Tensor, flip_test: bool, heatmaps: bool) -> Poses:
        images = self._cut(pictures, crops, owner)
        coords, scores, joints3d, *maps = self._run(images, flip_test, heatmaps)
        keypoints = to_picture(coords, crops, self.image_size)
        return Poses(keypoints, scores, joints3d, owner.to(self.device), maps[0] if heatmaps else None)

    def _cut(self, pictures: Pictures, crops: Tensor, owner: Tensor) -> Tensor:
        """The crops as uint8 ``[N, h, w, 3]`` on the device; a picture with several people is moved there once."""
        first, last = int(owner[0]), int(owner[-1])
        one_each = torch.equal(owner, torch.arange(first, last + 1))
        if isinstance(pictures, Tensor) and one_each and (crops == crops[0]).all():
            return resample(pictures[first : last + 1].to(self.device), crops[0], self.image_size)
        cut, current, picture = [], -1, None
        for crop, index in zip(crops, owner.tolist(), strict=True):
            if index != current:
                current, picture = index, pictures[index].to(self.device)[None]
            cut.append(resample(picture, crop, self.image_size))
        return torch.cat(cut)

    def _networks(self, images: Tensor, flip_test: bool, return_heatmaps: bool) -> tuple[Tensor, ...]:
        """uint8 ``[N, h, w, 3]`` to keypoints (crop pixels), scores, joints3d, and the heatmaps if asked for."""
        heatmaps = self._heatmaps(images)
        flipped = self._heatmaps(self._mirrored(images)) if flip_test else None
        coords, scores = decode_heatmaps(
            heatmaps,
            self.codec,
            refine=self.refine,
            flipped=flipped,
            flip_permutation=FLIP_PERMUTATION if flip_test else None,
        )
        joints3d = self._lift(unit_crop(coords, self.image_size), flip_test)
        if joints3d.shape[1:] != (NUM_JOINTS, 3):
            raise ValueError(f"the lifter gave joints {list(joints3d.shape)}; want [N, {NUM_JOINTS}, 3]")
        return (coords, scores, joints3d, heatmaps.float()) if return_heatmaps else (coords, scores, joints3d)

    def _lift(self, keypoints: Tensor, flip_test: bool) -> Tensor:
        """Joints ``[N, 17, 3]`` of keypoints in crop units; ``flip_test``: the mean with those of the mirrored ones."""
        joints3d = self._lifter(keypoints).float()
        if not flip_test:
            return joints3d
        mirrored = torch.stack([1 - keypoints[..., 0], keypoints[..., 1]], -1)[:, self._swap]
        return (joints3d + self._lifter(mirrored).float()[:, self._swap] * self._mirror) / 2

    def _mirrored(self, images: Tensor) -> Tensor:
        """The crops mirrored so that heatmap pixel u becomes w - 1 - u exactly.

        Heatmap pixel u stands at crop pixel stride * u, so that mirroring the whole crop moves the heatmap by
        stride - 1 crop pixels. The official code corrects that by a whole heatmap pixel (SHIFT_HEATMAP), 1 px too far;
        here the mirrored crop is moved instead. Floored targets stand in the middle of their pixels and need nothing.
        """
        mirrored = images.flip(2)
        shift = 0 if self.codec.rounding == "floor" else round(self.codec.stride[0] - 1)
        edge = mirrored[:, :, -1:].expand(-1, -1, shift, -1)
        return torch.cat([mirrored[:, :, shift:], edge], 2) if shift > 0 else mirrored

    def _heatmaps(self, images: Tensor) -> Tensor:
        heatmaps = self._detector(prepare_images(images, self.normalization, dtype=self.dtype))
        wanted = (len(images), NUM_JOINTS, *self.codec.heatmap_size)
        if tuple(heatmaps.shape) != wanted:
            raise ValueError(f"the detector gave heatmaps {list(heatmaps.shape)}; its codec wants {list(wanted)}")
        return heatmaps

    def _nothing(self, heatmaps: bool) -> Poses:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(0, *shape, device=self.device)

        maps = zeros(NUM_JOINTS, *self.codec.heatmap_size) if heatmaps else None
        index = torch.zeros(0, dtype=torch.int64, device=self.device)
        return Poses(zeros(NUM_JOINTS, 2), zeros(NUM_JOINTS), zeros(NUM_JOINTS, 3), index, maps)


def _folded(model: nn.Module) -> nn.Module:
    """A copy for inference, BatchNorm folded where the order of its layers is known: in this package's networks."""
    if isinstance(model, (HRNet, Lifter, SimpleBaseline)):
        return fold_batchnorm(model)
    return copy.deepcopy(model).eval().requires_grad_(False)


def _test_picture(size: tuple[int, int]) -> Tensor:
    """Soft colours and edges, the same every time: uint8 ``[1, h, w, 3]``."""
    noise = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    picture = F.interpolate(noise, size, mode="bilinear")
    picture[:, :, size[0] // 4 : size[0] // 2, size[1] // 3 : size[1] // 2] = 0.9
    return (picture * 255).to(torch.uint8).movedim(1, 3).contiguous()


def _replaced(poses: Poses, rows: Tensor, again: Poses) -> Poses:
    """Poses with those of the chosen rows (bool ``[N]``) found again."""
    columns = [(getattr(poses, field.name), getattr(again, field.name)) for field in fields(Poses)]
    return Poses(*(None if old is None else old.index_put((rows,), new) for old, new in columns))


def _joined(parts: list[Poses]) -> Poses:
    if len(parts) == 1:
        return parts[0]
    columns = [[getattr(part, field.name) for part in parts] for field in fields(Poses)]
    return Poses(*(None if column[0] is None else torch.cat(column) for column in columns))


def _float_dtype(dtype: torch.dtype | None, device: torch.device) -> torch.dtype:
    if dtype is None:
        return fast_dtype(device)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"dtype must be torch.float32, float16, bfloat16 or None, got {dtype!r}")
    return dtype


class _LastLayer(nn.Module):
    """A network's last layer in float32: its maxima would tie in bfloat16, and with them the joints."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.float()

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features.float())


def _fast(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    last = getattr(model, "final_layer", None)
    exact = copy.deepcopy(last)
    model = model.to(device=device, dtype=dtype, memory_format=torch.channels_last)
    if dtype != torch.float32 and isinstance(last, nn.Module):
        model.final_layer = _LastLayer(exact.to(device))
    return model
