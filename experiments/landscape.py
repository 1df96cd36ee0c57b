"""Draw accuracy against parameters: the networks of this repository and published ones.

    python experiments/landscape.py

Ours are those of checkpoints/*_history.csv, on the validation split; the others are as published,
on the test split (published.csv), so that the two kinds compare only roughly.
"""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import models
import plots
import utils
from benchmarks import common
from benchmarks.time_to_accuracy import read_history

PUBLISHED = Path(__file__).resolve().with_name("published.csv")


def ours() -> list[tuple[str, float, float]]:
    """(name, parameters, accuracy) of each network, after the last epoch of its history."""
    return [
        (
            name,
            utils.count_parameters(models.build(name)),
            read_history(common.ROOT / "checkpoints" / f"{name}_history.csv")[-1],
        )
        for name in models.names()
    ]


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__)
    path = common.ROOT / "plots" / "landscape.png"
    parser.add_argument("--figure", type=Path, default=path, help="(plots/landscape.png)")
    with open(PUBLISHED, newline="") as file:
        published = [
            (row["system"], float(row["parameters"]), float(row["accuracy"]) / 100)
            for row in csv.DictReader(file)
        ]
    plots.landscape(
        {"this repository, validation split": ours(), "as published, test split": published},
        parser.parse_args(argv).figure,
        title="CIFAR-10: accuracy and parameters",
    )


if __name__ == "__main__":
    utils.run_script(main)
