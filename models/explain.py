"""Explanations of a network: Grad-CAM, class activation maps, the gates of channel attention."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]


@contextmanager
def hooked(modules: list[nn.Module], hook: Hook) -> Iterator[None]:
    """A context in which `hook` is called with the inputs and output of these modules."""
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def grad_cam(model: nn.Module, images: Tensor, classes: Tensor, *, least_size: int = 15) -> Tensor:
    """Gradient-weighted class activation maps (Selvaraju et al. 2017, arXiv:1610.02391).

    The features are those of the last module with maps of at least `least_size` pixels a side: at
    the end of most networks the maps are too small. Each channel is weighted with the mean gradient
    of the class's logit, and a ReLU keeps the positive part of their sum.

    Args:
        model: maps normalised images to logits (N, K); it is put into evaluation mode.
        images: normalised, (N, 3, H, W).
        classes: (N,) int64, the class to explain for each image.

    Returns:
        maps (N, h, w) of the features' size, from 0 to 1, each divided by its maximum; all 0 if
        no pixel supports the class.

    Raises:
        ValueError: the network has no features of that size.
    """
    last: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not isinstance(output, Tensor) or output.ndim < 4 or output.shape[2] < least_size:
            return None
        last[:] = [output]
        return output.clone()  # so that no operation in place changes what was kept

    with torch.enable_grad(), hooked(list(model.eval().modules()), keep):
        # Cloned, because what inference mode has made takes no part in gradients.
        logits = model(images.detach().clone().requires_grad_())
        if not last:
            raise ValueError(f"the network has no features of {least_size} pixels or more a side")
        chosen = logits.gather(1, classes[:, None].clone()).sum()
        (gradient,) = torch.autograd.grad(chosen, last)
    weights = gradient.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
    maps = F.relu((weights * last[0]).sum(1)).detach()
    return maps / maps.amax((1, 2), keepdim=True).clamp_min(1e-12)


def class_activation_maps(head: nn.Linear, features: Tensor) -> Tensor:
    """How much each pixel of the features supports each class (Zhou et al. 2016,
    arXiv:1512.04150), for a network whose head is a global average and a linear layer.

    Args:
        head: the linear layer (C, K).
        features: (N, C, H, W), or (N, 2 C, H, W) if the head takes the mean of their halves.

    Returns:
        maps (N, K, H, W). The mean of a class's map plus the head's bias is its logit.
    """
    copies = features.shape[1] // head.in_features
    kernel = head.weight.repeat(1, copies) / copies
    return F.conv2d(features, kernel[:, :, None, None])


@torch.inference_mode()
def attention_gates(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The scale that each channel attention gives each channel: name of the module -> (N, C).

    A channel attention is a module with a method `gate`, (N, C, H, W) -> (N, C, 1, 1).

    Args:
        model: is put into evaluation mode.
        images: normalised, (N, 3, H, W).
    """
    names = {module: name for name, module in model.named_modules() if hasattr(module, "gate")}
    gates = {}

    def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        gates[names[module]] = module.gate(*inputs).flatten(1)

    with hooked(list(names), keep):
        model.eval()(images)
    return gates


def describe_location(model: nn.Module, name: str) -> str:
    """The location of the module `name` in words: "wide.1.attention" is in the "last block of stage
    wide", if that has two blocks; a module outside all sequences keeps its own name."""
    *path, last = name.split(".")
    while path and not path[-1].isdigit():
        last = path.pop()
    if len(path) < 2:
        return last
    *stage, index = path
    count = len(list(model.get_submodule(".".join(stage)).children()))
    number = int(index) + 1
    which = f"block {number}" if number < count else "last block" if count > 1 else "block"
    return f"{which} of stage {stage[0]}"
