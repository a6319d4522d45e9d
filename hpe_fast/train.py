"""``python -m hpe_fast.train``: trains both stages, evaluates them, writes figures and prints a table.

On several GPUs or machines: ``torchrun --nproc-per-node N -m hpe_fast.train``. Each rank takes a batch of its own, so a
step has N times as many samples; the first rank writes the run directory, which the machines share.
"""

from __future__ import annotations

import argparse
import sys

from hpe_fast.training.config import PRESETS, TrainConfig
from hpe_fast.training.engine import Interrupted, TrainingDiverged


def parse(argv: list[str] | None = None) -> TrainConfig:
    """The command line on top of the preset it names (quick without --data, else fast).

    Example:
        >>> parse(["--preset", "paper", "--detector.epochs", "2"]).detector.epochs
        2
    """
    import tyro

    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset")
    finder.add_argument("--data")
    found, _ = finder.parse_known_args(argv)
    name = found.preset or ("fast" if found.data else "quick")
    return tyro.cli(TrainConfig, default=PRESETS.get(name, PRESETS["quick"]), args=argv, description=__doc__)


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad settings or data, 3 diverged, 130 interrupted (resumable)."""
    config = parse(argv)
    from hpe_fast.training.run import train

    try:
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
