"""The teacher of a training: trained networks whose probabilities another network learns from."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.mirror import untied
from training import distributed
from training.weights import WeightsFile, load_again


class Teacher:
    """Trained networks that share each batch: each one predicts its own part of the images.

    Every epoch shuffles the images, so over the epochs an image meets all the networks. The loss is
    linear in the teacher's probabilities, so on average the student learns the mean of the
    networks, at the cost of one.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, K), in the precision that the caller trains in."""
        parts = images.tensor_split(len(self.networks))
        # With fewer images than networks, some networks get none.
        pairs = zip(self.networks, parts, strict=True)
        return torch.cat([network(part) for network, part in pairs if len(part)])


def load_teacher(files: Sequence[WeightsFile], device: torch.device) -> Teacher | None:
    """The teacher that consists of these files, or None if there are none.

    Raises:
        utils.RunError: a file is missing or has changed.
    """
    networks = []
    for file in files:
        network = untied(load_again(file, "--teacher")).requires_grad_(False)
        networks.append(network.to(device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    if not networks:
        return None
    # The longer parts are the first ones: those of each process go to other networks.
    first = distributed.rank() % len(networks)
    return Teacher(networks[first:] + networks[:first])
