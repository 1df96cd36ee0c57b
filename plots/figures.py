"""Draw figures with matplotlib's Figure alone, which needs neither pyplot nor a display.

Every public function writes one PNG, 1260 pixels wide, replacing the file at `path` only once the
new one is complete. Arrays may be NumPy arrays, lists or torch tensors on the CPU. All of them
raise ValueError for input that does not fit together, and OSError, with `path` as its filename,
where the file cannot be written.

Colours are from the palette of Okabe and Ito (2008), "Color Universal Design", or from viridis:
both can be told apart by colour-blind readers.
"""

import contextlib
import io
import math
import os
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

MAX_MISTAKES = 25
MAX_AUGMENTED = 40
MAX_PREDICTIONS = 40
MAX_EXPLANATIONS = 12

_WIDTH = 8.4  # inches: at 150 dpi a README shows 1260 pixels in about 830, 10 points as 14 pixels
_DPI = 150
_BLUE, _ORANGE, _GREY = "#0072B2", "#D55E00", "#707070"
_CURVES = (
    {"color": _BLUE, "linestyle": "-", "marker": "s"},
    {"color": _ORANGE, "linestyle": "--", "marker": "o"},
)
# The power of each that the time of an epoch ideally grows with, and the point to see it from: many
# images hide what an epoch costs without any, one thread has no company.
_PROPORTIONAL = {"images": (1, -1), "threads": (-1, 0)}
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 10,
    "figure.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#DDDDDD",
}


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
    curves = [
        (
            "train",
            "training (augmented, label-smoothed loss)" if label_smoothed else "training",
            {"color": _ORANGE, "linestyle": "--", "marker": "o"},
        ),
        (
            "eval",
            f"{eval_split} split" if eval_split else "evaluated split",
            {"color": _BLUE, "linestyle": "-", "marker": "s"},
        ),
    ]
    with rc_context(_STYLE):
        figure = _figure(4.2, title)
        accuracy_axes, loss_axes = figure.subplots(1, 2)
        for axes, quantity, scale, text in (
            (accuracy_axes, "accuracy", 100, "{:.2f} %"),
            (loss_axes, "loss", 1, "{:.3f}"),
        ):
            last: tuple[float, float, str] | None = None
            for prefix, label, style in curves:
                epochs, values = _points(history, f"{prefix}_{quantity}", scale)
                if epochs.size:
                    axes.plot(
                        epochs,
                        values,
                        label=label,
                        markersize=5,
                        markevery=_marked(epochs.size),
                        **style,
                    )
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
        accuracy_axes.set_ylabel("accuracy (%)")
        loss_axes.set_ylabel("loss (nats per image)")
        handles, labels = accuracy_axes.get_legend_handles_labels()
        if handles:  # below the panels, where it covers no curve
            figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
        _save(figure, path)


