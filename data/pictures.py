"""Read pictures of any size and format as CIFAR-10 images: 32 x 32 pixels."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from data.cifar10 import SIZE

# The formats that are read, and the most pixels of each, which take at most about 300 MB. A large
# JPEG is decoded at a lower resolution. Decoders of other formats may start programs.
MAX_PIXELS = {
    "JPEG": 50_000_000,
    "MPO": 50_000_000,  # a JPEG that holds more than one picture
    "PNG": 16_000_000,
    "WEBP": 16_000_000,
    "AVIF": 16_000_000,
    "GIF": 16_000_000,
    "BMP": 16_000_000,
    "TIFF": 16_000_000,
    "PPM": 1_000_000,  # with 16 bits per channel, Pillow reads it slowly, in Python
}
MIN_DECODED = (1024, 1024)  # width and height that a decoded JPEG keeps at least

# Common formats that are not read, by the first bytes of a file.
UNSUPPORTED = {
    "HEIC or AVIF": rb".{4}ftyp",
    "JPEG XL": rb"\xff\x0a|.{4}JXL ",
    "JPEG 2000": rb".{4}jP  |\xff\x4f\xff\x51",
    "SVG": rb"\s*(<\?xml|<!--|<svg)",
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
    "Photoshop": rb"8BPS",
}


class PictureError(Exception):
    """A file that cannot be read as a picture; the message says why in one line."""


def read_picture(path: Path, padding: Sequence[float] | None = None) -> Tensor:
    """A picture shrunk to a square: uint8 RGB (3, 32, 32).

    Args:
        padding: the colour (red, green, blue), from 0 to 1, that pads the complete picture to a
            square; None: crop the central square instead.

    Raises:
        PictureError: it cannot be read, or has too many pixels for its format.
    """
    try:
        if path.exists() and not path.is_file():
            raise PictureError("not a file")
        picture = decode(path, whole=padding is not None)
    except PictureError:
        raise
    except FileNotFoundError as error:
        raise PictureError("no such file") from error
    except PermissionError as error:
        raise PictureError("permission denied") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"more than {max(MAX_PIXELS.values()):,} pixels") from error
    except UnidentifiedImageError as error:
        raise PictureError(unreadable(path)) from error
    except Exception as error:  # whatever a damaged file makes a decoder raise
        raise PictureError("not a picture, or a damaged one") from error
    scale = SIZE / max(picture.size)
    width, height = (max(1, round(scale * side)) for side in picture.size)
    # Antialiases when it shrinks.
    small = over_white(picture.resize((width, height), Image.Resampling.BICUBIC))
    colour = tuple(round(255 * channel) for channel in padding or (1, 1, 1))
    square = ImageOps.pad(small, (SIZE, SIZE), color=colour)
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def decode(path: Path, *, whole: bool) -> Image.Image:
    """The picture or its central square, upright, in a mode that can be resized.

    Raises:
        PictureError: it has too many pixels.
        Exception: of any kind, if a decoder cannot read it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about harmless faults in a picture
        Image.init()
        known = [name for name in MAX_PIXELS if name in Image.OPEN]
        with Image.open(path, formats=known) as image:
            most = MAX_PIXELS[image.format]
            if image.width * image.height > most:
                raise PictureError(f"more than {most:,} pixels, the limit for {image.format}")
            image.draft(None, MIN_DECODED)
            turn_upright(image)
            return resizable(image if whole else crop_square(image))


def turn_upright(image: Image.Image) -> None:
    """Turn the image as its EXIF orientation says, if its EXIF can be read."""
    image.load()  # or getexif does so for a PNG, and damaged pixels would pass below
    try:
        image.getexif()
    except Exception:  # of any kind, as in decode; the pixels may be intact
        return
    # exif_transpose writes these back, which fails for some values that can be read.
    for raw in ("exif", "Raw profile type exif"):
        image.info.pop(raw, None)
    ImageOps.exif_transpose(image, in_place=True)


def unreadable(path: Path) -> str:
    """Why Pillow cannot read a file as a picture."""
    with open(path, "rb") as file:
        start = file.read(100)
    for name, pattern in UNSUPPORTED.items():
        if re.match(pattern, start, re.DOTALL):
            return f"{name} is not supported: save the picture as JPEG or PNG"
    return "not a picture, or a damaged one"


def crop_square(image: Image.Image) -> Image.Image:
    """The central square of the image, as large as possible."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def resizable(image: Image.Image) -> Image.Image:
    """The picture in a mode whose values can be averaged: numbers (I), RGB or RGBA.

    Raises:
        ValueError: its mode has no meaning as colours.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    mode = "I" if image.mode.startswith("I") else "RGBA" if image.has_transparency_data else "RGB"
    return image if image.mode == mode else image.convert(mode)


def over_white(image: Image.Image) -> Image.Image:
    """The picture in RGB: 16 bits per channel become 8, transparency becomes white."""
    if image.mode == "I":  # Pillow would cut off at 255
        high_bytes = np.asarray(image).clip(0, 2**16 - 1) // 256
        image = Image.fromarray(high_bytes.astype(np.uint8))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
