"""The figures of a training: its curves, and its augmented images."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from plots.style import (
    CURVES,
    as_images,
    drawing,
    marker_indices,
    new_figure,
    save,
)

MAX_AUGMENTED = 10


def validation(
    history: Sequence[dict[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str,
    eval_split: str | None = None,
    loss: str | None = None,
    averaged: bool = False,
    precision: str | None = None,
) -> None:
    """Draw accuracy and loss per epoch, for training and for the evaluated split.

    history: one row per epoch with the keys epoch, train_loss, train_accuracy, eval_loss and
        eval_accuracy. Accuracies are fractions, losses nats per image; None, as in an epoch that
        was not evaluated, is skipped.
    eval_split: name of the evaluated split, for the legend.
    loss: name of the training loss, for the legend, if it is not the cross-entropy that the split
        is evaluated with; "label-smoothed loss" is higher by construction.
    averaged: whether the evaluated weights are the moving average, for the legend.
    precision: that of the evaluation, for the legend.
    """
    if not history:
        raise ValueError("the history has no epochs to draw: pass at least one row")
    trained = f"training (augmented, {loss})" if loss else "training"
    evaluated = f"{eval_split or 'evaluated'} split{_details(averaged, precision)}"
    curves: list[tuple[str, str, dict[str, Any]]] = [
        ("train", trained, CURVES[1]),
        ("eval", evaluated, CURVES[0]),
    ]
    with drawing():
        figure = new_figure(4.2, title)
        accuracy_axes, loss_axes = figure.subplots(1, 2)
        _draw_curves(accuracy_axes, history, curves, "accuracy", 100, "{:.2f} %")
        _draw_curves(loss_axes, history, curves, "loss", 1, "{:.3f}")
        accuracy_axes.set_ylabel("accuracy (%)")
        loss_axes.set_ylabel("loss (nats per image)")
        handles, labels = accuracy_axes.get_legend_handles_labels()
        if handles:  # below the panels, where it covers no curve
            figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        save(figure, path)


def _details(averaged: bool, precision: str | None) -> str:
    """How the split was scored, in brackets."""
    scored = [f"scored in {precision}"] if precision else []
    details = ", ".join(["averaged weights"] * averaged + scored)
    return f" ({details})" if details else ""


def _draw_curves(
    axes: Axes,
    history: Sequence[dict[str, Any]],
    curves: Sequence[tuple[str, str, dict[str, Any]]],
    quantity: str,
    scale: float,
    text: str,
) -> None:
    """Draw a panel: one quantity of the history, one curve per split, with its last value.

    curves: for each split, the prefix of its column names, its label and its style.
    """
    ends = []
    for prefix, label, style in curves:
        epochs, values = _points(history, f"{prefix}_{quantity}", scale)
        if epochs.size:
            marked = marker_indices(epochs.size)
            axes.plot(epochs, values, label=label, markersize=5, markevery=marked, **style)
            ends.append((text.format(values[-1]), (epochs[-1], values[-1]), style["color"]))
    # Label the end of the evaluated split's curve if there is one. After one epoch, label
    # training's point too, on the other side.
    for (words, point, color), side in zip(reversed(ends), (1, -1), strict=False):
        if side == 1 or len(history) == 1:
            place: dict[str, Any] = {"ha": "left" if side == 1 else "right", "va": "center"}
            axes.annotate(
                words,
                point,
                (6 * side, 0),
                textcoords="offset points",
                color=color,
                annotation_clip=False,
                **place,
            )
    epochs = [row["epoch"] for row in history]
    margin = max(0.5, 0.03 * (max(epochs) - min(epochs)))
    axes.set_xlim(min(epochs) - margin, max(epochs) + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, min_n_ticks=1))
    axes.grid(True)
    axes.set_xlabel("epoch")


def _points(history: Sequence[dict[str, Any]], key: str, scale: float) -> tuple[Any, Any]:
    """The epochs in which `key` is finite, and its values there times `scale`."""
    values = np.array([np.nan if row[key] is None else row[key] for row in history], dtype=float)
    epochs = np.array([row["epoch"] for row in history])
    finite = np.isfinite(values)
    return epochs[finite], scale * values[finite]


def augmentation(
    originals: Any,
    augmented: Sequence[Any],
    labels: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw the first MAX_AUGMENTED images in the top row, and below them their augmented versions,
    one row per epoch.

    originals: uint8 (N, 3, H, W).
    augmented: for each epoch uint8 (N, 3, H, W), the same images augmented but not normalised.
    labels: N names, drawn above the originals.
    """
    originals = as_images(originals)
    if not len(originals) or not augmented:
        raise ValueError("there are no augmented images to draw: pass at least one of one epoch")
    rows = [originals, *map(as_images, augmented)]
    if any(row.shape != originals.shape for row in rows) or len(labels) != len(originals):
        raise ValueError("originals, augmented images and labels do not fit: pass one of each")
    names = ["original", *(f"epoch {epoch}" for epoch in range(1, len(rows)))]
    with drawing():
        figure = new_figure(0.75 + 0.82 * len(rows), title)
        # A wider gap separates the originals from the augmented images.
        grid = figure.add_gridspec(len(rows) + 1, 1, height_ratios=[1, 0.06, *[1] * len(augmented)])
        for index, (name, images) in enumerate(zip(names, rows, strict=True)):
            axes = figure.add_subplot(grid[index + (index > 0), 0])
            centres = _draw_row(axes, images[:MAX_AUGMENTED])
            axes.set_ylabel(name, rotation=0, ha="right", va="center")
            if index == 0:
                axes.tick_params(length=0, labeltop=True, labelbottom=False)
                axes.set_xticks(centres, labels[:MAX_AUGMENTED])
        save(figure, path)


def _draw_row(axes: Axes, images: np.ndarray) -> list[float]:
    """Draw images (N, 3, H, W) side by side as one image: separate axes would take seconds. Returns
    the horizontal centre of each."""
    gap = max(1, images.shape[3] // 16)
    step = images.shape[3] + gap
    apart = np.pad(images, ((0, 0), (0, 0), (0, 0), (0, gap)), constant_values=255)
    axes.imshow(np.hstack(apart.transpose(0, 2, 3, 1))[:, :-gap], interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return [index * step + (images.shape[3] - 1) / 2 for index in range(len(images))]
