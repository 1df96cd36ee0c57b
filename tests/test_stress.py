"""Short runs of the tools that prove at length that nothing is lost (stress/)."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from stress import mutants

ROOT = Path(__file__).resolve().parent.parent


def tool(name, *flags):
    """The last line of one of the tools, which must find nothing wrong."""
    command = [sys.executable, "-m", f"stress.{name}", *map(str, flags)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, found",
    [
        ("kill --kills 20", "seed 0: passed"),
        ("disk --every 40", "Every run went on to the files of the undisturbed one"),
        ("histories --histories 5", "histories lost nothing"),
        ("endurance --steps 2000", "ms a step"),
    ],
)
def test_nothing_is_lost(command, found):
    assert found in tool(*command.split())


@pytest.mark.slow
def test_mutants_of_every_file():
    line = tool("fuzz", "--mutants", 200)
    assert line.startswith("200 of 200 mutants refused or right")


def test_the_mutants_are_the_same_every_time():
    def made():
        chance = random.Random("0 1")
        return [mutation(bytes(range(256)) * 9, chance) for mutation in mutants.DAMAGES]

    assert made() == made()
