"""The figures of an evaluation: its classes, its mistakes, and what the network looks at."""

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from plots.style import (
    BLUE,
    GREY,
    ORANGE,
    STYLE,
    as_counts,
    as_images,
    new_figure,
    picture_grid,
    save,
)

MAX_MISTAKES = 25
MAX_PREDICTIONS = 40
MAX_EXPLANATIONS = 12


def class_accuracy(
    correct: Any, total: Any, classes: Sequence[str], path: str | os.PathLike[str], *, title: str
) -> None:
    """Draw a bar for the accuracy of each class, and one for all classes together.

    correct, total: (C,) numbers of images, those classified correctly and all of them, by true
        class. A class without images gets no bar and says so.
    """
    correct, total = as_counts(correct), as_counts(total)
    if not len(correct) == len(total) == len(classes):
        raise ValueError(
            f"{len(correct)} counts of correct images and {len(total)} of images do not fit "
            f"{len(classes)} classes: pass one of each per class"
        )
    names = [*classes, "all"]
    correct = np.append(correct, correct.sum())
    total = np.append(total, total.sum())
    percentages = 100 * correct / np.maximum(total, 1)  # 0 where there are no images
    with rc_context(STYLE):
        figure = new_figure(1.4 + 0.32 * len(names), title)
        axes = figure.subplots()
        positions = range(len(names))
        bars = axes.barh(positions, percentages, color=[BLUE] * len(classes) + [GREY])
        labels = [
            f"{percentage:.1f} %  ({right}/{images})" if images else "no images"
            for percentage, right, images in zip(percentages, correct, total, strict=True)
        ]
        plain = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # no grid behind the text
        axes.bar_label(bars, labels, padding=5, fontsize=9, bbox=plain)
        axes.set_yticks(positions, names)
        axes.margins(y=0.02)
        axes.invert_yaxis()  # the first class on top
        axes.set_xlim(0, 100)
        axes.grid(True, axis="x")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("accuracy (%)")
        save(figure, path)


