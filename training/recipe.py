"""How each network is trained: a frozen recipe.

Each setting is one line of Recipe. Its flag in train.py, its check, its line of --help and its
entry in a run's config follow from that line.
"""

from dataclasses import dataclass, replace
from typing import Any

import data
from training.flags import check, setting


class RecipeError(ValueError):
    """An invalid recipe."""


OPTIMIZERS = ("sgd", "adamw", "muon")
SCHEDULES = ("linear", "cosine", "steps")


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the trained weights, besides network, data and seed.

    Raises RecipeError where a value is out of its range.
    """

    epochs: int = setting("passes over the training images", at_least=1, at_most=2000)
    batch_size: int = setting("images per step, over all devices", at_least=1, at_most=50_000)
    optimizer: str = setting("muon: for matrix kernels, sgd for the rest", choices=OPTIMIZERS)
    learning_rate: float = setting("peak of the schedule", above=0)
    schedule: str = setting("how the learning rate decays", choices=SCHEDULES)
    warmup: float = setting("fraction of the steps spent on warm-up", default=0.0, below=1)
    # For "steps", one row per change: (fraction of the epochs, factor on the learning rate,
    # momentum). Each resets the optimizer's state.
    milestones: tuple[tuple[float, float, float], ...] = ()
    momentum: float = setting("of sgd and muon", default=0.9, below=1)
    nesterov: bool = True  # momentum of sgd
    weight_decay: float = setting("of kernels but muon's, not of norms and biases", default=0.0)
    muon_weight_decay: float = setting("of the kernels that muon trains", default=0.0)
    label_smoothing: float = setting("probability spread over all classes", default=0.0, below=1)
    ema_decay: float = setting("highest decay of the average, 0 for none", default=0.0, below=1)
    crop_padding: int = setting(
        "pixels of padding for random crops, 0 for none", default=4, at_most=31
    )
    padding_mode: str = setting(
        "how the padding is filled", default="reflect", choices=data.PADDING_MODES
    )
    flip: str = setting("alternating: every other epoch", default="random", choices=data.FLIPS)
    cutout: int = setting("side of the cutout square in pixels, 0 for none", default=0, at_most=32)
    mixup: float = setting(
        "largest share of a second image (uniform), 0 for none", default=0.0, at_most=0.5
    )
    mixup_until: float = setting("fraction of the epochs with mixup", default=1.0, at_most=1)
    distillation: float = setting("share of --teacher in the loss", default=0.9, at_most=1)
    temperature: float = setting(
        "of the softmax in distillation", default=2.0, above=0, at_most=100
    )

    def __post_init__(self) -> None:
        check(self, RecipeError)
        if self.schedule == "steps" and not self.milestones:
            raise RecipeError(
                "--schedule steps is for a recipe with milestones: choose linear or cosine"
            )


RECIPES = {
    # The recipe of the notebook that this repository started from.
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
        epochs=300,
        batch_size=128,
        optimizer="muon",
        learning_rate=0.1,
        schedule="linear",
        warmup=0.15,
        weight_decay=5e-4,
        muon_weight_decay=0.02,
        label_smoothing=0.1,
        ema_decay=0.999,
        flip="none",  # the network is mirror-symmetric
        cutout=8,
        mixup=0.5,
        mixup_until=0.96,
    ),
}
_SHORTER = replace(RECIPES["under100k"], epochs=100, ema_decay=0.998, mixup=0.2)
RECIPES |= dict.fromkeys(("under50k", "under25k"), _SHORTER)
# Label smoothing would erase what a teacher knows about the similarity of classes (Mueller et al.
# 2019, arXiv:1906.02629).
RECIPES["teacher"] = replace(_SHORTER, epochs=40, label_smoothing=0.0, mixup_until=1.0)

# Recipes by name: "default" is the network's own, and "short" adapts it to a budget of a few
# epochs: a shorter moving average of the weights, and less augmentation.
SHORT: dict[str, Any] = {
    "epochs": 16,
    "warmup": 0.2,
    "ema_decay": 0.98,
    "cutout": 0,
    "mixup": 0.0,
}
NAMES = ("default", "short")


def named_recipe(model: str, config: dict[str, Any], name: str) -> Recipe:
    """The recipe of a network by its name, one of NAMES."""
    recipe = RECIPES[model]
    if config.get("mirror") is False:  # only flips teach it mirrored images
        recipe = replace(recipe, flip="alternating")
    return replace(recipe, **SHORT) if name == "short" else recipe
