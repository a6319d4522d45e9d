"""``python -m hpe_fast.train``: trains both stages, evaluates them, writes figures and prints a table.

On several GPUs or machines: ``torchrun --nproc-per-node N -m hpe_fast.train``. Each rank takes a batch of its own, so a
step has N times as many samples; the first rank writes the run directory, which the machines share.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from hpe_fast.training.config import PRESETS, TrainConfig, restored
from hpe_fast.training.engine import Interrupted, TrainingDiverged


def parse(argv: list[str] | None = None) -> TrainConfig:
    """The command line on top of the preset it names (quick without --data, else fast), or of the run it resumes.

    Raises:
        ValueError: there is no run to resume.

    Example:
        >>> parse(["--preset", "paper", "--detector.epochs", "2"]).detector.epochs
        2
    """
    import tyro

    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset")
    finder.add_argument("--data")
    finder.add_argument("--resume", action="store_true")
    finder.add_argument("--out", type=Path)
    found, _ = finder.parse_known_args(argv)
    name = found.preset or ("fast" if found.data else "quick")
    default = _resumed(found.out) if found.resume else PRESETS.get(name, PRESETS["quick"])
    return tyro.cli(TrainConfig, default=default, args=argv, description=__doc__)


def _resumed(out: Path | None) -> TrainConfig:
    from hpe_fast.training.run import run_directory

    path = run_directory(TrainConfig(out=out, resume=True)) / "config.json"
    try:
        return replace(restored(json.loads(path.read_text())), out=path.parent)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no settings of a run ({error})") from error


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad settings or data, 3 diverged, 130 interrupted (resumable)."""
    try:
        config = parse(argv)
        from hpe_fast.training.run import train

        train(config)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 130
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:  # outside of the steps; what was saved is whole
        print("interrupted: go on with --resume", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
