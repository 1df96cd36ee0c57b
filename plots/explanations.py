"""The figure of explanations: images, maps over them, and channel attention."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.style import BLUE, GREY, ORANGE, WIDTH, as_images, drawing, new_figure, save

MAX_EXPLANATIONS = 12


def explanations(
    images: Any,
    captions: Sequence[str],
    maps: Any,
    gates: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw the explanations of the first MAX_EXPLANATIONS images: one image per row, or two
    without gates.

    images: uint8 (N, 3, H, W).
    captions: N texts of up to three lines, drawn beside the images.
    maps: (N, h, w) between 0 and 1, drawn over the images.
    gates: name of a channel attention -> (M, C) between 0 and 1, the scale of each channel for M
        images, the first N of which are `images`. Only the last two entries are drawn, with the
        channels sorted by their mean over M.
    """
    images, maps = as_images(images), np.asarray(maps)
    gates = {name: np.asarray(values) for name, values in list(gates.items())[-2:]}
    _check(images, captions, maps, gates)
    count = min(len(images), MAX_EXPLANATIONS)
    with drawing():
        figure, rows = _rows(count, len(gates), title)
        for index, (beside, plain, mapped, *attentions) in enumerate(rows):
            _draw_picture(plain, mapped, images[index], maps[index])
            beside.axis("off")
            beside.text(1, 0.5, captions[index], ha="right", va="center", fontsize=9)
            for axes, values in zip(attentions, gates.values(), strict=True):
                _draw_gates(axes, values, index)
                axes.tick_params(labelbottom=index == count - 1, labelleft=axes is attentions[0])
                axes.set_ylabel("scale" if axes is attentions[0] else "")
        for attention, name in enumerate(gates, start=3):
            rows[0][attention].set_title(name)
            rows[-1][attention].set_xlabel("channel, sorted by mean")
        if gates:
            handles, labels = rows[0][3].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower right", ncols=3, frameon=False)
        save(figure, path)


def _check(images: Any, captions: Sequence[str], maps: Any, gates: Mapping[str, Any]) -> None:
    """ValueError unless every image has one of each."""
    shortest = min((len(values) for values in gates.values()), default=len(images))
    if not shortest >= len(images) == len(captions) == len(maps) > 0:
        numbers = f"{len(images)} images, {len(captions)} captions, {len(maps)} maps"
        raise ValueError(
            f"{numbers} and gates of {shortest} do not fit: pass one of each per image"
        )


def _rows(count: int, gates: int, title: str) -> tuple[Figure, list[list[Axes]]]:
    """A figure, and for each image the axes of its caption, itself, its map and its gates.

    Without gates, a row holds two images.
    """
    across = 1 if gates else 2
    lines = -(-count // across)
    figure = new_figure(1.0 + 1.3 * lines, title)
    widths = [0.95, 1.3, 1.3, *[(WIDTH - 4.2) / max(1, gates)] * gates]  # inches
    grid = figure.add_gridspec(lines, across * len(widths), width_ratios=across * widths)
    rows = []
    for index in range(count):
        first = index % across * len(widths)
        columns = range(first, first + len(widths))
        rows.append([figure.add_subplot(grid[index // across, column]) for column in columns])
    for row in rows[:across]:
        row[1].set_title("image")
        row[2].set_title("Grad-CAM")
    return figure, rows


def _draw_picture(plain: Axes, mapped: Axes, image: np.ndarray, cam: np.ndarray) -> None:
    """Draw an image (3, H, W), and again with its map (h, w) over it."""
    for axes in (plain, mapped):
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        axes.axis("off")
    extent = (-0.5, image.shape[2] - 0.5, image.shape[1] - 0.5, -0.5)
    overlay: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": 1, "alpha": 0.6}
    mapped.imshow(cam, extent=extent, interpolation="bilinear", **overlay)


def _draw_gates(axes: Axes, gates: np.ndarray, index: int) -> None:
    """Draw a bar per channel, from the mean of its gates (M, C) to its gate in image `index`."""
    mean = gates.mean(axis=0)
    order = np.argsort(mean)
    mean, scale = mean[order], gates[index, order]
    channels = np.arange(len(mean))
    axes.plot(channels, mean, color=GREY, linewidth=1, label=f"mean of {len(gates)} images")
    for chosen, color, label in (
        (scale > mean, BLUE, "this image, above the mean"),
        (scale < mean, ORANGE, "this image, below"),
    ):
        low, high = mean[chosen], scale[chosen]
        axes.vlines(channels[chosen], low, high, color=color, linewidth=1.2, label=label)
    axes.set_xlim(-1, len(mean))
    axes.set_ylim(0, 1)  # the range of a sigmoid, the same in every row
    axes.set_yticks([0, 0.5, 1])
    axes.grid(True, axis="y")
