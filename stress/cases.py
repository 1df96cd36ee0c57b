"""The hostile cases: tables, and Hypothesis strategies that know each field's meaning."""

import base64
import copy
import csv
import io
import json
import math
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st
from PIL import Image

from stress.words import BODIES, FLAGS, HEADERS, NAMES, RIGHT, SHARED, STATUS, WEIGHTS, words
from training import checkpoint as checkpoints

Draw = Callable[[st.SearchStrategy], Any]


@dataclass(frozen=True)
class Case:
    """A command and the hostile files in the folder that it runs in.

    In the command, HERE stands for the folder of intact files and SERVER for the server's address.
    `right` is the content of a damaged file before the damage.
    """

    kind: str
    command: list[str]
    files: dict[str, bytes] = field(default_factory=dict)
    right: bytes | None = None


# ------------------------------------------------------------------------------ what a value may be

DEEP, DIGITS = "@deep", "@digits"  # stand for what Python's json cannot write
MEANT = {f'"{DEEP}"': "[" * 100_000 + "]" * 100_000, f'"{DIGITS}"': "9" * 5000}
UNREAL = (math.nan, math.inf, -math.inf, 1e-40, 3e38, -3e38, -1.0, 0.0)
NUMBERS = (*UNREAL, 0, -1, 1, 3, 10**6, 2**31, 2**63, 10**600, -(10**600), 1e-320, 1e308, -1e300)
TEXTS = ["", " ", "x" * 200, "x" * 201, "a\nb", "\x1b[2J", "\u202eab", "\0", "\ud800", "$\\frac$"]
TEXTS += ["$$", "%s{0}", "../../etc/passwd", "baseline", "under100k", "cifar10", "字" * 200, DIGITS]
PLAIN: list = [None, True, False, [], {}, [0] * 3, {"a": 0}, {"tensor": "a"}, [[[[[]]]]], DEEP]
TENSORS = (torch.tensor(math.nan), torch.zeros(0), torch.zeros(1).expand(4, 4), torch.ones(10) > 0)
HOW = ("near", "near", "near", "extreme", "extreme", "delete", "copy")
deeper = st.integers(0, 4)  # 0 is no
unreal = st.sampled_from(UNREAL)
extremes = st.sampled_from((*NUMBERS, *TEXTS, *PLAIN, *TENSORS)).map(copy.deepcopy)


