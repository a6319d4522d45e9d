"""The command line of the evaluation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import nn

from hpe_fast.data.loader import ImageLoader
from hpe_fast.data.store import PoseStore
from hpe_fast.device import resolve_device
from hpe_fast.evaluate.figures import GRID, write_figures
from hpe_fast.evaluate.networks import detect
from hpe_fast.evaluate.report import Predictions, predictions, report
from hpe_fast.evaluate.tables import report_csv, report_json, report_text
from hpe_fast.files import atomic_path
from hpe_fast.models import load_checkpoint
from hpe_fast.models.weight_files import weight_paths
from hpe_fast.pipeline import PosePipeline
from hpe_fast.pipeline.settings import detector_settings, metadata_of


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure trained weights on a pose store.

    Example:
        >>> EvaluateConfig(Path("valid.h5")).batch_size
        32
    """

    data: Path
    """Pose store (.h5), or a folder with a valid.h5."""
    weights: str | None = None
    """Run directory, or the name of bundled weights; without it the bundled ones."""
    json: Path | None = None
    """Write the errors here as well."""
    csv: Path | None = None
    """Write them here as a table."""
    figures: Path | None = None
    """Write pictures into this folder: the paper's figures, best and worst cases, a grid, poses to turn (HTML)."""
    samples: int = GRID
    """Rows in the grid and in the page of poses."""
    frame_step: int = 1
    """For MPJVE: by how much the numbers of consecutive frames differ (5 for Human3.6M at 10 frames a second)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int = 32
    """Pictures at a time."""


@dataclass(frozen=True)
class Measured:
    """What an evaluation used and found; what ``evaluate_weights`` returns.

    Example:
        >>> [field for field in Measured.__dataclass_fields__]
        ['store', 'detector', 'lifter', 'predictions', 'report']
    """

    store: PoseStore
    detector: nn.Module
    lifter: nn.Module
    predictions: Predictions
    report: dict[str, Any]


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 2 with one line that says what is wrong, or 130 after Ctrl-C.

    Example:
        >>> main(["--data", "no/such.h5"])  # "error: no/such.h5: no such file" goes to stderr
        2
    """
    import tyro

    config = tyro.cli(EvaluateConfig, args=argv, prog="python -m hpe_fast.evaluate")
    try:
        with outputs({"--json": config.json, "--csv": config.csv}) as files:
            if config.figures is not None:
                _check_folder("--figures", config.figures)
            measured = evaluate_weights(config)
            print(report_text(measured.report))
            if "--json" in files:
                files["--json"].write_text(report_json(measured.report))
            if "--csv" in files:
                files["--csv"].write_text(report_csv(measured.report))
            if config.figures is not None:
                _draw(config, measured)
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _draw(config: EvaluateConfig, measured: Measured) -> None:
    pipeline = PosePipeline(measured.detector, measured.lifter, config.device)
    files = write_figures(config.figures, measured.store, measured.predictions, pipeline, config.samples)
    print("\nwrote " + ", ".join(str(file) for file in files))


def _check_folder(option: str, folder: Path) -> None:
    """Know before the work that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{option} {folder}: cannot be written ({error.strerror})") from error


@contextmanager
def outputs(wanted: dict[str, Path | None]) -> Iterator[dict[str, Path]]:
    """Temporary paths for the files that are wanted; they take their places when the block ends well.

    Made before the work, so that a place that cannot be written to is known before it and not after it.

    Raises:
        OSError: a file cannot be written there; the option is named.
    """
    with ExitStack() as stack:
        files, places = {}, {}
        for option, path in wanted.items():
            if path is None:
                continue
            if path.is_dir():
                raise IsADirectoryError(f"{option} {path}: is a folder, a file is wanted")
            if path.absolute() in places:
                raise ValueError(f"{option} {path}: is the file of {places[path.absolute()]} as well")
            places[path.absolute()] = option
            try:
                files[option] = stack.enter_context(atomic_path(path))
            except OSError as error:
                raise OSError(f"{option} {path}: cannot be written ({error.strerror})") from error
        yield files


def evaluate_weights(config: EvaluateConfig) -> Measured:
    """Load both networks of a run and measure them on a store.

    Raises:
        ValueError, OSError: no such weights or store, a damaged picture, a setting without sense.

    Example:
        >>> evaluate_weights(EvaluateConfig(Path("no/such.h5")))
        Traceback (most recent call last):
        FileNotFoundError: no/such.h5: no such file
    """
    if config.weights is not None and not config.weights.strip():
        raise ValueError("--weights is empty: name a run directory or bundled weights, or leave it out")
    for option in ("batch_size", "frame_step", "samples"):
        if getattr(config, option) < 1:
            raise ValueError(f"--{option.replace('_', '-')} must be at least 1, got {getattr(config, option)}")
    device = resolve_device(config.device)
    paths = weight_paths(config.weights)
    store = open_store(config.data)
    detector, lifter = (load_checkpoint(path).to(device) for path in paths)
    codec, normalization = detector_settings(metadata_of(detector, lifter)["detector"])
    found = None
    if store.has_images:
        store.require_square()
        loader = ImageLoader(store, config.batch_size, image_size=codec.image_size, device=device)
        found = detect(detector, loader, codec, normalization, progress=sys.stderr.isatty())
    mean_pose = lifter.metadata.get("mean_pose")
    made = predictions(store, lifter, None if mean_pose is None else torch.tensor(mean_pose), found, config.frame_step)
    about = {
        "store": str(store.path),
        "pictures": store.has_images,
        "weights": [str(path) for path in paths],
        "trained_on": {"detector": detector.metadata.get("trained_on"), "lifter": lifter.metadata.get("trained_on")},
        "frame_step": config.frame_step,
    }
    return Measured(store, detector, lifter, made, {**about, **report(made)})


def open_store(path: Path) -> PoseStore:
    """The store at a path, or ``valid.h5`` in a folder.

    Raises:
        OSError, DataError: there is none.
    """
    if path.is_dir():
        if not (path / "valid.h5").is_file():
            raise FileNotFoundError(f"--data {path}: a folder without valid.h5; name a pose store (.h5)")
        path = path / "valid.h5"
    return PoseStore(path)