def class_accuracy(
    correct: Any,
    total: Any,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw a bar for the accuracy of each class, and one for all classes together.

    correct, total: (C,) numbers of images, those classified correctly and all of them, by true
        class. A class without images gets no bar and says so.
    """
    correct, total = _counts(correct), _counts(total)
    if not len(correct) == len(total) == len(classes):
        raise ValueError(
            f"{len(correct)} counts of correct images and {len(total)} of images do not fit "
            f"{len(classes)} classes: pass one of each per class"
        )
    names = [*classes, "all"]
    correct = np.append(correct, correct.sum())
    total = np.append(total, total.sum())
    percentages = 100 * correct / np.maximum(total, 1)  # 0 where there are no images
    with rc_context(_STYLE):
        figure = _figure(1.4 + 0.32 * len(names), title)
        axes = figure.subplots()
        positions = range(len(names))
        bars = axes.barh(positions, percentages, color=[_BLUE] * len(classes) + [_GREY])
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
        _save(figure, path)


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
    counts = _counts(matrix)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(
            f"a confusion matrix of shape {counts.shape} does not fit {len(classes)} classes: "
            f"pass one row and one column per class"
        )
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with rc_context(_STYLE):
        figure = _figure(7.0, title)
        axes = figure.subplots()
        # The square root spreads the few per cent that most cells hold over half of the colours.
        norm = PowerNorm(0.5, vmin=0, vmax=100)
        image = axes.imshow(shares, cmap="viridis", norm=norm)
        for (row, column), count in np.ndenumerate(counts):
            axes.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                color=_contrasting(image.to_rgba(shares[row, column])),
            )
        ticks = range(len(classes))
        axes.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(ticks, classes)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        colorbar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 1, 5, 10, 25, 50, 100])
        colorbar.set_label("share of the true class (%)")
        _save(figure, path)


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
    images = _images(images)
    true, predicted, confidence = np.asarray(true), np.asarray(predicted), np.asarray(confidence)
    if not len(images) == len(true) == len(predicted) == len(confidence):
        raise ValueError(
            f"{len(images)} images, {len(true)} true classes, {len(predicted)} predicted classes "
            f"and {len(confidence)} confidences do not fit: pass one of each per image"
        )
    wrong = np.flatnonzero(true != predicted)
    shown = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    with rc_context(_STYLE):
        if not shown.size:
            figure = _figure(2.0, title)
            figure.text(0.5, 0.4, f"no mistakes in {len(images)} images", ha="center", va="center")
        else:
            rows = -(-shown.size // 5)
            figure = _figure(0.7 + 2.0 * rows, title)
            for axes, index in zip(_grid(figure, images[shown], columns=5), shown, strict=True):
                axes.set_title(
                    f"true: {classes[true[index]]}\n"
                    f"predicted: {classes[predicted[index]]}\n"
                    f"confidence: {100 * confidence[index]:.1f} %",
                    fontsize=9,
                    loc="left",
                    pad=3,
                )
        _save(figure, path)


def augmentation(images: Any, path: str | os.PathLike[str], *, title: str) -> None:
    """Draw training images as the network sees them, the first MAX_AUGMENTED of those given.

    images: uint8 (N, 3, H, W), augmented but not normalised.
    """
    images = _images(images)[:MAX_AUGMENTED]
    if not len(images):
        raise ValueError("there are no augmented images to draw: pass at least one")
    rows = -(-len(images) // 8)
    with rc_context(_STYLE):
        figure = _figure(0.5 + 1.05 * rows, title)
        _grid(figure, images, columns=8)
        _save(figure, path)


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
    images = _images(images)
    if not len(images) == len(names) == len(predictions) > 0:
        raise ValueError(
            f"{len(images)} pictures, {len(names)} names and {len(predictions)} predictions do not "
            f"fit: pass one of each per picture, and at least one"
        )
    images = images[:MAX_PREDICTIONS]
    rows = -(-len(images) // 5)
    lines = 1 + max(map(len, predictions))
    with rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # in the name of a file
        figure = _figure(0.5 + (1.7 + 0.155 * lines) * rows, title)
        drawn = _grid(figure, images, columns=5)
        for axes, name, classes in zip(drawn, names, predictions, strict=False):
            axes.set_anchor("N")  # below its caption, where the row is higher than the picture
            caption = [name if len(name) <= 20 else f"{name[:9]}\u2026{name[-10:]}"]
            caption += [f"{label}: {100 * probability:.1f} %" for label, probability in classes]
            axes.set_title("\n".join(caption), fontsize=9, loc="left", pad=3, parse_math=False)
        _save(figure, path)


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
    images, maps = _images(images), np.asarray(maps)
    gates = {name: np.asarray(values) for name, values in list(gates.items())[-2:]}
    shortest = min((len(values) for values in gates.values()), default=len(images))
    if not shortest >= len(images) == len(captions) == len(maps) > 0:
        raise ValueError(
            f"{len(images)} images, {len(captions)} captions, {len(maps)} maps and gates of "
            f"{shortest} images do not fit: pass one of each per image, and at least one"
        )
    images = images[:MAX_EXPLANATIONS]
    extent = (-0.5, images.shape[3] - 0.5, images.shape[2] - 0.5, -0.5)
    with rc_context(_STYLE):
        figure = _figure(1.2 + 1.2 * len(images), title)
        widths = [1, 1, *[1.9] * len(gates)]
        rows = figure.subplots(len(images), len(widths), squeeze=False, width_ratios=widths)
        for index, (plain, mapped, *attentions) in enumerate(rows):
            for axes in (plain, mapped):
                axes.imshow(images[index].transpose(1, 2, 0), interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            overlay = {"cmap": "viridis", "vmin": 0, "vmax": 1, "alpha": 0.6}
            mapped.imshow(maps[index], extent=extent, interpolation="bilinear", **overlay)
            plain.set_ylabel(
                captions[index], rotation=0, ha="right", va="center", fontsize=9, parse_math=False
            )
            for axes, values in zip(attentions, gates.values(), strict=True):
                _draw_gates(axes, values, index)
                axes.tick_params(labelbottom=index == len(images) - 1)
        for axes, name in zip(rows[0], ("image", "Grad-CAM", *gates), strict=True):
            axes.set_title(name)
        for axes in rows[-1][2:]:
            axes.set_xlabel("channel, by mean scale")
        if gates:
            handles, labels = rows[0][2].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower right", ncols=3, frameon=False)
        _save(figure, path)


def _draw_gates(axes: Axes, gates: np.ndarray, index: int) -> None:
    """By what channels are scaled in image `index` of gates (M, C), and on average."""
    mean = gates.mean(axis=0)
    order = np.argsort(mean)
    mean, scale = mean[order], gates[index, order]
    channels = np.arange(len(mean))
    axes.plot(channels, mean, color=_GREY, linewidth=1, label="mean over the images")
    for chosen, color, label in (
        (scale > mean, _BLUE, "more in this one"),
        (scale < mean, _ORANGE, "less"),
    ):
        low, high = mean[chosen], scale[chosen]
        axes.vlines(channels[chosen], low, high, color=color, linewidth=1.2, label=label)
    axes.set_xlim(-1, len(mean))
    margin = 0.05 * (np.ptp(gates) or 1)
    axes.set_ylim(gates.min() - margin, gates.max() + margin)  # the same in every row
    axes.yaxis.set_major_locator(MaxNLocator(nbins=3))


def scaling(
    series: Mapping[str, Sequence[tuple[float, float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw the time of an epoch against what it depends on, a panel each, on logarithmic axes.

    series: what is varied -> pairs of its value and the seconds of an epoch, all above 0. "images"
        and "threads" get a dashed line of exact proportion, through the most images and the
        fewest threads.
    """
    if not series or not all(series.values()):
        raise ValueError("there are no times to draw: pass at least one pair for each quantity")
    with rc_context(_STYLE):
        figure = _figure(3.6, title)
        panels = figure.subplots(1, len(series), squeeze=False, sharey=True)[0]
        legend = {}
        for axes, (quantity, points) in zip(panels, series.items(), strict=True):
            x, seconds = np.array(sorted(points), dtype=float).T
            if quantity in _PROPORTIONAL:
                power, through = _PROPORTIONAL[quantity]
                ideal = seconds[through] * (x / x[through]) ** power
                axes.plot(x, ideal, color=_GREY, linestyle="--", label="in proportion")
            axes.plot(x, seconds, color=_BLUE, marker="o", markersize=5, label="measured")
            axes.set_xscale("log")
            axes.set_yscale("log")
            _label_logarithmic(axes.xaxis, x)
            axes.grid(True)
            axes.set_xlabel(quantity)
            legend.update(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        _label_logarithmic(panels[0].yaxis, _round_steps(*panels[0].get_ylim()))
        panels[0].set_ylabel("seconds an epoch")
        figure.legend(legend.values(), legend, loc="outside lower center", ncols=2, frameon=False)
        _save(figure, path)


def time_to_accuracy(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    target: float,
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw accuracy against minutes of training, on a logarithmic axis, and the accuracy aimed at.

    curves: name -> minutes above 0 and accuracies between 0 and 1, as many of each, a point an
        epoch; two curves at most.
    target: accuracy between 0 and 1.
    """
    if not curves or len(curves) > len(_CURVES) or not all(len(x) for x, _ in curves.values()):
        raise ValueError(f"pass one to {len(_CURVES)} curves, of at least one epoch each")
    with rc_context(_STYLE):
        figure = _figure(4.2, title)
        axes = figure.subplots()
        for (name, (minutes, accuracies)), style in zip(curves.items(), _CURVES, strict=False):
            percentages = 100 * np.asarray(accuracies, dtype=float)
            marked = _marked(len(percentages))
            axes.plot(minutes, percentages, label=name, markersize=5, markevery=marked, **style)
        axes.axhline(100 * target, color=_GREY, linewidth=1, label=f"{100 * target:.2f} %")
        axes.set_xscale("log")
        _label_accuracy_over(axes, "minutes of training")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        _save(figure, path)


def ablation(
    accuracies: Mapping[str, Sequence[float]], path: str | os.PathLike[str], *, title: str
) -> None:
    """Draw what training without each part of a network does to its accuracy, a row a variant.

    accuracies: variant -> accuracies between 0 and 1, one a seed; the whole network comes first,
        and a line marks its mean.
    """
    if not accuracies or not all(accuracies.values()):
        raise ValueError("there are no accuracies to draw: pass at least one for each variant")
    with rc_context(_STYLE):
        figure = _figure(0.8 + 0.4 * len(accuracies), title)
        axes = figure.subplots()
        means = [100 * float(np.mean(values)) for values in accuracies.values()]
        rows = range(len(accuracies))
        for row, values in zip(rows, accuracies.values(), strict=True):
            seeds = [100 * value for value in values]
            label = "one seed" if row == 0 else None
            axes.plot(seeds, [row] * len(seeds), "o", color=_GREY, markersize=4, label=label)
        axes.plot(means, rows, "D", color=_BLUE, markersize=7, label="mean", zorder=1.5)
        axes.axvline(means[0], color=_BLUE, linewidth=1, linestyle="--", zorder=1)
        axes.set_yticks(rows, list(accuracies), parse_math=False)
        axes.set_ylim(len(accuracies) - 0.5, -0.5)
        axes.grid(True, axis="x")
        axes.set_xlabel("accuracy (%)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        _save(figure, path)


def landscape(
    systems: Mapping[str, Sequence[tuple[str, float, float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw accuracy against the number of parameters, on a logarithmic axis, and name each system.

    systems: one or two kinds -> (name, parameters, accuracy between 0 and 1) of each. The names of
        the first kind stand to the right of their points, those of the second to the left.
    """
    if not 0 < len(systems) <= len(_CURVES) or not all(systems.values()):
        raise ValueError(f"pass one to {len(_CURVES)} kinds, of at least one system each")
    with rc_context(_STYLE):
        figure = _figure(4.8, title)
        axes = figure.subplots()
        for (kind, members), style in zip(systems.items(), _CURVES, strict=False):
            x, y = [m[1] for m in members], [100 * m[2] for m in members]
            first = style is _CURVES[0]
            face = style["color"] if first else "white"
            axes.scatter(x, y, label=kind, s=36, color=face, edgecolor=style["color"], zorder=2)
            for name, parameters, accuracy in members:
                axes.annotate(
                    name,
                    (parameters, 100 * accuracy),
                    xytext=(7 if first else -7, 0),
                    textcoords="offset points",
                    ha="left" if first else "right",
                    va="center",
                    fontsize=9,
                    color=style["color"],
                    parse_math=False,
                )
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(low / 1.6, high * 1.2)  # with room for the names
        _label_accuracy_over(axes, "parameters")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        _save(figure, path)


def _figure(height: float, title: str) -> Figure:
    """An empty figure of `height` inches, and what the title needs beyond its first line."""
    lines = textwrap.wrap(title, width=76)
    height += 0.2 * max(0, len(lines) - 1)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(
        w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.03
    )  # inches, shares
    figure.suptitle("\n".join(lines), parse_math=False)
    return figure


def _grid(figure: Figure, images: np.ndarray, columns: int) -> list[Axes]:
    """Draw (N, 3, H, W) images row by row; return the N axes that hold them."""
    rows = -(-len(images) // columns)
    every = figure.subplots(rows, columns, squeeze=False).flat
    for axes in every:
        axes.axis("off")
    drawn = list(every[: len(images)])
    for axes, image in zip(drawn, images, strict=True):
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    return drawn


def _points(history: Sequence[dict[str, Any]], key: str, scale: float) -> tuple[Any, Any]:
    """The epochs in which `key` has a finite value, and those values times `scale`."""
    values = np.array([np.nan if row[key] is None else row[key] for row in history], dtype=float)
    epochs = np.array([row["epoch"] for row in history])
    finite = np.isfinite(values)
    return epochs[finite], scale * values[finite]


def _marked(length: int) -> list[int]:
    """About 12 indices of a curve of `length` points, the last always among them."""
    return sorted(range(length - 1, -1, -max(1, length // 12)))


def _round_steps(low: float, high: float) -> list[float]:
    """A few round numbers between `low` and `high`, both above 0, evenly spread by their ratio."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    narrow = tuple(tenths / 10 for tenths in range(10, 100))
    for digits in (narrow, (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        steps = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
        if len(steps) <= 7:
            break
    return steps


def _label_logarithmic(axis: Axis, values: Sequence[float]) -> None:
    """Ticks at `values` and nowhere else, as plain numbers with k for thousands."""
    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 2000 else f"{x:g}")


def _label_accuracy_over(axes: Axes, quantity: str) -> None:
    """Accuracy in per cent over `quantity`, whose axis is logarithmic and has its limits."""
    _label_logarithmic(axes.xaxis, _round_steps(*axes.get_xlim()))
    axes.grid(True)
    axes.set_xlabel(quantity)
    axes.set_ylabel("accuracy (%)")


def _counts(values: Any) -> np.ndarray:
    return np.asarray(values).astype(np.int64)


def _images(images: Any) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images of shape {images.shape} and type {images.dtype} cannot be drawn: "
            f"pass uint8 of shape (N, 3, H, W)"
        )
    return images


def _contrasting(rgba: tuple[float, ...]) -> str:
    """Black or white, whichever has the higher contrast on `rgba` by WCAG 2.2."""
    red, green, blue = (channel**2.2 for channel in rgba[:3])  # sRGB to linear light, nearly
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "black" if luminance > 0.179 else "white"


def _save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write `figure` beside `path` and then move it there, so that no half of a file is left."""
    path = Path(path)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(png.getvalue())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # there is none where all went well
            partial.unlink()
