"""The networks by name: `build("under100k")` makes one from its config.

The modules of this package use relative imports, because torch.hub loads the package under another
name (see hubconf.py).
"""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import nn

from .baseline import Baseline, BaselineConfig
from .teacher import Teacher, TeacherConfig
from .under100k import Under25kConfig, Under50kConfig, Under100k, Under100kConfig

__all__ = ["RELEASED_WEIGHTS", "ModelError", "build", "config_dict", "names"]

# The checkpoint of the default network.
RELEASED_WEIGHTS = Path(__file__).resolve().parent.parent / "checkpoints" / "under100k.safetensors"

_NETWORKS = {
    "under100k": (Under100k, Under100kConfig),
    "under50k": (Under100k, Under50kConfig),
    "under25k": (Under100k, Under25kConfig),
    "baseline": (Baseline, BaselineConfig),
    "teacher": (Teacher, TeacherConfig),
}


class ModelError(ValueError):
    """An unknown network, or a config with fields that it does not have."""


def names() -> tuple[str, ...]:
    """The names that `build` accepts, the default network first."""
    return tuple(_NETWORKS)


def _config(name: str, values: dict[str, object]) -> Any:
    if name not in _NETWORKS:
        raise ModelError(f"unknown network {name!r}: choose one of {', '.join(names())}")
    config_class = _NETWORKS[name][1]
    unknown = sorted(set(values) - {field.name for field in fields(config_class)})
    if unknown:
        raise ModelError(f"network {name!r} has no setting {', '.join(unknown)}")
    return config_class(**values)


def build(name: str, **config: object) -> nn.Module:
    """A network with random weights; `config` overrides fields of its config dataclass.

    It maps normalised images (N, 3, 32, 32) to logits (N, 10).

    Raises:
        ModelError: the name or a field of `config` is unknown.
    """
    checked = _config(name, config)
    return _NETWORKS[name][0](checked)


def config_dict(name: str, **config: object) -> dict[str, object]:
    """The complete config that `build(name, **config)` uses, as plain values for a file."""
    return asdict(_config(name, config))
