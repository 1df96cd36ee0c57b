"""The optimizer of a recipe."""

from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from models.convolutions import PointwiseConv2d
from training.muon import Muon
from training.recipe import Recipe, RecipeError


class SGD(torch.optim.SGD):
    """PyTorch's SGD, but with momentum buffers that start at 0.

    PyTorch's start at the first gradient. If mixed precision skips the first step, its fused kernel
    leaves the buffers uninitialised, and the second step adds whatever they held.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"] if group["momentum"] else []:
                if p.grad is not None and "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        super().step()


class ChainedOptimizer(Optimizer):
    """Several optimizers as one, each with its own parameters. It shares their parameter groups and
    state, so that one schedule, one checkpoint and one `step` serve them all.

    All of them have to handle GradScaler's `grad_scale` and `found_inf`, as PyTorch's fused ones
    do. GradScaler then reads nothing from the device, and every step counts as taken.
    """

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        self._step_supports_amp_scaling = True
        super().__init__([group for o in optimizers for group in o.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = list(islice(groups, len(optimizer.param_groups)))
            optimizer.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        scaling = {name: getattr(self, name, None) for name in ("grad_scale", "found_inf")}
        for optimizer in self.optimizers:
            vars(optimizer).update(scaling)
            optimizer.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # which makes new groups and a new state
        self._share()


def _groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two parameter groups: kernels, with weight decay, and the rest, without."""
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, recipe: Recipe) -> Optimizer:
    """The recipe's optimizer, in PyTorch's fused form if there is one.

    Muon's matrices are the kernels of the pointwise convolutions, which include patch convolutions.

    Raises:
        RecipeError: the recipe asks for Muon, and the network has no such kernel.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = recipe.learning_rate
    if recipe.optimizer == "adamw":
        return AdamW(_groups(parameters, recipe.weight_decay), lr=rate, fused=True)
    pointwise = [m.weight for m in model.modules() if isinstance(m, PointwiseConv2d)]
    matrices = pointwise if recipe.optimizer == "muon" else []
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
        raise RecipeError(
            "--optimizer muon needs a network with pointwise convolutions: choose sgd or adamw"
        )
    decay = recipe.muon_weight_decay
    return ChainedOptimizer(
        Muon(matrices, lr=rate, momentum=recipe.momentum, weight_decay=decay), sgd
    )
