"""The epochs of a run: train, monitor, evaluate, save, print."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import data
import utils
from training import distributed, engine, report, run_folder
from training.checkpoint_content import LARGEST_LOSS
from training.interruption import Interrupted, Interruption
from training.run import Run
from training.schedule import begin_epoch

# Steps between checks of loss and weights; the last of an epoch has one, too. On an accelerator a
# check waits for the device.
CHECK_EVERY = defaultdict(lambda: 50, cpu=1)


def train(
    run: Run,
    loader: data.Loader,
    eval_loader: data.Loader | None,
    saver: "Saver",
    after_epoch: Callable[[], None],
) -> engine.Evaluation | None:
    """Train to the last epoch; on a signal, save and raise Interrupted. If printing fails (a closed
    terminal, a full disk), save, then raise the OSError.

    after_epoch: called once an epoch is saved.
    """
    if run.history and distributed.is_main():
        # A kill may have come after the last checkpoint and before its row was written.
        utils.write_history(saver.output / "history.csv", run.history)
    with Interruption() as interruption:
        try:
            return train_to_the_end(run, loader, eval_loader, saver, interruption, after_epoch)
        except Interrupted:
            saver.save()
            raise
        except OSError:
            # Other processes would have to save at the same time, and they know nothing of this.
            if distributed.world_size() == 1:
                saver.save()
                interruption.check()  # a terminal that closes sends SIGHUP, too
            raise


def train_to_the_end(
    run: Run,
    loader: data.Loader,
    eval_loader: data.Loader | None,
    saver: "Saver",
    interruption: Interruption,
    after_epoch: Callable[[], None],
) -> engine.Evaluation | None:
    """Train to the last epoch and save after each; returns the last evaluation (or None)."""
    evaluation, pace = None, report.Pace(len(loader) * run.settings.recipe.epochs)
    while run.epoch < run.settings.recipe.epochs:
        learning_rate = run.learning_rate(steps_ago=run.batch)
        monitor = Monitor(run, len(loader), saver, interruption, pace)
        metrics = train_one_epoch(run, loader, monitor)
        evaluation = evaluate(run, eval_loader, interruption)
        scored = None if evaluation is None else evaluation.metrics
        check_finite(run, 0.0 if scored is None else scored.loss)
        row = {
            "epoch": run.epoch + 1,
            "train_loss": metrics.loss,
            "train_accuracy": metrics.accuracy,
            "eval_loss": None if scored is None else scored.loss,
            "eval_accuracy": None if scored is None else scored.accuracy,
            "learning_rate": learning_rate,
            "seconds": run.seconds,
            "images_per_second": metrics.total / run.seconds,
        }
        run.end_epoch(row)
        saver.save()
        settings = run.settings
        line = report.epoch_line(row, settings.recipe.epochs, settings.eval_split, pace.left)
        print(line, flush=True)
        pace.announced = True
        after_epoch()
    # A run that was resumed after its last epoch has not been evaluated by this process.
    return evaluation or evaluate(run, eval_loader, interruption)


def take_steps(
    run: Run,
    batches: engine.Batches,
    metrics: engine.RunningMetrics,
    *,
    loss_weights: Iterable[float] = repeat(1.0),
    after_step: Callable[[Tensor], None] = lambda loss: None,
) -> engine.Metrics:
    """Take one step per batch with the run's network and optimizer; see engine.train_epoch."""
    return engine.train_epoch(
        run.passes,
        batches,
        run.optimizer,
        run.scheduler,
        run.ema,
        metrics,
        recorded=run.recorded,
        loss_weights=loss_weights,
        after_step=after_step,
    )


def train_one_epoch(run: Run, loader: data.Loader, monitor: "Monitor") -> engine.Metrics:
    """Train the current epoch from its next batch to its end."""
    if run.batch == 0:
        begin_epoch(run.optimizer, run.settings.recipe, run.epoch)
    loader.set_epoch(run.epoch, run.batch)
    with monitor.bar:
        metrics = take_steps(
            run, loader, run.metrics, loss_weights=loader.loss_weights(), after_step=monitor
        )
        check_finite(run, metrics.loss)
        monitor.count_time()
    return metrics


