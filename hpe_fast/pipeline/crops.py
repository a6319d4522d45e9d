"""Which part of a picture the network sees, and how it is resampled.

A crop is a rectangle of whole pixels, ``[x, y, width, height]`` int64, that may reach over the picture's edges. Crop
pixel u (index coordinates: 0 is the centre of the first) lies at ``(u + 0.5) * width / size - 0.5 + x`` of the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hpe_fast.pipeline.inputs import to_rgb

#: How much larger than the person's box the crop is (mmpose, official HRNet).
PADDING = 1.25
#: How much larger than the joints' bounding box a closer crop is (joints end before hands, feet and hair do).
CLOSER_PADDING = 1.3
#: Side of a closer crop that is worth another look, as a share of the crop's before.
MUCH_SMALLER = 0.8
#: Joints that make a person of a closer crop.
FEWEST_JOINTS = 4
#: Pixels that are converted to float at a time where uint8 cannot be resampled as it is: 12 bytes each.
PIXELS_AT_ONCE = 2**24
#: Pixels of a padded crop that are held at a time.
PIXELS_PADDED = 2**26


def box_crops(boxes: Tensor, size: tuple[int, int], padding: float = PADDING) -> Tensor:
    """Crops around boxes: the same centre, padded, widened to the network's aspect ratio, rounded to whole pixels.

    A box is measured from pixel edges, so that (0, 0, width, height) is the whole picture. The official code maps the
    box's centre to ``width / 2`` of the crop in index coordinates, half a crop pixel off; here the centre goes to the
    centre. Rounding moves a crop by half a picture pixel at most, and coordinates not at all, since they come back by
    the rounded crop.

    Args:
        boxes: ``[N, 4]`` float64 x, y, width, height, px.
        size: of the network's input, ``(height, width)``.
        padding: factor on the box.

    Returns:
        ``[N, 4]`` int64 x, y, width, height.

    Example:
        >>> box_crops(torch.tensor([[0.0, 0, 512, 256]]), (256, 256), padding=1)
        tensor([[   0, -128,  512,  512]])
    """
    height, width = size
    x, y, w, h = boxes.unbind(1)
    scale = padding * torch.maximum(w / width, h / height)
    extent = (scale[:, None] * scale.new_tensor([width, height])).round().clamp(min=1)
    origin = (torch.stack([x + w / 2, y + h / 2], 1) - extent / 2).round()
    return torch.cat([origin, extent], 1).long()


def closer_crops(keypoints: Tensor, scores: Tensor, crops: Tensor, size: tuple[int, int], least: float) -> Tensor:
    """Crops around joints that were found, where those fill little of the crop that they were found in.

    A network knows people of the sizes that it was trained on; a person half as large is found roughly, and well at a
    second look. (Rendered people, PCK@0.2 torso: 0.86 as trained; half as large 0.43 at one look and 0.85 at three; a
    third as large 0.12 and 0.78.)

    Args:
        keypoints: ``[N, J, 2]`` pixels of the pictures.
        scores: ``[N, J]``.
        crops: ``[N, 4]`` they were found in.
        size: of the network's input, ``(height, width)``.
        least: score of a joint that counts.

    Returns:
        ``[N, 4]``; where a closer crop would not be much smaller, or few joints count, the old one.

    Example:
        >>> keypoints = torch.tensor([[[100.0, 100.0], [119.0, 139.0], [110.0, 120.0], [105.0, 130.0]]])
        >>> closer_crops(keypoints, torch.ones(1, 4), torch.tensor([[0, 0, 400, 400]]), (64, 64), 0.5)
        tensor([[84, 94, 52, 52]])
    """
    counts = (scores > least)[..., None]
    low = torch.where(counts, keypoints, torch.inf).amin(1)
    high = torch.where(counts, keypoints, -torch.inf).amax(1)
    found = counts.sum((1, 2)) >= FEWEST_JOINTS
    boxes = torch.cat([low - 0.5, high - low + 1], 1).double().where(found[:, None], 1.0)
    closer = box_crops(boxes, size, CLOSER_PADDING)
    smaller = closer[:, 3] < MUCH_SMALLER * crops[:, 3]
    return torch.where((found & smaller)[:, None], closer, crops)


def whole_crop(picture_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The crop ``[4]`` that shows a whole picture, centred, with black beside it where the aspect ratios differ.

    Example:
        >>> whole_crop((100, 200), (256, 256))
        tensor([  0, -50, 200, 200])
    """
    height, width = picture_size
    return box_crops(torch.tensor([[0, 0, width, height]], dtype=torch.float64), size, padding=1.0)[0]


