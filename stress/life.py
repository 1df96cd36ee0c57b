"""A command in its own process, which the parent can kill, starve and observe."""

import builtins
import functools
import io
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.sharedctypes import RawArray, RawValue
from pathlib import Path
from typing import Any
from unittest import mock

import safetensors.torch
import torch
from torch.distributed import run as torchrun
from tqdm import tqdm

import data
import plots
from benchmarks import common
from plots.style import save

# Also what train.py imports, so that no child has to import it.
from training import checkpoint as checkpoints
from training import compilation, distributed, figures, report, tensorboard  # noqa: F401
from training.interruption import Interrupted, Interruption

PATIENCE = 300.0  # seconds that a command may take
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir"}  # audit events, besides "open"
Prepare = Callable[[], None]


class Life:
    """A script of this repository in a forked process, as its user runs it.

    This process must have imported everything and started no thread.

    Args:
        folder: receives the output as the files `out` and `err`.
        prepare: called in the child before the script.
        processes: if more than one, under torchrun, also forked.

    Attributes:
        pids: of the processes by rank; 0 before and after the script runs.
    """

    def __init__(
        self,
        script: str,
        arguments: list[str],
        folder: Path,
        prepare: Prepare = lambda: None,
        processes: int = 1,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.out, self.err = folder / "out", folder / "err"
        self.status: int | None = None  # as os.waitstatus_to_exitcode gives it
        self.pids = RawArray("q", processes)
        self.stopped = False  # by SIGSTOP, as goes_on() saw
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                for number, path in ((1, self.out), (2, self.err)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
                act = functools.partial(play, script, arguments, prepare)
                status = act() if processes == 1 else launch(self.pids, act)
            finally:  # nothing else of this process goes on in the child
                os._exit(status)

    def goes_on(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            self.stopped = bool(pid) and os.WIFSTOPPED(status)
            if pid and not self.stopped:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is None

    def wait(
        self, condition: Callable[[], bool] = lambda: False, seconds: float = PATIENCE
    ) -> None:
        """Wait until `condition` holds, the command has ended, or `seconds` have passed."""
        deadline = time.monotonic() + seconds
        while self.goes_on() and not condition() and time.monotonic() < deadline:
            time.sleep(0.0005)

    def kill(self) -> None:
        if self.goes_on():
            os.kill(self.pid, signal.SIGKILL)
        self.wait()


def play(script: str, arguments: list[str], prepare: Prepare) -> int:
    """Run the script in this process; returns its exit status."""
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)
    sys.argv, sys.dont_write_bytecode = [script, *arguments], True
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python starts
    try:
        prepare()
        runpy.run_path(str(common.ROOT / script), run_name="__main__")
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def launch(pids: Any, act: Callable[[], int]) -> int:
    """Run torchrun in this process, with forked workers; returns its exit status."""

    def process() -> None:
        rank = int(os.environ["RANK"])
        pids[rank] = os.getpid()
        distributed.leave = lambda: None  # the launcher waits for this function to return
        status = act()
        pids[rank] = 0  # the launcher waits forever if one is killed as it says that it has ended
        if status:
            os._exit(status)

    flags = ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", f"--rdzv-id={os.getpid()}"]
    flags += [f"--nproc-per-node={len(pids)}", "train.py"]
    config = torchrun.config_from_args(torchrun.parse_args(flags))[0]
    config.start_method, config.monitor_interval = "fork", 0.02
    try:
        torchrun.elastic_launch(config, process)()
        return 0
    except BaseException:
        traceback.print_exc()
        return 1


# ---------------------------------------------------------------------------------------- shortcuts


class Blank:
    """A figure that takes no time to draw and is saved like any other."""

    def savefig(self, file: io.BytesIO, **options: object) -> None:
        file.write(b"a figure")


def blank(*arguments: object, **options: object) -> None:
    save(Blank(), next(path for path in arguments if isinstance(path, Path)))  # type: ignore


load_splits = functools.cache(data.load_splits)


def get_ready() -> None:
    """Call once before the first Life: import and read what every child needs, without threads.
    A child that runs as another user may not be able to."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0
    # Its own lock is shared with children, and one may die holding it.
    tqdm.set_lock(threading.RLock())
    load_splits("sample", data.DEFAULT_DIRECTORY, ("train", "val"))
    safetensors.torch.save({"imports": torch.zeros(1)})  # numpy's parts, at the first save


def hurry(images: int) -> None:
    """Have this process train and evaluate on a few images, and skip figures, summary and git."""

    def first_images(source: str, directory: str | Path, splits: Sequence[str]) -> list[data.Split]:
        loaded = load_splits(source, directory, tuple(splits))
        return [common.first(split, images) for split in loaded]

    data.load_splits = first_images
    data.load = lambda source, directory, split: first_images(source, directory, (split,))[0]
    for figure in ("augmentation", "class_accuracy", "confusion_matrix", "validation"):
        setattr(plots, figure, blank)
    figures.MAX_DRAWING = 1e9  # always draw, so that two runs make the same calls
    report.summary = lambda *arguments: ""
    report.checkout = dict


# ------------------------------------------------------------------------------ disk-changing calls


class Calls:
    """Counts a child's disk-changing calls: open for writing, write, sync, rename, remove.

    Args:
        act: called in the child before each call, and in the middle of a write, with the call's
            number, from 1. If it raises, the call raises.
    """

    def __init__(self, act: Callable[[int], None] = lambda number: None) -> None:
        self.act = act
        self.shared = RawValue("q", 0)  # the child counts, its parent reads

    @property
    def count(self) -> int:
        return int(self.shared.value)

    def _call(self, *ignored: object) -> None:
        self.shared.value += 1
        self.act(self.count)

    def watch(self) -> None:
        """In the child: start counting."""
        call, opened, fsync = self._call, builtins.open, os.fsync

        class InHalves(io.FileIO):
            def write(self, content: Any) -> int:
                half = len(content) // 2
                written = super().write(content[:half])
                call()
                return written + super().write(content[half:])

        def open_(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if mode not in ("w", "wb", "ab") or file == os.devnull:
                return opened(file, mode, *arguments, **options)
            raw = InHalves(file, mode[0], closefd=options.get("closefd", True))
            binary = io.BufferedWriter(raw)
            return binary if "b" in mode else io.TextIOWrapper(binary, "utf-8")

        def audit(event: str, arguments: tuple[Any, ...]) -> None:
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES or (writes and arguments[0] != os.devnull):
                call()

        builtins.open = io.open = open_
        os.fsync = lambda fd: (call(), fsync(fd))[1]
        sys.stdout = open_(1, "w", closefd=False)
        sys.addaudithook(audit)


def interrupted_after(checks: int) -> AbstractContextManager[object]:
    """Interrupt a training at its `checks`-th check for signals; it checks after each step."""
    remaining = iter(range(checks - 1))

    def check(self: Interruption) -> None:
        if next(remaining, None) is None:
            raise Interrupted(signal.SIGTERM)

    return mock.patch.object(Interruption, "check", check)


def digest(content: dict[str, Any]) -> str:
    """The digest of a checkpoint or of released weights, without the times in it."""
    timed = {"seconds", "images_per_second"}
    rows = [{k: v for k, v in row.items() if k not in timed} for row in content["history"]]
    training = {**content.get("training", {}), "seconds": 0.0}
    content = {**content, "history": rows, "training": training}
    return checkpoints.checksum(*checkpoints.encode(content))
