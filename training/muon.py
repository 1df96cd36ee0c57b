"""Muon, with all matrices batched into the same operations."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of X, X X' X and X X' X X' X
STEPS = 5
EPSILON = 1e-7
DTYPE = torch.bfloat16  # of the Newton-Schulz iteration


class Muon(Optimizer):
    """Muon (Jordan 2024, https://kellerjordan.github.io/posts/muon): momentum whose step has all
    singular values near 1, so that a matrix learns in all directions at once.

    Numbers and state are those of torch.optim.Muon with Nesterov momentum, which updates one matrix
    after another, with 23 small operations each: over 1,000 a step for the 50 matrices of the
    default network; this class takes 26 on a GPU. A parameter (..., R, C) is a stack of matrices.

    As with PyTorch's fused optimizers, GradScaler passes its scale and its check for infinite
    gradients to `step`, so no step waits for the device.
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
        self._layouts: dict[tuple[torch.Size, ...], Layout] = {}

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
            sgd_update(buffers, gradients, momentum - 1, -1.0, scale, found_inf)
            updates = torch._foreach_lerp(gradients, buffers, momentum)
            shapes = tuple(p.shape for p in parameters)
            if shapes not in self._layouts:
                device = parameters[0].device
                # On a CPU the arithmetic takes the time, elsewhere the number of operations.
                self._layouts[shapes] = make_layout(shapes, device, together=device.type != "cpu")
            steps = orthogonalized(updates, self._layouts[shapes])
            sgd_update(parameters, steps, rate, decay, None, found_inf)


def sgd_update(
    values: list[Tensor],
    gradients: list[Tensor],
    rate: float,
    decay: float,
    scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """values -= rate * (gradients + decay * values), unless `found_inf` is 1.

    In one operation, PyTorch's fused SGD, which reads `found_inf` on the device. It first divides
    the gradients by `scale`, in place.
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


@dataclass(frozen=True)
class Layout:
    """How matrices are packed into batches (N, R, C), R <= C; tall matrices are transposed.

    Attributes:
        shapes: of the batches.
        places: for each element of the batches, its index among the elements of all matrices; one
            past the last index is the zero that pads smaller matrices.
        back: for each element of the matrices, its index in the batches.
        factors: for each element of the matrices, sqrt(max(1, R / C)) of its matrix.
        zero: (1,).
    """

    shapes: list[tuple[int, int, int]]
    places: Tensor
    back: Tensor
    factors: Tensor
    zero: Tensor


def make_layout(shapes: Sequence[torch.Size], device: torch.device, *, together: bool) -> Layout:
    """The layout of matrices of these shapes (..., R, C).

    Matrices of one shape form a batch. With `together` all of them form one batch, padded with
    zeros: Newton-Schulz leaves the zeros as they are, and they do not affect the other elements.
    """
    sides = [(min(shape[-2:]), max(shape[-2:])) for shape in shapes]
    counts = [shape[:-2].numel() for shape in shapes]
    groups = defaultdict(list)
    for index, side in enumerate(sides):
        groups[None if together else side].append(index)
    batches, start, back = [], 0, [torch.empty(0)] * len(shapes)
    for members in groups.values():
        short, long = (max(sides[i][k] for i in members) for k in (0, 1))
        batches.append((sum(counts[i] for i in members), short, long))
        end = start + math.prod(batches[-1])
        slots = torch.arange(start, end).view(batches[-1]).split([counts[i] for i in members])
        for i, slot in zip(members, slots, strict=True):
            part = slot[:, : sides[i][0], : sides[i][1]]
            back[i] = (part.mT if shapes[i][-2] > shapes[i][-1] else part).flatten()
        start = end
    numbers = torch.cat(back)
    places = torch.full((start,), len(numbers))
    places[numbers] = torch.arange(len(numbers))
    factors = [
        torch.full((len(b),), math.sqrt(max(1, shape[-2] / shape[-1])))
        for b, shape in zip(back, shapes, strict=True)
    ]
    tensors = (places, numbers, torch.cat(factors), torch.zeros(1))
    return Layout(batches, *(tensor.to(device) for tensor in tensors))


def orthogonalized(updates: Sequence[Tensor], layout: Layout) -> list[Tensor]:
    """Nearly the nearest orthogonal matrices of stacks (..., R, C), times sqrt(max(1, R / C))."""
    numbers = torch.cat([*(update.flatten() for update in updates), layout.zero])
    numbers = numbers.index_select(0, layout.places).to(DTYPE)
    parts = numbers.split([math.prod(shape) for shape in layout.shapes])
    results = [
        newton_schulz(part.view(shape)).flatten()
        for part, shape in zip(parts, layout.shapes, strict=True)
    ]
    numbers = results[0] if len(results) == 1 else torch.cat(results)
    numbers = numbers.index_select(0, layout.back) * layout.factors  # float32 again
    pieces = numbers.split([update.numel() for update in updates])
    return [piece.view(update.shape) for piece, update in zip(pieces, updates, strict=True)]


def newton_schulz(matrices: Tensor) -> Tensor:
    """Move the singular values of matrices (N, R, C), R <= C, to between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=EPSILON)[:, None, None]
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
