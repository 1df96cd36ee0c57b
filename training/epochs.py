"""From the next epoch to the last: train, watch, evaluate, save, print."""

import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import data
import utils
from training import checkpoint as checkpoints
from training import distributed, engine
from training.interruption import Interrupted, Interruption
from training.run import Run

# Steps between looks at loss and weights. On an accelerator a look waits for the device.
LOOK_EVERY = defaultdict(lambda: 50, cpu=1)


def train(
    run: Run,
    loader: data.Loader,
    eval_loader: data.Loader | None,
    saver: "Saver",
    after_epoch: Callable[[], None] = lambda: None,
) -> engine.Evaluation | None:
    """Train to the last epoch; where a signal comes before, save and raise Interrupted.

    after_epoch: called once an epoch is saved.
    """
    if run.history and distributed.is_main():
        # A kill may have come between the last checkpoint and its row.
        utils.write_history(saver.output / "history.csv", run.history)
    with Interruption(agree=distributed.highest) as interruption:
        try:
            return train_to_the_end(run, loader, eval_loader, saver, interruption, after_epoch)
        except Interrupted:
            saver.save()
            raise


def train_to_the_end(
    run: Run,
    loader: data.Loader,
    eval_loader: data.Loader | None,
    saver: "Saver",
    interruption: Interruption,
    after_epoch: Callable[[], None],
) -> engine.Evaluation | None:
    """Train to the last epoch, saving after each; returns the last evaluation (or None)."""
    evaluation = None
    while run.epoch < run.settings.recipe.epochs:
        learning_rate = run.learning_rate(steps_ago=run.batch)
        monitor = Monitor(run, len(loader), saver, interruption)
        metrics = train_one_epoch(run, loader, monitor)
        evaluation = evaluate(run, eval_loader, interruption)
        scored = None if evaluation is None else evaluation.metrics
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
        print_epoch(run, row, metrics, scored)
        after_epoch()
    # A run that was resumed after its last epoch has not been evaluated by this process.
    return evaluation or evaluate(run, eval_loader, interruption)


def take_steps(
    run: Run,
    batches: engine.Batches,
    metrics: engine.RunningMetrics,
    *,
    weights: Iterable[float] = repeat(1.0),
    after_step: Callable[[Tensor], None] = lambda loss: None,
) -> engine.Metrics:
    """Take a step a batch, with all that the run has; see engine.train_epoch."""
    return engine.train_epoch(
        run.model,
        batches,
        run.optimizer,
        run.scheduler,
        run.ema,
        run.scaler,
        metrics,
        label_smoothing=run.settings.recipe.label_smoothing,
        precision=run.precision,
        weights=weights,
        after_step=after_step,
    )


def train_one_epoch(run: Run, loader: data.Loader, monitor: "Monitor") -> engine.Metrics:
    """Train the epoch under way from its next batch to its end."""
    if run.batch == 0:
        run.begin_epoch()
    loader.set_epoch(run.epoch, run.batch)
    with monitor:
        metrics = take_steps(run, loader, run.metrics, weights=loader.weights(), after_step=monitor)
        monitor.check(metrics.loss)
        monitor.count_time()
    return metrics


def evaluate(
    run: Run, loader: data.Loader | None, interruption: Interruption
) -> engine.Evaluation | None:
    """What the network that is scored answers on the split evaluated (None where none is)."""
    if loader is None:
        return None
    # Of a very short batch this process may have no image, and not every layer takes none.
    batches = (batch for batch in interruption.watch(loader) if len(batch[1]))
    own = engine.evaluate(run.scored, batches, precision=run.precision)
    # Each process classified a part of every batch: back to the order of the split.
    order = torch.arange(loader.images)
    places = torch.cat([order[loader.part(batch)] for batch in range(len(loader))])
    logits, labels = (distributed.merge(x, places, len(order)) for x in (own.logits, own.labels))
    return engine.Evaluation(logits, labels)


def print_epoch(
    run: Run, row: dict[str, Any], train: engine.Metrics, scored: engine.Metrics | None
) -> None:
    """The two lines of results, and one of how it goes on."""
    epochs = run.settings.recipe.epochs
    print(f"Epoch {run.epoch}/{epochs}")
    print(utils.metrics_line("Train", train.loss, train.correct, train.total))
    if scored is not None:
        name = run.settings.eval_split.capitalize()
        print(utils.metrics_line(name, scored.loss, scored.correct, scored.total))
    left = (epochs - run.epoch) * sum(r["seconds"] for r in run.history) / len(run.history)
    print(
        f"Learning rate {row['learning_rate']:.4g}, {row['seconds']:.1f} s,"
        f" {row['images_per_second']:.0f} images/s, {utils.duration(left)} left",
        flush=True,
    )


# ----------------------------------------------------------------------------- save and watch a run


@dataclass
class Saver:
    """Saves a run in its folder, on demand and whenever `minutes` have gone by since the last."""

    run: Run
    output: Path
    minutes: float

    def __post_init__(self) -> None:
        self.saved_at = time.monotonic()

    def save(self) -> None:
        """Raises utils.RunError where it cannot be, or where the weights are no longer finite."""
        check_finite(self.run, 0.0)
        training = {"training": self.run.state_dict()}
        if distributed.is_main():
            checkpoints.save_latest(self.output, {**self.run.weights(), **training})
            utils.write_history(self.output / "history.csv", self.run.history)
        self.saved_at = time.monotonic()

    def save_if_due(self) -> None:
        if distributed.highest(time.monotonic() - self.saved_at) >= 60 * self.minutes:
            self.save()


class Monitor:
    """Called after every step: counts it, shows it, and stops or saves the run where it must."""

    def __init__(self, run: Run, batches: int, saver: "Saver", interruption: Interruption) -> None:
        self.run = run
        self.saver = saver
        self.interruption = interruption
        self.interval = LOOK_EVERY[run.device.type]
        shown = distributed.is_main() and sys.stderr.isatty()
        self.bar = tqdm(total=batches, initial=run.batch, disable=not shown, leave=True)
        self.clock = time.perf_counter()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()

    def __call__(self, loss: Tensor) -> None:
        self.run.batch += 1
        looked = self.run.batch % self.interval == 0
        if looked:
            self.check(distributed.mean(loss.item()))
        self.count_time()
        self.bar.update()
        # Several processes have to do these at the same step, and agreeing takes time.
        if looked or distributed.world_size() == 1:
            self.interruption.check()
            self.saver.save_if_due()
        self.clock = time.perf_counter()  # saving is no training

    def count_time(self) -> None:
        now = time.perf_counter()
        self.run.seconds += now - self.clock
        self.clock = now

    def check(self, loss: float) -> None:
        check_finite(self.run, loss)
        description = f"loss={loss:.4f} batch_id={self.run.batch - 1}"
        self.bar.set_description_str(description, refresh=False)


def check_finite(run: Run, loss: float) -> None:
    """Raises utils.RunError where the loss or a weight has become infinite or not a number."""
    if math.isfinite(loss) and run.is_finite():
        return
    lost = "a weight became infinite" if math.isfinite(loss) else f"the loss became {loss}"
    raise utils.RunError(
        f"{lost} by epoch {run.epoch + 1}, batch {run.batch} (step {run.scheduler.last_epoch}),"
        f" at a learning rate of {run.learning_rate(1):.3g}; the last checkpoint,"
        " if there is one yet, is intact: try a lower --learning-rate"
    )
