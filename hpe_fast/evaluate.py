"""How good the two stages are on a pose store: ``python -m hpe_fast.evaluate --data STORE --weights RUN``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from hpe_fast import metrics
from hpe_fast.data.loader import ImageLoader
from hpe_fast.data.store import PoseStore
from hpe_fast.device import fast_dtype, resolve_device
from hpe_fast.files import atomic_path
from hpe_fast.models import from_unit_crop, load_checkpoint, unit_crop
from hpe_fast.ops import HeatmapCodec, Normalization, decode_heatmaps, prepare_images
from hpe_fast.pipeline import REFINE, weight_paths


@dataclass(frozen=True)
class Detections:
    """What the detector found in every picture of a store."""

    keypoints: Tensor
    """[N, 17, 2] float32, unit-crop coordinates, on the CPU."""
    scores: Tensor
    """[N, 17] float32."""
    rows: Tensor
    """[N] int64: which row of the store each is."""


@torch.no_grad()
def detect(
    model: nn.Module, loader: ImageLoader, codec: HeatmapCodec, normalization: Normalization, *, amp: bool = True
) -> Detections:
    """Run the detector over a loader's first epoch; the model is left in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    dtype = fast_dtype(device) if amp else torch.float32
    found = []
    for batch in loader.epoch(0):
        images = prepare_images(batch.images, normalization, color=batch.color, dtype=dtype)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            heatmaps = model(images)
        coords, scores = decode_heatmaps(heatmaps, codec, refine=REFINE)
        found.append((unit_crop(coords, codec.image_size).cpu(), scores.cpu(), batch.rows.cpu()))
    if not found:
        return Detections(torch.zeros(0, 17, 2), torch.zeros(0, 17), torch.zeros(0, dtype=torch.int64))
    keypoints, scores, rows = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Detections(keypoints, scores, rows)


def detection_errors(detections: Detections, store: PoseStore) -> dict[str, float]:
    """2D errors: ``epe2d_px`` in pixels of the store's pictures, ``pck2d_02_torso`` as a share of visible joints."""
    predicted = from_unit_crop(detections.keypoints, store.image_size)
    rows = detections.rows.numpy()
    target = torch.tensor(store.pose2d[rows])
    visible = torch.tensor(store.visible[rows]) > 0
    return {
        "epe2d_px": float(metrics.epe2d(predicted, target, visible)),
        "pck2d_02_torso": float(metrics.pck2d(predicted, target, visible, 0.2)),
    }


@torch.no_grad()
def lift(lifter: nn.Module, keypoints: Tensor, batch_size: int = 8192) -> Tensor:
    """3D joints ``[N, 17, 3]`` (mm, root-relative, on the CPU) of unit-crop keypoints ``[N, 17, 2]``."""
    lifter.eval()
    device = next(lifter.parameters()).device
    return torch.cat([lifter(part.to(device)).float().cpu() for part in keypoints.split(batch_size)])


def root_relative(pose3d: Tensor) -> Tensor:
    """``[N, 17, 3]`` with the hip at the origin."""
    return pose3d - pose3d[:, :1]


def pose_errors(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """``mpjpe_mm`` and ``pa_mpjpe_mm`` of root-relative poses ``[N, 17, 3]``, mean over frames."""
    return {
        "mpjpe_mm": float(metrics.mpjpe(predicted, target)),
        "pa_mpjpe_mm": float(metrics.pa_mpjpe(predicted, target)),
    }


@dataclass(frozen=True)
class Evaluation:
    """Predictions for a store and their errors."""

    detections: Detections
    joints3d: Tensor
    """[N, 17, 3] mm, root-relative: what the whole pipeline says of the rows of ``detections``."""
    errors: dict
    """The error keys of metrics.json."""


def evaluate(detections: Detections, lifter: nn.Module, store: PoseStore, mean_pose: Tensor) -> Evaluation:
    """Errors of the mean pose, of the lifter on true 2D, and of the whole pipeline (lifter on detections).

    Args:
        detections: of the store's pictures.
        mean_pose: ``[17, 3]`` mm, root-relative mean of the training poses.
    """
    joints3d = lift(lifter, detections.keypoints)
    rows = detections.rows.numpy()
    target = root_relative(torch.tensor(store.pose3d[rows]))
    known = torch.isfinite(target).all(2).all(1)
    true_2d = lift(lifter, unit_crop(torch.tensor(store.pose2d[rows]), store.image_size))
    guesses = {"mean_pose": mean_pose.expand_as(target), "lifter_true_2d": true_2d, "pipeline": joints3d}
    poses = {name: pose_errors(guess[known], target[known]) for name, guess in guesses.items()}
    errors = {key: {name: errors[key] for name, errors in poses.items()} for key in ("mpjpe_mm", "pa_mpjpe_mm")}
    return Evaluation(detections, joints3d, {**errors, **detection_errors(detections, store)})


def table(errors: dict) -> str:
    """The errors as text for a person."""
    rows = [
        ("mean pose", "mean_pose"),
        ("lifter on true 2D", "lifter_true_2d"),
        ("whole pipeline", "pipeline"),
    ]
    lines = [f"{'':20}{'MPJPE mm':>12}{'PA-MPJPE mm':>14}"]
    lines += [f"{label:20}{errors['mpjpe_mm'][key]:12.1f}{errors['pa_mpjpe_mm'][key]:14.1f}" for label, key in rows]
    lines.append(f"2D: mean error {errors['epe2d_px']:.2f} px, PCK@0.2 torso {errors['pck2d_02_torso']:.3f}")
    return "\n".join(lines)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained run on a pose store."""

    data: Path
    """Pose store (.h5)."""
    weights: str
    """Run directory, or the name of bundled weights."""
    json: Path | None = None
    """Write the errors here as well."""
    device: str = "auto"
    batch_size: int = 32


def main(argv: list[str] | None = None) -> int:
    import tyro

    config = tyro.cli(EvaluateConfig, args=argv)
    try:
        result = evaluate_weights(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(result.errors))
    if config.json is not None:
        with atomic_path(config.json) as temporary:
            temporary.write_text(json.dumps(result.errors, indent=2) + "\n")
    return 0


def evaluate_weights(config: EvaluateConfig) -> Evaluation:
    """Load both networks of a run and measure them on a store."""
    device = resolve_device(config.device)
    detector_path, lifter_path = weight_paths(config.weights)
    detector, lifter = load_checkpoint(detector_path).to(device), load_checkpoint(lifter_path).to(device)
    codec = HeatmapCodec(**detector.metadata["codec"])
    normalization = Normalization(**detector.metadata["normalization"])
    store = PoseStore(config.data)
    loader = ImageLoader(store, config.batch_size, image_size=codec.image_size, device=device)
    detections = detect(detector, loader, codec, normalization)
    return evaluate(detections, lifter, store, torch.tensor(lifter.metadata["mean_pose"]))


if __name__ == "__main__":
    sys.exit(main())
