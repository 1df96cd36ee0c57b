"""The figures that a run and the README show."""

from plots.evaluation import (
    MAX_EXPLANATIONS,
    MAX_PREDICTIONS,
    class_accuracy,
    confusion_matrix,
    explanations,
    mistakes,
    predictions,
)
from plots.reports import ablation, landscape, scaling, time_to_accuracy
from plots.training import augmentation, validation

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
