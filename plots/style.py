"""Shared by all figures: size, fonts, colours, grids of pictures, axes, saving.

Figures are drawn with matplotlib's Figure alone, which needs neither pyplot nor a display. Every
public function of the other modules here writes one PNG, 1260 pixels wide, replacing the file at
`path` only once the new one is complete. Arrays may be NumPy arrays, lists or torch tensors on the
CPU. All of them raise ValueError for input that does not fit together, and OSError, with `path` as
its filename, where the file cannot be written.

Colours are from the palette of Okabe and Ito (2008), "Color Universal Design", or from viridis:
both can be told apart by colour-blind readers.
"""

import contextlib
import errno
import io
import math
import os
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, NullLocator

WIDTH = 8.4  # inches: at 150 dpi a README shows 1260 pixels in about 830, 10 points as 14 pixels
DPI = 150
COLUMNS = 5  # pictures side by side
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#707070"
SERIES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#56B4E9")
CURVES: tuple[dict[str, Any], ...] = (
    {"color": BLUE, "linestyle": "-", "marker": "s"},
    {"color": ORANGE, "linestyle": "--", "marker": "o"},
)
STYLE = {
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
    "text.parse_math": False,  # a class or a file may be called $\frac$
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """The context for drawing a figure: the same style on every machine, no text parsed as a
    formula, and no warnings about glyphs that the font lacks."""
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        yield


def new_figure(height: float, title: str) -> Figure:
    """An empty figure of `height` inches, plus the height of a title's further lines."""
    lines = textwrap.wrap(title, width=76)
    height += 0.2 * max(0, len(lines) - 1)
    # The pads are inches, the spaces shares of the panels' size.
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout=layout)
    figure.suptitle("\n".join(lines))
    return figure


def grid_rows(images: int) -> int:
    """Rows of `picture_grid`."""
    return -(-images // COLUMNS)


def picture_grid(figure: Figure, images: np.ndarray) -> list[Axes]:
    """Draw (N, 3, H, W) images row by row; return the N axes that hold them."""
    every = figure.subplots(grid_rows(len(images)), COLUMNS, squeeze=False).flat
    for axes in every:
        axes.axis("off")
    drawn = list(every[: len(images)])
    for axes, image in zip(drawn, images, strict=True):
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    return drawn


def marker_indices(length: int) -> list[int]:
    """About 12 indices into a curve of `length` points, always with the last one."""
    return sorted(range(length - 1, -1, -max(1, length // 12)))


def log_ticks(low: float, high: float) -> list[float]:
    """A few round numbers between `low` and `high`, both above 0, evenly spaced by ratio."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    narrow = tuple(tenths / 10 for tenths in range(10, 100))
    for digits in (narrow, (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        steps = [d * 10.0**k for k in decades for d in digits if low <= d * 10.0**k <= high]
        if len(steps) <= 7:
            break
    return steps


def label_logarithmic(axis: Axis, values: Sequence[float]) -> None:
    """Set ticks only at `values`, as plain numbers with k for thousands."""
    axis.set_major_locator(FixedLocator(values))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{x / 1000:g}k" if x >= 2000 else f"{x:g}")


def wrap(text: str, width: int) -> str:
    """Wrap each line of `text` at `width` characters."""
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())


def annotate_right(axes: Axes, row: float, text: str) -> None:
    """Write `text` at the right border of `axes`, at the height `row`."""
    place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    axes.annotate(text, (1, row), (10, 0), va="center", fontsize=9, annotation_clip=False, **place)


def as_counts(values: Any) -> np.ndarray:
    return np.asarray(values).astype(np.int64)


def as_images(images: Any) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images of shape {images.shape} and type {images.dtype} cannot be drawn: "
            f"pass uint8 of shape (N, 3, H, W)"
        )
    return images


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write `figure` to a temporary file and rename it to `path`, so no partial file is left."""
    path = Path(path)
    if path.exists() and not path.is_file():  # os.replace would remove a device
        raise OSError(errno.EEXIST, "it exists and is not a file", str(path))
    png = io.BytesIO()
    figure.savefig(png, format="png")
    partial = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        partial.write_bytes(png.getvalue())
        os.replace(partial, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # it is gone if the rename succeeded
            partial.unlink()
