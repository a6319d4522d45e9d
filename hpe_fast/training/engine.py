"""The training loop both stages share: schedule, step (a CUDA graph where there is one), checkpoints, progress."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hpe_fast.training.checkpoint import Progress, restore_state, save_state
from hpe_fast.training.config import OptimizerConfig

LINES = 20  # of text a stage, about
LOG_EVERY = 20  # steps between reads of the loss: the only host synchronisation of the loop


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the state was saved first."""


class Stage(Protocol):
    """What the loop needs to know of a stage."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    optimizer_config: OptimizerConfig
    epochs: int
    steps_per_epoch: int
    wait_seconds: float
    settings: dict[str, Any]

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor | None, ...]]: ...
    def step(self, batch: tuple[Tensor | None, ...]) -> Tensor: ...
    def blame(self, batch: tuple[Tensor | None, ...]) -> str: ...
    def validate(self) -> dict[str, float]: ...
    def export(self, path: Path) -> None: ...


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """The learning rate of a step.

    Example:
        >>> from hpe_fast.training.config import OptimizerConfig
        >>> [round(learning_rate(OptimizerConfig(learning_rate=1.0, warmup=0.5), s, 4), 2) for s in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    done = step / max(total, 1)
    if config.schedule == "step":
        return config.learning_rate * 0.1 ** sum(done >= milestone for milestone in config.milestones)
    if config.schedule == "constant":
        return config.learning_rate
    warmup_steps = max(1, round(config.warmup * total))
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(total - warmup_steps, 1)))


def make_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Fused SGD or AdamW; on CUDA the rate is a tensor, so that a captured step follows the schedule."""
    parameters = list(model.parameters())
    on_cuda = parameters[0].is_cuda
    rate: Any = torch.tensor(config.learning_rate, device=parameters[0].device) if on_cuda else config.learning_rate
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    return torch.optim.AdamW(
        parameters,
        lr=rate,
        betas=(config.momentum, 0.999),
        weight_decay=config.weight_decay,
        fused=True,
        capturable=on_cuda,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """In place on CUDA: a captured step reads the tensor's address."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class GraphedStep:
    """Runs ``body(*tensors) -> loss`` eagerly a few times, then captures it in a CUDA graph and replays that.

    The first calls are ordinary training steps on a side stream (they initialise the optimiser's state and cuDNN's
    choices), so no step is wasted and no state needs putting back. A batch of another shape (the last one of an epoch)
    runs eagerly.
    """

    WARMUP = 3

    def __init__(self, body: Callable[..., Tensor]) -> None:
        self._body = body
        self._calls = 0
        self._stream = torch.cuda.Stream()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: tuple[Tensor | None, ...] = ()
        self._loss: Tensor | None = None

    def __call__(self, *tensors: Tensor | None) -> Tensor:
        if self._graph is not None and self._fits(tensors):
            for static, tensor in zip(self._inputs, tensors, strict=True):
                if static is not None:
                    static.copy_(tensor, non_blocking=True)
            self._graph.replay()
            return self._loss.clone()
        loss = self._eager(tensors)
        self._calls += 1
        if self._calls == self.WARMUP:
            self._capture(tensors)
        return loss

    def _fits(self, tensors: tuple[Tensor | None, ...]) -> bool:
        return all(
            (a is None) == (b is None) and (a is None or a.shape == b.shape)
            for a, b in zip(self._inputs, tensors, strict=True)
        )

    def _eager(self, tensors: tuple[Tensor | None, ...]) -> Tensor:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = self._body(*tensors)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _capture(self, tensors: tuple[Tensor | None, ...]) -> None:
        self._inputs = tuple(None if t is None else t.clone() for t in tensors)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: DALI's threads go on calling CUDA meanwhile, which a global capture would forbid them.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._loss = self._body(*self._inputs)


