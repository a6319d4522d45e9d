"""Reading and writing weights: our own files, and those of the projects whose parameter names we share."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hpe_fast.files import atomic_path
from hpe_fast.models.hrnet import hrnet
from hpe_fast.models.layouts import HEADS, Layout, recognize
from hpe_fast.models.lifter import lifter
from hpe_fast.models.resnet import simple_baseline

FORMAT = "hpe_fast/1"
BUILDERS = {"hrnet": hrnet, "simple_baseline": simple_baseline, "lifter": lifter}
#: Keys of each kind that an error names.
SHOWN = 10


class CheckpointError(ValueError):
    """A file that holds no weights, or weights that do not fit the model.

    Example:
        >>> load_checkpoint({"epoch": 3})
        Traceback (most recent call last):
        ...
        hpe_fast.models.checkpoints.CheckpointError: state dict: no state dict: the entries ['epoch'] are no weights
    """


def build_model(config: Mapping[str, Any]) -> nn.Module:
    """The freshly initialised model that a ``.config`` describes.

    Raises:
        ValueError: for an unknown architecture or arguments it does not take.

    Example:
        >>> build_model({"architecture": "lifter", "width": 64}).config["blocks"]
        2
    """
    arguments = dict(config)
    architecture = arguments.pop("architecture", None)
    if not isinstance(architecture, str) or architecture not in BUILDERS:
        raise ValueError(f"config['architecture'] must be one of {sorted(BUILDERS)}, got {architecture!r}")
    try:
        return BUILDERS[architecture](**arguments)
    except TypeError as error:
        raise ValueError(f"config does not describe a model: {error}") from error


def save_checkpoint(
    path: str | os.PathLike, model: nn.Module, metadata: Mapping[str, Any] | None = None, *, half: bool = False
) -> None:
    """Write a model's weights, its ``config`` and ``metadata`` to a safetensors file, whole or not at all.

    Args:
        path: file to write; ``.safetensors`` by custom.
        model: one of this package's; may be compiled or wrapped for data-parallel training.
        metadata: JSON-able values by name, found again in ``load_checkpoint(path).metadata``.
        half: store kernels and weight matrices in float16, at half the size (bfloat16 where float16 would overflow);
            vectors (biases, BatchNorm, the lifter's statistics) stay float32.

    Raises:
        ValueError: metadata that is no JSON or uses the names ``format`` or ``config``.
        OSError: e.g. a full disk; ``path`` is untouched then.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lifter.safetensors"
        >>> save_checkpoint(path, lifter(width=64), {"trained_on": "nothing"})
        >>> load_checkpoint(path).metadata
        {'trained_on': 'nothing'}
    """
    model = _unwrap(model)
    values = dict(metadata or {})
    if values.keys() & {"format", "config"}:
        raise ValueError(f"metadata must not use the names 'format' and 'config', got {sorted(values)}")
    try:
        texts = {key: json.dumps(value) for key, value in {**values, "config": model.config}.items()}
    except TypeError as error:
        raise ValueError(f"metadata must be JSON-able: {error}") from error
    tensors = {key: _stored(value.detach().cpu(), half) for key, value in model.state_dict().items()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"format": FORMAT, **texts})
        except SafetensorError as error:
            raise OSError(f"{path}: cannot be written: {error}") from error


def _unwrap(model: nn.Module) -> nn.Module:
    """The model inside torch.compile's and data-parallel wrappers."""
    for name in ("_orig_mod", "module"):
        if isinstance(getattr(model, name, None), nn.Module):
            return _unwrap(getattr(model, name))
    return model


def _stored(value: Tensor, half: bool) -> Tensor:
    # The default memory format, since safetensors knows no other.
    value = value.contiguous()
    if not half or value.dim() < 2:
        return value
    small = value.half()
    return small if small.isfinite().all() else value.bfloat16()


def load_checkpoint(source: str | os.PathLike | Mapping[str, Any], model: nn.Module | None = None) -> nn.Module:
    """Read a model from a checkpoint of this package or of a project with the same networks.

    Recognised by names and shapes, which also give width, depth, joints and so on:

    * ours (safetensors, with ``config`` and metadata);
    * HRNet of leoxiaobin/deep-high-resolution-net.pytorch and SimpleBaseline of
      microsoft/human-pose-estimation.pytorch: released files and training checkpoints;
    * the same networks in mmpose 0.x and 1.x files;
    * the lifter of weigq/3d_pose_baseline_pytorch. Its normalisation statistics are in another file, so those of the
      model stay identity and ``metadata["warning"]`` says so: set them before use;
    * ImageNet classification weights of HRNet and ResNet, only into ``model``: all but its heads is loaded.

    The order of the joints cannot be told from weights (COCO has 17 joints as well, MPII 16): models from other
    projects' files carry ``metadata["joint_order"] = "unknown"``, and it is for the caller to know. Only tensors and
    plain values are ever unpickled.

    Args:
        source: a file, or a state dict (or a dict around one); its tensors are copied.
        model: load into this model rather than a new one; its mode, dtype and device stay as they are.

    Returns:
        ``model``, or a new one in evaluation mode, float32, on the CPU; ``metadata`` is set in either case.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: a file that is damaged, of another kind or holds more than tensors and plain values; or weights
            that do not fit, with the keys that are missing, unexpected or of another shape.

    Example:
        >>> load_checkpoint(lifter(in_joints=16, width=64).state_dict()).config["in_joints"]
        16
    """
    name = "state dict" if isinstance(source, Mapping) else str(source)
    content, texts = (source, {}) if isinstance(source, Mapping) else _read_file(Path(source))
    try:
        layout = recognize(content)
        if texts.get("format", "").startswith(FORMAT.partition("/")[0]):  # other writers have formats, too: "pt"
            layout, metadata = _ours(layout, texts)
        else:
            metadata = _foreign_metadata(layout)
        target = _unwrap(model) if model is not None else _empty_model(layout)
    except ValueError as error:
        raise CheckpointError(f"{name}: {error}") from error
    tensors = _fitted(name, layout, target.state_dict())
    if model is None:
        target.load_state_dict(tensors, assign=True)
        target.eval()
    else:
        target.load_state_dict(tensors, strict=False)
    target.metadata = metadata
    return target if model is None else model


def _read_file(path: Path) -> tuple[Mapping[str, Any], dict[str, str]]:
    """The content of a file and, from safetensors, its metadata."""
    with open(path, "rb") as file:
        start = file.read(9)
    if not start:
        raise CheckpointError(f"{path}: the file is empty")
    # A safetensors file starts with the length of a JSON object and that object.
    return _read_safetensors(path) if start[8:] == b"{" else (_read_pickle(path), {})


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: a damaged safetensors file: {error}") from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise nearly anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        reason = (
            f"it wants {refused[1]}, and only tensors and plain values are loaded: save its state_dict alone (mmpose: "
            "tools/misc/publish_model.py)"
            if refused
            else _first_line(error)
        )
        raise CheckpointError(f"{path}: not a checkpoint that can be read: {reason}") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    # torch goes on with the advice to unpickle it nevertheless
    return "damaged, or no file of torch.save" if line.startswith("Weights only load failed") else line


