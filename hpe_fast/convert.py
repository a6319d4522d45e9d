"""``python -m hpe_fast.convert LAYOUT SOURCE DESTINATION``: datasets to pose stores.

``inspect FILE`` shows one, ``merge SOURCE... --out FILE`` makes one of several.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hpe_fast.data.converters import ConvertOptions, convert, describe, draw_sheet, find_problems
from hpe_fast.data.merging import merge_stores
from hpe_fast.data.store import PoseStore

_LEFT_OUT_SHOWN = 10


@dataclass
class _Conversion:
    source: tyro.conf.Positional[Path]
    """The dataset's directory."""
    destination: tyro.conf.Positional[Path]
    """Directory for train.h5 and valid.h5."""
    options: Annotated[ConvertOptions, tyro.conf.arg(name="")] = field(default_factory=ConvertOptions)
    sheet: bool = True
    """Draw 16 crops with their skeletons beside each file."""


@dataclass
class Eth(_Conversion):
    """The paper's dataset: annot/train.h5, annot/train_images.txt, images/*.jpg."""


@dataclass
class H36mFetch(_Conversion):
    """h36m-fetch: processed/S1/Directions-1/annot.h5 and imageSequence/<camera>/*.jpg."""


@dataclass
class Mmpose(_Conversion):
    """mmpose: annotation_body3d/{cameras.pkl,fps10/h36m_train.npz,fps10/h36m_test.npz} and images/."""

    fps: Literal[10, 50] | None = None
    """Frames a second; without it the lowest there is."""


@dataclass
class VideoPose3D(_Conversion):
    """VideoPose3D: data_3d_h36m.npz, poses without pictures (for the lifter)."""

    cameras: Path | None = None
    """mmpose's cameras.pkl, VideoPose3D's common/h36m_dataset.py, or JSON."""
    keypoints: Path | None = None
    """data_2d_h36m_*.npz with 17 joints: detected 2D poses in place of the true ones."""
    step: int = 5
    """Every how many frames."""


@dataclass
class Coco(_Conversion):
    """COCO 2017 person keypoints, 2D only: annotations/person_keypoints_{train,val}2017.json and pictures."""


@dataclass
class Merge:
    """The rows of several pose stores in one, pictures scaled to one size where that is wanted."""

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Pose stores."""
    out: Path
    """The store to write."""
    size: int | None = None
    """Side of the pictures in pixels; without it as they are."""
    quality: int = 92
    """Of JPEGs that are encoded anew."""
    limit: int | None = None
    """Take at most so many rows of each source."""


@dataclass
class Inspect:
    """Counts, ranges and problems of a pose store, and 16 of its crops with their skeletons."""

    file: tyro.conf.Positional[Path]
    """The pose store."""
    out: Path | None = None
    """Picture to draw; without it FILE.sheet.jpg."""


Command = (
    Annotated[Eth, tyro.conf.subcommand("eth")]
    | Annotated[H36mFetch, tyro.conf.subcommand("h36m-fetch")]
    | Annotated[Mmpose, tyro.conf.subcommand("mmpose")]
    | Annotated[VideoPose3D, tyro.conf.subcommand("videopose3d")]
    | Annotated[Coco, tyro.conf.subcommand("coco")]
    | Annotated[Merge, tyro.conf.subcommand("merge")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
)
_NAMES = {Eth: "eth", H36mFetch: "h36m-fetch", Mmpose: "mmpose", VideoPose3D: "videopose3d", Coco: "coco"}


def run(command: Command) -> int:
    """Does what the command line asks for; 1 if something about the result is wrong, else 0."""
    if isinstance(command, Inspect):
        return show(command.file, command.out or command.file.with_suffix(".sheet.jpg"))
    if isinstance(command, Merge):
        return show(merge_stores(command.sources, command.out, command.size, command.quality, command.limit), None)
    common = {"source", "destination", "options", "sheet"}
    own = {key: value for key, value in vars(command).items() if key not in common}
    files = convert(_NAMES[type(command)], command.source, command.destination, command.options, **own)
    codes = []
    for file in files.values():
        codes.append(show(file, file.with_suffix(".sheet.jpg") if command.sheet else None))
        _show_left_out(file.with_suffix(".left_out.txt"))
    return max(codes)


def show(file: Path, sheet: Path | None) -> int:
    """Prints what is in a store and draws its sheet; 1 if there is a problem, else 0."""
    with PoseStore(file) as store:
        problems = find_problems(store)
        print(describe(store, problems))
        if sheet is not None:
            draw_sheet(store, sheet)
            print(f"sheet       {sheet}\n")
        return int(bool(problems))


def _show_left_out(file: Path) -> None:
    if file.exists():
        lines = file.read_text().splitlines()
        print(f"{len(lines)} rows were left out, all are listed in {file}; the first:")
        print("\n".join(f"  {line}" for line in lines[:_LEFT_OUT_SHOWN]))


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 done but the result has a problem, 2 not done, 130 interrupted (run again to go on)."""
    command = tyro.cli(Command, args=argv, description=__doc__)
    try:
        return run(command)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
