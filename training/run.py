"""A training in progress: what it is made of, what of it is saved, how it is resumed."""

import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

import data
import models
import utils
from training import devices, distributed, engine
from training.checkpoint_content import MALFORMED, check_like
from training.ema import WeightAverage
from training.loss import Loss
from training.optimizer import build_optimizer
from training.recipe import Recipe
from training.schedule import learning_rate_factor, set_momentum
from training.settings import Settings, required_splits
from training.teacher import load_teacher

EVALUATION_BATCH = 500  # images, of each process


@dataclass
class Run:
    """A training in progress: everything that changes while it goes on."""

    settings: Settings
    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    ema: WeightAverage | None
    scaler: GradScaler
    loss: Loss
    device: torch.device
    metrics: engine.RunningMetrics  # of the epoch under way, as are the next two
    batch: int = 0  # steps taken
    seconds: float = 0.0  # spent on them
    epoch: int = 0  # epochs behind
    history: list[dict[str, Any]] = field(default_factory=list)
    recorded: engine.Recorded = field(default_factory=dict)  # see compilation.py

    @property
    def precision(self) -> torch.dtype:
        """Of the mixed precision."""
        return devices.PRECISIONS[self.settings.precision]

    @property
    def eval_model(self) -> nn.Module:
        """The network that is evaluated and released: the moving average, where there is one."""
        return distributed.unwrap(self.model) if self.ema is None else self.ema.module

    @property
    def passes(self) -> engine.Passes:
        """The forward and the backward pass of a batch."""
        return engine.Passes(self.model, self.loss, self.scaler, self.precision)

    def learning_rate(self, steps_ago: int = 0) -> float:
        """Of the next step, or of one before it."""
        scheduler = self.scheduler
        factor = scheduler.lr_lambdas[0](scheduler.last_epoch - steps_ago)
        return float(scheduler.base_lrs[0] * factor)

    def start_from(self, network: nn.Module) -> None:
        """Give the network, and its moving average, the weights of another one."""
        for own in (distributed.unwrap(self.model), self.eval_model):
            own.load_state_dict(network.state_dict())

    def end_epoch(self, row: dict[str, Any]) -> None:
        """The epoch's row goes into the history, and its sums start anew."""
        self.history.append(row)
        self.epoch, self.batch, self.seconds = self.epoch + 1, 0, 0.0
        self.metrics = engine.RunningMetrics(self.device, distributed.total)

    def is_finite(self) -> bool:
        """Whether all weights and BatchNorm statistics are finite; waits for the device once.

        Checks their norm, one call for all tensors. It also overflows for weights above 1e19, which
        are useless anyway. The moving average needs no check: it becomes infinite or NaN with the
        weights, and neither recovers.
        """
        tensors = [t for t in self.model.state_dict().values() if t.is_floating_point()]
        return bool(nn.utils.get_total_norm(tensors).isfinite())

    def released(self) -> dict[str, Any]:
        """What rebuilds and describes the network, nothing of the training."""
        settings = self.settings
        return {
            "model": settings.model,
            "config": settings.config,
            "state_dict": self.eval_model.state_dict(),
            "normalization": dict(data.NORMALIZATION),
            "classes": list(data.CLASSES),
            "data": {**settings.trained_on, "eval_split": settings.eval_split},
            "epoch": self.epoch,
            "history": self.history,
        }

    def training_state(self) -> dict[str, Any]:
        """What an exact resume needs besides `released`, whose weights are the moving average, if
        there is one.

        Several processes call it together: the metrics are sums over all of them, and each has a
        random state of its own.
        """
        random, *others = distributed.gather(devices.random_state(self.device))
        return {
            "settings": asdict(self.settings),
            "model": distributed.unwrap(self.model).state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "step": self.scheduler.last_epoch,
            "scaler": self.scaler.state_dict(),
            "averaged": 0 if self.ema is None else self.ema.steps,
            "batch": self.batch,
            "seconds": self.seconds,
            "metrics": self.metrics.state_dict(),
            "random": {**random, "others": others} if others else random,
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Continue where `checkpoint`, of the same settings, was saved.

        With as many processes as then, the run continues exactly. With another number it trains on
        the same batches, but sums round differently, dropout draws other numbers, other teachers
        answer for an image and, on CPUs or with mirror-symmetric norms, BatchNorm normalises other
        parts of each batch.

        Raises:
            ValueError, RuntimeError: it does not fit this run, which is then of no use.
        """
        state = checkpoint["training"]
        set_momentum(self.optimizer, self.settings.recipe, checkpoint["epoch"])
        self._check(state)
        distributed.unwrap(self.model).load_state_dict(state["model"])
        self.epoch, self.history = checkpoint["epoch"], checkpoint["history"]
        self._load_optimizer(state)
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(checkpoint["state_dict"])
            self.ema.steps = state["averaged"]
        self.batch, self.seconds = state["batch"], state["seconds"]
        if distributed.is_main():  # they are sums over all processes
            self.metrics.load_state_dict(state["metrics"])
        states = [state["random"], *state["random"].get("others", [])]
        if len(states) == distributed.world_size():
            devices.set_random_state(states[distributed.rank()], self.device)
        elif distributed.is_main():
            devices.set_random_state(states[0], self.device)
        else:
            seed_dropout(self.settings.seed, self.scheduler.last_epoch)

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """What the optimizer remembers, and the step of the schedule. Rates and the like follow
        from the settings, and are in no file."""
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():  # in the weight's memory layout, as it was
                if value.shape == parameter.shape:
                    kept[name] = torch.empty_like(parameter).copy_(value)
        self.scheduler.last_epoch = state["step"]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()

    def _check(self, state: dict[str, Any]) -> None:
        """ValueError where `state` has not the structure of this run's own."""
        # One step without a gradient, so that the optimizer has a state to compare with. What it
        # does to the weights does not matter: they are about to be replaced.
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        own = self.training_state()
        own["settings"] = state["settings"]  # already checked, and the source of all else
        like = {"cpu": torch.get_rng_state()}
        own["random"] = {**like, "cuda": state["random"]["cuda"]}  # other devices, other processes
        if "others" in state["random"]:
            others = state["random"]["others"]
            own["random"]["others"] = [{**like, "cuda": other["cuda"]} for other in others]
        # A weight has no state while it had no gradient, or mixed precision skipped every step.
        found = state["optimizer"]
        own["optimizer"] = {k: v for k, v in own["optimizer"].items() if k in found}
        check_like(own, state)


def seed_dropout(seed: int, step: int) -> None:
    """Reseed the global generator in every process but the main one, so that their dropout masks
    differ. Shuffling and augmentation have seeds of their own, which begin with 0 and 1."""
    if not distributed.is_main():
        state = np.random.SeedSequence((2, distributed.rank(), step, seed))
        torch.manual_seed(int(state.generate_state(1, np.uint64)[0]))


# ------------------------------------------------------------------------------------- build a run


def augmentation_of(recipe: Recipe) -> data.Augmentation:
    """The fields of a recipe that say what is done to the images."""
    names = [field.name for field in fields(data.Augmentation)]
    return data.Augmentation(**{name: getattr(recipe, name) for name in names})


def build_loader(
    settings: Settings, split: data.Split, device: torch.device, *, train: bool
) -> data.Loader:
    """This process's part of the batches of `split`: augmented by the recipe and shuffled to
    `train` on, or all images as they are, in their order."""
    recipe = settings.recipe
    size = min(EVALUATION_BATCH * distributed.world_size(), len(split))
    return data.Loader(
        split,
        recipe.batch_size if train else size,
        **data.NORMALIZATION,
        augmentation=augmentation_of(recipe) if train else None,
        shuffle=train,
        seed=settings.seed,
        device=device,
        dtype=devices.PRECISIONS[settings.precision],
        # Rounded down, so that a short training has an end without mixup, too.
        mixup_epochs=int(round(recipe.mixup_until * recipe.epochs, 6)),
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )


def build_loaders(
    settings: Settings, directory: Path, device: torch.device
) -> tuple[data.Loader, data.Loader | None]:
    """The training loader and the evaluation loader (None where no split is evaluated)."""
    splits = required_splits(settings.eval_split)
    train, *scored = data.load_splits(settings.source, directory, splits)
    loader = build_loader(settings, train, device, train=True)
    if not scored:
        return loader, None
    return loader, build_loader(settings, scored[0], device, train=False)


def build_run(settings: Settings, device: torch.device, steps_per_epoch: int) -> Run:
    """A fresh run, with a fresh network on `device`."""
    recipe = settings.recipe
    model = models.build(settings.model, **settings.config)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = distributed.wrap(model, device)
    optimizer = build_optimizer(model, recipe)
    scaled, decay = settings.precision == "fp16", recipe.ema_decay
    teacher = load_teacher(settings.teachers, device)
    return Run(
        settings=settings,
        model=model,
        optimizer=optimizer,
        scheduler=LambdaLR(optimizer, learning_rate_factor(recipe, steps_per_epoch)),
        ema=WeightAverage(distributed.unwrap(model), decay) if decay else None,
        scaler=GradScaler(device.type, enabled=scaled),
        loss=Loss(recipe.label_smoothing, teacher, recipe.distillation, recipe.temperature),
        device=device,
        metrics=engine.RunningMetrics(device, distributed.total),
    )


def resume(run: Run, checkpoint: dict[str, Any], loader: data.Loader, path: Path) -> None:
    """Bring a fresh run to where `checkpoint`, which was loaded from `path`, left off.

    Raises:
        utils.RunError: the checkpoint does not fit.
    """
    try:
        run.load(checkpoint)
        images = min(run.batch * loader.batch_size, loader.images)
        metrics = run.metrics.state_dict()
        if not 0 <= run.batch <= len(loader) or metrics["total"] != images or run.seconds < 0:
            raise ValueError("its position within the epoch makes no sense")
        if run.scheduler.last_epoch != run.epoch * len(loader) + run.batch:
            raise ValueError("its learning rate is that of another step")
        if run.epoch != len(run.history):
            raise ValueError("its history is not that of its epochs")
    except MALFORMED as e:
        raise utils.RunError(f"{path} does not fit its own settings: {e}") from e
    lost = run.device.type == "cuda" and not checkpoint["training"]["random"]["cuda"]
    if lost and distributed.is_main():
        line = "Saved without a GPU: dropout, if any, continues with new random numbers"
        print(line, file=sys.stderr)
