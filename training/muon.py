"""Muon, with all matrices of one shape in the same operations."""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of X, X X' X and X X' X X' X
STEPS = 5
EPSILON = 1e-7


class Muon(Optimizer):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon): momentum whose step has all
    singular values near 1, so that a matrix learns in all directions at once.

    The numbers and the state are those of torch.optim.Muon with Nesterov momentum, which takes one
    matrix after another, some 25 small operations each: 500 for a network of ours, where this needs
    a few dozen. A parameter (..., R, C) is a stack of matrices.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, buffers, group["momentum"])
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(parameters, orthogonalized(updates), alpha=-group["lr"])


def orthogonalized(updates: list[Tensor]) -> list[Tensor]:
    """The nearest orthogonal matrices, nearly, of stacks (..., R, C), times sqrt(max(1, R / C))."""
    shapes = defaultdict(list)
    for index, update in enumerate(updates):
        shapes[update.shape[-2:]].append(index)
    results = list(updates)
    for (rows, columns), members in shapes.items():
        matrices = [updates[i].reshape(-1, rows, columns) for i in members]
        stack = torch.cat(matrices).bfloat16()
        stack = newton_schulz(stack.mT if rows > columns else stack)
        stack = (stack.mT if rows > columns else stack).to(updates[0].dtype)
        stack = stack * math.sqrt(max(1, rows / columns))
        for i, part in zip(members, stack.split([len(m) for m in matrices]), strict=True):
            results[i] = part.reshape(updates[i].shape)
    return results


def newton_schulz(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices (N, R, C), R <= C, to between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=EPSILON)[:, None, None]
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