def evaluate(
    run: Run, loader: data.Loader | None, interruption: Interruption
) -> engine.Evaluation | None:
    """Evaluate the scored network on the evaluation split; None if there is none."""
    if loader is None:
        return None
    # This process may have no image of a very short batch, and not every layer accepts none.
    batches = (batch for batch in interruption.watch(loader) if len(batch[1]))
    # Compiling the evaluation of a network, too, would take longer than it saves.
    compiled = run.ema is None and run.model._compiled_call_impl is not None
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        own = engine.evaluate(run.eval_model, batches, precision=run.precision)
    # Each process classified a part of every batch: restore the order of the split.
    positions = torch.arange(loader.images)
    places = torch.cat([positions[loader.part(batch)] for batch in range(len(loader))])
    gathered = map(distributed.gather, (own.logits, own.labels, places))
    logits, labels, all_places = map(torch.cat, gathered)
    order = all_places.argsort()
    return engine.Evaluation(logits[order], labels[order])


# ----------------------------------------------------------------------------- save and watch a run


@dataclass
class Saver:
    """Saves a run in its folder, on demand and `minutes` after the last save."""

    run: Run
    output: Path
    minutes: float

    def __post_init__(self) -> None:
        self.saved_at = time.monotonic()

    def save(self) -> None:
        """Save now. Raises utils.RunError if that fails or the weights are no longer finite."""
        check_finite(self.run, 0.0)
        training = {"training": self.run.training_state()}
        if distributed.is_main():
            run_folder.save_latest(self.output, {**self.run.released(), **training})
            utils.write_history(self.output / "history.csv", self.run.history)
        self.saved_at = time.monotonic()

    def save_if_due(self) -> None:
        if distributed.highest(time.monotonic() - self.saved_at) >= 60 * self.minutes:
            self.save()


class Monitor:
    """Called after every step: counts and shows it, and stops or saves the run when due."""

    def __init__(
        self,
        run: Run,
        batches: int,
        saver: Saver,
        interruption: Interruption,
        pace: report.Pace,
    ) -> None:
        self.run = run
        self.saver = saver
        self.interruption = interruption
        self.pace = pace
        self.batches = batches
        self.interval = CHECK_EVERY[run.device.type]
        self.bar = tqdm(
            desc=f"Epoch {run.epoch + 1}/{run.settings.recipe.epochs}",
            total=batches,
            initial=run.batch,
            disable=not (distributed.is_main() and sys.stderr.isatty()),
            leave=False,  # the epoch's line takes its place
            dynamic_ncols=True,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}, {remaining} left",
        )
        self.clock = time.perf_counter()

    def __call__(self, loss: Tensor) -> None:
        self.run.batch += 1
        checked = self.run.batch % self.interval == 0 or self.run.batch == self.batches
        if checked:
            check_finite(self.run, distributed.mean(loss.item()))
        self.count_time()
        self.pace.step(self.run.scheduler.last_epoch)
        if not self.bar.disable:
            self.show(checked)
        # Several processes must stop and save at the same step. Agreeing on it takes time, so they
        # do it only at checks.
        if checked or distributed.world_size() == 1:
            self.interruption.check()
            self.saver.save_if_due()
        self.clock = time.perf_counter()  # saving does not count as training

    def count_time(self) -> None:
        now = time.perf_counter()
        self.run.seconds += now - self.clock
        self.clock = now

    def show(self, checked: bool) -> None:
        """Move the bar; its loss and accuracy are those of this process's images so far."""
        if checked:
            metrics = self.run.metrics.own()
            scores = f"loss {metrics.loss:.4f}, accuracy {100 * metrics.accuracy:.2f} %"
            self.bar.set_postfix_str(scores, refresh=False)
        self.bar.update()
        forecast = self.pace.forecast()
        if forecast is not None:
            self.bar.write(forecast)


def check_finite(run: Run, loss: float) -> None:
    """Raises utils.RunError if the loss or a weight has become infinite or NaN."""
    finite = loss < LARGEST_LOSS  # false for NaN
    if finite and run.is_finite():
        return
    lost = "a weight became infinite" if finite else f"the loss became {loss:.3g}"
    raise utils.RunError(
        f"{lost} by epoch {run.epoch + 1}, batch {run.batch} (step {run.scheduler.last_epoch}),"
        f" at learning rate {run.learning_rate(1):.3g}; the last checkpoint, if any, is intact:"
        " try a lower --learning-rate"
    )
