"""The moving average of a network's weights."""

import copy

import torch
from torch import nn


class WeightAverage:
    """A copy of `model` whose weights and BatchNorm statistics are exponential moving averages over
    the steps (Polyak & Juditsky 1992, https://doi.org/10.1137/0330046). Its counters are the
    model's own.

    After n steps the average keeps min(decay, (1 + n) / (10 + n)) of itself, so that it soon
    forgets the initial weights, and a short training averages its last steps.

    An update takes two operations for any number of tensors, and does not wait for the device.

    Attributes:
        module: the network with the averaged weights.
        steps: number of updates so far; a resumed training sets it.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.module = copy.deepcopy(model).requires_grad_(False)
        # State dicts hold the networks' own tensors, so these pairs stay up to date. A tensor with
        # several names, such as a tied weight, makes one pair.
        states = (network.state_dict(keep_vars=True) for network in (self.module, model))
        named = zip(*(state.values() for state in states), strict=True)
        pairs = {id(average): (average, current) for average, current in named}.values()
        self._averages = [pair for pair in pairs if pair[0].is_floating_point()]
        self._counters = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the model's current weights."""
        kept = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages, current = map(list, zip(*self._averages, strict=True))
        torch._foreach_lerp_(averages, current, 1 - kept)
        if self._counters:
            counters, current = map(list, zip(*self._counters, strict=True))
            torch._foreach_copy_(counters, current)
        self.steps += 1
