"""The learning-rate schedule: warm-up, then linear, cosine, or steps that also set momentum."""

import math
from collections.abc import Callable

from torch.optim import Optimizer

from training.recipe import Recipe


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


def begin_epoch(optimizer: Optimizer, recipe: Recipe, epoch: int) -> None:
    """Apply the milestone that epoch `epoch` (counted from 0) starts with, if any."""
    if epoch in _momenta(recipe):
        optimizer.state.clear()
        set_momentum(optimizer, recipe, epoch)


def set_momentum(optimizer: Optimizer, recipe: Recipe, epoch: int) -> None:
    """Set the momentum that the last milestone up to epoch `epoch` (counted from 0) asks for."""
    passed = [momentum for start, momentum in _momenta(recipe).items() if start <= epoch]
    for group in optimizer.param_groups if passed else []:
        group["momentum"] = passed[-1]


def _momenta(recipe: Recipe) -> dict[int, float]:
    """The epochs (counted from 0) that start with a milestone, and the momentum from there on."""
    milestones = recipe.milestones if recipe.schedule == "steps" else ()
    return {math.ceil(start * recipe.epochs): momentum for start, _, momentum in milestones}