class _Losses:
    """Losses since the last log point, kept on the device, with the batches they belong to."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._batches: list[tuple[int, tuple[Tensor | None, ...]]] = []

    def add(self, step: int, loss: Tensor, batch: tuple[Tensor | None, ...]) -> None:
        self._losses.append(loss.detach())
        self._batches.append((step, batch))

    def mean(self, stage: Stage) -> float:
        """Synchronises; raises where a loss is not finite, naming step and samples."""
        losses = torch.stack(self._losses).float().cpu()
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            step, batch = self._batches[int(bad[0])]
            raise TrainingDiverged(
                f"{stage.name}: the loss is {losses[bad[0]].item()} at step {step}, samples {stage.blame(batch)}; "
                f"a lower learning rate or --no-amp may help; the last checkpoint is whole"
            )
        self._losses.clear()
        self._batches.clear()
        return float(losses.mean())


class _Signals:
    """Notes SIGINT and SIGTERM instead of dying from them; the loop looks after each step."""

    def __enter__(self) -> _Signals:
        self.received: int | None = None
        self._old: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: signals are the host program's business
                break
        return self

    def _note(self, number: int, _frame: object) -> None:
        self.received = number

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


class Fit:
    """Trains one stage to its last epoch.

    Args:
        stage: what to train.
        folder: run directory; receives ``NAME.state.pt`` and, through the stage's ``export``, ``NAME.safetensors``.
        log: called with a line of text at the end of an epoch.
        writer: TensorBoard writer or None.
        resume: go on from ``NAME.state.pt`` if it is there.
        checkpoint_minutes: time between checkpoints inside an epoch.

    Raises:
        TrainingDiverged: the loss became NaN or infinite; names step and samples.
        Interrupted: a signal came; the state is saved.
    """

    def __init__(
        self,
        stage: Stage,
        folder: Path,
        *,
        log: Callable[[str], None] = print,
        writer: Any = None,
        resume: bool = False,
        checkpoint_minutes: float = 10.0,
    ) -> None:
        self.stage, self.folder, self.log, self.writer = stage, folder, log, writer
        self.state_path = folder / f"{stage.name}.state.pt"
        self.checkpoint_seconds = checkpoint_minutes * 60
        self.progress = Progress()
        if resume and self.state_path.exists():
            self.progress = restore_state(self.state_path, stage.model, stage.optimizer, stage.settings)
            log(f"{stage.name}: resumed at epoch {self.progress.epoch}, step {self.progress.step}")
        self._saved_at = time.monotonic()

    def run(self) -> Progress:
        """Train; returns where the stage ended."""
        with _Signals() as self._signals:
            while self.progress.epoch < self.stage.epochs:
                self._epoch()
            self._save()
        return self.progress

    def _epoch(self) -> None:
        stage, progress = self.stage, self.progress
        stage.model.train()
        losses = _Losses()
        for batch in self._bar(self._timed(stage.batches(progress.epoch, progress.iteration))):
            rate = learning_rate(stage.optimizer_config, progress.step, stage.epochs * stage.steps_per_epoch)
            set_learning_rate(stage.optimizer, rate)
            losses.add(progress.step, stage.step(batch), batch)
            progress.step += 1
            progress.iteration += 1
            if progress.step % LOG_EVERY == 0 or progress.iteration == stage.steps_per_epoch:
                self._log(losses.mean(stage), rate)
            self._checkpoint_if_due()
        self._end_epoch()

    def _timed(self, batches: Iterable) -> Iterator:
        """Adds up samples, and the time from one batch to the next, of which the loader says what was waiting."""
        progress, last, waited = self.progress, time.perf_counter(), self.stage.wait_seconds
        for batch in batches:
            yield batch
            now = time.perf_counter()
            progress.seconds += now - last
            progress.wait_seconds += self.stage.wait_seconds - waited
            progress.samples += len(batch[0])
            last, waited = now, self.stage.wait_seconds

    def _bar(self, batches: Iterable) -> Iterator:
        from tqdm import tqdm

        description = f"{self.stage.name} {self.progress.epoch + 1}/{self.stage.epochs}"
        total, start = self.stage.steps_per_epoch, self.progress.iteration
        # disable=None: no bar where nobody looks (a file, a pipe); the lines of _end_epoch are there in any case.
        with tqdm(
            batches, desc=description, total=total, initial=start, leave=False, dynamic_ncols=True, disable=None
        ) as self._tqdm:
            yield from self._tqdm

    def _log(self, loss: float, rate: float) -> None:
        progress = self.progress
        progress.loss = loss
        wait = progress.wait_seconds / max(progress.seconds, 1e-9)
        speed = progress.samples / max(progress.seconds, 1e-9)
        self._tqdm.set_postfix_str(f"loss {loss:.4g}, {speed:.0f}/s, wait {wait:.0%}")
        if self.writer is not None:
            for name, value in (("loss", loss), ("learning_rate", rate), ("samples_per_s", speed), ("data_wait", wait)):
                self.writer.add_scalar(f"{self.stage.name}/{name}", value, progress.step)

    def _checkpoint_if_due(self) -> None:
        if self._signals.received is not None:
            self._save()
            raise Interrupted(f"{self.stage.name}: saved at step {self.progress.step}; go on with --resume")
        if time.monotonic() - self._saved_at > self.checkpoint_seconds:
            self._save()

    def _save(self) -> None:
        save_state(self.state_path, self.stage.model, self.stage.optimizer, self.progress, self.stage.settings)
        self.stage.export(self.folder / f"{self.stage.name}.safetensors")
        self._saved_at = time.monotonic()

    def _end_epoch(self) -> None:
        stage, progress = self.stage, self.progress
        stage.model.eval()
        metrics = {"loss": progress.loss, **stage.validate()}
        progress.epoch, progress.iteration = progress.epoch + 1, 0
        progress.history.append({"epoch": progress.epoch, **metrics})
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(f"{stage.name}/epoch_{name}", value, progress.epoch)
        if progress.epoch % max(1, stage.epochs // LINES) and progress.epoch < stage.epochs:
            return
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.log(f"{stage.name} epoch {progress.epoch}/{stage.epochs}: {text}")
