"""How a network is trained: a frozen recipe, and the optimizer and schedule that it describes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class RecipeError(Exception):
    """A recipe that cannot be followed."""


OPTIMIZERS = ("sgd", "adamw", "muon")
SCHEDULES = ("linear", "cosine", "steps")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the weights become, besides network, data and seed.

    Attributes:
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: "sgd" (with `momentum`, by Nesterov where `nesterov`), "adamw", or "muon" on the
            pointwise convolutions with "sgd" on the rest.
        learning_rate: the highest of the schedule.
        schedule: after the warm-up "linear" or "cosine" to 0, or "steps": see `milestones`.
        warmup: fraction of the steps in which the learning rate rises linearly to its peak.
        milestones: for "steps", a row a change: (fraction of the epochs, factor on the learning
            rate, momentum). The optimizer's state starts anew at each.
        weight_decay: on convolution and linear kernels only, never on norms and biases.
        muon_weight_decay: what takes its place on the kernels that Muon trains.
        label_smoothing: share of the target spread evenly over the classes.
        ema_decay: of the moving average of the weights that is scored and saved; 0 is without.
        crop_padding: pixels around the image before the random crop; 0 is without.
        padding_mode: "reflect" or "zeros".
        flip: "none", "random" or "alternating" (every other epoch).
        cutout: side of the square that is blanked, in pixels; 0 is without.
        mixup: largest share of another image and of its label that is mixed in.
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
    muon_weight_decay: float = 0.0
    label_smoothing: float = 0.0
    ema_decay: float = 0.0
    crop_padding: int = 4
    padding_mode: str = "reflect"
    flip: str = "random"
    cutout: int = 0
    mixup: float = 0.0

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
            "muon_weight_decay": 0 <= self.muon_weight_decay < math.inf,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "ema_decay": 0 <= self.ema_decay < 1,
        }
        for name, valid in checks.items():
            if not valid:
                raise RecipeError(f"{name} {getattr(self, name)!r} is out of range: see --help")
        if self.schedule == "steps" and not self.milestones:
            raise RecipeError("schedule 'steps' is for a recipe with milestones: choose another")


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
        epochs=100,
        batch_size=128,
        optimizer="muon",
        learning_rate=0.1,
        schedule="linear",
        warmup=0.2,
        weight_decay=5e-4,
        muon_weight_decay=0.02,
        label_smoothing=0.1,
        ema_decay=0.998,
        flip="alternating",
        cutout=8,
        mixup=0.2,
    ),
}


class ChainedOptimizer(Optimizer):
    """Several optimizers, each with parameters of its own, as one: its parameter groups and its
    state are theirs, so that one schedule, one checkpoint and one `step` serve them all."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for o in optimizers for group in o.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = list(islice(groups, len(optimizer.param_groups)))
            optimizer.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # which makes new groups and a new state
        self._share()


def _groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Kernels, whose weights decay, and the rest, whose do not."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer, in PyTorch's fused form where it has one.

    Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon) makes every singular value of a
    matrix's step equal, so that it learns in all directions at once. Here the matrices are the
    kernels of the pointwise convolutions.

    Raises:
        RecipeError: Muon is asked for, and the network has no such kernel.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = recipe.learning_rate
    if recipe.optimizer == "adamw":
        return AdamW(_groups(parameters, recipe.weight_decay), lr=rate, fused=True)
    convolutions = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    matrices = [p for p in convolutions if p.ndim == 2 and recipe.optimizer == "muon"]
    taken = set(map(id, matrices))
    sgd = SGD(
        _groups([p for p in parameters if id(p) not in taken], recipe.weight_decay),
        lr=rate,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov and recipe.momentum > 0,  # the same without any, but refused
        fused=True,
    )
    if recipe.optimizer == "sgd":
        return sgd
    if not matrices:
        raise RecipeError("muon is for networks with pointwise convolutions: choose sgd or adamw")
    decay = recipe.muon_weight_decay
    return ChainedOptimizer(
        Muon(matrices, lr=rate, momentum=recipe.momentum, weight_decay=decay), sgd
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
