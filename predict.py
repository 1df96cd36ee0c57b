"""Say what pictures of your own show: the likeliest classes and their probabilities.

A picture may be of any size and mode. It is turned as its EXIF orientation says and laid over
white where it is transparent; of an animation the first frame counts. The square at its centre is
shrunk, with antialiasing, to the 32 x 32 pixels that the network takes. What is no picture gets a
line on standard error and is passed over. Exit status: 0, or 2 if not one picture could be read.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

if __name__ == "__main__":
    import startup

    startup.begin()

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

import data
import models
import plots
import utils
from training import weights

SIZE = 32  # pixels, height and width, of what the network takes
BATCH_SIZE = 100

Prediction = list[tuple[str, float]]  # classes and their probabilities, the likeliest first


class PictureError(Exception):
    """A file that holds no picture that can be read; one line that says why."""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(description=__doc__)
    weights.add_checkpoint(parser)
    add = parser.add_argument
    add(
        "pictures",
        type=Path,
        nargs="+",
        metavar="PICTURE",
        help="a picture, or a folder: all files in it but hidden ones, without its subfolders",
    )
    add("--json", action="store_true", help="print a line of JSON a picture instead of a table")
    add("--top", type=int, metavar="N", default=3, help="classes a picture (3)")
    add(
        "--grid",
        type=Path,
        metavar="FILE",
        help=f"draw the first {plots.MAX_PREDICTIONS} pictures and their classes, as PNG",
    )
    return parser.parse_args(argv)


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files named, and those in the folders named, by name.

    Raises:
        utils.RunError: there is none.
    """
    found = []
    for path in paths:
        if path.is_dir():
            try:
                entries = sorted(path.iterdir())
            except OSError as error:
                raise utils.RunError(f"cannot look into {path}: {error.strerror}") from error
            found += [p for p in entries if not p.name.startswith(".") and not p.is_dir()]
        else:
            found.append(path)
    if not found:
        raise utils.RunError(f"no picture in {', '.join(map(str, paths))}")
    return found


def read_picture(path: Path) -> Tensor:
    """The square at the centre of a picture, shrunk: uint8 RGB (3, 32, 32).

    Raises:
        PictureError: it cannot be read, or it is so large that it may be meant to fill the memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what a picture lacks that can be done without
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as image:
                square = over_white(crop_square(ImageOps.exif_transpose(image)))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise PictureError(f"more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
        except FileNotFoundError as error:
            raise PictureError("no such file") from error
        except PermissionError as error:
            raise PictureError("it must not be read") from error
        except Exception as error:  # whatever a damaged file makes a decoder raise
            raise PictureError("not a picture, or a damaged one") from error
    small = square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)  # antialiases when it shrinks
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def crop_square(image: Image.Image) -> Image.Image:
    """The largest square at the centre."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def over_white(image: Image.Image) -> Image.Image:
    """The picture in RGB: 16 bits a channel become 8, what is transparent becomes white.

    Raises:
        ValueError: its mode has no meaning as colours.
    """
    if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
        eighth = np.asarray(image).clip(0, 2**16 - 1) // 256
        image = Image.fromarray(eighth.astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def read_batches(paths: Sequence[Path]) -> Iterator[tuple[list[Path], Tensor]]:
    """Batches of those pictures that can be read, uint8 (N, 3, 32, 32), with their paths; a line
    on standard error for each of the others."""
    for start in range(0, len(paths), BATCH_SIZE):
        read, images = [], []
        for path in paths[start : start + BATCH_SIZE]:
            try:
                images.append(read_picture(path))
            except PictureError as error:
                print(f"{printable(path)}: {error}", file=sys.stderr)
            else:
                read.append(path)
        if read:
            yield read, torch.stack(images)


@torch.inference_mode()
def classify(
    network: nn.Module, images: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """uint8 images (N, 3, 32, 32) -> the probability of each class, (N, K)."""
    means, stds = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return network(data.normalize(images, means, stds, torch.float32)).softmax(1)


def likeliest(probabilities: Tensor, classes: Sequence[str], count: int) -> Prediction:
    """The `count` likeliest classes of one picture, the likeliest first; probabilities (K,)."""
    values, indices = probabilities.topk(count)
    return [(classes[i], p) for i, p in zip(indices.tolist(), values.tolist(), strict=True)]


def json_line(path: Path, prediction: Prediction) -> str:
    rows = [{"class": name, "probability": probability} for name, probability in prediction]
    return json.dumps({"picture": str(path), "predictions": rows})


def table_line(path: Path, prediction: Prediction, path_width: int, class_width: int) -> str:
    cells = (f"{name:<{class_width}} {100 * value:5.1f} %" for name, value in prediction)
    return "  ".join([f"{printable(path):<{path_width}}", *cells])


def printable(path: Path) -> str:
    """The path in one line that any terminal can print."""
    return utils.clean(path, utils.MESSAGE_LENGTH)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    network, checkpoint = weights.load_network(arguments.checkpoint)
    classes = [utils.clean(name) for name in checkpoint["classes"]]
    if not 1 <= arguments.top <= len(classes):
        raise utils.RunError(f"--top {arguments.top}: choose 1 to {len(classes)} classes")
    paths = find_pictures(arguments.pictures)
    widths = max(len(printable(path)) for path in paths), max(map(len, classes))
    shown: list[tuple[Tensor, str, Prediction]] = []
    for read, images in read_batches(paths):
        probabilities = classify(network, images, **checkpoint["normalization"])
        weights.require_finite(probabilities, arguments.checkpoint)
        for path, image, row in zip(read, images, probabilities, strict=True):
            prediction = likeliest(row, classes, arguments.top)
            if arguments.json:
                print(json_line(path, prediction))
            else:
                print(table_line(path, prediction, *widths))
            if len(shown) < plots.MAX_PREDICTIONS:
                shown.append((image, printable(Path(path.name)), prediction))
    if not shown:
        sys.exit(2)
    if arguments.grid is not None:
        pictures, names, predictions = zip(*shown, strict=True)
        title = f"Your pictures as {checkpoint['model']} sees them, and what it takes them for"
        plots.predictions(torch.stack(pictures), names, predictions, arguments.grid, title=title)


if __name__ == "__main__":
    utils.run_script(main, models.ModelError, OSError)
