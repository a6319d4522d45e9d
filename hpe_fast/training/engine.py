"""The training loop both stages share: batches, checkpoints, what a person sees, and stopping in time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hpe_fast.training.checkpoint import Progress, restore_state, save_state
from hpe_fast.training.distributed import Ranks
from hpe_fast.training.optimizer import Update, learning_rate

LINES = 20  # of text a stage, about
TELL_SECONDS = 60  # between lines where no progress bar is seen
LOG_EVERY = 20  # steps between reads of the loss: the only host synchronisation of the loop


class TrainingDiverged(RuntimeError):
    """The loss is no longer a number."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM came; the state was saved first."""


class Stage(Protocol):
    """What the loop needs to know of a stage."""

    name: str
    model: nn.Module
    update: Update
    epochs: int
    steps_per_epoch: int
    wait_seconds: float
    settings: dict[str, Any]

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor | None, ...]]: ...
    def step(self, batch: tuple[Tensor | None, ...]) -> Tensor: ...
    def blame(self, rows: Tensor) -> str: ...  # the last of a batch's tensors
    def validate(self) -> dict[str, float]: ...
    def score(self, metrics: dict[str, float]) -> float: ...  # larger is better
    def export(self, path: Path) -> None: ...
    def log_extras(self, writer: Any, step: int) -> None: ...
    def illustrate(self, writer: Any, epoch: int) -> None: ...


