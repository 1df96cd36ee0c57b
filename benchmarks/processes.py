"""Programs in their own process, to measure what only a process shows: memory and start."""

import os
import subprocess
import sys

import utils
from benchmarks import common

# Runs train.py with the given arguments and exits after the first training step.
FIRST_STEP = """
import startup

startup.begin()

import os, sys
import train
from training import engine

train_epoch = engine.train_epoch

def end(loss):
    loss.item()
    print("first step", flush=True)
    os._exit(0)

engine.train_epoch = lambda *args, **kwargs: train_epoch(*args, **{**kwargs, "after_step": end})
train.main(sys.argv[1:])
"""
# Prints the peak resident memory of the given command, in bytes, as the last line. A process
# inherits its parent's peak, so a small parent such as this one is needed to see a child's.
PEAK_MEMORY = """
import resource, subprocess, sys

code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
unit = 1 if sys.platform == "darwin" else 1024
print(unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def run_child(command: list[str], **environment: str) -> str:
    """Run a Python program in the repository's root, with these variables in its environment;
    returns what it printed.

    Raises:
        utils.RunError: it failed.
    """
    child = subprocess.run(
        [sys.executable, *command],
        cwd=common.ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if child.returncode:
        lines = ["no message", *child.stderr.strip().splitlines()]
        reason = next((line for line in lines if "error: " in line.lower()), lines[-1])
        raise utils.RunError(f"the measured program failed: {reason}")
    return child.stdout
