"""Signals that end a training after it has saved, and the command that resumes it."""

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from training import distributed, run_folder
from training.flags import flag

T = TypeVar("T")


class Interrupted(Exception):
    """One of `signals` was received; `status` is the exit status for it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


def signals() -> list[signal.Signals]:
    """The signals that end a training after it has saved: SIGINT, SIGTERM and SIGHUP (not on
    Windows, and not if it is ignored, as under nohup)."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


class Interruption:
    """A context in which `signals` are deferred until `check`, which raises Interrupted.

    A second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._receive) for number in signals()}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        if number == signal.SIGINT:  # a second signal may still be pending
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def check(self) -> None:
        """All processes raise after the same step, whichever of them received a signal."""
        number = int(distributed.highest(self.received or 0))
        if number:
            raise Interrupted(number)

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, with a `check` before each."""
        for item in items:
            self.check()
            yield item


# Flags that a checkpoint does not keep, so the command that resumes the run repeats them. Not
# --download-url, which may hold a password: the images are on disk by then.
UNSAVED_FLAGS = (
    "data_dir",
    "device",
    "compile",
    "no_graph",
    "deterministic",
    "checkpoint_minutes",
    "tensorboard",
)


def resume_command(given: dict[str, Any], output: Path) -> str:
    """The shell command that resumes the run in `output`."""
    flags = ["--resume", output / run_folder.LAST]
    for name in UNSAVED_FLAGS:
        if name in given:
            value = [] if given[name] is True else [given[name]]
            flags += [flag(name), *value]
    return " ".join(map(_quoted, [*distributed.command(), sys.argv[0], *map(str, flags)]))


def _quoted(word: str) -> str:
    """A word for a shell. Unprintable bytes, which a terminal would obey, are escaped as bash and
    zsh read them."""
    if not word.isprintable():
        plain = set(range(32, 127)) - set(b"'\\")
        escaped = (chr(b) if b in plain else f"\\x{b:02x}" for b in os.fsencode(word))
        return f"$'{''.join(escaped)}'"
    if os.name == "nt":  # cmd.exe knows double quotes alone
        return word if re.fullmatch(r"[\w\\/:.=-]+", word) else f'"{word}"'
    return shlex.quote(word)
