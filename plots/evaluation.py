"""The figures of an evaluation: accuracy by class, confusion matrix, mistakes, predictions."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm

from plots.style import (
    BLUE,
    GREY,
    annotate_right,
    as_counts,
    as_images,
    drawing,
    grid_rows,
    new_figure,
    picture_grid,
    save,
)

MAX_MISTAKES = 25
MAX_PREDICTIONS = 40


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of the proportion `correct` / `total`, total > 0, within [0, 1].

    E. B. Wilson 1927, "Probable inference, the law of succession, and statistical inference". Its
    width is above 0 even if all are correct.
    """
    z = 1.959964  # 95 % of a normal distribution lie within this many standard deviations
    share = correct / total
    centre = share + z * z / (2 * total)
    radius = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - radius) / scale), min(1.0, (centre + radius) / scale)


def class_accuracy(
    correct: Any, total: Any, classes: Sequence[str], path: str | os.PathLike[str], *, title: str
) -> None:
    """Draw the accuracy of each class as a dot with its 95 % interval (Wilson), the best on top.

    The last row is the accuracy over all classes, which a dashed line extends upwards.

    correct, total: (C,) correctly classified images and all images, by true class. A class without
        images comes last and is labelled so.
    """
    correct, total = as_counts(correct), as_counts(total)
    if not len(correct) == len(total) == len(classes):
        raise ValueError(
            f"{len(correct)} counts of correct images and {len(total)} of images do not fit "
            f"{len(classes)} classes: pass one of each per class"
        )
    shares = correct / np.maximum(total, 1) - (total == 0)  # below all others without images
    order = np.argsort(-shares, kind="stable")
    names = [*(classes[i] for i in order), "all"]
    correct, total = (np.append(counts[order], counts.sum()) for counts in (correct, total))
    with drawing():
        figure = new_figure(1.3 + 0.28 * len(names), title)
        axes = figure.subplots()
        for row, (right, images) in enumerate(zip(correct.tolist(), total.tolist(), strict=True)):
            _draw_share(axes, row, right, images, GREY if row == len(classes) else BLUE)
        if total[-1]:
            overall = 100 * correct[-1] / total[-1]
            axes.axvline(overall, color=GREY, linewidth=1, linestyle="--", zorder=1)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlim(max(0, axes.get_xlim()[0]), min(100, axes.get_xlim()[1]))
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy (%), with its 95 % interval")
        save(figure, path)


def _draw_share(axes: Axes, row: int, correct: int, total: int, color: str) -> None:
    """Draw a dot in `row` at the percentage, a line along its interval, and the numbers at the
    right border of the axes."""
    text = "no images"
    if total:
        percentage = 100 * correct / total
        low, high = (100 * end for end in wilson_interval(correct, total))
        axes.plot([low, high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(percentage, row, "o", color=color, markersize=7, clip_on=False)
        text = f"{percentage:.1f} %  ({correct}/{total})"
    annotate_right(axes, row, text)


def confusion_matrix(
    matrix: Any,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw the confusion matrix: a count in each cell, coloured by its share of the true class.

    matrix: (C, C) numbers of images, a row per true class and a column per predicted class.
    """
    counts = as_counts(matrix)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(
            f"a confusion matrix of shape {counts.shape} does not fit {len(classes)} classes: "
            f"pass one row and one column per class"
        )
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with drawing():
        figure = new_figure(7.0, title)
        axes = figure.subplots()
        # The square root spreads the few per cent that most cells hold over half of the colours.
        norm = PowerNorm(0.5, vmin=0, vmax=100)
        image = axes.imshow(shares, cmap="viridis", norm=norm)
        for (row, column), count in np.ndenumerate(counts):
            color = _contrasting(tuple(image.to_rgba(shares[row, column])))
            axes.text(column, row, str(count), ha="center", va="center", color=color)
        ticks = range(len(classes))
        axes.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, classes)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        colorbar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 10, 25, 50, 100])
        colorbar.set_label("share of the true class (%)")
        save(figure, path)


def _contrasting(rgba: Sequence[float]) -> str:
    """Black or white, whichever has the higher contrast to `rgba` by WCAG 2.2."""
    red, green, blue = (channel**2.2 for channel in rgba[:3])  # sRGB to linear light, nearly
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if luminance > 0.179 else "white"


def mistakes(
    images: Any,
    true: Any,
    predicted: Any,
    confidence: Any,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw the MAX_MISTAKES most confident mistakes, the most confident first.

    images: uint8 (N, 3, H, W); those that were classified correctly are skipped.
    true, predicted: (N,) class indices.
    confidence: (N,) probabilities of the predicted class.
    """
    images = as_images(images)
    true, predicted, confidence = np.asarray(true), np.asarray(predicted), np.asarray(confidence)
    if not len(images) == len(true) == len(predicted) == len(confidence):
        raise ValueError(
            f"{len(images)} images, {len(true)} true classes, {len(predicted)} predicted classes "
            f"and {len(confidence)} confidences do not fit: pass one of each per image"
        )
    wrong = np.flatnonzero(true != predicted)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    with drawing():
        if not shown.size:
            figure = new_figure(2.0, title)
            figure.text(0.5, 0.4, f"no mistakes in {len(images)} images", ha="center", va="center")
        else:
            rows = grid_rows(shown.size)
            figure = new_figure(0.7 + 2.0 * rows, title)
            grid = picture_grid(figure, images[shown])
            for axes, i in zip(grid, shown, strict=True):
                caption = f"true: {classes[true[i]]}\npredicted: {classes[predicted[i]]}\n"
                caption += f"confidence: {100 * confidence[i]:.1f} %"
                axes.set_title(caption, fontsize=9, loc="left", pad=3)
        save(figure, path)


def predictions(
    images: Any,
    names: Sequence[str],
    predictions: Sequence[Sequence[tuple[str, float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw the first MAX_PREDICTIONS pictures with their predicted classes.

    images: uint8 (N, 3, H, W).
    names: of the pictures; a long name loses its middle.
    predictions: for each picture, pairs of a class and its probability.
    """
    images = as_images(images)
    if not len(images) == len(names) == len(predictions) > 0:
        raise ValueError(
            f"{len(images)} pictures, {len(names)} names and {len(predictions)} predictions do not "
            f"fit: pass one of each per picture, and at least one"
        )
    images = images[:MAX_PREDICTIONS]
    rows = grid_rows(len(images))
    lines = 1 + max(map(len, predictions))
    with drawing():
        figure = new_figure(0.5 + (1.7 + 0.155 * lines) * rows, title)
        drawn = picture_grid(figure, images)
        for axes, name, classes in zip(drawn, names, predictions, strict=False):
            axes.set_anchor("N")  # below its caption, where the row is higher than the picture
            caption = [name if len(name) <= 20 else f"{name[:9]}\u2026{name[-10:]}"]
            caption += [f"{label}: {100 * probability:.1f} %" for label, probability in classes]
            axes.set_title("\n".join(caption), fontsize=9, loc="left", pad=3)
        save(figure, path)