def near(value: Any) -> st.SearchStrategy[Any]:
    """A different value of the same type, or of a similar one."""
    if isinstance(value, torch.Tensor):
        shapes = st.sampled_from((value.flatten()[1:], value[None], value > 0, value.double()))
        if not value.is_floating_point() or not value.numel():
            return shapes
        places = st.integers(0, value.numel() - 1).map(lambda place: [place])
        places |= st.just(list(range(value.numel())))
        puts = st.builds(value.flatten().index_fill, st.just(0), places.map(torch.tensor), unreal)
        return puts.map(lambda numbers: numbers.view(value.shape)) | shapes
    if isinstance(value, str | list):
        times = [min(n, 10**5 // max(1, len(value))) for n in (0, 2, 10, 1000)]
        other = st.sampled_from((*(value * n for n in times), value[::-1], value[:-1]))
        return other | st.text() if isinstance(value, str) else other
    if isinstance(value, dict):
        return st.tuples(st.text(max_size=5), extremes).map(lambda new: value | dict([new]))
    if isinstance(value, bool) or value is None:
        return st.just(not value)
    close = st.sampled_from((value + 1, -value, value * 1000, str(value), [value], value == 0))
    return close | st.floats() | st.integers(-(2**70), 2**70)


def changed(draw: Draw, tree: dict[str, Any]) -> dict[str, Any]:
    """The nested dicts and lists with one to three values changed. A small field is as likely to
    change as a large tensor."""
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        container: Any = tree or {"": 0}
        key = draw(st.sampled_from(list(container)))
        while isinstance(container[key], dict | list) and container[key] and draw(deeper):
            container = container[key]
            keys = list(container) if isinstance(container, dict) else range(len(container))
            key = draw(st.sampled_from(keys))
        how = draw(st.sampled_from(HOW))
        if how == "delete":
            del container[key]
        elif how == "copy":
            container[key] = copy.deepcopy(draw(st.sampled_from([*tree.values(), 0])))
        else:
            container[key] = draw(near(container[key]) if how == "near" else extremes)
    return tree


def parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # written in any order
    return header, content[end:]


def joined(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header, default=str).encode()
    text += b" " * (-len(text) % 8)
    return as_length(len(text)) + text + tensors


def as_length(size: int) -> bytes:
    return size.to_bytes(8, "little")


@st.composite
def forged(draw: Draw, content: bytes) -> bytes:
    """A checkpoint with changed values and a matching checksum."""
    text = parts(content)[0]["__metadata__"]["content"]
    tree = checkpoints.decode(text, safetensors.torch.load(content))
    text, tensors = checkpoints.encode(changed(draw, tree))
    for word, meant in MEANT.items():
        text = text.replace(word, meant)
    digest = checkpoints.checksum(text, tensors)
    metadata = {"version": checkpoints.VERSION, "content": text, "sha256": digest}
    return safetensors.torch.save(tensors, metadata)


# ------------------------------------------------------------------------------------ damaged files


@st.composite
def headed(draw: Draw, content: bytes) -> bytes:
    """A checkpoint whose header omits a tensor, lies about one, overlaps or never ends."""
    header, tensors = parts(content)
    made = joined(changed(draw, header), tensors)
    length = draw(st.just(made[:8]) | st.sampled_from((0, 1, 1 << 20, 1 << 63)).map(as_length))
    return length + made[8:]


@st.composite
def relabelled(draw: Draw, content: bytes) -> bytes:
    """A label file with changed fields, rows, columns or encoding."""
    tree = changed(draw, {"": list(csv.reader(io.StringIO(content.decode())))})
    text, rows = io.StringIO(), tree.get("")
    rows = rows if isinstance(rows, list) else [rows]
    csv.writer(text).writerows(row if isinstance(row, list) else [row] for row in rows)
    encoding = draw(st.sampled_from(("utf-8", "utf-8-sig", "utf-16")))
    return text.getvalue().encode(encoding, "replace")


class Attack:
    """Unpickling it calls a function."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call[0], self.call[1:]


ATTACKS = [(os.mkdir, "x"), (os.system, "touch x"), (eval, "open('x', 'w')"), (bytearray, 1 << 36)]
FILES = [pickle.dumps(Attack(*call), protocol) for call in ATTACKS for protocol in (0, 2, 4)]
FILES += [b"(" * 100_000 + b"l" * 100_000 + b".", b"\x80\x02" + b"N0" * 10**6 + b"N.", b"", b"\n"]
FILES += [b"epoch\n1\n", b"%!PS\n", b"<svg/>", b"PK\3\4", b"GIF89a", bytes(10_000)]


@st.composite
def damaged(draw: Draw, content: bytes) -> bytes:
    """The file with changed bytes, a changed stretch or another end, or a file of another kind."""
    places = st.integers(0, min(len(content) - 1, 4096)) | st.integers(0, len(content) - 1)
    at, length, noise = draw(places), draw(st.integers(1, 8) | places), draw(st.binary(max_size=8))
    before, stretch, after = content[:at], content[at : at + length], content[at + length :]
    middles = (noise, noise[:length], stretch[::-1], bytes(len(stretch)), stretch * 2, b"")
    files = [before, after, *(before + middle + after for middle in middles)]
    return draw(st.sampled_from([*files, draw(st.sampled_from(FILES))]))


# ----------------------------------------------------------------------------------------- pictures

FORMATS = "PNG JPEG GIF TIFF BMP WEBP AVIF PPM MPO EPS PDF TGA PCX ICO JPEG2000 DDS".split()
MODES = "RGB RGBA L LA P 1 CMYK YCbCr I I;16 F LAB HSV".split()
SIDES = st.sampled_from((1, 2, 31, 32, 33, 100, 3000))
FIELDS = st.sampled_from((0, 1, 32, 5000, 5001, 30_000, 1 << 30, (1 << 31) - 1, (1 << 32) - 1))
BOMBS = (b"zTXtk\0\0", b"iCCPk\0\0", b"iTXtk\0\1\0\0\0", b"IDAT", b"fdAT\0\0\0\0", b"aBcD")
BOMB = zlib.compress(bytes(1 << 26), 9)


@st.composite
def pictures(draw: Draw) -> bytes:
    """Pictures of any format, mode, size and orientation, some animated, some damaged."""
    mode, size = draw(st.sampled_from(MODES)), (draw(SIDES), min(100, draw(SIDES)))
    image, exif, file = Image.new(mode, size), Image.Exif(), io.BytesIO()
    exif[0x0112] = draw(st.integers(0, 9))  # the orientation
    kind, animated = draw(st.sampled_from(FORMATS)), draw(st.booleans())
    more: dict = {"save_all": True, "append_images": [image] * 3} if animated else {}
    more |= {"exif": exif} if kind != "AVIF" else {}  # whose encoder crashes on it
    try:
        image.save(file, format=kind, **more)
    except Exception:  # of many kinds, where the format has no such mode
        Image.new("RGB", size).save(file, format="BMP")
    return draw(st.just(file.getvalue()) | damaged(file.getvalue()) | png_by_hand())


@st.composite
def png_by_hand(draw: Draw) -> bytes:
    """A PNG that lies about itself and holds 64 MB of zeros as text, profile or pixels."""
    head = (draw(FIELDS), draw(FIELDS), draw(st.sampled_from((8, 16, 1))), draw(st.integers(0, 7)))
    bombs = draw(st.lists(st.sampled_from(BOMBS), max_size=2))
    chunks = [b"IHDR" + struct.pack(">IIBB", *head) + bytes(3), *(b + BOMB for b in bombs), b"IEND"]
    packed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


# ---------------------------------------------------------------------------------------- the cases

READERS = 5 * ["train.py --output run --resume hostile"]
READERS += 3 * ["test.py --output run --checkpoint hostile"]
READERS += 2 * ["predict.py --json HERE/picture.png --checkpoint hostile"]
READERS += ["export.py --calibration-images 8 --checkpoint hostile"]
DATA: list[tuple[str, Callable[[bytes], st.SearchStrategy[bytes]]]] = [
    ("cifar-10-batches-bin/test_batch.bin", damaged),
    ("cifar-10-batches-py/test_batch", damaged),
    ("sample/labels.csv", relabelled),
    ("sample/val_0.png", lambda content: pictures()),
]


@st.composite
def checkpoints_read(draw: Draw, here: Path) -> Case:
    command = draw(st.sampled_from(READERS)).split()
    name = "last" if command[0] == "train.py" else "weights"
    content = (here / f"{name}{draw(st.sampled_from(('', '-mirror')))}.safetensors").read_bytes()
    how = draw(st.sampled_from((forged, forged, forged, headed, damaged)))
    right = None if how is forged else content
    return Case(f"checkpoints, {how.__name__}", command, {"hostile": draw(how(content))}, right)


@st.composite
def data_read(draw: Draw, here: Path) -> Case:
    name, others = draw(st.sampled_from(DATA))
    content = (here / name).read_bytes()
    hostile = draw(others(content) | damaged(content))
    source = ["sample"] if name.startswith("sample") else ["cifar10", "--data-dir", "."]
    command = ["test.py", *RIGHT["test.py"], "--data", *source]
    return Case(Path(name).parent.name, command, {name: hostile}, content)


@st.composite
def pictures_read(draw: Draw, here: Path) -> Case:
    found = draw(st.dictionaries(st.sampled_from(NAMES), pictures(), min_size=1, max_size=3))
    flags = draw(st.lists(st.sampled_from(("--json", "--whole", "--grid=g.png")), unique=True))
    paths = ["."] if draw(st.booleans()) else ["--", *found]
    return Case("pictures", ["predict.py", *WEIGHTS, *flags, *paths], found)


@st.composite
def flags_given(draw: Draw, here: Path) -> Case:
    script = draw(st.sampled_from([*FLAGS, "train.py"]))
    pairs = st.tuples(st.sampled_from([*FLAGS[script], *SHARED]), words)
    one = pairs.map(lambda pair: ["=".join(pair)]) | pairs.map(lambda pair: [pair[0]])
    given = draw(st.lists(pairs.map(list) | one | words.map(lambda w: [w]), min_size=1, max_size=3))
    said: list[str] = sum(given, [])
    # A command may write where its flags say, but not into the folder that all cases share.
    for index, (before, word) in enumerate(zip(["", *said], list(said), strict=False)):
        if "--output" in (before, word.partition("=")[0]):
            said[index] = word.replace("HERE", "here")
    return Case("flags", [script, *RIGHT[script], *said])


@st.composite
def downloads(draw: Draw, here: Path) -> Case:
    headers = draw(st.lists(st.sampled_from(HEADERS), max_size=2))
    answer = [draw(st.sampled_from(STATUS)), headers, draw(st.sampled_from(BODIES))]
    url = "SERVER/" + base64.urlsafe_b64encode(json.dumps(answer).encode()).decode()
    flags = ["--data", "cifar10", "--data-dir", "raw", "--download-url", url]
    return Case("downloads", ["test.py", *RIGHT["test.py"], *flags])


KINDS = [checkpoints_read, flags_given, pictures_read, data_read, downloads]
KINDS += 11 * [checkpoints_read] + 2 * [flags_given, pictures_read]
