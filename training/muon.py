"""Muon, with all matrices of one shape in the same operations."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
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

    GradScaler leaves its scale, and whether a gradient is infinite, to `step`, as with PyTorch's
    fused optimizers: no step waits for the device.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            for p in parameters:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in parameters]
            momentum, rate, decay = group["momentum"], group["lr"], group["weight_decay"]
            scale: Tensor | None = getattr(self, "grad_scale", None)
            found_inf: Tensor | None = getattr(self, "found_inf", None)
            # buffer + (1 - momentum) * (gradient - buffer)
            descend(buffers, gradients, momentum - 1, -1.0, scale, found_inf)
            updates = torch._foreach_lerp(gradients, buffers, momentum)
            descend(parameters, orthogonalized(updates), rate, decay, None, found_inf)


def descend(
    values: list[Tensor],
    gradients: list[Tensor],
    rate: float,
    decay: float,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """values -= rate * (gradients + decay * values), where `found_inf` is not 1.

    In one operation: PyTorch's fused SGD, which reads `found_inf` on the device. It divides the
    gradients by `scale` before, in place.
    """
    torch._fused_sgd_(
        values,
        gradients,
        [],
        weight_decay=decay,
        momentum=0.0,
        lr=rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
        grad_scale=scale,
        found_inf=found_inf,
    )


def orthogonalized(updates: Sequence[Tensor]) -> list[Tensor]:
    """The nearest orthogonal matrices, nearly, of stacks (..., R, C), times sqrt(max(1, R / C)).

    Tall matrices go with the wide ones of their transpose's shape. All results are contiguous.
    """
    shapes = defaultdict(list)
    for index, update in enumerate(updates):
        rows, columns = update.shape[-2:]
        shapes[min(rows, columns), max(rows, columns)].append(index)
    results = list(updates)
    for (short, long), members in shapes.items():
        wide = [u.mT if u.shape[-2] > u.shape[-1] else u for u in (updates[i] for i in members)]
        matrices = [update.reshape(-1, short, long) for update in wide]
        counts = [len(m) for m in matrices]
        stack = newton_schulz(torch.cat(matrices).bfloat16()).to(updates[0].dtype)
        parts = stack.split(counts)
        if any(updates[i].shape[-2] > short for i in members):
            tall_parts = (stack.mT * math.sqrt(long / short)).contiguous().split(counts)
        for position, i in enumerate(members):
            tall = updates[i].shape[-2] > short
            results[i] = (tall_parts if tall else parts)[position].reshape(updates[i].shape)
    return results


def newton_schulz(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices (N, R, C), R <= C, to between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=EPSILON)[:, None, None]
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
