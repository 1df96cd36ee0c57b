"""How each network is trained: a frozen recipe."""

import math
from dataclasses import dataclass, replace
from typing import Any


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
        epochs=150,
        batch_size=128,
        optimizer="muon",
        learning_rate=0.1,
        schedule="linear",
        warmup=0.2,
        weight_decay=5e-4,
        muon_weight_decay=0.02,
        label_smoothing=0.1,
        ema_decay=0.998,
        flip="none",  # the network knows mirrors
        cutout=8,
        mixup=0.4,
    ),
}
RECIPES |= dict.fromkeys(("under50k", "under25k"), replace(RECIPES["under100k"], epochs=100))

# The recipe by name: "default" is the network's own. "short" is it with what a budget of a few
# epochs asks for: a shorter average of the weights, and no more augmentation than it can use.
SHORT: dict[str, Any] = {"epochs": 16, "ema_decay": 0.98, "cutout": 0, "mixup": 0.0}
NAMES = ("default", "short")


def named_recipe(model: str, name: str) -> Recipe:
    """A network's recipe by that name, of NAMES."""
    return replace(RECIPES[model], **SHORT) if name == "short" else RECIPES[model]
