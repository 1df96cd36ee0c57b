"""The figures of a training: its curves, and its images as the network sees them."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from plots.style import (
    BLUE,
    ORANGE,
    STYLE,
    as_images,
    marker_places,
    new_figure,
    picture_grid,
    save,
)

MAX_AUGMENTED = 40


def validation(
    history: Sequence[dict[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str,
    eval_split: str | None = None,
    label_smoothed: bool = False,
) -> None:
    """Draw accuracy and loss per epoch, of training and of the evaluated split.

    history: one row an epoch with the keys epoch, train_loss, train_accuracy, eval_loss and
        eval_accuracy. Accuracies are fractions, losses nats per image; a value of None, as in an
        epoch that was not evaluated, is left out.
    eval_split: the name of the evaluated split, for the legend.
    label_smoothed: say in the legend that the training loss is of augmented images and smoothed
        labels, and so lies above the evaluated loss by construction.
    """
    if not history:
        raise ValueError("the history has no epochs to draw: pass at least one row")
    trained = "training (augmented, label-smoothed loss)" if label_smoothed else "training"
    evaluated = f"{eval_split} split" if eval_split else "evaluated split"
    curves = [
        ("train", trained, {"color": ORANGE, "linestyle": "--", "marker": "o"}),
        ("eval", evaluated, {"color": BLUE, "linestyle": "-", "marker": "s"}),
    ]
    with rc_context(STYLE):
        figure = new_figure(4.2, title)
        accuracy_axes, loss_axes = figure.subplots(1, 2)
        for axes, quantity, scale, text in (
            (accuracy_axes, "accuracy", 100, "{:.2f} %"),
            (loss_axes, "loss", 1, "{:.3f}"),
        ):
            _draw_curves(axes, history, curves, quantity, scale, text)
        accuracy_axes.set_ylabel("accuracy (%)")
        loss_axes.set_ylabel("loss (nats per image)")
        handles, labels = accuracy_axes.get_legend_handles_labels()
        if handles:  # below the panels, where it covers no curve
            figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        save(figure, path)


def _draw_curves(
    axes: Axes,
    history: Sequence[dict[str, Any]],
    curves: Sequence[tuple[str, str, dict[str, str]]],
    quantity: str,
    scale: float,
    text: str,
) -> None:
    """A panel: one quantity of the history, a curve a split, the last value beside its end.

    curves: for each split the start of its columns' names, its label and its style.
    """
    last: tuple[float, float, str] | None = None
    for prefix, label, style in curves:
        epochs, values = _points(history, f"{prefix}_{quantity}", scale)
        if epochs.size:
            marked = marker_places(epochs.size)
            axes.plot(epochs, values, label=label, markersize=5, markevery=marked, **style)
            last = epochs[-1], values[-1], style["color"]
    if last:  # of the evaluated split where there is one, else of training
        axes.annotate(
            text.format(last[1]),
            last[:2],
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=last[2],
            annotation_clip=False,
        )
    epochs = [row["epoch"] for row in history]
    margin = max(0.5, 0.03 * (max(epochs) - min(epochs)))
    axes.set_xlim(min(epochs) - margin, max(epochs) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.grid(True)
    axes.set_xlabel("epoch")


def _points(history: Sequence[dict[str, Any]], key: str, scale: float) -> tuple[Any, Any]:
    """The epochs in which `key` has a finite value, and those values times `scale`."""
    values = np.array([np.nan if row[key] is None else row[key] for row in history], dtype=float)
    epochs = np.array([row["epoch"] for row in history])
    finite = np.isfinite(values)
    return epochs[finite], scale * values[finite]


def augmentation(images: Any, path: str | os.PathLike[str], *, title: str) -> None:
    """Draw training images as the network sees them, the first MAX_AUGMENTED of those given.

    images: uint8 (N, 3, H, W), augmented but not normalised.
    """
    images = as_images(images)[:MAX_AUGMENTED]
    if not len(images):
        raise ValueError("there are no augmented images to draw: pass at least one")
    rows = -(-len(images) // 8)
    with rc_context(STYLE):
        figure = new_figure(0.5 + 1.05 * rows, title)
        picture_grid(figure, images, columns=8)
        save(figure, path)
