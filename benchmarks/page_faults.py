"""What a training step gains when the commands keep freed memory (startup.py).

    python benchmarks/page_faults.py --data-dir DIR

Each repetition is two processes, one after the other, that train the default network on the CPU,
one of them with KEEP_MEMORY=0. Prints seconds, processor time and page faults per step, and
peak resident memory.
"""

import functools
import json
import resource
import statistics
import sys
import time
from itertools import islice, pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import models
import startup
import utils
from benchmarks import common, processes
from benchmarks.common import Row
from training import devices
from training.recipe import RECIPES

CHILD = """
import startup, sys

startup.begin()

from pathlib import Path
from benchmarks import page_faults

page_faults.print_measures(Path(sys.argv[1]), quick=sys.argv[2] == "quick")
"""
WARM_UP, STEPS = 10, 40
MEASURES = {
    "a step": "s",
    "processor time of a step": "s",
    "page faults of a step": "",
    "peak resident memory": "GB",
}


def print_measures(directory: Path, *, quick: bool) -> None:
    """Train in this process and print the values of MEASURES as a line of JSON."""
    device = devices.pick_device("cpu")
    split = common.training_images(directory, quick=quick)
    name = models.names()[0]
    run, loader = common.fresh_run(name, RECIPES[name], split, device)
    batches = common.endless(loader)
    warm_up, steps = (1, 2) if quick else (WARM_UP, STEPS)
    common.train(run, islice(batches, warm_up))
    ends: list[float] = [time.perf_counter()]
    before = resource.getrusage(resource.RUSAGE_SELF)
    common.train(run, islice(batches, steps), lambda loss: ends.append(time.perf_counter()))
    after = resource.getrusage(resource.RUSAGE_SELF)
    step = statistics.median(end - start for start, end in pairwise(ends))
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    faults = (after.ru_minflt - before.ru_minflt) / steps
    peak = after.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    print(json.dumps([step, processor / steps, faults, peak]))


def measure_child(command: list[str], kept: str) -> list[float]:
    """The values of MEASURES that a process prints; `kept` is its KEEP_MEMORY."""
    printed = processes.run_child(command, **{startup.KEEP_MEMORY: kept})
    return json.loads(printed.splitlines()[-1])


def measure_pairs(directory: Path, repetitions: int, quick: bool) -> list[Row]:
    command = ["-c", CHILD, str(directory.resolve()), "quick" if quick else "long"]
    measurements = {kept: functools.partial(measure_child, command, kept) for kept in ("0", "1")}
    values = common.alternate(measurements, repetitions)
    rows = []
    for index, (measure, unit) in enumerate(MEASURES.items()):
        ours, theirs = ([measures[index] for measures in values[kept]] for kept in ("1", "0"))
        rows += [
            Row("memory kept", measure, ours, unit),
            Row("given back", measure, theirs, unit),
            Row("ratio", measure, common.ratios(ours, theirs), "x"),
        ]
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = common.parser(__doc__, "runs/page_faults.json", 5, device=None)
    args = parser.parse_args(argv)
    rows = measure_pairs(args.data_dir, 1 if args.quick else args.repetitions, args.quick)
    common.report(rows, args.output, devices.pick_device("cpu"), quick=args.quick)


if __name__ == "__main__":
    utils.run_script(main)
