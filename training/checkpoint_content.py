"""Checks what a checkpoint holds before the code works with it.

Where its content comes from, and how a run continues from it: Run in run.py. How it is written and
read: checkpoint.py.
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

import data
import utils

LARGEST_LOSS = 1e15  # of an epoch in a history; a larger one counts as infinite
MAX_CONFIG_NUMBER = 4096  # a width or depth in a network's config

# What malformed content raises in the code that works with it.
MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def first_fault(content: dict[str, Any]) -> str | None:
    """The name of the first released field that is missing or makes no sense, or None."""
    return next((name for name, valid in _FIELDS.items() if not valid(content.get(name))), None)


def check_like(expected: Any, actual: Any, where: str = "training") -> None:
    """Compare nested dicts and lists in all but their numbers: keys, lengths, types, strings,
    booleans, the shapes and dtypes of tensors.

    Raises:
        ValueError: they differ, or `actual` holds a number that is not finite.
    """
    if isinstance(expected, dict):
        same = isinstance(actual, dict) and expected.keys() == actual.keys()
        pairs = [(key, expected[key], actual[key]) for key in expected] if same else []
    elif isinstance(expected, list | tuple):
        same = isinstance(actual, list | tuple) and len(expected) == len(actual)
        pairs = list(zip(range(len(expected)), expected, actual, strict=True)) if same else []
    elif isinstance(expected, Tensor):
        same, pairs = isinstance(actual, Tensor) and _is_finite(actual), []
        same = same and (expected.shape, expected.dtype) == (actual.shape, actual.dtype)
    elif isinstance(expected, int | float) and not isinstance(expected, bool):
        kinds = (int, float) if isinstance(expected, float) else (int,)
        same, pairs = type(actual) in kinds and _is_finite(actual), []
    else:
        same, pairs = type(expected) is type(actual) and expected == actual, []
    if not same:
        raise ValueError(f"{where} does not fit")
    for key, inner, other in pairs:
        check_like(inner, other, f"{where}/{key}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return abs(value) < (math.inf if isinstance(value, float) else 2**63)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable()


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def is_config(value: Any) -> bool:
    """Whether a checkpoint may hold this config of a network."""
    return isinstance(value, dict) and all(map(_is_small, value.values()))


def _is_small(value: Any) -> bool:
    """What a network's config may hold: no number that asks for gigabytes."""
    if isinstance(value, list | tuple):
        return all(_is_small(item) for item in value)
    if isinstance(value, int | float):
        return abs(value) <= MAX_CONFIG_NUMBER
    return value is None or _is_text(value)


def _is_normalization(value: Any) -> bool:
    """Mean and standard deviation of pixels in [0, 1], a channel each."""

    def are_floats(numbers: Any) -> bool:
        of_floats = isinstance(numbers, list) and all(type(x) is float for x in numbers)
        return of_floats and len(numbers) == 3 and all(0 <= x <= 1 for x in numbers)

    return (
        isinstance(value, dict)
        and value.keys() == {"mean", "std"}
        and all(map(are_floats, value.values()))
        and min(value["std"]) > 1e-3
    )


def _is_history(value: Any) -> bool:
    """Rows of the epochs 1, 2, ..., each with all columns: numbers, or None in the eval_ ones."""

    def is_number(value: Any, column: str) -> bool:
        if value is None:
            return column.startswith("eval_")
        return type(value) in (int, float) and 0 <= value < LARGEST_LOSS

    return isinstance(value, list) and all(
        isinstance(row, dict)
        and row.keys() == set(utils.HISTORY_COLUMNS)
        and all(is_number(row[column], column) for column in utils.HISTORY_COLUMNS)
        and row["epoch"] == epoch
        for epoch, row in enumerate(value, start=1)
    )


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "model": _is_text,
    "config": is_config,
    "state_dict": lambda value: (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(t, Tensor) and _is_finite(t) for t in value.values())
    ),
    "normalization": _is_normalization,
    "classes": lambda value: (
        isinstance(value, list) and len(value) == len(data.CLASSES) and all(map(_is_text, value))
    ),
    "data": lambda value: (
        isinstance(value, dict)
        and value.keys() >= {"source", "train_split", "eval_split"}
        and all(map(_is_text, value.values()))
    ),
    "epoch": _is_count,
    "history": _is_history,
}
