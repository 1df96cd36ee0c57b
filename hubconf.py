"""The networks for torch.hub, which needs only torch and safetensors:

    network = torch.hub.load(REPO, "under100k", pretrained=True, source="local")

REPO is the folder of this repository. Modules of the calling program that share a
name with this repository's are left alone.
"""

import importlib.util  # modules alone: torch.hub lists every function here as a network
import json
import pathlib
import sys
import types
import zlib

import safetensors
import torch

dependencies = ["torch", "safetensors"]


def _import_models() -> types.ModuleType:
    """The package models/, under a unique name, made of its own and a hash of the folder."""
    folder = pathlib.Path(__file__).resolve().parent / "models"
    name = f"cifar10_under100k_models_{zlib.crc32(bytes(folder)):08x}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[name])
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


_models = _import_models()


def _load(name: str, pretrained: bool, config: dict[str, object]) -> torch.nn.Module:
    """The network `name` in evaluation mode; see `under100k`."""
    if not pretrained:
        return _models.build(name, **config).eval()
    if config:
        raise ValueError("the released weights have their own config: pass no config")
    path = _models.RELEASED_WEIGHTS.with_name(f"{name}.safetensors")
    if not path.exists():
        raise ValueError(f"no released weights at {path}: load with pretrained=False")
    with safetensors.safe_open(path, "pt") as file:
        checkpoint = json.loads(file.metadata()["content"])
        names = [name for name in file.keys() if name.startswith("state_dict/")]
        weights = {name.removeprefix("state_dict/"): file.get_tensor(name) for name in names}
    network = _models.build(checkpoint["model"], **checkpoint["config"])
    network.load_state_dict(weights)
    network.normalization = checkpoint["normalization"]
    network.classes = tuple(checkpoint["classes"])
    return network.eval()


def under100k(pretrained: bool = False, **config: object) -> torch.nn.Module:
    """The default network in evaluation mode: normalised images (N, 3, 32, 32) -> logits (N, 10).

    With `pretrained` it has the released weights and two attributes: `normalization`,
    {"mean": [r, g, b], "std": [r, g, b]} of pixels in [0, 1], so that the input is
    (pixels - mean) / std; and `classes`, the names of the ten logits. Without `pretrained` its
    weights are random, and `config` overrides fields of its config.

    Raises:
        ValueError: the released weights are missing, or `config` is invalid.
    """
    return _load("under100k", pretrained, config)


def under50k(pretrained: bool = False, **config: object) -> torch.nn.Module:
    """The network with half of the parameters; otherwise as `under100k`."""
    return _load("under50k", pretrained, config)


def under25k(pretrained: bool = False, **config: object) -> torch.nn.Module:
    """The network with a quarter of the parameters; otherwise as `under100k`."""
    return _load("under25k", pretrained, config)
