"""Signals that end a training: they wait until it has saved."""

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Interrupted(Exception):
    """A signal of `signals` came; `status` is what the process is then to exit with."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.status = 128 + number


def signals() -> list[signal.Signals]:
    """Those that end a training once it is saved: Ctrl-C, the system's wish, and the end of the
    terminal (not on Windows, and not where it is ignored, as under nohup)."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


class Interruption:
    """While entered, `signals` wait until `check` is called, which raises Interrupted.

    A second SIGINT ends the process at once, as it would without this.

    Args:
        agree: where several processes have to stop at the same `check`, what turns the number of
            the signal that this one received (0: none) into the one that all go by.
    """

    def __init__(self, agree: Callable[[int], int] = int) -> None:
        self.agree = agree
        self.received: int | None = None

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._receive) for number in signals()}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: object) -> None:
        self.received = number
        if number == signal.SIGINT:  # where it came with another signal, its turn is still to come
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def check(self) -> None:
        number = self.agree(self.received or 0)
        if number:
            raise Interrupted(number)

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, with a `check` before each."""
        for item in items:
            self.check()
            yield item
