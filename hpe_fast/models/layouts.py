"""Whose weights are these? Brings foreign names to ours and reads the architecture off the shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hpe_fast.models.resnet import DEPTHS

#: What wrappers put before every name, and what mmpose 0.x and 1.x put before those of the network's two parts.
WRAPPER_PREFIXES = ("module.", "_orig_mod.")
MMPOSE_PREFIXES = ("backbone.", "keypoint_head.", "head.")
#: Where training code keeps the weights. In official HRNet files the two hold the same weights.
STATE_KEYS = ("state_dict", "best_state_dict", "model")
#: Parts that a classification backbone cannot give.
HEADS = ("final_layer.", "deconv_layers.", "stage2_head.", "stage3_head.")


@dataclass(frozen=True)
class Layout:
    """Weights under our names, and what they are.

    Attributes:
        tensors: by name.
        config: of the model they make.
        source: whose names they came under.
        backbone_only: there is no heatmap layer among them (ImageNet classification weights).
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    source: str
    backbone_only: bool = False

    def __str__(self) -> str:
        values = ", ".join(f"{key} {value}" for key, value in self.config.items() if key != "architecture")
        part = " backbone" if self.backbone_only else ""
        return f"{self.config['architecture']}{part} ({values}) under {self.source} names"


def recognize(content: Mapping[str, Any]) -> Layout:
    """What a state dict, or a checkpoint holding one, contains.

    Raises:
        ValueError: for content that is none of the networks of this package.
    """
    tensors, is_mmpose = _our_names(_find_state(content))
    if "linear_stages.0.w1.weight" in tensors:
        source = "hpe_fast" if "input_mean" in tensors else "weigq"
        return Layout(tensors, _lifter_config(tensors), source)
    if any(key.startswith("transition1.") for key in tensors):
        config = _hrnet_config(tensors)
    elif "layer1.0.conv1.weight" in tensors:
        config = _simple_baseline_config(tensors)
    else:
        raise ValueError(f"none of the known networks: {len(tensors)} tensors, the first are {list(tensors)[:5]}")
    source = "mmpose" if is_mmpose else "official"
    return Layout(tensors, config, source, backbone_only="final_layer.weight" not in tensors)


def _find_state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    inner = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), Mapping)), content)
    others = [key for key, value in inner.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others or not inner:
        raise ValueError(f"no state dict: the entries {[str(key) for key in (others or content)][:5]} are no weights")
    return dict(inner)


def _our_names(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    for prefix in WRAPPER_PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            return _our_names({key.removeprefix(prefix): value for key, value in tensors.items()})
    if not any(key.startswith("backbone.") for key in tensors):
        return tensors, False
    return {_without_mmpose_prefix(key): value for key, value in tensors.items()}, True


def _without_mmpose_prefix(key: str) -> str:
    prefix = next((prefix for prefix in MMPOSE_PREFIXES if key.startswith(prefix)), "")
    return key.removeprefix(prefix)


def _hrnet_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "architecture": "hrnet",
        "width": _size(tensors, "stage2.0.branches.0.0.conv1.weight", 0),
        "joints": _size(tensors, "final_layer.weight", 0),
        "modules": [_count(tensors, f"stage{stage}.") for stage in (2, 3, 4)],
        "blocks": _count(tensors, "stage2.0.branches.0."),
        "supervise_stages": "stage2_head.weight" in tensors,
    }


def _simple_baseline_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    kind = "bottleneck" if "layer1.0.conv3.weight" in tensors else "basic"
    blocks = tuple(_count(tensors, f"layer{i}.") for i in range(1, 5))
    depth = next((depth for depth, design in DEPTHS.items() if design == (kind, blocks)), None)
    if depth is None:
        raise ValueError(f"a ResNet of no known depth: {blocks} {kind} blocks")
    return {"architecture": "simple_baseline", "depth": depth, "joints": _size(tensors, "final_layer.weight", 0)}


def _lifter_config(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        "architecture": "lifter",
        "in_joints": max(1, _size(tensors, "w1.weight", 1) // 2),
        "out_joints": max(1, _size(tensors, "w2.weight", 0) // 3),
        "width": _size(tensors, "w1.weight", 0),
        "blocks": _count(tensors, "linear_stages."),
    }


def _size(tensors: dict[str, Tensor], key: str, axis: int) -> int:
    """Size along an axis; 1 if it is not there, so that the comparison of keys tells what is missing."""
    shape = tensors[key].shape if key in tensors else ()
    return max(1, shape[axis]) if axis < len(shape) else 1


def _count(tensors: dict[str, Tensor], prefix: str) -> int:
    """How many numbered parts follow a prefix, at least 1."""
    return max(1, len({key.removeprefix(prefix).split(".")[0] for key in tensors if key.startswith(prefix)}))
