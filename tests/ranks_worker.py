"""A few steps of a stage, alone or under torchrun; the first rank writes what came out.

Arguments: kind (hrnet, lifter, sync-..., nan-lifter), folder of stores, file to write, batch of a rank.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from hpe_fast.data.store import PoseStore
from hpe_fast.training.config import PRESETS, OptimizerConfig, TrainConfig
from hpe_fast.training.detector import DetectorStage
from hpe_fast.training.distributed import Ranks, joined
from hpe_fast.training.engine import Fit, TrainingDiverged
from hpe_fast.training.lifting import LifterSamples, LifterStage

STEPS = 4


def config_of(kind: str, batch: int) -> TrainConfig:
    quick = PRESETS["quick"]
    sgd = OptimizerConfig(name="sgd", learning_rate=0.01, schedule="constant", ema=0.9)
    return replace(
        quick,
        amp=False,
        sync_bn="sync" in kind,
        detector=replace(quick.detector, image_size=64, batch_size=batch, optimizer=sgd),
        lifter=replace(
            quick.lifter, width=64, dropout=0.0, input="true_2d", flip=False, virtual_views=0, jitter=0, fused=True
        ),
    )


def stage_of(kind: str, folder: Path, batch: int, ranks: Ranks) -> DetectorStage | LifterStage:
    config = config_of(kind, batch)
    train, valid = PoseStore(folder / "train.h5"), PoseStore(folder / "valid.h5")
    if "hrnet" in kind:
        return DetectorStage(config, train, valid, torch.device("cpu"), ranks)
    config = replace(config, lifter=replace(config.lifter, batch_size=batch, optimizer=config.detector.optimizer))
    samples = LifterSamples.from_store(train, torch.device("cpu"))
    return LifterStage(config, samples, samples, "test", ranks)


def diverge(stage: LifterStage, out: Path, ranks: Ranks) -> None:
    """Writes what each rank says when the second one has a bad sample."""
    if ranks.rank == 1:
        stage.train.keypoints[:] = torch.nan
    try:
        Fit(stage, out.parent, ranks=ranks).run()
    except TrainingDiverged as error:
        torch.save(str(error), out.with_suffix(f".{ranks.rank}"))


def main(kind: str, folder: str, out: str, batch: str) -> None:
    torch.set_num_threads(1)
    with joined("cpu") as ranks:
        stage = stage_of(kind, Path(folder), int(batch), ranks)
        if kind == "nan-lifter":
            return diverge(stage, Path(out), ranks)
        stage.model.train()
        batches = (b for epoch in range(STEPS) for b in stage.batches(epoch, 0))
        losses = [float(ranks.mean(stage.step(next(batches)))) for _ in range(STEPS)]
        state = {**stage.model.state_dict(), **{f"ema.{k}": v for k, v in stage.update.evaluated.state_dict().items()}}
        for name, value in state.items():
            mine, *others = ranks.gather(value.contiguous())
            assert all(torch.equal(mine, other) for other in others), f"{name} differs between ranks"
        metrics = stage.validate()
        if ranks.main:
            torch.save({"losses": losses, "state": state, "metrics": metrics}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
