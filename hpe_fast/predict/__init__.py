"""``python -m hpe_fast.predict INPUT... --out DIR``: poses in pictures, folders, videos and a camera's frames.

In DIR: ``annotated/`` (every picture or video with its skeletons), ``predictions.json``, ``predictions.csv`` and
``coco.json`` as ``--format`` asks (see ``hpe_fast.predict.writers`` for what they hold), ``poses.html`` with ``--view``
(the 3D poses, to turn with the mouse), and ``failed.txt``, the files that could not be read, if there are any. Exit
codes: 0 done, 1 files failed, 2 there is nothing to look at, or an option or the output is wrong, 130 interrupted (what
was found until then is written).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from hpe_fast.files import atomic_path
from hpe_fast.pipeline import LOOKS, PosePipeline, load
from hpe_fast.predict.sources import BoxTable, Failures, Frame, list_sources, read_frames
from hpe_fast.predict.view import View
from hpe_fast.predict.writers import Drawings, Found, Writer, open_writers

__all__ = ["PredictConfig", "main", "predict"]

#: Pictures, and bytes of them, held at a time.
PICTURES = 32
CHUNK_BYTES = 2**29
#: Unused boxes that are named.
LISTED = 10


@dataclass(frozen=True)
class PredictConfig:
    """Find people's joints in pictures, folders, videos, or a camera's frames (camera:0).

    Example:
        >>> PredictConfig(("photos",), Path("drawn")).format
        ('json',)
    """

    inputs: Annotated[Positional[tuple[str, ...]], arg(metavar="INPUT...")]
    """Pictures, folders of them, videos, or camera:N."""
    out: Path
    """Folder for what is found."""
    weights: str | None = None
    """Run directory, or the name of bundled weights."""
    boxes: Path | None = None
    """JSON or CSV with the people's boxes; without it every picture shows one person."""
    format: tuple[Literal["json", "csv", "csv.gz", "coco"], ...] = ("json",)
    """Files to write: json, csv or csv.gz (the paper's submission: id and 51 numbers), coco (keypoints)."""
    draw: bool = True
    """Write pictures and videos with the skeletons."""
    view: bool = False
    """Write poses.html, a page with the 3D poses that turns with the mouse."""
    looks: int = LOOKS
    """How often at most a picture without boxes is looked at: closer each time, where the person is small in it."""
    flip_test: bool = False
    """Average with the mirrored picture: a little better, twice the work."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    batch_size: int | None = None
    """People that go through the networks at once. None: 8, on a GPU 128."""
    max_frames: int | None = None
    """Frames of each video or camera; a camera without it runs until Ctrl-C."""


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code.

    Example:
        >>> main(["photo.jpg", "--out", "drawn", "--batch-size", "0"])  # the reason goes to stderr
        2
    """
    import tyro

    config = tyro.cli(PredictConfig, args=argv, prog="python -m hpe_fast.predict")
    try:
        _check(config)
        pipeline = load(config.weights, config.device)
        failures = predict(config, pipeline)
    except KeyboardInterrupt:
        print("interrupted; what was found until then, if anything, is written", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for file, reason in failures.items():
        print(f"failed: {file}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def _check(config: PredictConfig) -> None:
    """Settings without sense, before anything is loaded."""
    if config.weights is not None and not config.weights.strip():
        raise ValueError("--weights is empty: name a run directory or bundled weights, or leave it out")
    counts = {"--batch-size": config.batch_size, "--looks": config.looks, "--max-frames": config.max_frames}
    for option, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, got {value}")
    if config.out.exists() and not config.out.is_dir():
        raise NotADirectoryError(f"--out {config.out}: is a file, a folder is wanted")


def predict(config: PredictConfig, pipeline: PosePipeline) -> Failures:
    """Look at everything and write what was found; returns why files failed.

    Raises:
        ValueError: there is nothing to look at, or ``--boxes`` is no table of boxes.
        OSError: the output cannot be written.

    Example:
        >>> import cv2, numpy as np, tempfile
        >>> from hpe_fast.models import hrnet, lifter
        >>> from hpe_fast.ops import OFFICIAL
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = cv2.imwrite(str(folder / "a.png"), np.zeros((40, 30, 3), np.uint8))
        >>> detector = hrnet(width=8, modules=(1, 1, 1), blocks=1)
        >>> pipeline = PosePipeline(detector, lifter(width=16), "cpu", codec=OFFICIAL.resized(64, 16))
        >>> predict(PredictConfig((f"{folder}/a.png", "b.png"), folder / "out"), pipeline)
        {'b.png': 'no such file'}
        >>> sorted(path.name for path in (folder / "out").iterdir())
        ['annotated', 'failed.txt', 'predictions.json']
    """
    failures: Failures = {}
    boxes = None if config.boxes is None else BoxTable(config.boxes)
    sources = list_sources(config.inputs, failures, config.out)
    if not sources:
        raise ValueError(f"nothing to look at: {failures or 'no INPUT'}")
    with ExitStack() as stack:
        stack.callback(_list_failures, config.out / "failed.txt", failures)
        writers = _writers(config, pipeline, failures, stack)
        frames = _frames_of_all(sources, boxes, config, failures)
        _look(frames, pipeline, config, writers)
    if boxes is not None and (unused := boxes.unused):
        more = f" and {len(unused) - LISTED} more" if len(unused) > LISTED else ""
        print(f"{config.boxes}: boxes of what was not looked at: {', '.join(unused[:LISTED])}{more}", file=sys.stderr)
    return failures


def _writers(config: PredictConfig, pipeline: PosePipeline, failures: Failures, stack: ExitStack) -> list[Writer]:
    trained = {stage: about.get("trained_on") for stage, about in pipeline.metadata.items()}
    about = {"weights": config.weights, "trained_on": trained}
    drawings = Drawings(config.out / "annotated", failures) if config.draw else None
    writers = list(stack.enter_context(open_writers(config.out, config.format, about, failures, drawings)))
    if drawings is not None:
        writers.insert(0, stack.enter_context(drawings))  # what it cannot write, the others do not name
    if config.view:
        writers.append(stack.enter_context(View(config.out / "poses.html")))
    return writers


def _frames_of_all(
    sources: list[str], boxes: BoxTable | None, config: PredictConfig, failures: Failures
) -> Iterator[Frame]:
    """Every frame there is; a file that fails is noted, and the next one is read."""
    from tqdm import tqdm

    for source in tqdm(sources, desc="files", unit="file", dynamic_ncols=True, disable=len(sources) < 2):
        frames = read_frames(source, boxes, config.max_frames)
        try:
            yield from tqdm(frames, desc=source, unit="frame", leave=False, dynamic_ncols=True, delay=1)
        except (ValueError, OSError) as error:
            failures[source] = getattr(error, "strerror", None) or str(error)


def _look(frames: Iterable[Frame], pipeline: PosePipeline, config: PredictConfig, writers: list[Writer]) -> None:
    for chunk in _chunks(frames, config.batch_size or PICTURES):
        boxes = None if config.boxes is None else [frame.boxes for frame in chunk]
        images = [frame.image for frame in chunk]
        looks = config.looks if boxes is None else 1
        poses = pipeline(images, boxes, flip_test=config.flip_test, looks=looks, batch_size=config.batch_size).to("cpu")
        for i, frame in enumerate(chunk):
            rows = poses.image_index == i
            found = Found(poses.keypoints[rows].numpy(), poses.scores[rows].numpy(), poses.joints3d[rows].numpy())
            for writer in writers:
                writer.add(frame, found)


def _chunks(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Lists of at most ``size`` frames, and of fewer where pictures are large."""
    chunk: list[Frame] = []
    for frame in frames:
        chunk.append(frame)
        if len(chunk) == size or sum(held.image.nbytes for held in chunk) >= CHUNK_BYTES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _list_failures(path: Path, failures: Failures) -> None:
    if failures:
        with atomic_path(path) as temporary:
            text = "".join(f"{file}: {reason}\n" for file, reason in failures.items())
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # names may be any bytes
    else:
        path.unlink(missing_ok=True)
