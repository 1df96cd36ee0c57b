"""The figures of the reports: accuracy against size and time, the ablation, how time scales."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from plots.style import (
    BLUE,
    CURVES,
    GREY,
    STYLE,
    label_logarithmic,
    marker_places,
    new_figure,
    round_steps,
    save,
)

# The power of each that the time of an epoch ideally grows with, and the point to see it from: many
# images hide what an epoch costs without any, one thread has no company.
_PROPORTIONAL = {"images": (1, -1), "threads": (-1, 0)}


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
    if not 0 < len(systems) <= len(CURVES) or not all(systems.values()):
        raise ValueError(f"pass one to {len(CURVES)} kinds, of at least one system each")
    with rc_context(STYLE):
        figure = new_figure(4.8, title)
        axes = figure.subplots()
        for (kind, members), style in zip(systems.items(), CURVES, strict=False):
            x, y = [m[1] for m in members], [100 * m[2] for m in members]
            first = style is CURVES[0]
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
        save(figure, path)


def ablation(
    accuracies: Mapping[str, Sequence[float]], path: str | os.PathLike[str], *, title: str
) -> None:
    """Draw what training without each part of a network does to its accuracy, a row a variant.

    accuracies: variant -> accuracies between 0 and 1, one a seed; the whole network comes first,
        and a line marks its mean.
    """
    if not accuracies or not all(accuracies.values()):
        raise ValueError("there are no accuracies to draw: pass at least one for each variant")
    with rc_context(STYLE):
        figure = new_figure(0.8 + 0.4 * len(accuracies), title)
        axes = figure.subplots()
        means = [100 * float(np.mean(values)) for values in accuracies.values()]
        rows = range(len(accuracies))
        for row, values in zip(rows, accuracies.values(), strict=True):
            seeds = [100 * value for value in values]
            label = "one seed" if row == 0 else None
            axes.plot(seeds, [row] * len(seeds), "o", color=GREY, markersize=4, label=label)
        axes.plot(means, rows, "D", color=BLUE, markersize=7, label="mean", zorder=1.5)
        axes.axvline(means[0], color=BLUE, linewidth=1, linestyle="--", zorder=1)
        axes.set_yticks(rows, list(accuracies), parse_math=False)
        axes.set_ylim(len(accuracies) - 0.5, -0.5)
        axes.grid(True, axis="x")
        axes.set_xlabel("accuracy (%)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        save(figure, path)


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
    with rc_context(STYLE):
        figure = new_figure(3.6, title)
        panels = figure.subplots(1, len(series), squeeze=False, sharey=True)[0]
        legend = {}
        for axes, (quantity, points) in zip(panels, series.items(), strict=True):
            x, seconds = np.array(sorted(points), dtype=float).T
            if quantity in _PROPORTIONAL:
                power, through = _PROPORTIONAL[quantity]
                ideal = seconds[through] * (x / x[through]) ** power
                axes.plot(x, ideal, color=GREY, linestyle="--", label="in proportion")
            axes.plot(x, seconds, color=BLUE, marker="o", markersize=5, label="measured")
            axes.set_xscale("log")
            axes.set_yscale("log")
            label_logarithmic(axes.xaxis, x)
            axes.grid(True)
            axes.set_xlabel(quantity)
            legend.update(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        label_logarithmic(panels[0].yaxis, round_steps(*panels[0].get_ylim()))
        panels[0].set_ylabel("seconds an epoch")
        figure.legend(legend.values(), legend, loc="outside lower center", ncols=2, frameon=False)
        save(figure, path)


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
    if not curves or len(curves) > len(CURVES) or not all(len(x) for x, _ in curves.values()):
        raise ValueError(f"pass one to {len(CURVES)} curves, of at least one epoch each")
    with rc_context(STYLE):
        figure = new_figure(4.2, title)
        axes = figure.subplots()
        for (name, (minutes, accuracies)), style in zip(curves.items(), CURVES, strict=False):
            percentages = 100 * np.asarray(accuracies, dtype=float)
            marked = marker_places(len(percentages))
            axes.plot(minutes, percentages, label=name, markersize=5, markevery=marked, **style)
        axes.axhline(100 * target, color=GREY, linewidth=1, label=f"{100 * target:.2f} %")
        axes.set_xscale("log")
        _label_accuracy_over(axes, "minutes of training")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        save(figure, path)


def _label_accuracy_over(axes: Axes, quantity: str) -> None:
    """Accuracy in per cent over `quantity`, whose axis is logarithmic and has its limits."""
    label_logarithmic(axes.xaxis, round_steps(*axes.get_xlim()))
    axes.grid(True)
    axes.set_xlabel(quantity)
    axes.set_ylabel("accuracy (%)")
