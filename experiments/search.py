"""Train named candidates for a short, fixed budget each and append a row per run to a table.

    python experiments/search.py --minutes 5 --data-dir DIR [--only NAME ...] [--seeds 0 1]
    python experiments/search.py --epochs 5 --only full no_attention ... --seeds 0 1
    python experiments/search.py --speed --only full no_attention ...
    python experiments/search.py --epochs 5 --small --output experiments/search_under25k.csv
    python experiments/search.py --figure FILE.png --output experiments/search_plain.csv

The budget is in minutes of training on this machine (the script first measures how many epochs
fit), or in epochs, if speed does not matter. Every candidate trains through its complete schedule,
from warm-up to a learning rate of 0, on the 45,000 training images, and its moving average is
scored once on the 5,000 validation images. The table, experiments/search.csv, is the record of what
was tried. Other work on the machine distorts its seconds per epoch. --speed compares speed instead:
candidates take steps in turn, and no row is added.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import data
import models
import plots
import startup
import utils
from benchmarks import common
from training import devices, engine
from training.flags import Setting, add_flag
from training.recipe import Recipe, RecipeError, named_recipe
from training.report import IMAGE_SIZE
from training.run import build_loader

TABLE = Path(__file__).resolve().with_name("search.csv")
TIMED_SECONDS = 4
REPETITIONS = 5
MAX_MINUTES = 1e6


@dataclass(frozen=True)
class Candidate:
    """How the candidate differs from the default network and its short recipe."""

    config: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    model: str = models.names()[0]


# The network without one of the six operations. Sizes keep the number of parameters within 5 %.
ABLATION = {
    "full": Candidate(),
    "no_separable": Candidate({"separable": False, "hidden": (16, 20)}),
    "no_dilated": Candidate({"dilated": False}),
    "no_transposed": Candidate({"transposed": False}),
    "no_unshuffle": Candidate({"unshuffle": False, "depths": (8, 2, 2, 2)}),
    "no_attention": Candidate({"attention": False}),
    "no_mirror": Candidate(
        {"mirror": False, "widths": (32, 64), "hidden": (48, 64), "depths": (4, 2, 2, 2)}
    ),
}
# The same for under25k, whose trainings take a third of the time.
SMALL_SIZES: dict[str, dict[str, Any]] = {
    "no_separable": {"hidden": (8, 14)},
    "no_unshuffle": {"depths": (4, 2, 2, 2)},
    "no_mirror": {"widths": (24, 24), "hidden": (32, 32), "depths": (3, 2, 2, 2)},
}
SMALL_ABLATION = {
    name: Candidate({**whole.config, **SMALL_SIZES.get(name, {})}, model="under25k")
    for name, whole in ABLATION.items()
}
IN_WORDS = {  # as the figure names them
    "full": "the complete network",
    "no_separable": "ordinary 3x3 instead of depthwise-separable convolutions",
    "no_dilated": "no dilation",
    "no_transposed": "1x1 and repeated pixels instead of the transposed convolution",
    "no_unshuffle": "max pooling instead of pixel unshuffle",
    "no_attention": "no channel attention",
    "no_mirror": "no mirror symmetry",
}
CANDIDATES = {
    **ABLATION,
    "2_blocks_at_32x32": Candidate({"depths": (2, 3, 2, 2)}),
    "7_blocks_at_32x32": Candidate({"depths": (7, 2, 2, 2)}),
    "96_hidden_at_32x32": Candidate({"hidden": (96, 96)}),
    "64_channels": Candidate({"widths": (32, 64), "hidden": (64, 128), "depths": (5, 3, 2, 2)}),
    "112_channels": Candidate({"widths": (48, 112), "hidden": (64, 112), "depths": (4, 1, 1, 1)}),
    "before_mirrors": Candidate(
        {"mirror": False, "widths": (32, 64), "hidden": (64, 64), "depths": (2, 3, 2, 2)}
    ),
    "sgd": Candidate(recipe={"optimizer": "sgd", "learning_rate": 0.2}),
    "adamw": Candidate(recipe={"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.05}),
    "rate_0.05": Candidate(recipe={"learning_rate": 0.05}),
    "rate_0.2": Candidate(recipe={"learning_rate": 0.2}),
    "batch_256": Candidate(recipe={"batch_size": 256, "learning_rate": 0.15}),
    "cosine": Candidate(recipe={"schedule": "cosine"}),
    "muon_decay_0.1": Candidate(recipe={"muon_weight_decay": 0.1}),
    "random_flip": Candidate(recipe={"flip": "random"}),
    "mixup": Candidate(recipe={"mixup": 0.4}),
    "cutout": Candidate(recipe={"cutout": 8}),
}


def recipe_of(candidate: Candidate, epochs: int) -> Recipe:
    """The recipe that trains the candidate."""
    short = named_recipe(candidate.model, candidate.config, "short")
    return replace(short, **{**candidate.recipe, "epochs": epochs})


def timer(candidate: Candidate, images: data.Split, device: torch.device) -> Callable[[], float]:
    """A function that trains for a few seconds and returns the seconds that an epoch takes."""
    recipe = recipe_of(candidate, 1)
    run, loader = common.fresh_run(candidate.model, recipe, images, device, **candidate.config)
    return lambda: loader.images / common.training_speed(run, loader, seconds=TIMED_SECONDS)


def epochs_within(
    minutes: float, candidate: Candidate, images: data.Split, device: torch.device
) -> int:
    """How many epochs of the candidate this machine trains in `minutes`, at least one."""
    return max(1, int(60 * minutes / timer(candidate, images, device)()))


def compare_speed(
    candidates: dict[str, Candidate], images: data.Split, device: torch.device
) -> None:
    """Print seconds per epoch of candidates that train in turn: median and range."""
    timers = {name: timer(candidate, images, device) for name, candidate in candidates.items()}
    values = common.alternate(timers, REPETITIONS)
    print(common.table([common.Row("speed", name, values[name], "s/epoch") for name in timers]))


def measure(
    candidate: Candidate,
    epochs: int,
    seed: int,
    train: data.Split,
    val: data.Split,
    device: torch.device,
) -> dict[str, Any]:
    """Train the candidate through its complete schedule; returns its row of the table, without its
    name."""
    recipe = recipe_of(candidate, epochs)
    run, loader = common.fresh_run(
        candidate.model, recipe, train, device, seed=seed, **candidate.config
    )
    start = time.perf_counter()
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        metrics = common.train(run, loader)
    seconds = time.perf_counter() - start  # reading the metrics has waited for the device
    scored = build_loader(run.settings, val, device, train=False)
    evaluation = engine.evaluate(run.eval_model, scored, precision=run.precision)
    fresh = models.build(candidate.model, **candidate.config).eval()
    return {
        "seed": seed,
        "parameters": utils.count_parameters(fresh),
        "macs": utils.count_macs(fresh, IMAGE_SIZE),
        "epochs": epochs,
        "seconds_per_epoch": round(seconds / epochs, 1),
        "train_accuracy": round(metrics.accuracy, 4),
        "val_accuracy": round(evaluation.metrics.accuracy, 4),
        "config": json.dumps(candidate.config),
        "recipe": json.dumps(candidate.recipe),
    }


def append(row: dict[str, Any], path: Path) -> None:
    """Add a row to the table; create the table if it does not exist."""
    fresh = not path.exists()
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def draw_ablation(table: Path, figure: Path) -> None:
    """Draw the ablation at the largest budget that a network without one operation had.

    Raises:
        utils.RunError: the table has no such network, or no complete one at that budget.
        KeyError, ValueError: it is another table.
    """
    with open(table, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["candidate"] in ABLATION]
    budgets = [int(row["epochs"]) for row in rows if row["candidate"] != "full"]
    if not budgets:
        raise utils.RunError(f"{table} has no row of the ablation: train some with --only")
    epochs = max(budgets)
    if not any(row["candidate"] == "full" and int(row["epochs"]) == epochs for row in rows):
        raise utils.RunError(
            f"{table} has no row of the complete network at {epochs} epochs: train it with --only"
            f" full --epochs {epochs}"
        )
    accuracies: dict[str, dict[int, float]] = {}
    for name in ABLATION:
        found = [r for r in rows if r["candidate"] == name and int(r["epochs"]) == epochs]
        if found:
            size = found[-1]["parameters"]  # older rows may be of an older network
            label = f"{IN_WORDS[name]}\n{int(size):,} parameters"
            same = [row for row in found if row["parameters"] == size]
            accuracies[label] = {int(row["seed"]): float(row["val_accuracy"]) for row in same}
    title = f"Without each operation: {epochs} epochs, validation split"
    plots.ablation(accuracies, figure, title=title)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--speed", action="store_true", help="compare the seconds per epoch")
    budget.add_argument("--figure", type=Path, metavar="FILE", help="draw the ablation, as a PNG")
    minutes = Setting("of training a candidate", at_most=MAX_MINUTES)
    add_flag(budget, "minutes", minutes, None, float)
    add_flag(budget, "epochs", Setting("of training a candidate", at_least=1), None, int)
    add("--only", nargs="+", choices=CANDIDATES, metavar="NAME", help=", ".join(CANDIDATES))
    add("--small", action="store_true", help="the ablation of under25k instead of under100k")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="(0)")
    add("--data-dir", type=Path, default=data.DEFAULT_DIRECTORY, metavar="DIR", help="(data/raw)")
    add("--device", default="auto", help="(auto)")
    add("--output", type=Path, default=TABLE, metavar="FILE", help="(experiments/search.csv)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    if arguments.figure is not None:
        try:
            draw_ablation(arguments.output, arguments.figure)
        except (KeyError, ValueError) as error:
            raise utils.RunError(f"{arguments.output} is not a table of this script") from error
        return
    device = devices.pick_device(arguments.device)
    known = SMALL_ABLATION if arguments.small else CANDIDATES
    if unknown := set(arguments.only or ()) - set(known):
        raise utils.RunError(f"--small has no {', '.join(sorted(unknown))}")
    if arguments.only:
        known = {name: known[name] for name in arguments.only}
    train, val = data.load_splits("cifar10", arguments.data_dir, ("train", "val"))
    if arguments.speed:
        compare_speed(known, train, device)
        return
    utils.make_folder(arguments.output.parent)
    # Measured once, so that all seeds of a candidate have as many epochs.
    epochs = {
        name: arguments.epochs or epochs_within(arguments.minutes, candidate, train, device)
        for name, candidate in known.items()
    }
    for seed in arguments.seeds:
        for name, candidate in known.items():
            row = measure(candidate, epochs[name], seed, train, val, device)
            row = {"candidate": name, **row}
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
            append(row, arguments.output)


if __name__ == "__main__":
    startup.begin()
    utils.run_script(main, data.DataError, models.ModelError, RecipeError, OSError)
