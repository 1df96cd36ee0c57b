"""The networks for torch.hub, which needs only torch:

    network = torch.hub.load(REPO, "under100k", pretrained=True, source="local")

REPO is the folder of this repository.
"""

import torch

import models

dependencies = ["torch"]


def under100k(pretrained: bool = False, **config: object) -> torch.nn.Module:
    """The default network in evaluation mode: normalised images (N, 3, 32, 32) -> logits (N, 10).

    With `pretrained` it has the released weights, and says in two attributes what they were
    trained with: `normalization`, {"mean": [r, g, b], "std": [r, g, b]} of pixels in [0, 1], so
    that the input is (pixels - mean) / std; and `classes`, the names of the ten logits. Without,
    its weights are fresh, and `config` overrides fields of its config.

    Raises:
        models.ModelError: the released weights are not there, or `config` does not fit.
    """
    if not pretrained:
        return models.build("under100k", **config).eval()
    if config:
        raise models.ModelError("the released weights have a config of their own: pass no other")
    if not models.RELEASED_WEIGHTS.exists():
        raise models.ModelError(
            f"no released weights at {models.RELEASED_WEIGHTS}: load with pretrained=False"
        )
    checkpoint = torch.load(models.RELEASED_WEIGHTS, map_location="cpu", weights_only=True)
    network = models.build(checkpoint["model"], **checkpoint["config"])
    network.load_state_dict(checkpoint["state_dict"])
    network.normalization = checkpoint["normalization"]
    network.classes = tuple(checkpoint["classes"])
    return network.eval()