class _Losses:
    """Losses since the last log point, kept on the device, with the rows they belong to."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._rows: list[tuple[int, Tensor]] = []

    def add(self, step: int, loss: Tensor, rows: Tensor) -> None:
        self._losses.append(loss.detach())
        self._rows.append((step, rows))

    def mean(self, stage: Stage, ranks: Ranks) -> float:
        """Mean over steps and ranks, as :meth:`checked`; begins anew."""
        losses = self.checked(stage, ranks)
        self._losses.clear()
        self._rows.clear()
        return float(losses.mean())

    def checked(self, stage: Stage, ranks: Ranks) -> Tensor:
        """Each step's mean over the ranks. Synchronises; raises where one is not finite, naming step and samples."""
        if not self._losses:
            return torch.zeros(0)
        mine = torch.stack(self._losses).float()
        losses = ranks.mean(mine)
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            first = int(bad[0])
            step, rows = self._rows[first]
            samples = "of another rank" if torch.isfinite(mine[first]) else stage.blame(rows)
            raise TrainingDiverged(
                f"{stage.name}: the loss is {losses[first].item()} at step {step}, samples {samples}; "
                f"a lower learning rate or --no-amp may help; the last checkpoint is whole"
            )
        return losses


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
        folder: run directory; receives ``NAME.state.pt`` and, through the stage's ``export``, ``NAME.safetensors`` (the
            last weights) and ``NAME.best.safetensors`` (those of the best epoch in validation).
        log: called with a line of text at the end of an epoch.
        writer: TensorBoard writer or None.
        resume: go on from ``NAME.state.pt`` if it is there.
        checkpoint_minutes: time between checkpoints inside an epoch.
        ranks: the processes that train together; the first one writes, and all of them stop at the same step.

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
        ranks: Ranks | None = None,
    ) -> None:
        self.stage, self.folder, self.log, self.writer, self.ranks = stage, folder, log, writer, ranks or Ranks()
        self.state_path = folder / f"{stage.name}.state.pt"
        self.checkpoint_seconds = checkpoint_minutes * 60
        self.progress = Progress()
        if resume and self.state_path.exists():
            self.progress = restore_state(self.state_path, stage.model, stage.update, stage.settings, self.ranks)
            log(f"{stage.name}: resumed at epoch {self.progress.epoch}, step {self.progress.step}")
        self._saved_at = self._told_at = time.monotonic()

    def run(self) -> Progress:
        """Train; returns where the stage ended."""
        with _Signals() as self._signals:
            while self.progress.epoch < self.stage.epochs:
                self._epoch()
            self._save()
            if self.ranks.any(self._signals.received is not None)[0]:  # it came during the last validation
                raise Interrupted(f"{self.stage.name}: trained and saved; go on with --resume")
        self.ranks.wait()  # for the files, which all of them read next
        return self.progress

    def _epoch(self) -> None:
        stage, progress = self.stage, self.progress
        stage.model.train()
        losses = _Losses()
        for batch in self._bar(self._timed(stage.batches(progress.epoch, progress.iteration))):
            rate = learning_rate(stage.update.config, progress.step, stage.epochs * stage.steps_per_epoch)
            stage.update.set_learning_rate(rate)
            losses.add(progress.step, stage.step(batch), batch[-1])
            progress.step += 1
            progress.iteration += 1
            at_log_point = progress.step % LOG_EVERY == 0 or progress.iteration == stage.steps_per_epoch
            if at_log_point:
                self._log(losses.mean(stage, self.ranks), rate)
            # Several ranks have to ask each other, which on CUDA would wait for the device after every step.
            if at_log_point or self.ranks.world == 1 or self.ranks.device.type == "cpu":
                self._checkpoint_if_due(losses)
        self._end_epoch()

    def _timed(self, batches: Iterable) -> Iterator:
        """Adds up samples, and the time from one batch to the next, of which the loader says what was waiting."""
        progress, last, waited = self.progress, time.perf_counter(), self.stage.wait_seconds
        for batch in batches:
            yield batch
            now = time.perf_counter()
            progress.seconds += now - last
            progress.wait_seconds += self.stage.wait_seconds - waited
            progress.samples += len(batch[0]) * self.ranks.world
            last, waited = now, self.stage.wait_seconds

    def _bar(self, batches: Iterable) -> Iterator:
        from tqdm import tqdm

        description = f"{self.stage.name} {self.progress.epoch + 1}/{self.stage.epochs}"
        total, start = self.stage.steps_per_epoch, self.progress.iteration
        # disable=None: no bar where nobody looks (a file, a pipe); _log and _end_epoch write lines.
        hidden = None if self.ranks.main else True
        with tqdm(
            batches, desc=description, total=total, initial=start, leave=False, dynamic_ncols=True, disable=hidden
        ) as self._tqdm:
            yield from self._tqdm

    def _log(self, loss: float, rate: float) -> None:
        progress = self.progress
        progress.loss = loss
        wait = progress.wait_seconds / max(progress.seconds, 1e-9)
        speed = progress.samples / max(progress.seconds, 1e-9)
        text = f"loss {loss:.4g}, {speed:.0f}/s, wait {wait:.0%}"
        self._tqdm.set_postfix_str(text)
        if self._tqdm.disable and time.monotonic() - self._told_at > TELL_SECONDS:
            steps = self.stage.epochs * self.stage.steps_per_epoch
            self.log(f"{self.stage.name} step {progress.step}/{steps}: {text}")
            self._told_at = time.monotonic()
        if self.writer is not None:
            for name, value in (("loss", loss), ("learning_rate", rate), ("samples_per_s", speed), ("data_wait", wait)):
                self.writer.add_scalar(f"{self.stage.name}/{name}", value, progress.step)
            self.stage.log_extras(self.writer, progress.step)

    def _checkpoint_if_due(self, losses: _Losses) -> None:
        due = time.monotonic() - self._saved_at > self.checkpoint_seconds
        stopping, due = self.ranks.any(self._signals.received is not None, due)
        if stopping or due:
            losses.checked(self.stage, self.ranks)  # never a broken state over a whole one
            self._save()
        if stopping:
            raise Interrupted(f"{self.stage.name}: saved at step {self.progress.step}; go on with --resume")

    def _save(self) -> None:
        stage = self.stage
        if not torch.stack(torch._foreach_norm(list(stage.model.parameters()))).isfinite().all():
            raise TrainingDiverged(f"{stage.name}: the weights are no numbers after step {self.progress.step - 1}")
        save_state(self.state_path, stage.model, stage.update, self.progress, stage.settings, self.ranks)
        if self.ranks.main:
            stage.export(self.folder / f"{stage.name}.safetensors")
        self._saved_at = time.monotonic()

    def _end_epoch(self) -> None:
        stage, progress = self.stage, self.progress
        stage.model.eval()
        metrics = {"loss": progress.loss, **stage.validate()}
        progress.epoch, progress.iteration = progress.epoch + 1, 0
        progress.history.append({"epoch": progress.epoch, **metrics})
        self._keep_best(stage.score(metrics))
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(f"{stage.name}/epoch_{name}", value, progress.epoch)
            stage.illustrate(self.writer, progress.epoch)
        if progress.epoch % max(1, stage.epochs // LINES) and progress.epoch < stage.epochs:
            return
        text = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.log(f"{stage.name} epoch {progress.epoch}/{stage.epochs}: {text}")

    def _keep_best(self, score: float) -> None:
        if score > self.progress.best_score:
            self.progress.best_score, self.progress.best_epoch = score, self.progress.epoch
            if self.ranks.main:
                self.stage.export(self.folder / f"{self.stage.name}.best.safetensors")
