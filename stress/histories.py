"""Interrupt two trainings of one folder at random and compare the disk with a model.

    python -m stress.histories

A history is a random sequence of events: one of two processes starts `train.py --resume auto` or
runs on for some disk-changing calls; it receives SIGINT, SIGTERM or SIGHUP, or is killed; the disk
fills up or is freed; the folder is removed. Between two events both processes are stopped in the
middle of a call. Everything on the disk must then be intact and no older than before, and a process
that ended must have had a reason. At the end the same command must reach the files of an
undisturbed run. Hypothesis draws the histories and prints the shortest one that fails.
"""

import errno
import os
import shutil
import signal
import tempfile
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_histories
from tqdm import tqdm

import utils
from stress.life import Calls, Life, get_ready
from stress.small_run import Undisturbed, position, small_run
from training.flags import Setting, add_flag

RULES = 10  # a history, at most
TO_THE_END = 10**6  # calls
STAND_IN = "continuing from previous.safetensors, the one before"  # no error
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Process:
    """A training that stops itself after a given number of disk-changing calls.

    Args:
        full: shared memory; the disk is full while it is not 0.

    Attributes:
        reasons, signals: why it may end early.
    """

    def __init__(self, run: Path, full: Any, calls: int) -> None:
        self.reasons, self.signals = set[str](), set[int]()
        self.full, self.stop_at = full, RawValue("q", calls)
        self.calls = Calls(self._act)
        self.life: Life = small_run(run, prepare=self.calls.watch)
        self._wait()

    def _act(self, count: int) -> None:
        if count == self.stop_at.value:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.full.value:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _wait(self) -> None:
        self.life.wait(lambda: self.life.stopped)
        assert self.life.status is not None or self.life.stopped, "it hangs"

    def go_on(self, calls: int) -> None:
        self.stop_at.value = self.calls.count + calls
        self.send(signal.SIGCONT)
        self._wait()

    def send(self, number: int) -> None:
        self.signals.add(number)
        os.kill(self.life.pid, number)

    def check_end(self) -> None:
        """Check that it finished, or failed properly for one of its reasons."""
        status, said = self.life.status, self.life.err.read_text()
        if status == 2:
            lines = [line for line in said.splitlines() if not line.endswith(STAND_IN)]
            assert len(lines) == 1 and lines[0].startswith("train.py: error: "), said
            assert self.reasons, said
        elif status:
            assert status in {x for n in self.signals for x in (128 + n, -n)}, f"{status}: {said}"


class Histories(RuleBasedStateMachine):
    """One history. The model is `reached`, the newest position seen on the disk."""

    undisturbed: Undisturbed
    folder: Path
    bar: tqdm

    def __init__(self) -> None:
        super().__init__()
        self.run = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        self.full, self.reached = RawValue("b", 0), (0, 0)
        self.processes: dict[int, Process] = {}

    def note(self, reason: str) -> None:
        for process in self.processes.values():
            process.reasons.add(reason)

    def pick(self, number: int) -> Process:
        return self.processes.get(number) or next(iter(self.processes.values()))

    @rule(number=st.integers(0, 1), calls=st.integers(1, 120))
    def start_or_go_on(self, number: int, calls: int) -> None:
        if number in self.processes:
            self.processes[number].go_on(calls)
        else:
            self.processes[number] = Process(self.run, self.full, calls)
        if len(self.processes) == 2:
            self.note("other")
        if self.full.value:
            self.note("full")

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 1), signal_number=st.sampled_from(SIGNALS))
    def interrupt(self, number: int, signal_number: int) -> None:
        """It handles the signal once it runs again."""
        self.pick(number).send(signal_number)

    @precondition(lambda self: self.processes)
    @rule(number=st.integers(0, 1))
    def kill(self, number: int) -> None:
        process = self.pick(number)
        process.send(signal.SIGKILL)
        process.life.wait()

    @rule()
    def fill_or_empty_the_disk(self) -> None:
        self.full.value = not self.full.value
        self.note("full")

    @precondition(lambda self: self.run.exists())
    @rule()
    def remove_the_folder(self) -> None:
        """The processes at work there then run to their end, one after the other."""
        self.note("removed")
        for process in [*self.processes.values(), None]:
            shutil.rmtree(self.run, ignore_errors=True)  # also if a process has only just made it
            self.reached = (0, 0)
            if process is not None:
                process.go_on(TO_THE_END)
            self.all_is_there()

    def end_all(self) -> None:
        for process in list(self.processes.values()):
            process.go_on(TO_THE_END)
            self.all_is_there()

    @invariant()
    def all_is_there(self) -> None:
        for number, process in list(self.processes.items()):
            if process.life.status is not None:
                self.processes.pop(number).check_end()
        before, self.reached = self.reached, position(self.run)
        assert self.reached >= before, f"{before} was saved, and {self.reached} is there"

    def teardown(self) -> None:
        try:
            self.end_all()
            self.full.value = False
            life = small_run(self.run)
            life.wait()
            assert life.status == 0, life.err.read_text()
            assert self.undisturbed.equals(self.run), "not what an undisturbed run comes to"
        finally:
            for process in self.processes.values():
                process.life.kill()
        shutil.rmtree(self.run.parent)
        self.bar.update()


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__.splitlines()[0])
    add_flag(parser, "histories", Setting("in all", at_least=1), 200)
    add_flag(parser, "seed", Setting("of the histories"), 0)
    arguments = parser.parse_args(argv)
    get_ready()
    with tempfile.TemporaryDirectory() as folder:
        Histories.folder = Path(folder)
        Histories.undisturbed = Undisturbed(Histories.folder / "undisturbed")
        chosen = settings(
            max_examples=arguments.histories,
            stateful_step_count=RULES,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        )
        with tqdm(unit="history", mininterval=1) as Histories.bar:
            run_histories(hypothesis.seed(arguments.seed)(Histories), settings=chosen)
    print(f"seed {arguments.seed}: {Histories.bar.n} histories lost nothing")


if __name__ == "__main__":
    main()
