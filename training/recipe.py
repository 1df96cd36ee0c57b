"""How each network is trained: a frozen recipe.

A setting is one line of Recipe. Its flag of train.py, its check, its line of --help and its entry
in a run's config follow from that line.
"""

from dataclasses import dataclass, replace
from typing import Any

import data
from training.flags import check, setting


class RecipeError(ValueError):
    """A recipe that cannot be followed."""


OPTIMIZERS = ("sgd", "adamw", "muon")
SCHEDULES = ("linear", "cosine", "steps")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what the weights become, besides network, data and seed.

    Raises RecipeError where a value is out of its range.
    """

    epochs: int = setting("passes over the training images", at_least=1, at_most=2000)
    batch_size: int = setting("images a step, on all devices", at_least=1, at_most=50_000)
    optimizer: str = setting("muon leaves all but 1x1 kernels to sgd", choices=OPTIMIZERS)
    learning_rate: float = setting("at the peak of the schedule", above=0)
    schedule: str = setting("how the learning rate falls", choices=SCHEDULES)
    warmup: float = setting("fraction of the steps in which it rises", default=0.0, below=1)
    # For "steps", a row a change: (fraction of the epochs, factor on the learning rate, momentum).
    # The optimizer's state starts anew at each.
    milestones: tuple[tuple[float, float, float], ...] = ()
    momentum: float = setting("of sgd and muon", default=0.9, below=1)
    nesterov: bool = True  # momentum of sgd
    weight_decay: float = setting("on kernels, not on norms and biases", default=0.0)
    muon_weight_decay: float = setting("the same, on the kernels of muon", default=0.0)
    label_smoothing: float = setting("share spread over all classes", default=0.0, below=1)
    ema_decay: float = setting("of the averaged weights, a step, 0 for none", default=0.0, below=1)
    crop_padding: int = setting(
        "pixels around the random crop, 0 for none", default=4, at_most=data.MAX_CROP_PADDING
    )
    padding_mode: str = setting(
        "what the padding shows", default="reflect", choices=data.PADDING_MODES
    )
    flip: str = setting("alternating: every other epoch", default="random", choices=data.FLIPS)
    cutout: int = setting(
        "side of the blanked square, pixels, 0 for none", default=0, at_most=data.MAX_CUTOUT
    )
    mixup: float = setting("largest share of another image", default=0.0, at_most=data.MAX_MIXUP)
    distillation: float = setting("share of --teacher in the loss", default=0.9, at_most=1)
    temperature: float = setting("at which --teacher is imitated", default=2.0, above=0)

    def __post_init__(self) -> None:
        check(self, RecipeError)
        if self.schedule == "steps" and not self.milestones:
            raise RecipeError(
                "--schedule steps is for a recipe with milestones: choose linear or cosine"
            )


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
        epochs=36,
        batch_size=128,
        optimizer="muon",
        learning_rate=0.1,
        schedule="linear",
        warmup=0.15,
        weight_decay=5e-4,
        muon_weight_decay=0.02,
        label_smoothing=0.1,
        ema_decay=0.998,
        flip="none",  # the network knows mirrors
        cutout=8,
        mixup=0.2,
    ),
}
RECIPES |= dict.fromkeys(("under50k", "under25k"), replace(RECIPES["under100k"], epochs=100))
# Smoothed labels would take from a teacher what it knows of how alike two classes are (Mueller et
# al. 2019, arXiv:1906.02629).
RECIPES["teacher"] = replace(RECIPES["under100k"], epochs=40, label_smoothing=0.0)

# The recipe by name: "default" is the network's own. "short" is it with what a budget of a few
# epochs asks for: a shorter average of the weights, and no more augmentation than it can use.
SHORT: dict[str, Any] = {
    "epochs": 16,
    "warmup": 0.2,
    "ema_decay": 0.98,
    "cutout": 0,
    "mixup": 0.0,
}
NAMES = ("default", "short")


def named_recipe(model: str, name: str) -> Recipe:
    """A network's recipe by that name, of NAMES."""
    return replace(RECIPES[model], **SHORT) if name == "short" else RECIPES[model]
