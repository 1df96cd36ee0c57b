"""Draw accuracy against parameters: the networks of this repository and published ones.

    python experiments/landscape.py

Our released weights are scored on the validation split, in fp32; the baseline, whose weights are
not kept, has the accuracy of its history. The others are as published (published.csv), on the test
split, so the two kinds compare only roughly.
"""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import torch
from torch import nn

import data
import models
import plots
import utils
from benchmarks import common
from benchmarks.time_to_accuracy import read_history
from training import engine, weights
from training.flags import compact

BATCH_SIZE = 500
PUBLISHED = Path(__file__).resolve().with_name("published.csv")


def ours(split: data.Split) -> list[plots.System]:
    """Each network but the teacher that was released or has a history, scored on `split`."""
    systems = []
    for name in models.names():
        path = common.ROOT / "checkpoints" / f"{name}.safetensors"
        history = path.with_name(f"{name}_history.csv")
        if name == "teacher":  # large on purpose
            continue
        if path.exists():
            network, accuracy = score(path, split)
        elif history.exists():
            network, accuracy = models.build(name), read_history(history)[-1]
        else:
            continue
        systems.append(plots.System(name, utils.count_parameters(network), accuracy, accuracy))
    return systems


def score(path: Path, split: data.Split) -> tuple[nn.Module, float]:
    """The network of the checkpoint at `path`, and its accuracy in fp32."""
    network, checkpoint = weights.load_network(path)
    loader = data.Loader(split, BATCH_SIZE, **checkpoint["normalization"])
    evaluation = engine.evaluate(network, loader, precision=torch.float32)
    return network, evaluation.metrics.accuracy


def published(table: Path) -> list[plots.System]:
    """The rows of `table`, with accuracies in per cent. Its columns author, year, source and note
    say where they come from."""
    with open(table, newline="", encoding="utf-8") as file:
        return [
            plots.System(
                name=row["system"],
                parameters=float(row["parameters"]),
                low=float(row["accuracy_low"]) / 100,
                high=float(row["accuracy_high"]) / 100,
                fewer=row["fewer"] == "yes",
                more=row["more"] == "yes",
            )
            for row in csv.DictReader(file)
        ]


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__, formatter_class=compact)
    path = common.ROOT / "plots" / "landscape.png"
    parser.add_argument("--figure", type=Path, default=path, help="(plots/landscape.png)")
    parser.add_argument("--data-dir", type=Path, default=data.DEFAULT_DIRECTORY, help="(data/raw)")
    arguments = parser.parse_args(argv)
    data.find("cifar10", arguments.data_dir, need=("val",))
    val = data.load("cifar10", arguments.data_dir, "val")
    kinds = {
        "this repository, validation split": ours(val),
        "as published, test split": published(PUBLISHED),
    }
    plots.landscape(
        kinds, arguments.figure, title="CIFAR-10: accuracy and parameters", limit=100_000
    )


if __name__ == "__main__":
    utils.run_script(main, data.DataError, OSError)
