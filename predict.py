"""Classify your own pictures: print the likeliest classes and their probabilities.

A picture may have any size and mode. Its EXIF orientation is applied, transparency becomes white,
and of an animation only the first frame is read. The central square, or with --whole the complete
picture, is shrunk with antialiasing to the network's 32 x 32 pixels. Other files are skipped with a
line on standard error. Exit status: 0, or 2 if no picture could be read.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    import startup

    startup.begin()

import torch
from torch import Tensor

import data
import plots
import utils
from training import weights
from training.flags import Setting, add_flag, file

TOP = Setting("classes per picture", at_least=1, at_most=len(data.CLASSES))
BATCH_SIZE = 100
SAMPLE_WARNING = (
    "predict.py: warning: these weights were trained on the 2,000 images of the built-in sample:"
    " do not rely on them"
)

Prediction = list[tuple[str, float]]  # classes and their probabilities, the likeliest first


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(description=__doc__)
    weights.add_checkpoint(parser)
    add = parser.add_argument
    add(
        "pictures",
        type=file,
        nargs="+",
        metavar="PICTURE",
        help="a picture, or a folder of pictures (hidden files and subfolders are skipped)",
    )
    add(
        "--whole", action="store_true", help="classify the complete picture, not its central square"
    )
    add("--json", action="store_true", help="print one JSON object per line instead of a table")
    add_flag(parser, "top", TOP, 3)
    add(
        "--grid",
        type=png_path,
        metavar="FILE",
        help=f"draw the first {plots.MAX_PREDICTIONS} pictures with their classes as a PNG",
    )
    return parser.parse_args(argv)


def png_path(text: str) -> Path:
    """A path to write a PNG to. Raises argparse.ArgumentTypeError if it cannot be written there."""
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png")
    if path.exists() and not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} exists and is not a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: folder {path.parent} does not exist")
    return path


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and the files in the folders among them, sorted by name.

    Raises:
        utils.RunError: there are none, or a folder cannot be read.
    """
    found = []
    for path in paths:
        if path.is_dir():
            try:
                entries = sorted(path.iterdir())
            except OSError as error:
                raise utils.RunError(f"cannot read folder {path}: {error.strerror}") from error
            found += [p for p in entries if not p.name.startswith(".") and not p.is_dir()]
        else:
            found.append(path)
    if not found:
        raise utils.RunError(f"no pictures in {', '.join(map(str, paths))}")
    return found


def read_batches(
    paths: Sequence[Path], padding: Sequence[float] | None
) -> Iterator[tuple[list[Path], Tensor]]:
    """Batches of the readable pictures, uint8 (N, 3, 32, 32), with their paths.

    Prints a line on standard error for each of the others. `padding` is as in `data.read_picture`.
    """
    for start in range(0, len(paths), BATCH_SIZE):
        read, images = [], []
        for path in paths[start : start + BATCH_SIZE]:
            try:
                images.append(data.read_picture(path, padding))
            except data.PictureError as error:
                print(f"{utils.clean(path)}: {error}", file=sys.stderr)
            else:
                read.append(path)
        if read:
            yield read, torch.stack(images)


def likeliest(probabilities: Tensor, classes: Sequence[str], count: int) -> Prediction:
    """The `count` likeliest classes of one picture, the likeliest first; probabilities (K,)."""
    values, indices = probabilities.topk(count)
    return [(classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]


def json_line(path: Path, prediction: Prediction) -> str:
    rows = [{"class": name, "probability": probability} for name, probability in prediction]
    return json.dumps({"picture": str(path), "predictions": rows})


def table_line(path: Path, prediction: Prediction, path_width: int, class_width: int) -> str:
    cells = (f"{name:<{class_width}} {100 * value:5.1f} %" for name, value in prediction)
    return "  ".join([f"{utils.clean(path):<{path_width}}", *cells])


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    network, checkpoint = weights.load_network(arguments.checkpoint)
    classes = [utils.clean(name) for name in checkpoint["classes"]]
    paths = find_pictures(arguments.pictures)
    if checkpoint["data"]["source"] == "sample":
        print(SAMPLE_WARNING, file=sys.stderr)
    widths = max(len(utils.clean(path)) for path in paths), max(map(len, classes))
    normalization = checkpoint["normalization"]
    classifier = weights.PixelClassifier(network, **normalization)
    padding = normalization["mean"] if arguments.whole else None  # becomes zeros
    shown: list[tuple[Tensor, str, Prediction]] = []
    for read, images in read_batches(paths, padding):
        with torch.inference_mode():
            probabilities = classifier(images).softmax(1)
        weights.require_finite(probabilities, arguments.checkpoint)
        for path, image, row in zip(read, images, probabilities, strict=True):
            prediction = likeliest(row, classes, arguments.top)
            if arguments.json:
                print(json_line(path, prediction))
            else:
                print(table_line(path, prediction, *widths))
            if len(shown) < plots.MAX_PREDICTIONS:
                shown.append((image, utils.clean(path.name), prediction))
    if not shown:
        sys.exit(2)
    if arguments.grid is not None:
        pictures, names, predictions = zip(*shown, strict=True)
        title = f"What {checkpoint['model']} sees, and the likeliest classes"
        plots.predictions(torch.stack(pictures), names, predictions, arguments.grid, title=title)


if __name__ == "__main__":
    utils.run_script(main, OSError)
