"""How the time of an epoch grows with the number of images, the batch size and the threads.

    python benchmarks/scaling.py --data-dir DIR

trains the default network in our loop. For the number of images it times complete epochs. For batch
size and threads it times a few seconds of steps and derives the time of an epoch of 50,000 images.
Prints a table, writes it as JSON and draws plots/scaling.png.
"""

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import data
import models
import plots
import startup
import utils
from benchmarks import common
from benchmarks.common import Row
from training import devices
from training.recipe import RECIPES
from training.report import device_name

MODEL = models.names()[0]
IMAGES = (2_000, 6_000, 16_000, 50_000)
BATCH_SIZES = (16, 32, 64, 128, 256, 512, 1024)
SECONDS = 4.0  # seconds of steps for each batch size and number of threads
Sweep = dict[int, Callable[[], float]]  # value -> seconds of an epoch


def time_epoch(split: data.Split, device: torch.device) -> float:
    """Seconds of a complete epoch over `split`, random numbers and metrics included."""
    run, loader = common.fresh_run(MODEL, RECIPES[MODEL], split, device)
    common.train(run, islice(loader, common.WARM_UP))
    common.synchronize(device)
    start = time.perf_counter()
    common.train(run, loader)
    common.synchronize(device)
    return time.perf_counter() - start


def time_steps(
    split: data.Split, device: torch.device, *, batch_size: int, threads: int, seconds: float
) -> float:
    """Seconds that an epoch over `split` would take, from a few seconds of steps."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        recipe = replace(RECIPES[MODEL], batch_size=batch_size)
        run, loader = common.fresh_run(MODEL, recipe, split, device)
        rate = common.training_speed(run, loader, seconds=seconds)
    finally:
        torch.set_num_threads(before)
    return len(split) / rate


def sweeps(split: data.Split, device: torch.device, *, seconds: float) -> dict[str, Sweep]:
    """The measurements: for each quantity its values, and a function that times each."""
    threads, size = torch.get_num_threads(), min(RECIPES[MODEL].batch_size, len(split))
    steps = functools.partial(time_steps, split, device, seconds=seconds)
    counts = [n for n in IMAGES if n < len(split)] + [len(split)]
    result: dict[str, Sweep] = {
        "images": {
            n: functools.partial(time_epoch, common.first(split, n), device) for n in counts
        },
        "batch size": {
            n: functools.partial(steps, batch_size=n, threads=threads)
            for n in BATCH_SIZES
            if n <= len(split)
        },
    }
    if device.type == "cpu":
        result["threads"] = {
            n: functools.partial(steps, batch_size=size, threads=n)
            for n in sorted({*(2**k for k in range(threads.bit_length())), threads})
        }
    return result


def measure(measured: dict[str, Sweep], repetitions: int) -> list[Row]:
    rows = []
    for quantity, sweep in measured.items():
        print(f"Measuring {quantity} ...", file=sys.stderr, flush=True)
        values = common.alternate(sweep, repetitions)
        rows += [Row(quantity, f"{n:,}", seconds, "s/epoch") for n, seconds in values.items()]
    return rows


def draw(rows: list[Row], path: Path, *, title: str) -> None:
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        point = int(row.measure.replace(",", "")), row.median
        series.setdefault(row.part, []).append(point)
    plots.scaling(series, path, title=title)


def main(argv: list[str] | None = None) -> None:
    parser = common.parser(__doc__, "runs/scaling.json", 2)
    figure = "plots/scaling.png"
    drawn = f"({figure}; with --quick none)"
    parser.add_argument("--figure", type=Path, metavar="FILE", help=drawn)
    args = parser.parse_args(argv)
    device = devices.pick_device(args.device)
    split = common.training_images(args.data_dir, quick=args.quick)
    measured = sweeps(split, device, seconds=0.01 if args.quick else SECONDS)
    rows = measure(measured, 1 if args.quick else args.repetitions)
    common.report(rows, args.output, device, quick=args.quick)
    size = utils.count_parameters(models.build(MODEL))
    title = f"Seconds per epoch of {MODEL} ({size:,} parameters) on {device_name(device)}"
    if args.figure is not None or not args.quick:
        draw(rows, args.figure or common.ROOT / figure, title=title)


if __name__ == "__main__":
    startup.begin()
    utils.run_script(main, OSError)
