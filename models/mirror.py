"""Mirror-symmetric layers: their channels form two halves, which mirroring the image swaps.

Let mirror(x) flip each map of x (N, C, H, W) left to right and swap the halves of its channels.
Every layer here commutes with it: layer(mirror(x)) = mirror(layer(x)), because it learns only half
of its kernel, and the other half is the mirror image of the first. A head that averages the halves
then gives an image and its mirror image the same logits. These are group-equivariant convolutions
(Cohen & Welling 2016, arXiv:1602.07576) for the group of one reflection.

A `TiedModule` learns halves under the names of ordinary parameters; `tied(name)` is the complete
tensor. `TiedTensors` makes all of a network's at once.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Tie = Callable[[Tensor], Tensor]  # learned parts (L, ...) of L layers -> complete tensors (L, ...)


def repeated(half: Tensor) -> Tensor:
    """(L, C / 2, ...) -> (L, C, ...): both halves are the same."""
    return torch.cat([half, half], 1)


def flipped(half: Tensor) -> Tensor:
    """(L, C / 2, ..., W) -> (L, C, ..., W): kernels of inputs in one half of the channels.
    The second half of the kernels is the first, flipped left to right."""
    return torch.cat([half, half.flip(-1)], 1)


def swapped(half: Tensor) -> Tensor:
    """(L, C' / 2, C, H, W) -> (L, C', C, H, W): kernels over all channels. The second half of the
    kernels is the first, flipped left to right, with the halves of its input channels swapped."""
    return torch.cat([half, half.flip(-1).roll(half.shape[2] // 2, 2)], 1)


def block_circulant(parts: Tensor) -> Tensor:
    """(L, 2, C' / 2, C / 2) -> (L, C', C): from A and B the matrix [[A, B], [B, A]]."""
    a, b = parts.unbind(1)
    return torch.cat([torch.cat([a, b], 2), torch.cat([b, a], 2)], 1)


def even_and_odd(halves: Tensor) -> Tensor:
    """(L, 2, C' / 2, C / 2) -> (L, C', C): the matrix [[A, B], [B, A]] of a pointwise layer.

    The parameters are the even part A + B and the odd part A - B. In the orthonormal basis of the
    sums and differences of the halves, the matrix is block-diagonal with these two blocks, so an
    orthogonal step on each is one on the complete matrix (see training/muon.py).
    """
    even, odd = (halves / 2).unbind(1)
    return block_circulant(torch.stack([even + odd, even - odd], 1))


def as_nhwc(tensor: Tensor) -> Tensor:
    """A kernel (C', C, H, W), which lies in channels_last, as (C', H, W, C), without a copy."""
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


class TiedModule(nn.Module):
    """A module that learns only a part of some of its tensors: see `tie` and `tied`."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        super().__init__(*arguments, **keywords)
        self.ties: dict[str, Tie] = {}
        self.complete: dict[str, Tensor] = {}  # filled by TiedTensors, for one forward pass

    def tie(self, name: str, learned: Tensor, tie: Tie) -> None:
        """Make `learned` the parameter `name`; `tie` makes the complete tensor from it."""
        setattr(self, name, nn.Parameter(learned.detach().clone()))
        self.ties[name] = tie

    def tied(self, name: str) -> Tensor:
        """The complete tensor of a parameter: the parameter itself if it is not tied."""
        if name in self.complete:
            return self.complete[name]
        learned = getattr(self, name)
        return self.ties[name](learned[None])[0] if name in self.ties else learned


