"""Short runs of the tools that prove at length that nothing is lost (stress/)."""

import subprocess
import sys

import pytest
from fakes import ROOT


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
        ("endurance --steps 2000", "ms per step"),
    ],
)
def test_nothing_is_lost(command, found):
    assert found in tool(*command.split())


@pytest.mark.slow
def test_hostile_inputs_of_every_kind():
    line = tool("inputs", "--cases", 100, "--processes", 1)
    assert line.startswith("100 of 100 cases ended well")
