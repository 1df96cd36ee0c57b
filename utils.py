"""Helpers of the commands: errors, arguments, printing, seeds, files and counts."""

import argparse
import csv
import io
import json
import logging
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TextIO

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

LARGEST_SEED = 2**63 - 1
MESSAGE_LENGTH = 1000  # characters; foreign text is printed no longer than this
HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "train_accuracy",
    "eval_loss",
    "eval_accuracy",
    "learning_rate",
    "seconds",
    "images_per_second",
)


class RunError(Exception):
    """An error that the user can fix; its message is one line."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, but an error prints one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        # "--epochs 0: choose 1 to 2000", where argparse has "argument --epochs: 0: …".
        line = re.sub(r"^argument (\S+): ", r"\1 ", message)
        self.exit(2, f"{self.prog}: error: {clean(line)}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """argparse mistakes "-1e5" for a flag unless it is joined to its own by "=", and it turns
        the value of "--flag=--" into an empty list."""
        joined: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if re.fullmatch(r"--[a-z-]+=--", word):
                self.error(f"argument {word[:-3]}: expected one argument")
            if joined and re.fullmatch(r"--[a-z-]+", joined[-1]) and _is_negative(word):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return super().parse_known_args(joined, namespace)

    def print_help(self, file: Any = None) -> None:
        """argparse's ignores a failed write, such as to a full disk."""
        (file or sys.stdout).write(self.format_help())


def _is_negative(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return word.startswith("-")


def clean(text: object, most: int = MESSAGE_LENGTH) -> str:
    """Foreign text, such as a file name or a server's answer, as one line that is safe to print.

    Unprintable characters (control bytes, escape sequences, direction marks) are escaped as in
    Python. URLs lose their user name and password, and a text of more than `most` characters loses
    its middle.
    """
    text = _shorten(re.sub(r"(?<=://)[^/?#\s]*@", "", str(text)), most)
    return _shorten("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), most)


def _shorten(text: str, most: int) -> str:
    end = most // 2
    return text if len(text) <= most else f"{text[: most - end - 1]}…{text[-end:]}"


class _CleanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return clean(super().format(record))


def run_script(main: Callable[[], None], *errors: type[Exception]) -> None:
    """Run a script's `main`; one of these `errors` prints one line and exits with status 2."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see startup.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Python has None for a stream that was closed when it started.
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path may hold what the locale lacks
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_CleanFormatter())
    foreseen: tuple[type[Exception], ...] = (RunError, *errors)
    try:
        _run_and_flush(main)
    except BrokenPipeError:
        # The reader of the output has closed it, as in `| head`: that needs no message.
        _discard(sys.stdout)
        sys.exit(1)
    except foreseen as error:
        line = clean(" ".join(str(error).split()))
        with suppress(OSError):  # without standard error, only the status is left
            print(f"{Path(sys.argv[0]).name}: error: {line}", file=sys.stderr, flush=True)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:  # on a full disk, the interpreter would try again
                _discard(stream)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _run_and_flush(main: Callable[[], None]) -> None:
    """Run and flush, so that a failed write is raised here and not at the interpreter's exit."""
    try:
        main()
    except SystemExit:  # as --help does
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def say_goodbye(text: str) -> None:
    """Print a last line, if the terminal is still there: SIGHUP may have closed it."""
    try:
        print(text, flush=True)
    except OSError:
        _discard(sys.stdout)


def _discard(stream: TextIO) -> None:
    """Discard what was and will be written to a stream."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def seed_everything(seed: int) -> None:
    """Seed PyTorch's global generators, on the CPU and on every accelerator."""
    if not 0 <= seed <= LARGEST_SEED:
        raise RunError(f"seed {seed}: choose 0 to {LARGEST_SEED}")
    torch.manual_seed(seed)


def make_folder(path: Path) -> None:
    """Create a folder and its parents.

    Raises:
        RunError: it cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise RunError(f"cannot write to folder {path}: {error.strerror}") from error


def new_folder(path: Path) -> Path:
    """Create a folder: `path`, or if that exists, `path`-2, `path`-3, ... Returns the folder.

    Raises:
        RunError, OSError: it cannot be created.
    """
    make_folder(path.parent)
    folder, number = path, 1
    while True:
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1
            folder = path.with_name(f"{path.name}-{number}")


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing was saved."""
    with suppress(OSError):  # it holds files, or is gone
        folder.rmdir()


def write_atomically(path: Path, content: bytes, *, keep_as: str | None = None) -> None:
    """Write a file so that it is never seen half-written: under another name, then renamed.

    Args:
        keep_as: the new name of the file that was at `path`; at every moment one of the two names
            holds a complete file.

    Raises:
        RunError: the disk is full, the folder cannot be written to, or `path` is a device or
            something else that is not a file; what was at `path` is then untouched.
    """
    if path.exists() and not path.is_file():
        raise RunError(f"cannot write {path}: it exists and is not a file")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep_as is not None and path.exists():
            os.replace(path, path.with_name(keep_as))
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        kept = "; the previous file is intact" if path.exists() else ""
        raise RunError(f"cannot write {path}: {error.strerror}{kept}") from error
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove the unfinished files and figures (see plots/style.py) of killed processes, nothing
    else. No process may be writing to the folder."""
    for path in folder.iterdir():
        if re.fullmatch(r"\..+\.\d+\.unfinished", path.name) and not path.is_dir():
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, where the system can (Windows cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def count_parameters(model: nn.Module) -> int:
    """Number of learned parameters; a shared tensor counts once."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image (C, H, W): the convolutions and matrix products that
    PyTorch's flop counter counts, two operations each."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *input_size))
    return counter.get_total_flops() // 2


def metrics_line(split: str, loss: float, correct: int, total: int) -> str:
    """One line of results; `loss` in nats per image."""
    accuracy = 100 * correct / total
    return f"{split} set: Average loss: {loss:.4f}, Accuracy: {correct}/{total} ({accuracy:.2f}%)"


def class_table(correct: list[int], total: list[int], classes: tuple[str, ...]) -> str:
    """One line per class: its accuracy, and how many of its images were classified correctly."""
    width = max(map(len, classes))
    return "\n".join(
        f"Accuracy of {name:<{width}}: {100 * right / max(count, 1):5.1f} % ({right}/{count})"
        for name, right, count in zip(classes, correct, total, strict=True)
    )


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def write_history(path: Path, history: list[dict[str, Any]]) -> None:
    """Write one row per epoch as CSV; what was not measured is an empty field."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, HISTORY_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(path, text.getvalue().encode())
