"""Kill trainings at random, resume them each time, and compare the final weights.

    python -m stress.kill

A tiny network trains on a few images with a checkpoint after every step, and SIGKILL ends it. Half
of the kills hit a call that changes the disk (in the middle of a write, before a rename). A tenth
hit a training of two processes under torchrun: one of them, both, or the launcher. The rest come at
any moment. After each kill the files on the disk must be intact and no older than before, and the
same command continues. Every run that finishes must have the files of an undisturbed run, with the
same weights bit for bit. Needs a system that forks (Linux, macOS).
"""

import os
import random
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import utils
from stress.life import PATIENCE, Calls, Life, get_ready
from stress.small_run import Undisturbed, position, small_run
from training.flags import Setting, add_flag

Attack = Callable[[Path, random.Random, Undisturbed], Life]  # a process that may have been killed


@dataclass
class Tally:
    """The outcome of the kills."""

    kills: int = 0
    half_written: int = 0  # kills that left a temporary file behind
    finished: int = 0  # runs that finished
    equal: int = 0  # of these, runs with the files of the undisturbed run
    lost: int = 0  # kills after which a file was damaged, gone, or older than before

    @property
    def passed(self) -> bool:
        return self.lost == 0 and 0 < self.finished == self.equal

    def __str__(self) -> str:
        return (
            f"{self.kills - self.lost} of {self.kills} kills lost nothing,"
            f" {self.half_written} with a half-written file;"
            f" {self.equal} of {self.finished} runs ended as the undisturbed one"
        )


def at_a_call(run: Path, chance: random.Random, undisturbed: Undisturbed) -> Life:
    number = chance.randrange(1, undisturbed.calls // 2)

    def act(count: int) -> None:
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    life = small_run(run, prepare=Calls(act).watch)
    life.wait()
    return life


def at_a_moment(run: Path, chance: random.Random, undisturbed: Undisturbed) -> Life:
    life = small_run(run)
    life.wait(seconds=chance.uniform(0.0, undisturbed.seconds))
    life.kill()
    return life


def of_two(run: Path, chance: random.Random, undisturbed: Undisturbed) -> Life:
    """Kill one or both of torchrun's two processes, or torchrun itself."""
    alive, end = os.pipe()  # which is closed when the last of them has ended
    life = small_run(run, processes=2)
    os.close(end)
    victims = chance.choice([(0,), (1,), (0, 1), ()])
    life.wait(lambda: all(life.pids))
    life.wait(seconds=chance.uniform(0.0, undisturbed.seconds))
    for pid in [life.pids[victim] for victim in victims] or [life.pid]:
        if pid and life.goes_on():
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, signal.SIGKILL)
    life.wait()
    if life.status == 1 and victims:  # as torchrun ends when a process of its own was killed
        life.status = -signal.SIGKILL
    select.select([alive], [], [], PATIENCE)
    os.close(alive)
    return life


def campaign(attack: Attack, kills: int, chance: random.Random, folder: Path, bar: tqdm) -> Tally:
    """Attack trainings in `folder` until `kills` kills hit; let the last training finish."""
    folder.mkdir()
    processes = 2 if attack is of_two else 1
    undisturbed = Undisturbed(folder / "undisturbed", processes)
    tally, reached, run = Tally(), (0, 0), folder / "0"
    while tally.kills < kills or reached > (0, 0) or not tally.finished:
        if tally.kills < kills:
            life = attack(run, chance, undisturbed)
        else:
            life = small_run(run, processes=processes)
            life.wait()
        if life.status == 0:
            tally.finished += 1
            tally.equal += undisturbed.equals(run)
            reached, run = (0, 0), folder / str(tally.finished)
        elif life.status == -signal.SIGKILL:
            tally.kills += 1
            tally.half_written += any(run.glob(".*.unfinished"))
            bar.update()
            before, reached = reached, reached_in(run)
            if reached < before:
                tally.lost += 1
                reached, run = (0, 0), folder / f"after-loss-{tally.lost}"
        else:
            raise RuntimeError(f"the training ended by itself: {life.err.read_text()[-2000:]}")
    return tally


def reached_in(run: Path) -> tuple[int, int]:
    """The position that a kill left; (-1, -1) if it damaged a file."""
    try:
        return position(run)
    except utils.RunError as error:
        print(error, file=sys.stderr)
        return -1, -1


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__.splitlines()[0])
    add_flag(parser, "kills", Setting("in all", at_least=1), 1000)
    add_flag(parser, "seed", Setting("of the moments"), 0)
    arguments = parser.parse_args(argv)
    get_ready()
    begin, passed = time.monotonic(), True
    together, calls = arguments.kills // 10, arguments.kills // 2
    attacks = {at_a_call: calls, of_two: together, at_a_moment: arguments.kills - calls - together}
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=arguments.kills, unit="kill", mininterval=1) as bar,
    ):
        for attack, kills in attacks.items():
            chance = random.Random(f"{attack.__name__} {arguments.seed}")
            tally = campaign(attack, kills, chance, Path(folder) / attack.__name__, bar)
            bar.write(f"{attack.__name__.replace('_', ' ')}: {tally}")
            passed &= tally.passed
    outcome = "passed" if passed else "FAILED"
    print(f"seed {arguments.seed}: {outcome} in {time.monotonic() - begin:.0f} s")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