def confusion_matrix(
    matrix: Any,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw the confusion matrix: a count in each cell, coloured by its share of the true class.

    matrix: (C, C) numbers of images, a row for each true and a column for each predicted class.
    """
    counts = as_counts(matrix)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(
            f"a confusion matrix of shape {counts.shape} does not fit {len(classes)} classes: "
            f"pass one row and one column per class"
        )
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with rc_context(STYLE):
        figure = new_figure(7.0, title)
        axes = figure.subplots()
        # The square root spreads the few per cent that most cells hold over half of the colours.
        norm = PowerNorm(0.5, vmin=0, vmax=100)
        image = axes.imshow(shares, cmap="viridis", norm=norm)
        for (row, column), count in np.ndenumerate(counts):
            color = _contrasting(image.to_rgba(shares[row, column]))
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


def _contrasting(rgba: tuple[float, ...]) -> str:
    """Black or white, whichever has the higher contrast on `rgba` by WCAG 2.2."""
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
    """Draw the most confident mistakes, at most MAX_MISTAKES of them, the most confident first.

    images: uint8 (N, 3, H, W), of a whole split or of its mistakes: images classified correctly
        are left out.
    true, predicted: (N,) class indices.
    confidence: (N,) probabilities that the network gave to the predicted class.
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
    with rc_context(STYLE):
        if not shown.size:
            figure = new_figure(2.0, title)
            figure.text(0.5, 0.4, f"no mistakes in {len(images)} images", ha="center", va="center")
        else:
            rows = -(-shown.size // 5)
            figure = new_figure(0.7 + 2.0 * rows, title)
            grid = picture_grid(figure, images[shown], columns=5)
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
    """Draw pictures and what they are taken for, the first MAX_PREDICTIONS of those given.

    images: uint8 (N, 3, H, W).
    names: of the pictures; a long one loses its middle.
    predictions: for each picture pairs of a class and its probability.
    """
    images = as_images(images)
    if not len(images) == len(names) == len(predictions) > 0:
        raise ValueError(
            f"{len(images)} pictures, {len(names)} names and {len(predictions)} predictions do not "
            f"fit: pass one of each per picture, and at least one"
        )
    images = images[:MAX_PREDICTIONS]
    rows = -(-len(images) // 5)
    lines = 1 + max(map(len, predictions))
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # in the name of a file
        figure = new_figure(0.5 + (1.7 + 0.155 * lines) * rows, title)
        drawn = picture_grid(figure, images, columns=5)
        for axes, name, classes in zip(drawn, names, predictions, strict=False):
            axes.set_anchor("N")  # below its caption, where the row is higher than the picture
            caption = [name if len(name) <= 20 else f"{name[:9]}\u2026{name[-10:]}"]
            caption += [f"{label}: {100 * probability:.1f} %" for label, probability in classes]
            axes.set_title("\n".join(caption), fontsize=9, loc="left", pad=3, parse_math=False)
        save(figure, path)


def explanations(
    images: Any,
    captions: Sequence[str],
    maps: Any,
    gates: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw what the network looks at: a row for each of the first MAX_EXPLANATIONS images.

    images: uint8 (N, 3, H, W).
    captions: N texts of up to three lines, which stand beside the images.
    maps: (N, h, w) between 0 and 1, drawn over the images.
    gates: name of a channel attention -> (M, C), by what it scales each channel; the first N of
        the M are those of `images`. The channels stand in the order of their means over all M, and
        a bar goes from the mean to the scale in the image. At most the last two are drawn.
    """
    images, maps = as_images(images), np.asarray(maps)
    gates = {name: np.asarray(values) for name, values in list(gates.items())[-2:]}
    shortest = min((len(values) for values in gates.values()), default=len(images))
    if not shortest >= len(images) == len(captions) == len(maps) > 0:
        raise ValueError(
            f"{len(images)} images, {len(captions)} captions, {len(maps)} maps and gates of "
            f"{shortest} images do not fit: pass one of each per image, and at least one"
        )
    images = images[:MAX_EXPLANATIONS]
    with rc_context(STYLE):
        figure = new_figure(1.2 + 1.2 * len(images), title)
        widths = [1, 1, *[1.9] * len(gates)]
        rows = figure.subplots(len(images), len(widths), squeeze=False, width_ratios=widths)
        for index, (plain, mapped, *attentions) in enumerate(rows):
            _draw_picture(plain, mapped, images[index], maps[index], captions[index])
            for axes, values in zip(attentions, gates.values(), strict=True):
                _draw_gates(axes, values, index)
                axes.tick_params(labelbottom=index == len(images) - 1)
        _label_explanations(figure, rows, list(gates))
        save(figure, path)


def _label_explanations(figure: Figure, rows: np.ndarray, gates: Sequence[str]) -> None:
    """Name the columns of `rows` of axes, and what the colours of the gates mean."""
    for axes, name in zip(rows[0], ("image", "Grad-CAM", *gates), strict=True):
        axes.set_title(name)
    for axes in rows[-1][2:]:
        axes.set_xlabel("channel, by mean scale")
    if gates:
        handles, labels = rows[0][2].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=3, frameon=False)


def _draw_picture(
    plain: Axes, mapped: Axes, image: np.ndarray, cam: np.ndarray, caption: str
) -> None:
    """An image (3, H, W) beside its caption, and once more under its map (h, w)."""
    for axes in (plain, mapped):
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    extent = (-0.5, image.shape[2] - 0.5, image.shape[1] - 0.5, -0.5)
    overlay = {"cmap": "viridis", "vmin": 0, "vmax": 1, "alpha": 0.6}
    mapped.imshow(cam, extent=extent, interpolation="bilinear", **overlay)
    plain.set_ylabel(caption, rotation=0, ha="right", va="center", fontsize=9, parse_math=False)


def _draw_gates(axes: Axes, gates: np.ndarray, index: int) -> None:
    """By what channels are scaled in image `index` of gates (M, C), and on average."""
    mean = gates.mean(axis=0)
    order = np.argsort(mean)
    mean, scale = mean[order], gates[index, order]
    channels = np.arange(len(mean))
    axes.plot(channels, mean, color=GREY, linewidth=1, label="mean over the images")
    for chosen, color, label in (
        (scale > mean, BLUE, "more in this one"),
        (scale < mean, ORANGE, "less"),
    ):
        low, high = mean[chosen], scale[chosen]
        axes.vlines(channels[chosen], low, high, color=color, linewidth=1.2, label=label)
    axes.set_xlim(-1, len(mean))
    margin = 0.05 * (np.ptp(gates) or 1)
    axes.set_ylim(gates.min() - margin, gates.max() + margin)  # the same in every row
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
