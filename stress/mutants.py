"""Damaged and hostile versions of the files that this project reads, each from a random generator.

A mutation is a function from the bytes of a file and a `random.Random` to the bytes of another;
the same generator gives the same mutant. `fuzz.py` holds them against the readers.
"""

import copy
import csv
import io
import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from training import checkpoint as checkpoints

Mutation = Callable[[bytes, random.Random], bytes]
MARKER = "FUZZ_MARKER"  # the environment variable with the path that a pickle's code would create

# ---------------------------------------------------------------------------------- any file


def flip_bits(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 8, 64))):
        changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def flip_bits_near_an_end(content: bytes, chance: random.Random) -> bytes:
    """Where formats have their headers and tables."""
    size = min(len(content), chance.choice((64, 4096, 65536)))
    if chance.random() < 0.5:
        return flip_bits(content[:size], chance) + content[size:]
    return content[:-size] + flip_bits(content[-size:], chance)


def truncate(content: bytes, chance: random.Random) -> bytes:
    length = chance.choice((0, 1, chance.randrange(len(content)), len(content) - 1))
    return content[:length] if chance.random() < 0.8 else content[-length or len(content) :]


def overwrite(content: bytes, chance: random.Random) -> bytes:
    """A stretch of zeros, of noise, or of another part of the file."""
    size = chance.randrange(1, min(len(content), 100_000))
    at, source = (chance.randrange(len(content) - size + 1) for _ in range(2))
    stretch = chance.choice((bytes(size), chance.randbytes(size), content[source : source + size]))
    return content[:at] + stretch + content[at + size :]


def insert_or_delete(content: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(content))
    if chance.random() < 0.5:
        return content[:at] + chance.randbytes(chance.choice((1, 100))) + content[at:]
    return content[:at] + content[at + chance.choice((1, 100)) :]


def something_else(content: bytes, chance: random.Random) -> bytes:
    """A file of another kind altogether."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "nothing of ours")
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, format=chance.choice(("PNG", "BMP", "GIF")))
    others = (
        b"epoch,accuracy\n1,0.99\n",
        b"\x00" * 10_000,
        chance.randbytes(10_000),
        archive.getvalue(),
        picture.getvalue(),
        pickle.dumps({"epoch": 1}),
        content + content,
    )
    return chance.choice(others)


DAMAGES = (
    flip_bits,
    flip_bits,
    flip_bits_near_an_end,
    truncate,
    overwrite,
    insert_or_delete,
    something_else,
)


# -------------------------------------------------------------------------- what runs code


class _Attack:
    """Its pickle asks whoever loads it to create the marker."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple:
        return self.call


def hostile_pickle(chance: random.Random) -> bytes:
    marker = os.environ[MARKER]
    attacks = (
        _Attack(os.mkdir, marker),
        _Attack(os.system, f"touch {marker!r}"),
        _Attack(eval, f"__import__('os').mkdir({marker!r})"),
        _Attack(bytearray, 1 << 36),
        _Attack(torch.FloatTensor, 1 << 36),
    )
    attack = chance.choice(attacks)
    content = chance.choice((attack, {"format": attack}, [attack] * 3))
    return pickle.dumps(content, protocol=chance.choice((0, 1, 2, 4)))


def endless_pickle(chance: random.Random) -> bytes:
    """Small to write, endless to walk or to load."""
    lists: list[Any] = [0]
    for _ in range(40):  # each ten times the one before it: 10^40 numbers
        lists = [lists] * 10
    itself: list[Any] = []
    itself.append(itself)
    deep = b"(" * 100_000 + b"l" * 100_000 + b"."
    long = b"\x80\x02" + b"N0" * 5_000_000 + b"N."
    return chance.choice((pickle.dumps(lists, 2), pickle.dumps(itself, 2), deep, long))


def bare_pickle(content: bytes, chance: random.Random) -> bytes:
    return hostile_pickle(chance) if chance.random() < 0.7 else endless_pickle(chance)


