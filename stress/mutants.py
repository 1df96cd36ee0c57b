"""Damaged and hostile versions of the files that this project reads, each from a random generator.

A mutation is a function from the bytes of a file and a `random.Random` to the bytes of another;
the same generator gives the same mutant. `fuzz.py` holds them against the readers.
"""

import csv
import io
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
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


def _entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _name_of(entries: dict[str, bytes], end: str) -> str:
    return next(name for name in entries if name.endswith(end))


def other_pickle(content: bytes, chance: random.Random) -> bytes:
    """An intact archive whose pickle runs code, never ends, or is damaged."""
    entries = _entries(content)
    name = _name_of(entries, "data.pkl")
    choices = (
        lambda: hostile_pickle(chance),
        lambda: hostile_pickle(chance),
        lambda: endless_pickle(chance),
        lambda: flip_bits(entries[name], chance),
        lambda: flip_bits(entries[name], chance),
        lambda: overwrite(entries[name], chance),
    )
    entries[name] = chance.choice(choices)()
    return _archive(entries)


def other_entries(content: bytes, chance: random.Random) -> bytes:
    """An intact archive that lacks an entry, has it twice, short, long or exchanged."""
    entries = _entries(content)
    one, other = chance.sample(sorted(entries), 2)
    choice = chance.randrange(5)
    if choice == 0:
        del entries[one]
    elif choice == 1:
        entries[one] = entries[one][: len(entries[one]) // 2]
    elif choice == 2:
        entries[one] *= 3
    elif choice == 3:
        entries[one], entries[other] = entries[other], entries[one]
    else:
        entries |= {f"archive/data/{i + 1000}": b"" for i in range(20_000)}
    return _archive(entries)


@cache
def _bomb(name: str) -> bytes:
    """An archive of half a megabyte with 512 MB of zeros under `name`."""
    return _archive({name: bytes(1 << 29)}, zipfile.ZIP_DEFLATED)


def zip_bomb(content: bytes, chance: random.Random) -> bytes:
    """Compressed entries, or entries that declare sizes that they do not have."""
    entries = _entries(content)
    choice = chance.randrange(3)
    if choice == 0:
        return _bomb(_name_of(entries, chance.choice(("data.pkl", "data/0"))))
    if choice == 1:
        return _archive(entries, zipfile.ZIP_DEFLATED)
    changed = bytearray(content)
    at = changed.rfind(b"PK\1\2")
    for _ in range(chance.randrange(1, 4)):
        struct.pack_into("<I", changed, at + 24, chance.choice((0, 1, 1 << 30, (1 << 32) - 1)))
        at = changed.rfind(b"PK\1\2", 0, at)
    return bytes(changed)


def not_an_archive(content: bytes, chance: random.Random) -> bytes:
    """The format that PyTorch wrote before 1.6, or a bare pickle."""
    if chance.random() < 0.3:
        return hostile_pickle(chance)
    buffer = io.BytesIO()
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    torch.save(loaded, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


ARCHIVES = (other_pickle, other_pickle, other_entries, zip_bomb, not_an_archive)


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
    plain = [None, True, False, [], {}, (), [0] * 3, {"a": 0}, nested, b"bytes", {1, 2}, 1j]
    return [*numbers, *unreal, *texts, *plain, *_strange_tensors()]


def _strange_tensors() -> list[torch.Tensor]:
    return [
        torch.tensor(float("nan")),
        torch.zeros(0),
        torch.zeros(1).expand(1 << 40),
        torch.zeros(1).expand(4, 4),
        torch.zeros(3, 3, dtype=torch.float64),
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"),
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
            container[key] = chance.choice(_places(tree))[0]  # may well contain itself
            return
        elif choice < 0.6 and isinstance(value, torch.Tensor):
            container[key] = _change_tensor(value, chance)
        elif choice < 0.6 and type(value) in (int, float):
            container[key] = chance.choice(
                (value + 1, -value, value * 1000, value + 0.5, str(value))
            )
        else:
            container[key] = chance.choice(_strange_values(chance))


def _sealed(content: dict[str, Any]) -> bytes:
    """With a right checksum, where one can be computed."""
    content.pop("checksum", None)
    try:
        if any(isinstance(c[k], torch.Tensor) and c[k].numel() > 1e7 for c, k in _places(content)):
            raise ValueError("too large")
        content["checksum"] = checkpoints.checksum(content)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):  # endless, or no such tensor
        content["checksum"] = "0" * 64
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def other_content(content: bytes, chance: random.Random) -> bytes:
    """A well-formed, sealed checkpoint of other content."""
    tree = torch.load(io.BytesIO(content), weights_only=True)
    change_values(tree, chance)
    return _sealed(tree)


def other_history(content: bytes, chance: random.Random) -> bytes:
    """A sealed checkpoint whose history is that of no run."""
    tree = torch.load(io.BytesIO(content), weights_only=True)
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
