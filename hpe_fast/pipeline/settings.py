"""What checkpoints say about their networks: whether two of them go together, and what a detector's heatmaps are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from hpe_fast.ops import IMAGENET, OFFICIAL, HeatmapCodec, Normalization
from hpe_fast.skeleton import NUM_JOINTS

JOINT_ORDER = "h36m17"


def metadata_of(detector: nn.Module, lifter: nn.Module) -> dict[str, dict[str, Any]]:
    """``{"detector": ..., "lifter": ...}``, after a check that both networks are for the joints of this package.

    Networks of this package say how many joints they are for; of others the shapes are seen at the first call.

    Raises:
        TypeError: one is not a module.
        ValueError: other joints, or the same number of them in another or unknown order.

    Example:
        >>> from hpe_fast.models import hrnet_tiny, lifter
        >>> metadata_of(hrnet_tiny(), lifter(in_joints=16))
        Traceback (most recent call last):
        ValueError: lifter has in_joints 16; want the 17 of hpe_fast.skeleton.JOINTS
    """
    counts = {"detector": ("joints",), "lifter": ("in_joints", "out_joints")}
    found = {}
    for name, model in (("detector", detector), ("lifter", lifter)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(model).__name__}")
        config = getattr(model, "config", {})
        for key in counts[name]:
            if config.get(key, NUM_JOINTS) != NUM_JOINTS:
                raise ValueError(f"{name} has {key} {config[key]}; want the {NUM_JOINTS} of hpe_fast.skeleton.JOINTS")
        found[name] = dict(getattr(model, "metadata", {}))
        _check_order(name, found[name])
    return found


def _check_order(name: str, metadata: Mapping[str, Any]) -> None:
    order = metadata.get("joint_order", JOINT_ORDER)
    if order != JOINT_ORDER:
        raise ValueError(
            f"{name} was trained for joints in {order!r} order, hpe_fast.skeleton has {JOINT_ORDER!r}: if you know "
            f'that they are the same, set {name}.metadata["joint_order"] = {JOINT_ORDER!r}'
        )
    if "warning" in metadata:
        warnings.warn(f"{name}: {metadata['warning']}", stacklevel=4)


def detector_settings(metadata: Mapping[str, Any]) -> tuple[HeatmapCodec, Normalization]:
    """Codec and normalisation of a detector, or what the official checkpoints have, which do not say it.

    Raises:
        ValueError: they are there and cannot be read.

    Example:
        >>> detector_settings({})[0] == OFFICIAL
        True
    """
    codec = _restored(HeatmapCodec, metadata.get("codec"), OFFICIAL)
    return codec, _restored(Normalization, metadata.get("normalization"), IMAGENET)


def _restored(kind: type, values: Any, default: Any) -> Any:
    if values is None:
        return default
    try:
        return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"the detector's file holds no {kind.__name__}, but {values!r}: {error}") from error
