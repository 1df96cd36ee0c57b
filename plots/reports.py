"""The figures of the reports: accuracy against size and time, the ablation, the scaling of time."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from plots.style import (
    BLUE,
    CURVES,
    GREY,
    SERIES,
    annotate_right,
    drawing,
    label_logarithmic,
    log_ticks,
    new_figure,
    save,
    wrap,
)

# For each quantity, the power of it that the time of an epoch ideally follows, and the index of the
# reference point: the most images, where fixed costs matter least, and the fewest threads.
_PROPORTIONAL = {"images": (1, -1), "threads": (-1, 0)}
NEAR = 2.5  # points of accuracy below the full network that share its panel


@dataclass(frozen=True)
class System:
    """A network, as far as its size and accuracy are known.

    Attributes:
        low, high: the reported range of accuracies, from 0 to 1; equal if one accuracy is known.
        fewer: it has fewer than `parameters`.
        more: its accuracy is above `low`, which `high` then equals.
    """

    name: str
    parameters: float
    low: float
    high: float
    fewer: bool = False
    more: bool = False


def landscape(
    systems: Mapping[str, Sequence[System]],
    path: str | os.PathLike[str],
    *,
    title: str,
    limit: int | None = None,
) -> None:
    """Draw accuracy against the number of parameters, on a logarithmic axis, and name each system.

    A range of accuracies is a bar. "Fewer than" and "more than" are arrows.

    systems: one or two kinds -> the systems of each.
    limit: a number of parameters to mark.
    """
    if not 0 < len(systems) <= len(CURVES) or not all(systems.values()):
        raise ValueError(f"pass one to {len(CURVES)} kinds, of at least one system each")
    with drawing():
        figure = new_figure(5.4, title)
        axes = figure.subplots()
        axes.set_xscale("log")
        drawn: list[tuple[System, str]] = []
        for (kind, members), style in zip(systems.items(), CURVES, strict=False):
            color, marker = style["color"], style["marker"]
            axes.plot([], [], marker, color=color, label=kind)
            for system in members:
                _draw_system(axes, system, color, marker)
                drawn.append((system, color))
        if limit is not None:
            axes.axvline(
                limit, color=GREY, linewidth=1, linestyle="--", label=f"{limit:,} parameters"
            )
        axes.margins(x=0.12, y=0.08)  # with room for the names
        label_logarithmic(axes.xaxis, log_ticks(*axes.get_xlim()))
        axes.grid(True)
        axes.set(xlabel="parameters", ylabel="accuracy (%)")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.draw_without_rendering()  # the layout, which names are placed in
        figure.set_layout_engine("none")
        _name_systems(axes, drawn)
        save(figure, path)


def _draw_system(axes: Axes, system: System, color: str, marker: str) -> None:
    """Draw a point, or a bar for a range, with arrows for "fewer than" and "more than"."""
    x, low, high = system.parameters, 100 * system.low, 100 * system.high
    if low < high:
        bar: dict[str, Any] = {"linestyle": "-", "linewidth": 3, "solid_capstyle": "butt"}
        axes.plot([x, x], [low, high], color=color, **bar)
        axes.plot([x, x], [low, high], "_", color=color, markersize=9, markeredgewidth=2)
    else:
        axes.plot(x, low, marker, color=color, markersize=6)
    arrow = {"arrowstyle": "<|-", "color": color, "shrinkA": 0, "shrinkB": 0}
    for wanted, end in ((system.fewer, (-20, 0)), (system.more, (0, 20))):
        if wanted:
            axes.annotate("", (x, high), end, textcoords="offset points", arrowprops=arrow)


def _name_systems(axes: Axes, systems: Sequence[tuple[System, str]]) -> None:
    """Write the name of each system beside its point, in its colour, where it overlaps least."""
    arrow = 22 * axes.figure.dpi / 72  # pixels
    points = []
    for system, _ in systems:
        ends = [(system.parameters, 100 * value) for value in (system.low, system.high)]
        box = Bbox(axes.transData.transform(ends)).padded(12)
        left, top = box.x0 - arrow * system.fewer, box.y1 + arrow * system.more
        points.append(Bbox.from_extents(left, box.y0, box.x1, top))
    # A white box, so that a line behind a name does not strike it through.
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    texts = [
        axes.text(0, 0, s.name, fontsize=9, color=c, va="bottom", transform=None, bbox=behind)
        for s, c in systems
    ]
    names = [Bbox.null() for _ in texts]
    for _ in range(3):  # once around those before it, then around all
        for index, (text, point) in enumerate(zip(texts, points, strict=True)):
            others = [box for box in points + names if box not in (point, names[index])]
            names[index] = _place(text.get_window_extent(), point, others, axes.bbox)
            text.set_position((names[index].x0, names[index].y0))


def _place(text: Bbox, point: Bbox, others: Sequence[Bbox], within: Bbox) -> Bbox:
    """The place beside `point` where a text overlaps the fewest others and stays inside."""
    x = (point.x1, (point.x0 + point.x1 - text.width) / 2, point.x0 - text.width)
    y = (point.y1, (point.y0 + point.y1 - text.height) / 2, point.y0 - text.height)
    sides = [(2, 1), (0, 1), (1, 0), (1, 2), (0, 0), (0, 2), (2, 0), (2, 2)]  # of x and y
    places = [Bbox.from_bounds(x[i], y[j], text.width, text.height) for i, j in sides]

    def cost(place: Bbox) -> int:
        inside = Bbox.intersection(place, within)
        cut = inside is None or inside.width * inside.height < 0.999 * place.width * place.height
        return place.count_overlaps(others) + len(others) * cut

    return min(places, key=cost)


def ablation(
    accuracies: Mapping[str, Mapping[int, float]], path: str | os.PathLike[str], *, title: str
) -> None:
    """Draw the accuracy of a network trained without each of its parts, one row per variant.

    Variants that lose more than NEAR points are in a panel on the left, with its own scale.

    accuracies: variant -> seed -> accuracy between 0 and 1; the full network comes first, and a
        line marks its mean.
    """
    if not accuracies or not all(accuracies.values()):
        raise ValueError("there are no accuracies to draw: pass at least one for each variant")
    means = [100 * float(np.mean(list(seeds.values()))) for seeds in accuracies.values()]
    near = [mean >= means[0] - NEAR for mean in means]
    with drawing():
        figure = new_figure(1.0 + 0.5 * len(accuracies), title)
        widths = [3] if all(near) else [1, 3]
        panels = figure.subplots(1, len(widths), squeeze=False, sharey=True, width_ratios=widths)[0]
        for axes, is_near in zip(panels, [False, True][-len(panels) :], strict=True):
            seeds = list(accuracies.values())
            rows = {row: seeds[row] for row in range(len(near)) if near[row] == is_near}
            _draw_seeds(axes, rows, sorted({seed for row in seeds for seed in row}))
            axes.tick_params(axis="y", length=0)
            axes.spines.left.set_visible(axes is panels[0])
            axes.margins(x=0.1 if is_near else 0.4)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=6 if is_near else 2))
        axes.axvline(means[0], color=GREY, linewidth=1, linestyle="--", zorder=1)
        axes.set_xlabel("accuracy (%)" + ", each panel on its own scale" * (len(panels) > 1))
        for row, mean in enumerate(means):
            text = f"{mean:.2f} %" + (f"  ({mean - means[0]:+.2f})" if row else "  (mean)")
            annotate_right(axes, row, text.replace("-", "\u2212"))
        panels[0].set_yticks(range(len(means)), [wrap(name, 38) for name in accuracies])
        panels[0].set_ylim(len(means) - 0.5, -0.5)
        handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        place: dict[str, Any] = {"loc": "outside lower center", "ncols": len(handles)}
        figure.legend(list(handles.values()), list(handles), frameon=False, **place)
        save(figure, path)


def _draw_seeds(
    axes: Axes, rows: Mapping[int, Mapping[int, float]], all_seeds: Sequence[int]
) -> None:
    """Draw in each row the accuracy of every seed, one below the other, and a tick at the mean.

    The place of a seed in `all_seeds` determines its marker and colour.
    """
    axes.grid(True, axis="x")
    for row, seeds in rows.items():
        for place, (seed, accuracy) in enumerate(sorted(seeds.items())):
            height = row + 0.24 * (place - (len(seeds) - 1) / 2)
            number = all_seeds.index(seed)
            style: dict[str, Any] = {
                "marker": "os^vDP"[number % 6],
                "color": SERIES[number % len(SERIES)],
            }
            label = f"seed {seed}"
            axes.plot(100 * accuracy, height, linestyle="", markersize=6, label=label, **style)
        mean = 100 * float(np.mean(list(seeds.values())))
        axes.plot(mean, row, "|", color=GREY, markersize=20, label="mean", zorder=1.5)


def scaling(
    series: Mapping[str, Sequence[tuple[float, float]]],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw the time of an epoch against each quantity, one panel each, on logarithmic axes.

    series: quantity -> pairs of its value and the seconds per epoch, all above 0. "images" and
        "threads" also get a dashed line of ideal scaling, through the most images and the fewest
        threads.
    """
    if not series or not all(series.values()):
        raise ValueError("there are no times to draw: pass at least one pair for each quantity")
    with drawing():
        figure = new_figure(3.6, title)
        panels = figure.subplots(1, len(series), squeeze=False, sharey=True)[0]
        legend: dict[str, Any] = {}
        for axes, (quantity, points) in zip(panels, series.items(), strict=True):
            x, seconds = np.array(sorted(points), dtype=float).T
            if quantity in _PROPORTIONAL:
                power, through = _PROPORTIONAL[quantity]
                ideal = seconds[through] * (x / x[through]) ** power
                axes.plot(x, ideal, color=GREY, linestyle="--", label="ideal scaling")
            axes.plot(x, seconds, color=BLUE, marker="o", markersize=5, label="measured")
            axes.set_xscale("log")
            axes.set_yscale("log")
            label_logarithmic(axes.xaxis, x)
            axes.grid(True)
            axes.set_xlabel(quantity)
            legend.update(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
        label_logarithmic(panels[0].yaxis, log_ticks(*panels[0].get_ylim()))
        panels[0].set_ylabel("seconds per epoch")
        figure.legend(
            list(legend.values()), list(legend), loc="outside lower center", ncols=2, frameon=False
        )
        save(figure, path)