# ------------------------------------------------------------------------------- checkpoints


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its tensors."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _file(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def other_header(content: bytes, chance: random.Random) -> bytes:
    """A header that lacks a tensor, says something else about one, is very long, or lies."""
    header, tensors = _parts(content)
    name, other = chance.sample(sorted(header.keys() - {"__metadata__"}), 2)
    entry = header[name]
    choice = chance.randrange(8)
    if choice == 0:
        del header[name]
    elif choice == 1:
        header[name], header[other] = header[other], header[name]
    elif choice == 2:
        entry["shape"] = chance.choice(([1 << 62] * 3, [0], [], [-1], ["1"], 10**400, None))
    elif choice == 3:
        entry["data_offsets"] = chance.choice(([0, 1 << 40], [8, 0], [0], [-8, 0], [1e9, 2e9]))
    elif choice == 4:
        entry["dtype"] = chance.choice(("F64", "BF16", "F8_E4M3", "BOOL", "", 7))
    elif choice == 5:
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        header |= {str(i): empty for i in range(chance.choice((100, 4_000, 100_000)))}
    elif choice == 6:
        header["__metadata__"] = chance.choice(({}, [], None, {"version": "2"}, {"a": "[" * 10**6}))
    else:
        length = chance.choice((0, 1, 1 << 20, 1 << 40, 1 << 63))
        return length.to_bytes(8, "little") + content[8:]
    return _file(header, tensors)


def a_pickle(content: bytes, chance: random.Random) -> bytes:
    """What other programs would load code from."""
    if chance.random() < 0.5:
        return bare_pickle(content, chance)
    buffer = io.BytesIO()
    torch.save(_tree(content), buffer)
    return buffer.getvalue()


HEADERS = (other_header, other_header, a_pickle)


def _strange_values(chance: random.Random) -> list[Any]:
    nested: Any = 0
    for _ in range(50):
        nested = [nested]
    numbers = [-1, 0, 1, 3, 10**6, 2**31, 2**63, 10**400, -0.5, 0.0, 1e-300, 1e38, 1e308]
    unreal = [float("nan"), float("inf"), -float("inf")]
    texts = [
        "",
        "x" * 300,
        "a\nb",
        "\x1b[2J",
        "../../etc/passwd",
        "baseline",
        "under100k",
        "cifar10",
    ]
    plain = [None, True, False, [], {}, (), [0] * 3, {"a": 0}, {"tensor": "a"}, nested]
    return [*numbers, *unreal, *texts, *plain, *_strange_tensors()]


def _strange_tensors() -> list[torch.Tensor]:
    return [
        torch.tensor(float("nan")),
        torch.zeros(0),
        torch.zeros(1).expand(4, 4),
        torch.zeros(3, 3, dtype=torch.float64),
        torch.zeros(2, dtype=torch.complex64),
    ]


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value in nested dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += _places(value)
    return found


def _change_tensor(tensor: torch.Tensor, chance: random.Random) -> torch.Tensor:
    """Other values, another shape or another type."""
    changed = tensor.clone(memory_format=torch.contiguous_format)
    choice = chance.randrange(5)
    if choice == 0 and changed.is_floating_point() and changed.numel() > 0:
        unreal = chance.choice((float("nan"), float("inf"), 1e38))
        changed.view(-1)[chance.randrange(changed.numel())] = unreal
    elif choice == 1:
        changed = changed.double()
    elif choice == 2:
        changed = changed.flatten()[:-1]
    elif choice == 3:
        changed = changed.unsqueeze(0)
    else:
        changed = torch.randint(0, 256, changed.shape).to(changed.dtype)
    return changed


def change_values(tree: dict[str, Any], chance: random.Random) -> None:
    """Make one to three changes somewhere in nested dicts and lists."""
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        if not tree:
            return
        # First the depth, so that the few fields are met as often as the many weights.
        container, key = chance.choice(_places(tree))
        branch = chance.choice(sorted(tree, key=str))
        if chance.random() < 0.7 and isinstance(tree[branch], dict | list) and tree[branch]:
            container, key = chance.choice(_places(tree[branch]))
        elif chance.random() < 0.5:
            container, key = tree, branch
        value = container[key]
        choice = chance.random()
        if choice < 0.15:
            del container[key]
        elif choice < 0.25:
            container[key] = copy.deepcopy(chance.choice(_places(tree))[0])
        elif choice < 0.6 and isinstance(value, torch.Tensor):
            container[key] = _change_tensor(value, chance)
        elif choice < 0.6 and type(value) in (int, float):
            container[key] = chance.choice(
                (value + 1, -value, value * 1000, value + 0.5, str(value))
            )
        else:
            container[key] = chance.choice(_strange_values(chance))


