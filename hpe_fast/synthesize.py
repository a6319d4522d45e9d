"""``python -m hpe_fast.synthesize --out FILE.h5 --count N``: a pose store of rendered people with exact joints."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from hpe_fast.data.converters import draw_sheet
from hpe_fast.data.store import PoseStore
from hpe_fast.synthetic.corpus import Corpus, render_corpus
from hpe_fast.synthetic.studio import Settings


@dataclass(frozen=True)
class SynthesisConfig:
    """Render people with exact 2D and 3D joints into a pose store (needs ``pip install 'hpe-fast[synthetic]'``)."""

    out: Path
    """File to write. FILE.parts beside it holds what is done: after an interruption the same command goes on."""
    count: int
    """How many pictures."""
    seed: int = 0
    """Picture i depends on seed, split, size, --people, i and the contents of the folders only."""
    split: Literal["train", "valid", "test"] = "train"
    """Splits share no recording, outfit, pair of shoes or panorama."""
    assets: Path | None = None
    """Folder with MakeHuman's CC0 clothes, hair and skins and panoramas (*.hdr), at any depth; without it clothes are
    painted and backgrounds made up."""
    mocap: Path | None = None
    """Folder of ACTION/CLIP.bvh[.gz] in CMU's skeleton; without it a few built-in poses."""
    workers: int = 1
    """Processes; each needs about 1 GB."""
    device: str = "cpu"
    """cpu or cuda."""
    size: int = 256
    """Height and width in pixels."""
    people: int = 4
    """Pictures of one person."""
    sheet: bool = True
    """Draw 16 pictures with their skeletons beside the file."""


def run(config: SynthesisConfig) -> Path:
    """Renders and writes; returns the file's path."""
    settings = Settings(
        seed=config.seed,
        split=config.split,
        assets=config.assets,
        mocap=config.mocap,
        size=config.size,
        people=config.people,
        device=config.device,
    )
    corpus = Corpus(config.out, config.count, settings)
    with tqdm(total=config.count, unit="picture", desc=config.out.name) as bar:
        there = []  # pictures of an earlier run, which do not count as this one's speed

        def progress(done: int, _: int) -> None:
            if not there:
                there.append(done)
                bar.initial = bar.n = done
            bar.update(done - bar.n)

        path = render_corpus(corpus, config.workers, progress)
    if config.sheet:
        with PoseStore(path) as store:
            draw_sheet(store, path.with_suffix(".sheet.jpg"))
    return path


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 not done, 130 interrupted (run again to go on)."""
    config = tyro.cli(SynthesisConfig, args=argv, description=__doc__)
    try:
        print(run(config))
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
