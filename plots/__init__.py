"""The figures of a run, of an evaluation and of the documentation."""

from plots.evaluation import (
    MAX_PREDICTIONS,
    class_accuracy,
    confusion_matrix,
    mistakes,
    predictions,
)
from plots.explanations import MAX_EXPLANATIONS, explanations
from plots.reports import System, ablation, landscape, scaling
from plots.training import augmentation, validation

__all__ = [
    "MAX_EXPLANATIONS",
    "MAX_PREDICTIONS",
    "System",
    "ablation",
    "augmentation",
    "class_accuracy",
    "confusion_matrix",
    "explanations",
    "landscape",
    "mistakes",
    "predictions",
    "scaling",
    "validation",
]