def to_picture(coords: Tensor, crops: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop pixels ``[N, J, 2]`` as pixels of the pictures that ``crops [N, 4]`` were cut from.

    Example:
        >>> to_picture(torch.tensor([[[-0.5, 255.5]]]), torch.tensor([[10, 20, 512, 512]]), (256, 256))
        tensor([[[  9.5000, 531.5000]]])
    """
    crops = crops.to(coords)[:, None]
    scale = crops[..., 2:] / coords.new_tensor([size[1], size[0]])
    return (coords + 0.5) * scale - 0.5 + crops[..., :2]


def resample(pictures: Tensor, crop: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut the same crop out of pictures: bicubic, with the filter widened as the crop shrinks (antialiasing).

    As sharp as the pictures that networks are trained on, which are means of areas; bilinear is softer, and cost 3 mm.

    Args:
        pictures: uint8 ``[B, H, W, C]``, grey, RGB or RGBA.
        crop: ``[4]`` int64; what lies outside of the picture is black.
        size: of the result, ``(height, width)``.

    Returns:
        uint8 ``[B, height, width, 3]`` on the pictures' device.

    Example:
        >>> pictures = torch.full((1, 4, 4, 1), 100, dtype=torch.uint8)
        >>> resample(pictures, torch.tensor([-2, 0, 4, 4]), (4, 4))[0, :, :, 0]
        tensor([[  0,   0, 100, 100],
                [  0,   0, 100, 100],
                [  0,   0, 100, 100],
                [  0,   0, 100, 100]], dtype=torch.uint8)
    """
    x, y, width, height = crop.tolist()
    rows, columns = pictures.shape[1:3]
    region = to_rgb(pictures[:, max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)])
    if 0 in region.shape[1:3]:
        return pictures.new_zeros(len(pictures), *size, 3)
    missing = (max(-x, 0), max(x + width - columns, 0), max(-y, 0), max(y + height - rows, 0))
    region = region.movedim(3, 1)
    if width * height > PIXELS_PADDED and any(missing):
        region = _padded_thin(region, missing, size)
    elif any(missing):
        region = F.pad(region, missing)
    if region.shape[2:] != tuple(size):
        region = _resize(region, size)
    return region.movedim(1, 3).contiguous()


def _padded_thin(region: Tensor, missing: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """With black around it, one axis at its size before the other is padded: 2 x 40,000 px need no square of 5 GB.

    Not so for all, since rounding between the axes costs up to a grey level.
    """
    left, right, top, bottom = missing
    beside, above = (left, right, 0, 0), (0, 0, top, bottom)
    if left + right > top + bottom:
        region = F.pad(region, above)
        return F.pad(_resize(region, (size[0], region.shape[3])), beside)
    region = F.pad(region, beside)
    return F.pad(_resize(region, (region.shape[2], size[1])), above)


def _resize(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    if pictures.device.type == "cpu":
        return F.interpolate(pictures, size, mode="bicubic", antialias=True)
    at_once = max(1, PIXELS_AT_ONCE // (pictures.shape[2] * pictures.shape[3]))
    parts = [F.interpolate(p.float(), size, mode="bicubic", antialias=True) for p in pictures.split(at_once)]
    return torch.cat(parts).round_().clamp_(0, 255).to(torch.uint8)
