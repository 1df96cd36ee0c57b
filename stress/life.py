"""A command in a process of its own that can be killed, starved and looked at from outside."""

import io
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import data
import plots
from benchmarks import common
from plots.style import save

# And what train.py imports, so that no child has to.
from training import compilation, figures, report, tensorboard  # noqa: F401

PATIENCE = 300.0  # seconds in which a command must do something


class Life:
    """A script of the root as its user runs it, until its end or its kill.

    It is forked from this process, which has imported everything and started no thread.

    Args:
        folder: of the files `out` and `err`, with what it prints.
        prepare: called in the child before the script.
    """

    def __init__(
        self,
        script: str,
        arguments: list[str],
        folder: Path,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / "out", folder / "err"
        self.status: int | None = None  # as os.waitstatus_to_exitcode gives it
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._run(script, arguments, prepare)
            finally:
                os._exit(1)

    def _run(self, script: str, arguments: list[str], prepare: Callable[[], None]) -> None:
        for number, path in ((1, self.out), (2, self.err)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python starts
        sys.argv = [script, *arguments]
        try:
            prepare()
            runpy.run_path(str(common.ROOT / script), run_name="__main__")
            sys.stdout.flush()
            os._exit(0)
        except SystemExit as end:
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        except BaseException:
            traceback.print_exc()

    def goes_on(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is None

    def wait(
        self, condition: Callable[[], bool] = lambda: False, seconds: float = PATIENCE
    ) -> None:
        """Return when `condition` is met, the command has ended or the time is over."""
        deadline = time.monotonic() + seconds
        while self.goes_on() and not condition() and time.monotonic() < deadline:
            time.sleep(0.0002)

    def kill(self) -> None:
        if self.goes_on():
            os.kill(self.pid, signal.SIGKILL)
        self.wait()


class Blank:
    """A figure that takes no time to draw, and is written as any other."""

    def savefig(self, file: io.BytesIO, **options: object) -> None:
        file.write(b"a figure")


def blank(*arguments: object, **options: object) -> None:
    save(Blank(), next(path for path in arguments if isinstance(path, Path)))  # type: ignore


def hurry(images: int) -> None:
    """Have this process train and score on the first few images, and spend no time on figures, the
    summary and git."""
    load = data.load
    data.load = lambda *arguments: common.first(load(*arguments), images)
    for figure in ("augmentation", "class_accuracy", "confusion_matrix", "validation"):
        setattr(plots, figure, blank)
    report.summary = lambda *arguments: ""
    report.checkout = dict