class TiedTensors(nn.Module):
    """Makes all tied tensors of a network in a few operations, for one forward pass.

    On a GPU each small operation costs as much as a convolution. A tie only rearranges numbers,
    some of them after a sum or a difference. So the learned numbers of all layers are concatenated,
    and each number of the complete tensors is a weighted sum of two of them, by indices and weights
    that are computed once.
    """

    indices: Tensor
    weights: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        modules = [module for module in network.modules() if isinstance(module, TiedModule)]
        members = [(module, name) for module in modules for name in module.ties]
        self.norms: list[Any] = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
        # Norms last: mixed precision casts kernels and biases of convolutions, and no others.
        self.members = sorted(members, key=lambda member: isinstance(member[0], nn.BatchNorm2d))
        if members:
            self._index()
            if self.indices.is_meta:  # the index has no values until the weights are loaded
                self.register_load_state_dict_post_hook(TiedTensors._index)

    def _index(self, *_: object) -> None:
        """Compute the indices and weights. Learned and complete kernels are in channels_last."""
        parts = []
        start = 0
        for module, name in self.members:
            learned, tie = as_nhwc(getattr(module, name)), module.ties[name]
            numbers = torch.arange(start, start + learned.numel(), device="cpu").view(learned.shape)
            start += learned.numel()
            numbers = numbers.permute(0, 3, 1, 2) if numbers.ndim == 4 else numbers
            if tie is even_and_odd:  # A = even / 2 + odd / 2, B = even / 2 - odd / 2
                pairs = [block_circulant(torch.stack([part, part])[None])[0] for part in numbers]
                half = torch.full_like(numbers[0], 0.5, dtype=torch.float32)
                signs = block_circulant(torch.stack([half, -half])[None])[0]
                parts.append((*pairs, signs.abs(), signs))
            else:
                complete = as_nhwc(tie(numbers[None])[0])
                ones = torch.ones_like(complete, dtype=torch.float32)
                parts.append((complete, complete, ones, 0 * ones))
        self.shapes = [first.shape for first, *_ in parts]
        sizes = [first.numel() for first, *_ in parts]
        norms = [isinstance(module, nn.BatchNorm2d) for module, _ in self.members].count(True)
        self.conv_sizes = sizes[: len(sizes) - norms]
        self.norm_sizes = sizes[len(sizes) - norms :]
        first, second, *weights = (
            torch.cat([tensor.flatten() for tensor in tensors])
            for tensors in zip(*parts, strict=True)
        )
        module, name = self.members[0]
        device = getattr(module, name).device
        self.register_buffer("indices", torch.cat([first, second]).to(device), persistent=False)
        self.register_buffer("weights", torch.stack(weights).to(device), persistent=False)

    def _complete_tensors(self) -> list[Tensor]:
        """The complete tensor of each member."""
        row = torch.cat([as_nhwc(getattr(m, name)).flatten() for m, name in self.members])
        row = (row.index_select(0, self.indices).view_as(self.weights) * self.weights).sum(0)
        convs, norms = row.split([sum(self.conv_sizes), sum(self.norm_sizes)])
        if torch.is_autocast_enabled(row.device.type):
            convs = convs.to(torch.get_autocast_dtype(row.device.type))
        pieces = [*convs.split(self.conv_sizes), *norms.split(self.norm_sizes)]
        tensors = [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]
        return [tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor for tensor in tensors]

    @contextmanager
    def assembled(self) -> Iterator[None]:
        """A context for a forward pass: every member's `tied` is ready, and in training all
        BatchNorms have counted the batch, in one operation."""
        if not self.members:
            yield
            return
        if self.training:
            torch._foreach_add_([norm.num_batches_tracked for norm in self.norms], 1)
        for (module, name), tensor in zip(self.members, self._complete_tensors(), strict=True):
            module.complete[name] = tensor
        try:
            yield
        finally:
            for module, _ in self.members:
                module.complete.clear()


def mean_of_halves(statistic: Tensor) -> Tensor:
    """(C,) -> (C,): both halves are the mean of the two."""
    return statistic.unflatten(0, (2, -1)).mean(0).repeat(2)


class MirrorBatchNorm2d(TiedModule, nn.BatchNorm2d):
    """BatchNorm with one scale and one shift for both halves of the channels.

    Training keeps statistics for each half. Evaluation uses their mean, so that the network is then
    exactly symmetric. TiedTensors counts the batches.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        half = channels // 2
        self.tie("weight", self.weight[:half], repeated)
        self.tie("bias", self.bias[:half], repeated)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.tied("weight"), self.tied("bias")
        mean, variance = self.running_mean, self.running_var
        if not self.training:
            mean, variance = map(mean_of_halves, (mean, variance))
        momentum = self.momentum
        if momentum is None:  # every batch counts the same, as in nn.BatchNorm2d
            momentum = 1 / max(1, int(self.num_batches_tracked))
        return nn.functional.batch_norm(
            x, mean, variance, weight, bias, self.training, momentum, self.eps
        )

    @torch.no_grad()
    def plain_norm(self) -> nn.BatchNorm2d:
        """The ordinary BatchNorm that computes the same in evaluation."""
        norm = nn.BatchNorm2d(self.num_features, self.eps, self.momentum).to(self.weight)
        norm.weight.copy_(self.tied("weight"))
        norm.bias.copy_(self.tied("bias"))
        norm.get_buffer("running_mean").copy_(mean_of_halves(self.running_mean))
        norm.get_buffer("running_var").copy_(mean_of_halves(self.running_var))
        return norm


@torch.no_grad()
def untied(network: nn.Module) -> nn.Module:
    """A copy of the network for evaluation that computes the same from complete tensors, without
    ties, and whose ordinary norms can be folded into the layers before them."""
    network = copy.deepcopy(network).eval()
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, MirrorBatchNorm2d):
                setattr(module, name, child.plain_norm().eval())
        if isinstance(module, TiedModule):
            for name in module.ties:
                setattr(module, name, nn.Parameter(module.tied(name).clone()))
            module.ties = {}
        if isinstance(module, TiedTensors):
            module.members = []
    return network
