"""Settings of a training run: dataclasses that become the command line, and the named presets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from hpe_fast.ops import OFFICIAL, PAPER, UNBIASED, HeatmapCodec
from hpe_fast.skeleton import NUM_JOINTS

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["constant", "step", "one_cycle"]
PresetName = Literal["quick", "paper", "official", "fast"]

#: Network of each name, as ``hpe_fast.models.build_model`` takes it.
MODELS: dict[str, dict[str, object]] = {
    "tiny": {"architecture": "hrnet", "width": 32, "modules": [1, 1, 1], "blocks": 1},
    "paper": {"architecture": "hrnet", "width": 32, "modules": [1, 1, 1]},
    "w32": {"architecture": "hrnet", "width": 32},
    "w48": {"architecture": "hrnet", "width": 48},
    "resnet50": {"architecture": "simple_baseline", "depth": 50},
}

CODECS: dict[str, HeatmapCodec] = {"official": OFFICIAL, "paper": PAPER, "unbiased": UNBIASED}


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)!r}")


@dataclass(frozen=True)
class OptimizerConfig:
    """How the weights move.

    Example:
        >>> OptimizerConfig(learning_rate=3e-3).name
        'adamw'
    """

    name: Optimizer = "adamw"
    """sgd: with momentum. adamw: weight decay apart from the gradient."""
    learning_rate: float = 1e-3
    """Peak learning rate, of the mean loss over a step's samples on all ranks."""
    momentum: float = 0.9
    """Of SGD; AdamW's first beta."""
    weight_decay: float = 0.0
    """Added to the gradient (sgd), or shrinking the weights by rate times this a step (adamw)."""
    schedule: Schedule = "one_cycle"
    """one_cycle: linear warm-up, cosine to zero. step: divided by 10 at each of the milestones."""
    warmup: float = 0.1
    """Share of all steps that one_cycle warms up for."""
    milestones: tuple[float, ...] = (170 / 210, 200 / 210)
    """Of schedule step, as shares of all steps."""
    clip_norm: float = 0.0
    """Largest norm of the whole gradient; 0: not clipped."""
    ema: float = 0.0
    """Decay, a step, of a moving average of the weights, which is evaluated and saved in their place; 0: none."""

    def __post_init__(self) -> None:
        _require_positive(self, "learning_rate")
        for name in ("ema", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        for name in ("weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be in [0, 1], got {self.warmup!r}")
        if not all(0 < share <= 1 for share in self.milestones):
            raise ValueError(f"milestones must be shares of all steps, in (0, 1], got {self.milestones!r}")


@dataclass(frozen=True)
class DetectorConfig:
    """The first stage: image to heatmaps.

    Example:
        >>> DetectorConfig(model="tiny").image_size
        256
    """

    model: Literal["tiny", "paper", "w32", "w48", "resnet50"] = "w32"
    """HRNet of 2.9, 9.3, 28.5 or 63.6 million parameters, or the ResNet-50 of SimpleBaseline."""
    image_size: int = 256
    """Side of the network's input, pixels."""
    codec: Literal["official", "paper", "unbiased"] = "official"
    """The target heatmap."""
    normalization: Literal["imagenet", "paper"] = "imagenet"
    """Of pixels: mean and deviation of ImageNet's channels, or to -1..1."""
    augmentation: Literal["none", "mild", "robust", "paper", "official"] = "official"
    """What happens to training pictures (see hpe_fast.data.preview)."""
    supervise_stages: bool = False
    """Add the loss of heatmaps after stages 2 and 3 (the paper's future work)."""
    hard_joints: int = 0
    """Learn from this many joints of each sample only, those with the largest loss (OHKM; official: 8); 0: from
    all."""
    hidden_weight: float = 0.0
    """Weight, 0 to 1, of joints that the store marks as not visible (visible joints: 1). Only for stores that know
    where such a joint is: the converters mark a joint as not visible because its place is unknown."""
    batch_size: int = 32
    """Pictures of a rank at a time; --accumulate and the number of ranks multiply it."""
    epochs: int = 12
    """Passes over the training pictures."""
    start: str | None = None
    """Weights to start from instead of random ones: a run directory, `default` (the bundled ones), or a file: ours,
    official HRNet's or SimpleBaseline's, mmpose's, or ImageNet's (all but the heatmap layer)."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How the weights move."""

    def __post_init__(self) -> None:
        _require_positive(self, "image_size", "batch_size", "epochs")
        if self.model == "resnet50" and self.image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32 for resnet50, got {self.image_size!r}")
        if not 0 <= self.hard_joints <= NUM_JOINTS:
            raise ValueError(f"hard_joints must be in 0..{NUM_JOINTS}, got {self.hard_joints!r}")
        if not 0 <= self.hidden_weight <= 1:
            raise ValueError(f"hidden_weight must be in [0, 1], got {self.hidden_weight!r}")


@dataclass(frozen=True)
class LifterConfig:
    """The second stage: 2D joints to 3D joints.

    Example:
        >>> LifterConfig().width
        1024
    """

    width: int = 1024
    """Units of a hidden layer."""
    blocks: int = 2
    """Residual blocks."""
    dropout: float = 0.5
    """Probability that a hidden unit is left out, 0 to 1."""
    input: Literal["true_2d", "detections", "mixture"] = "true_2d"
    """What it is trained on: labels, the first stage's detections, or each with probability one half."""
    rotation: bool = False
    """Rotate samples by +-90 degrees in the image plane with probability one half, as the paper does."""
    flip: bool = False
    """Mirror samples with probability one half."""
    virtual_views: float = 0.0
    """Share of samples seen from another side: turned about the vertical axis and projected anew (needs intrinsics)."""
    jitter: float = 0.0
    """Standard deviation of noise on 2D joints that are labels, as a share of the crop's side."""
    fused: bool = True
    """On a CPU: layers written out by hand in fewer passes, with random numbers of their own for dropout."""
    batch_size: int = 512
    """Poses of a rank at a time; --accumulate and the number of ranks multiply it."""
    epochs: int = 180
    """Passes over the training poses."""
    start: str | None = None
    """Weights to start from instead of random ones, with their normalisation: a run directory, `default` (the bundled
    ones), or a file of ours."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """How the weights move."""

    def __post_init__(self) -> None:
        _require_positive(self, "width", "blocks", "batch_size", "epochs")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if not 0 <= self.virtual_views <= 1:
            raise ValueError(f"virtual_views must be in [0, 1], got {self.virtual_views!r}")
        if not self.jitter >= 0:
            raise ValueError(f"jitter must not be negative, got {self.jitter!r}")


@dataclass(frozen=True)
class TrainConfig:
    """Train a two-stage 3D pose model: HRNet finds the joints in an image, a dense network lifts them to 3D.

    Example:
        >>> TrainConfig(seed=7).detector.model
        'w32'
    """

    data: Path | None = None
    """Pose store, folder with train.h5 and valid.h5, or dataset folder of a known layout. None: the bundled sample."""
    out: Path | None = None
    """Run directory. None: runs/PRESET-DATE-TIME, or with --resume the newest one."""
    preset: PresetName = "quick"
    """quick: the bundled sample in minutes on two CPU cores. paper: the paper's schedule. official: the official
    code's. fast: large batches, bf16, one cycle."""
    stage: Literal["all", "hrnet", "lifter"] = "all"
    """Both stages, or one of them (the lifter beside the HRNet in --out, if there is one)."""
    seed: int = 0
    """Of the weights, the order of samples and their augmentation."""
    resume: bool = False
    """Go on with the run in --out where it stopped."""
    device: str = "auto"
    """cpu, cuda or cuda:N. auto: the first GPU if there is one. With torchrun, rank by rank another GPU."""
    threads: int = 0
    """CPU threads of a rank. 0: all the process may use, shared between the ranks of a machine."""
    amp: bool = True
    """bfloat16 where the device has it in hardware."""
    graph: bool = True
    """Capture the step in a CUDA graph."""
    autotune: bool = False
    """On CUDA let cuDNN time its algorithms and take the fastest. Another process may choose another one, so that a
    resumed run is no longer the same to the bit."""
    compile: bool = False
    """Run the first stage's network through torch.compile (needs a compiler)."""
    accumulate: int = 1
    """Batches whose gradients are added up before the weights move: the memory of one, the step of all together."""
    sync_bn: bool = False
    """Batch normalisation over the batches of all ranks (torchrun), not of each alone."""
    skip_bad: bool = False
    """Leave out pictures that are damaged instead of stopping."""
    checkpoint_minutes: float = 5.0
    """Time between checkpoints, minutes; one more is written at the end of a stage and on SIGINT or SIGTERM."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    """The first stage."""
    lifter: LifterConfig = field(default_factory=LifterConfig)
    """The second stage."""

    def __post_init__(self) -> None:
        _require_positive(self, "accumulate", "checkpoint_minutes")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must be in 0..2**31-1, got {self.seed!r}")
        if self.threads < 0:
            raise ValueError(f"threads must be at least 0, got {self.threads!r}")


_PAPER_SGD = OptimizerConfig(name="sgd", learning_rate=0.003, schedule="constant")

PRESETS: dict[str, TrainConfig] = {
    "quick": TrainConfig(
        preset="quick",
        detector=DetectorConfig(
            model="tiny",
            image_size=128,
            augmentation="mild",
            batch_size=32,
            epochs=14,
            optimizer=OptimizerConfig(learning_rate=4e-3, weight_decay=1e-4, warmup=0.05),
        ),
        lifter=LifterConfig(
            width=512,
            dropout=0.1,
            input="mixture",
            flip=True,
            virtual_views=0.5,
            jitter=0.01,
            fused=False,
            batch_size=128,
            epochs=100,
            optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=1e-2),
        ),
    ),
    "paper": TrainConfig(
        preset="paper",
        detector=DetectorConfig(
            model="paper", codec="paper", normalization="paper", augmentation="paper", optimizer=_PAPER_SGD
        ),
        lifter=LifterConfig(rotation=True, optimizer=_PAPER_SGD),
    ),
    "official": TrainConfig(
        preset="official",
        detector=DetectorConfig(epochs=210, optimizer=OptimizerConfig(schedule="step")),
        lifter=LifterConfig(batch_size=64, epochs=200, optimizer=OptimizerConfig(schedule="step")),
    ),
    "fast": TrainConfig(
        preset="fast",
        autotune=True,
        detector=DetectorConfig(
            codec="unbiased", batch_size=128, epochs=12, optimizer=OptimizerConfig(learning_rate=2e-3)
        ),
        lifter=LifterConfig(
            input="mixture",
            flip=True,
            jitter=0.005,
            batch_size=4096,
            epochs=60,
            optimizer=OptimizerConfig(learning_rate=2e-3),
        ),
    ),
}


def codec_of(config: DetectorConfig) -> HeatmapCodec:
    """The target heatmap of a detector, at its input size (all models here have stride 4)."""
    return CODECS[config.codec].resized(config.image_size, (config.image_size + 3) // 4)


def restored(record: dict[str, Any], kind: type = TrainConfig) -> Any:
    """The settings that a run's config.json holds; what this version does not know is left out.

    Raises:
        ValueError, TypeError: these are no settings.

    Example:
        >>> restored({"version": "0.1.0", "seed": 3, "detector": {"epochs": 2}}).detector.epochs
        2
    """
    if not isinstance(record, dict):
        raise ValueError(f"settings must be a JSON object, got {record!r}")
    kinds, values = get_type_hints(kind), {}
    for field_ in fields(kind):
        if field_.name in record:
            value, wanted = record[field_.name], kinds[field_.name]
            if is_dataclass(wanted):
                value = restored(value, wanted)
            elif wanted == Path | None and value is not None:
                value = Path(value)
            values[field_.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def preset(name: PresetName, **changes: object) -> TrainConfig:
    """A preset with some top-level fields replaced.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> from hpe_fast.training.config import preset
        >>> preset("paper", seed=3).detector.epochs
        12
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return replace(PRESETS[name], **changes)  # type: ignore[arg-type]
