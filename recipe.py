"""How a network is trained: a frozen recipe, and the optimizer and schedule that it describes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class RecipeError(Exception):
    """A recipe that cannot be followed."""


OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("linear", "cosine", "steps")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the weights become, besides network, data and seed.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: "sgd" (with `momentum`, by Nesterov where `nesterov`) or "adamw".
        learning_rate: the highest of the schedule.
        schedule: after the warm-up "linear" or "cosine" to 0, or "steps": see `milestones`.
        warmup: fraction of the steps in which the learning rate rises linearly to its peak.
        milestones: for "steps", a row a change: (fraction of the epochs, factor on the learning
            rate, momentum). The optimizer's state starts anew at each.
        weight_decay: on convolution and linear kernels only, never on norms and biases.
        label_smoothing: share of the target spread evenly over the classes.
        ema_decay: of the moving average of the weights that is scored and saved; 0 is without.
        crop_padding: pixels around the image before the random crop; 0 is without.
        padding_mode: "reflect" or "zeros".
        flip: "none", "random" or "alternating" (every other epoch).
        cutout: side of the square that is blanked, in pixels; 0 is without.
    """

    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    schedule: str
    warmup: float = 0.0
    milestones: tuple[tuple[float, float, float], ...] = ()
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    crop_padding: int = 4
    padding_mode: str = "reflect"
    flip: str = "random"
    cutout: int = 0

    def __post_init__(self) -> None:
        """Raises RecipeError where a value is out of its range."""
        checks = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "optimizer": self.optimizer in OPTIMIZERS,
            "learning_rate": 0 < self.learning_rate < math.inf,
            "schedule": self.schedule in SCHEDULES,
            "warmup": 0 <= self.warmup < 1,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "ema_decay": 0 <= self.ema_decay < 1,
        }
        for name, valid in checks.items():
            if not valid:
                raise RecipeError(f"{name} {getattr(self, name)!r} is out of range: see --help")


RECIPES = {
    # The recipe of the notebook that this repository set out from.
    "baseline": Recipe(
        epochs=50,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.01,
        schedule="steps",
        milestones=((0.5, 0.1, 0.7), (0.8, 0.01, 0.9)),
        nesterov=False,
        padding_mode="zeros",
    ),
    "under100k": Recipe(
        epochs=50,
        batch_size=256,
        optimizer="sgd",
        learning_rate=0.4,
        schedule="linear",
        warmup=0.2,
        weight_decay=5e-4,
        label_smoothing=0.1,
        ema_decay=0.995,
        flip="alternating",
        cutout=8,
    ),
}


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer, in PyTorch's fused form, over two groups: kernels, and the rest."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return AdamW(groups, lr=recipe.learning_rate, fused=True)
    return SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,  # the same without any, but refused
        fused=True,
    )


def learning_rate_factor(recipe: Recipe, steps_per_epoch: int) -> Callable[[int], float]:
    """The schedule: a function from the number of steps taken to a factor on the learning rate."""
    total = recipe.epochs * steps_per_epoch
    warmup = recipe.warmup * total

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if recipe.schedule == "steps":
            epoch = step // steps_per_epoch
            passed = [f for start, f, _ in recipe.milestones if epoch >= start * recipe.epochs]
            return passed[-1] if passed else 1.0
        progress = min(1.0, (step - warmup) / (total - warmup))
        if recipe.schedule == "linear":
            return 1 - progress
        return (1 + math.cos(math.pi * progress)) / 2

    return factor


def build_ema(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """The moving average of weights and BatchNorm statistics that is scored, or None without."""
    if recipe.ema_decay == 0:
        return None
    average = get_ema_multi_avg_fn(recipe.ema_decay)
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def build_scheduler(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> LambdaLR:
    return LambdaLR(optimizer, learning_rate_factor(recipe, steps_per_epoch))


def begin_epoch(optimizer: Optimizer, recipe: Recipe, epoch: int) -> None:
    """Apply the milestone that epoch `epoch` (counted from 0) starts with, if any."""
    if recipe.schedule != "steps":
        return
    for start, _, momentum in recipe.milestones:
        if epoch == math.ceil(start * recipe.epochs):
            optimizer.state.clear()
            for group in optimizer.param_groups:
                group["momentum"] = momentum
