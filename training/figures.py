"""The figures of a run: its augmented images, its curves so far; the accuracy by class of any
evaluation."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import data
import plots
import utils
from training import checkpoint as checkpoints
from training import engine, run_folder
from training.run import Run, augmentation_of
from training.settings import Plan, Settings
from training.tensorboard import Board

CURVES, CLASS_ACCURACY, CONFUSION = "validation.png", "class_accuracy.png", "confusion_matrix.png"
AUGMENTED_EPOCHS = 4
MAX_DRAWING = 0.01  # of the training time may go into drawing during the run


def to_pixels(images: Tensor) -> Tensor:
    """Normalised images (N, 3, H, W) as uint8 on the CPU."""
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (data.MEAN, data.STD))
    return (images.float().cpu() * std + mean).mul(255).round().clamp(0, 255).byte()


def draw_augmentation(settings: Settings, loader: data.Loader, output: Path) -> None:
    """Draw the first training image of each class, original and as augmented in some epochs.

    They form their own batch, so mixup blends in another of them.
    """
    images, labels = loader.first_of_each_class()
    augmented = data.Loader(
        data.Split(images, labels, settings.train_split, settings.source),
        len(images),
        **data.NORMALIZATION,
        augmentation=augmentation_of(settings.recipe),
        seed=settings.seed,
        mixup_epochs=loader.mixup_epochs,
    )
    epochs = []
    for epoch in range(AUGMENTED_EPOCHS):
        augmented.set_epoch(epoch)
        epochs.append(to_pixels(next(iter(augmented))[0]))
    names = [data.CLASSES[label] for label in labels]
    title = f"{settings.title}: training images as the network sees them"
    plots.augmentation(images, epochs, names, output / "augmentation.png", title=title)


def draw_curves(run: Run, output: Path) -> None:
    """Draw accuracy and loss of the epochs so far."""
    settings = run.settings
    recipe = settings.recipe
    loss = "loss of mixed labels" if recipe.mixup else None
    loss = "label-smoothed loss" if recipe.label_smoothing else loss
    plots.validation(
        run.history,
        output / CURVES,
        title=settings.title,
        eval_split=settings.eval_split,
        loss="distillation loss" if settings.teachers else loss,
        averaged=run.ema is not None,
        precision=settings.precision,
    )


def draw(run: Run, evaluation: engine.Evaluation | None, output: Path) -> None:
    """Print the accuracy of each class of a finished run, and draw its figures."""
    draw_curves(run, output)
    if evaluation is None:
        return
    title = f"{run.settings.title}, {run.settings.eval_split} split"
    draw_scores(evaluation, data.CLASSES, title, output)


def draw_scores(
    evaluation: engine.Evaluation, classes: tuple[str, ...], title: str, output: Path
) -> None:
    """Print the accuracy of each class, and draw it and the confusion matrix."""
    confusion = evaluation.confusion
    correct, total = confusion.diag().tolist(), confusion.sum(1).tolist()
    print(utils.class_table(correct, total, classes))
    plots.class_accuracy(correct, total, classes, output / CLASS_ACCURACY, title=title)
    plots.confusion_matrix(confusion, classes, output / CONFUSION, title=title)


def is_over(plan: Plan) -> bool:
    """Whether the run is complete: all epochs trained, and all final files written."""
    epochs = plan.settings.recipe.epochs
    if plan.checkpoint is None or plan.checkpoint["epoch"] < epochs:
        return False
    scores = () if plan.settings.eval_split == "none" else (CLASS_ACCURACY, CONFUSION)
    if not all((plan.output / name).exists() for name in ("history.csv", CURVES, *scores)):
        return False
    try:  # a kill may have left the weights of the epoch before
        return checkpoints.load_checkpoint(plan.output / run_folder.WEIGHTS)["epoch"] == epochs
    except utils.RunError:
        return False


@dataclass
class AfterEpoch:
    """Called after each epoch: writes the weights and curves so far, and the epoch's row to
    TensorBoard.

    If epochs are so short that drawing would take more than MAX_DRAWING of the time, it skips the
    curves of some epochs.
    """

    run: Run
    output: Path
    board: Board | None = None

    def __post_init__(self) -> None:
        self.since = time.perf_counter()
        self.drawing = 0.0  # seconds that the last figure took

    def __call__(self) -> None:
        checkpoints.save_checkpoint(self.output / run_folder.WEIGHTS, self.run.released())
        if self.board is not None:
            self.board.add(self.run.history[-1])
        start = time.perf_counter()
        if self.drawing <= MAX_DRAWING * (start - self.since):
            draw_curves(self.run, self.output)
            self.since = time.perf_counter()
            self.drawing = self.since - start
