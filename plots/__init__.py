"""The figures that a run and the README show."""

from .figures import (
    augmentation,
    class_accuracy,
    confusion_matrix,
    mistakes,
    scaling,
    time_to_accuracy,
    validation,
)

__all__ = [
    "augmentation",
    "class_accuracy",
    "confusion_matrix",
    "mistakes",
    "scaling",
    "time_to_accuracy",
    "validation",
]
