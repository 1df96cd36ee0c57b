"""Draw accuracy against parameters: the networks of this repository and published ones.

    python experiments/landscape.py

Ours come from checkpoints/*_history.csv and are scored on the validation split. The others are as
published (published.csv), on the test split, so the two kinds compare only roughly.
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
from training import checkpoint as checkpoints

PUBLISHED = Path(__file__).resolve().with_name("published.csv")


def ours() -> list[plots.System]:
    """Each network that has a history, with its accuracy after the last epoch."""
    systems = []
    for name in models.names():
        history = common.ROOT / "checkpoints" / f"{name}_history.csv"
        if name == "teacher" or not history.exists():  # the teacher is large on purpose
            continue
        accuracy = read_history(history)[-1]
        config = {}
        if name == models.names()[0]:  # the network when its weights were released
            config = checkpoints.load_checkpoint(models.RELEASED_WEIGHTS)["config"]
        parameters = utils.count_parameters(models.build(name, **config))
        systems.append(plots.System(name, parameters, accuracy, accuracy))
    return systems


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
    parser = utils.ArgumentParser(description=__doc__)
    path = common.ROOT / "plots" / "landscape.png"
    parser.add_argument("--figure", type=Path, default=path, help="(plots/landscape.png)")
    figure = parser.parse_args(argv).figure
    kinds = {
        "this repository, validation split": ours(),
        "as published, test split": published(PUBLISHED),
    }
    plots.landscape(kinds, figure, title="CIFAR-10: accuracy and parameters", limit=100_000)


if __name__ == "__main__":
    utils.run_script(main)
