"""A training in progress: what is settled, what changes, what is saved of it and when."""

import math
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import data
import distributed
import engine
import recipe as recipes
import storage
import utils
from recipe import Recipe

# Steps between looks at loss and weights. On an accelerator a look waits for the device.
LOOK_EVERY = defaultdict(lambda: 50, cpu=1)


@dataclass(frozen=True)
class Settings:
    """What a run is: kept in its config.json and its checkpoints."""

    model: str
    config: dict[str, Any]
    recipe: Recipe
    source: str
    eval_split: str
    precision: str
    seed: int

    @property
    def train_split(self) -> str:
        return "train" if self.eval_split == "val" else "train+val"

    @property
    def title(self) -> str:
        sample = ", trained on the built-in sample only" if self.source == "sample" else ""
        return f"{self.model} on CIFAR-10{sample}"


def check_types(record: Any) -> None:
    """TypeError where a dataclass has a field that is not of its declared type."""
    for name, kind in get_type_hints(type(record)).items():
        kind = (int, float) if kind is float else get_origin(kind) or kind
        if not isinstance(getattr(record, name), kind):
            raise TypeError(f"{name} is not of type {kind}")


@dataclass
class Run:
    """A training in progress: everything that changes while it goes on."""

    settings: Settings
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: AveragedModel | None
    scaler: GradScaler
    device: torch.device
    metrics: engine.RunningMetrics  # of the epoch under way, as are the next two
    batch: int = 0  # steps taken
    seconds: float = 0.0  # spent on them
    epoch: int = 0  # epochs behind
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def scored(self) -> nn.Module:
        """The network that is evaluated and released: the moving average, where there is one."""
        return utils.unwrap(self.model) if self.ema is None else self.ema.module

    def learning_rate(self, steps_ago: int = 0) -> float:
        """Of the next step, or of one before it."""
        scheduler = self.scheduler
        return scheduler.base_lrs[0] * scheduler.lr_lambdas[0](scheduler.last_epoch - steps_ago)

    def begin_epoch(self) -> None:
        recipes.begin_epoch(self.optimizer, self.settings.recipe, self.epoch)

    def end_epoch(self, row: dict[str, Any]) -> None:
        """The epoch's row goes into the history, and its sums start anew."""
        self.history.append(row)
        self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
        self.metrics = engine.RunningMetrics(self.device, distributed.total)

    def is_finite(self) -> bool:
        """Whether no weight and no statistic is lost; read from the device once.

        The moving average is lost with them, and what is lost once stays lost.
        """
        return utils.is_finite(self.model)

    def weights(self) -> dict[str, Any]:
        """The released form: what rebuilds and describes the network, nothing of the training."""
        settings = self.settings
        return {
            "model": settings.model,
            "config": settings.config,
            "state_dict": utils.unwrap(self.scored).state_dict(),
            "normalization": {"mean": list(data.MEAN), "std": list(data.STD)},
            "classes": list(data.CLASSES),
            "data": {
                "source": settings.source,
                "train_split": settings.train_split,
                "eval_split": settings.eval_split,
            },
            "epoch": self.epoch,
            "history": self.history,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs besides `weights`, which hold the moving average.

        Several processes call it together: the metrics are sums over all of them, and each has a
        random state of its own.
        """
        random, *others = distributed.gather(utils.random_state())
        return {
            "settings": asdict(self.settings),
            "model": utils.unwrap(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "averaged": 0 if self.ema is None else int(self.ema.n_averaged),
            "batch": self.batch,
            "seconds": self.seconds,
            "metrics": self.metrics.state_dict(),
            "random": {**random, "others": others} if others else random,
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Go on where `checkpoint`, of the same settings, was saved.

        By as many processes as saved it, exactly. By another number of them, on the same batches,
        with what differs in the rounding of sums, in dropout and, on CPUs, in the parts that
        BatchNorm normalises.

        Raises:
            ValueError, RuntimeError: it does not fit this run, which is then of no use.
        """
        state = checkpoint["training"]
        self._check(state)
        utils.unwrap(self.model).load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            utils.unwrap(self.ema.module).load_state_dict(checkpoint["state_dict"])
            self.ema.n_averaged.fill_(state["averaged"])
        self.batch, self.seconds = state["batch"], state["seconds"]
        if distributed.is_main():  # they are sums over all processes
            self.metrics.load_state_dict(state["metrics"])
        self.epoch, self.history = checkpoint["epoch"], checkpoint["history"]
        states = [state["random"], *state["random"].get("others", [])]
        if len(states) == distributed.world_size():
            utils.set_random_state(states[distributed.rank()])
        elif distributed.is_main():
            utils.set_random_state(states[0])
        else:
            seed_dropout(self.settings.seed, self.scheduler.last_epoch)

    def _check(self, state: dict[str, Any]) -> None:
        """ValueError where `state` has not the structure of this run's own."""
        # One step without a gradient, so that the optimizer has a state to compare with. What it
        # does to the weights does not matter: they are about to be replaced.
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        own = self.state_dict()
        own["settings"] = state["settings"]  # already checked, and the source of all else
        like = {"cpu": torch.get_rng_state()}
        own["random"] = {**like, "cuda": state["random"]["cuda"]}  # other devices, other processes
        if "others" in state["random"]:
            others = state["random"]["others"]
            own["random"]["others"] = [{**like, "cuda": other["cuda"]} for other in others]
        if not state["optimizer"]["state"]:  # mixed precision may have skipped every step so far
            own["optimizer"]["state"] = {}
        storage.check_like(own, state)
        groups = zip(
            own["optimizer"]["param_groups"], state["optimizer"]["param_groups"], strict=True
        )
        if any(one["params"] != other["params"] for one, other in groups):
            raise ValueError("the optimizer's state is that of other weights")


def seed_dropout(seed: int, step: int) -> None:
    """Each process but the main one draws other numbers from here on. What is random besides
    dropout has its own seeds."""
    if not distributed.is_main():
        state = np.random.SeedSequence((distributed.rank(), step, seed))
        torch.manual_seed(int(state.generate_state(1, np.uint64)[0]))


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
            storage.save_latest(self.output, {**self.run.weights(), **training})
            utils.write_history(self.output / "history.csv", self.run.history)
        self.saved_at = time.monotonic()

    def save_if_due(self) -> None:
        if distributed.highest(time.monotonic() - self.saved_at) >= 60 * self.minutes:
            self.save()


class Monitor:
    """Called after every step: counts it, shows it, and stops or saves the run where it must."""

    def __init__(
        self, run: Run, batches: int, saver: Saver, interruption: utils.Interruption
    ) -> None:
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