def _numpy_globals() -> list[Any]:
    """What plain numpy arrays and numbers need: mmpose files hold the data set's, official ones the best score."""
    functions = (multiarray._reconstruct, multiarray.scalar)
    paths = ("numpy.core.multiarray", "numpy._core.multiarray")
    named = [(function, f"{path}.{function.__name__}") for function in functions for path in paths]
    return [*named, np.ndarray, np.dtype, *{type(np.dtype(code)) for code in ("?", "u1", "i4", "i8", "f4", "f8")}]


def _ours(layout: Layout, texts: dict[str, str]) -> tuple[Layout, dict[str, Any]]:
    if texts["format"] != FORMAT:
        raise ValueError(f"has format {texts['format']!r}, this version of hpe_fast reads {FORMAT!r}")
    try:
        metadata = {key: json.loads(text) for key, text in texts.items() if key != "format"}
        config = dict(metadata.pop("config"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"its metadata is damaged: {error!r}") from error
    return replace(layout, config=config, source="hpe_fast", backbone_only=False), metadata


def _foreign_metadata(layout: Layout) -> dict[str, Any]:
    if layout.backbone_only:
        return {"source": f"{layout.source} classification backbone"}
    metadata = {"source": layout.source, "joint_order": "unknown"}
    if layout.source == "weigq":
        metadata["warning"] = "the normalisation statistics are not in this file: the model's are identity"
    return metadata


def _empty_model(layout: Layout) -> nn.Module:
    """The model without memory, whose tensors come from the file: no initialisation, no random numbers drawn."""
    if layout.backbone_only:
        raise ValueError(f"{layout} has no heatmap layer: build a model and pass it as model=")
    with torch.device("meta"):
        return build_model(layout.config)


def _fitted(name: str, layout: Layout, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the file's tensors in the model's dtypes.

    Raises:
        CheckpointError: they are not the model's.
    """
    tensors = {**_defaults(layout, wanted), **layout.tensors}
    if layout.backbone_only:
        wanted = {key: value for key, value in wanted.items() if not key.startswith(HEADS)}
        tensors = {key: value for key, value in tensors.items() if key in wanted}
    common = tensors.keys() & wanted.keys()
    problems = {
        "missing": [key for key in wanted if key not in common],
        "unexpected": [key for key in tensors if key not in common],
        "that are no real numbers": [key for key in wanted if key in common and not _is_real(tensors[key])],
        "of another shape": [
            f"{key} {list(tensors[key].shape)} for {list(wanted[key].shape)}"
            for key in wanted
            if key in common and tensors[key].shape != wanted[key].shape
        ],
    }
    if any(problems.values()):
        raise CheckpointError(f"{name}: recognised {layout}, which does not fit the model: {_listing(problems)}")
    return {key: tensors[key].detach().to("cpu", wanted[key].dtype, copy=True) for key in wanted}


def _is_real(tensor: Tensor) -> bool:
    """Whether these are values of weights: finite, and of a dtype that has fractions (counters are whole)."""
    plain = tensor.device.type != "meta" and not tensor.is_quantized and tensor.layout == torch.strided
    if not plain or tensor.is_complex():
        return False
    return (tensor.is_floating_point() and bool(tensor.isfinite().all())) or tensor.dim() == 0


def _defaults(layout: Layout, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """What other projects' files lack: BatchNorm's counter before PyTorch 0.4.1, and the lifter's statistics."""
    if layout.source == "hpe_fast":
        return {}
    counters = {key: torch.tensor(0) for key in wanted if key.endswith(".num_batches_tracked")}
    if layout.source != "weigq":
        return counters
    means = {key: torch.zeros(wanted[key].shape) for key in ("input_mean", "output_mean") if key in wanted}
    stds = {key: torch.ones(wanted[key].shape) for key in ("input_std", "output_std") if key in wanted}
    return {**counters, **means, **stds}


def _listing(problems: dict[str, list[str]]) -> str:
    parts = []
    for kind, keys in problems.items():
        if keys:
            more = ", ..." if len(keys) > SHOWN else ""
            parts.append(f"{len(keys)} {kind} ({', '.join(keys[:SHOWN])}{more})")
    return "; ".join(parts)
