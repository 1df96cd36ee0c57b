"""How training scales from one process to several under torchrun, one CPU thread each.

    python benchmarks/distributed.py --data-dir DIR

runs steps of the default recipe, with the same global batch, in one process and in several.
`without communication` is the same number of processes that exchange nothing. It shows the limit of
the machine itself, whose memory and caches the processes share. What is missing beside it is the
cost of communication. On a machine with GPUs (`--device cuda`) each process takes one; there one
process also replays a CUDA graph, which several do not.
"""

import argparse
import functools
import json
import sys
import time
from itertools import islice
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import data
import models
import startup
import utils
from benchmarks import common, processes
from benchmarks.common import Row
from training import devices, distributed, engine
from training.epochs import take_steps
from training.flags import Setting, add_flag
from training.recipe import RECIPES

MODEL = models.names()[0]
STEPS = 16
ENOUGH = 1.85  # target for two processes, as a multiple of one process's speed


def rate(split: data.Split, device: torch.device, steps: int, *, communicate: bool) -> float:
    """Images per second, all processes together."""
    run, loader = common.fresh_run(MODEL, RECIPES[MODEL], split, device)
    if not communicate:
        run.model = distributed.unwrap(run.model)
    batches, loss_weights = iter(loader), loader.loss_weights()

    def take(steps: int) -> None:
        metrics = engine.RunningMetrics(device)
        take_steps(run, islice(batches, steps), metrics, loss_weights=loss_weights)
        common.synchronize(device)

    take(common.WARM_UP)
    distributed.mean(0.0)  # all start together, and the slowest counts
    start = time.perf_counter()
    take(steps)
    seconds = distributed.highest(time.perf_counter() - start)
    return steps * loader.batch_size / seconds


def work(args: argparse.Namespace) -> None:
    """In each process: measure; the main one prints the rate."""
    with distributed.report_once():
        device = distributed.pick_device(args.device)
        with distributed.process_group(device):
            split = common.training_images(args.data_dir, quick=args.quick)
            steps = 2 if args.quick else STEPS
            found = rate(split, device, steps, communicate=not args.silent)
            print(json.dumps({"rate": found}))


def start(args: argparse.Namespace, count: int, *, silent: bool = False) -> float:
    """Images per second of `count` processes.

    Raises:
        utils.RunError: they failed.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    flags = ["--data-dir", args.data_dir.resolve(), "--device", args.device, "--work"]
    flags += [flag for flag, on in (("--quick", args.quick), ("--silent", silent)) if on]
    command = [*(launcher if count > 1 else []), __file__, *map(str, flags)]
    printed = processes.run_child(command, OMP_NUM_THREADS="1")
    return json.loads(printed.splitlines()[-1])["rate"]


def measure(args: argparse.Namespace) -> list[Row]:
    many = args.processes
    silent = f"{many} processes, without communication"
    values = common.alternate(
        {
            "1 process": functools.partial(start, args, 1),
            f"{many} processes": functools.partial(start, args, many),
            silent: functools.partial(start, args, many, silent=True),
        },
        1 if args.quick else args.repetitions,
    )
    one = values["1 process"]
    rows = [Row("training", name, rates, "images/s") for name, rates in values.items()]
    target = ENOUGH if many == 2 else None
    scaling = common.ratios(values[f"{many} processes"], one)
    rows.append(Row("scaling", f"{many} processes", scaling, "times", at_least=target))
    rows.append(Row("scaling", silent, common.ratios(values[silent], one), "times"))
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = common.parser(__doc__, "runs/distributed.json", 5, device="cpu")
    add = parser.add_argument
    add_flag(parser, "processes", Setting("that share each batch", at_least=1), 2)
    add("--work", action="store_true", help=argparse.SUPPRESS)
    add("--silent", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.work:
        work(args)
        return
    rows = measure(args)
    device = devices.pick_device(args.device)
    common.report(rows, args.output, device, quick=args.quick)


if __name__ == "__main__":
    startup.begin()
    utils.run_script(main)