def _tree(content: bytes) -> dict[str, Any]:
    text = _parts(content)[0]["__metadata__"]["content"]
    return checkpoints.decode(text, safetensors.torch.load(content))


def _sealed(content: dict[str, Any]) -> bytes:
    """With a checksum that fits."""
    text, tensors = checkpoints.encode(content)
    digest = checkpoints.checksum(text, tensors)
    metadata = {"version": checkpoints.VERSION, "content": text, "sha256": digest}
    return safetensors.torch.save(tensors, metadata)


def other_content(content: bytes, chance: random.Random) -> bytes:
    """A well-formed, sealed checkpoint of other content."""
    tree = _tree(content)
    change_values(tree, chance)
    return _sealed(tree)


def other_history(content: bytes, chance: random.Random) -> bytes:
    """A sealed checkpoint whose history is that of no run."""
    tree = _tree(content)
    rows = tree["history"]
    choice = chance.randrange(4)
    if choice == 0:
        tree["history"] = rows * chance.choice((0, 2, 50_000))
    elif choice == 1:
        tree["history"] = chance.choice(_strange_values(chance))
    else:
        change_values({"history": rows}, chance)
    return _sealed(tree)


# Well-formed files that say something else: they are not damaged, so they may be read as that.
FORGERIES = (other_content, other_history)


# ------------------------------------------------------------------------ label files and sheets


def other_labels(content: bytes, chance: random.Random) -> bytes:
    """A CSV file with other fields, rows, columns or encoding."""
    rows = list(csv.reader(io.StringIO(content.decode("ascii"))))
    fields = ("", "-1", "9", "500", "1e9", "9" * 5000, "nan", "\0", "é", '"', "../labels.csv", ".")
    for _ in range(chance.choice((1, 1, 3))):
        choice = chance.randrange(6)
        row, column = chance.randrange(len(rows)), chance.randrange(len(rows[0]))
        if choice <= 1 and column < len(rows[row]):
            rows[row][column] = chance.choice(fields)
        elif choice == 2:
            del rows[row]
        elif choice == 3:
            rows.insert(row, list(rows[chance.randrange(len(rows))]))
        elif choice == 4:
            rows = [r[:column] + r[column + 1 :] for r in rows]
        else:
            rows = [
                [f"{i}.png" if chance.random() < 0.5 else f for f in r] for i, r in enumerate(rows)
            ]
        if not rows or len(rows[0]) < 2:
            break
    text = io.StringIO()
    csv.writer(text, quoting=chance.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))).writerows(rows)
    encoding = chance.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16"))
    return text.getvalue().encode(encoding)


def other_sheet(content: bytes, chance: random.Random) -> bytes:
    """A well-formed PNG of other pixels, size or kind; or one that promises more than it holds."""
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    buffer = io.BytesIO()
    choice = chance.randrange(6)
    if choice == 0:
        Image.fromarray(pixels[::-1]).save(buffer, format="PNG", compress_level=1)
    elif choice == 1:
        mode = chance.choice(("L", "P", "1", "RGBA", "I;16"))
        Image.new(mode, (800, 640)).save(buffer, format="PNG")
    elif choice == 2:
        size = (chance.choice((1, 800, 8000)), chance.choice((1, 640, 6400)))
        Image.new("RGB", size).save(buffer, format="PNG")
    elif choice == 3:  # the same picture, written in another way
        Image.fromarray(pixels).save(buffer, format="PNG", compress_level=chance.choice((0, 1)))
    elif choice == 4:
        packed = struct.pack(">II", *(chance.choice((0, 640, 800, 1 << 16, 1 << 31)) for _ in "hw"))
        header = b"IHDR" + packed + content[24:29]
        return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]
    else:
        return content[:33] + _png_chunk(chance) + content[33:]
    return buffer.getvalue()


def _png_chunk(chance: random.Random) -> bytes:
    """Between header and pixels: a compressed text or profile of 64 MB, or a chunk of no kind."""
    bomb = zlib.compress(bytes(1 << 26), 9)
    choices = (
        b"zTXt" + b"k\0\0" + bomb,
        b"iCCP" + b"k\0\0" + bomb,
        b"iTXt" + b"k\0\1\0\0\0" + bomb,
        b"IDAT" + bomb,
        b"aBcD" + chance.randbytes(100),
    )
    chunk = chance.choice(choices)
    return struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
