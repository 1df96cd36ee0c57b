"""TensorBoard logs of a run: its recipe, its metrics by epoch, its figures."""

import importlib.util
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib import image

import utils
from training.run import Run


def require() -> None:
    """Raises utils.RunError if TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise utils.RunError("--tensorboard needs a package: pip install tensorboard")


class Board:
    """Writes a run's logs into `folder`, from its first epoch, so a resumed run appears only once.

    Show it with `tensorboard --logdir FOLDER`.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and few need it

        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.split = run.settings.eval_split
        self.writer = SummaryWriter(str(folder))
        recipe = {"network": run.settings.model, **asdict(run.settings.recipe)}
        lines = [f"| {name} | {value} |" for name, value in recipe.items()]
        self.writer.add_text("recipe", "\n".join(["| setting | value |", "|---|---|", *lines]))
        for row in run.history:
            self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """Log an epoch's row of the history; loss and accuracy share a chart across the splits."""
        for column, value in row.items():
            if column == "epoch" or value is None:
                continue
            start, _, quantity = column.partition("_")
            tag = {"train": f"{quantity}/train", "eval": f"{quantity}/{self.split}"}
            self.writer.add_scalar(tag.get(start, f"run/{column}"), value, row["epoch"])
        self.writer.flush()

    def close(self, figures: Iterable[Path] = ()) -> None:
        """Add these PNG files and close the log."""
        for path in figures:
            pixels = image.imread(path, format="png")[..., :3]
            self.writer.add_image(path.stem, pixels, dataformats="HWC")
        self.writer.close()
