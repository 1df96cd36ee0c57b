"""Layers that know mirrors: their channels come in two halves that mirroring the image swaps.

Let mirror(x) flip each map of x (N, C, H, W) left to right and exchange the halves of its
channels. Every layer here commutes with it: layer(mirror(x)) = mirror(layer(x)), because only half
of its kernel is learned, and the other half is that one seen in the mirror. A head that averages
the halves then gives an image and its mirror image the same logits (Cohen & Welling 2016, group
equivariant convolutions, arXiv:1602.07576, for the group of a mirror alone).

A `TiedModule` learns halves under the names of ordinary parameters; `tied(name)` is the whole
tensor. `put_together` makes those of a whole network at once, all of one shape in one operation.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Tie = Callable[[Tensor], Tensor]  # learned parts (L, ...) of L layers -> whole tensors (L, ...)


def repeated(half: Tensor) -> Tensor:
    """(L, C / 2, ...) -> (L, C, ...): both halves are the same."""
    return torch.cat([half, half], 1)


def flipped(half: Tensor) -> Tensor:
    """(L, C / 2, ..., W) -> (L, C, ..., W): kernels whose inputs lie in one half of the channels.
    The second half's are the first half's, flipped left to right."""
    return torch.cat([half, half.flip(-1)], 1)


def swapped(half: Tensor) -> Tensor:
    """(L, C' / 2, C, H, W) -> (L, C', C, H, W): kernels that see all channels. The second half's
    are the first half's, flipped left to right, and see the halves of their input exchanged."""
    return torch.cat([half, half.flip(-1).roll(half.shape[2] // 2, 2)], 1)


def even_and_odd(halves: Tensor) -> Tensor:
    """(L, 2, C' / 2, C / 2) -> (L, C', C): the matrix [[A, B], [B, A]] of a pointwise layer.

    Learned are the even part A + B and the odd part A - B. In the orthonormal basis of the sums
    and differences of the halves the matrix is these two, side by side on its diagonal: so an
    orthogonal step on each is one on the whole (see Muon in training/optimizer.py).
    """
    even, odd = halves.unbind(1)
    a, b = (even + odd) / 2, (even - odd) / 2
    return torch.cat([torch.cat([a, b], 2), torch.cat([b, a], 2)], 1)


class TiedModule(nn.Module):
    """A module of which some parameters are learned in part: see `tie` and `tied`."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__(*arguments, **keywords)
        self.ties: dict[str, Tie] = {}
        self.whole: dict[str, Tensor] = {}  # filled by put_together, for one forward pass

    def tie(self, name: str, learned: Tensor, tie: Tie) -> None:
        """Make `learned` the parameter `name`, of which `tie` makes the whole tensor."""
        setattr(self, name, nn.Parameter(learned.detach().clone()))
        self.ties[name] = tie

    def tied(self, name: str) -> Tensor:
        """The whole tensor of a parameter: itself where it is learned whole."""
        if name in self.whole:
            return self.whole[name]
        learned = getattr(self, name)
        return self.ties[name](learned[None])[0] if name in self.ties else learned


@contextmanager
def put_together(network: nn.Module) -> Iterator[None]:
    """For a forward pass, make the tied tensors of a network: all of one shape in one operation.

    On a GPU each small operation costs as much as a convolution. With mixed precision kernels are
    cast with them.
    """
    modules = [module for module in network.modules() if isinstance(module, TiedModule)]
    groups = defaultdict(list)
    for module in modules:
        for name, tie in module.ties.items():
            groups[tie, getattr(module, name).shape].append((module, name))
    try:
        for (tie, shape), members in groups.items():
            whole = tie(torch.stack([getattr(module, name) for module, name in members]))
            device = whole.device.type
            if len(shape) > 1 and torch.is_autocast_enabled(device):
                whole = whole.to(torch.get_autocast_dtype(device))
            for (module, name), tensor in zip(members, whole.unbind(), strict=True):
                module.whole[name] = tensor
        yield
    finally:
        for module in modules:
            module.whole.clear()


def merge_halves(x: Tensor) -> Tensor:
    """(N, C) -> (N, C / 2): the mean of the halves, which mirroring the image does not change."""
    return x.unflatten(1, (2, -1)).mean(1)


class MirrorBatchNorm2d(TiedModule, nn.BatchNorm2d):
    """BatchNorm with one scale and one shift for both halves of the channels.

    Statistics are kept for each half in training. Evaluation takes their mean, so that the network
    is then symmetric exactly.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        half = channels // 2
        self.tie("weight", self.weight[:half], repeated)
        self.tie("bias", self.bias[:half], repeated)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.tied("weight"), self.tied("bias")
        mean, variance = self.running_mean, self.running_var
        if self.training:
            self.num_batches_tracked.add_(1)
        else:
            mean, variance = (merge_halves(s[None])[0].repeat(2) for s in (mean, variance))
        return nn.functional.batch_norm(
            x, mean, variance, weight, bias, self.training, self.momentum, self.eps
        )
