"""The figures that a run and the README show."""

from .figures import (
    MAX_EXPLANATIONS,
    MAX_PREDICTIONS,
    ablation,
    augmentation,
    class_accuracy,
    confusion_matrix,
    explanations,
    landscape,
    mistakes,
    predictions,
    scaling,
    time_to_accuracy,
    validation,
)

__all__ = [
    "MAX_EXPLANATIONS",
    "MAX_PREDICTIONS",
    "ablation",
    "augmentation",
    "class_accuracy",
    "confusion_matrix",
    "explanations",
    "landscape",
    "mistakes",
    "predictions",
    "scaling",
    "time_to_accuracy",
    "validation",
]
