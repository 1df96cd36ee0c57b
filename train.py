"""Train a CIFAR-10 classifier: `python train.py` is the recipe behind the released weights."""

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import data
import engine
import models
import plots
import recipe as recipes
import utils
from recipe import Recipe

ROOT = Path(__file__).resolve().parent
IMAGE_SIZE = (3, 32, 32)
EVAL_SPLITS = ("test", "val", "none")
SAMPLE_WARNING = (
    "*** NOT CIFAR-10: training on the built-in sample of 2,000 images. Its accuracy says only that"
    " the code works. Put CIFAR-10 into data/raw, or name its folder with --data-dir. ***"
)
EVALUATION_BATCH = 500
RECIPE_FLAGS = [
    field.name for field in fields(Recipe) if field.name not in ("milestones", "nesterov")
]
# What an interrupted run has settled; the other flags may be given anew with --resume.
SETTLED = ("model", "data", "eval_split", "precision", "seed", *RECIPE_FLAGS)


@dataclass(frozen=True)
class Settings:
    """What a run is: kept in its config.json and its checkpoints."""

    model: str
    config: dict[str, Any]
    recipe: Recipe
    source: str
    eval_split: str
    precision: str
    seed: int

    @property
    def train_split(self) -> str:
        return "train" if self.eval_split == "val" else "train+val"

    @property
    def title(self) -> str:
        sample = ", trained on the built-in sample only" if self.source == "sample" else ""
        return f"{self.model} on CIFAR-10{sample}"


@dataclass
class Run:
    """A training in progress: everything that changes while it goes on."""

    settings: Settings
    model: nn.Module
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: AveragedModel | None
    scaler: GradScaler
    device: torch.device
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def scored(self) -> nn.Module:
        """The network that is evaluated and released: the moving average, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def weights(self) -> dict[str, Any]:
        """The released form: what rebuilds and describes the network, nothing of the training."""
        settings = self.settings
        return {
            "model": settings.model,
            "config": settings.config,
            "state_dict": self.scored.state_dict(),
            "normalization": {"mean": list(data.MEAN), "std": list(data.STD)},
            "classes": list(data.CLASSES),
            "data": {
                "source": settings.source,
                "train_split": settings.train_split,
                "eval_split": settings.eval_split,
            },
            "epoch": self.epoch,
            "history": self.history,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs."""
        return {
            "settings": asdict(self.settings),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": utils.random_state(),
        }

    def load_state_dict(self, state: dict[str, Any], epoch: int, history: list[dict]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.scaler.load_state_dict(state["scaler"])
        utils.set_random_state(state["random"])
        self.epoch, self.history = epoch, history


class Monitor:
    """Called after every step: moves the progress bar, and stops a run whose loss is lost.

    Looking at the loss waits for the device, so on an accelerator only every 50th is looked at.
    """

    def __init__(self, run: Run, batches: int) -> None:
        self.run = run
        self.bar = tqdm(total=batches, disable=not sys.stderr.isatty(), leave=True)
        self.batch = 0
        self.interval = 1 if run.device.type == "cpu" else 50

    def __call__(self, loss: Tensor) -> None:
        if self.batch % self.interval == 0:
            self.check(loss.item())
        self.bar.update()
        self.batch += 1

    def close(self, loss: float) -> None:
        """The epoch is over: its mean loss has the last word."""
        self.check(loss)
        self.bar.close()

    def check(self, loss: float) -> None:
        if not math.isfinite(loss):
            rate = self.run.scheduler.get_last_lr()[0]
            raise utils.RunError(
                f"the loss became {loss} in epoch {self.run.epoch + 1}, batch {self.batch}, at a"
                f" learning rate of {rate:.3g}; the checkpoint of the last epoch is intact:"
                " try a lower --learning-rate"
            )
        self.bar.set_description_str(f"loss={loss:.4f} batch_id={self.batch}", refresh=False)


def parse_arguments(argv: list[str] | None) -> dict[str, Any]:
    """The flags that were given, by name; what was not given is not there."""
    parser = utils.ArgumentParser(description=__doc__, argument_default=argparse.SUPPRESS)
    add = parser.add_argument_group("data").add_argument
    add("--data", choices=data.SOURCES, help="auto: CIFAR-10 if it can be had, else the sample")
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="CIFAR-10 lies or is downloaded here (data/raw)",
    )
    add("--download-url", metavar="URL", help="a mirror of cifar-10-python.tar.gz")
    add("--eval-split", choices=EVAL_SPLITS, help="scored after each epoch; val is not trained on")
    add = parser.add_argument_group("network").add_argument
    add("--model", choices=models.names(), help=f"({models.names()[0]})")
    add("--summary", action="store_true", help="print layers, parameters and MACs, and stop")
    group = "recipe (each network has its own defaults: see recipe.py)"
    add = parser.add_argument_group(group).add_argument
    add("--epochs", type=int, metavar="N", help="passes over the training images")
    add("--batch-size", type=int, metavar="N", help="images a step")
    add("--optimizer", choices=recipes.OPTIMIZERS)
    add("--learning-rate", type=float, metavar="X", help="at the peak of the schedule")
    add("--schedule", choices=recipes.SCHEDULES, help="how the learning rate falls")
    add("--warmup", type=float, metavar="X", help="fraction of the steps in which it rises")
    add("--momentum", type=float, metavar="X")
    add("--weight-decay", type=float, metavar="X", help="on kernels, not on norms and biases")
    add("--label-smoothing", type=float, metavar="X")
    add("--ema-decay", type=float, metavar="X", help="of the averaged weights, a step; 0: none")
    add("--crop-padding", type=int, metavar="N", help="pixels; 0: no random crop")
    add("--padding-mode", choices=data.PADDING_MODES)
    add("--flip", choices=data.FLIPS, help="mirroring; alternating: every other epoch")
    add("--cutout", type=int, metavar="N", help="side of the blanked square, pixels; 0: none")
    add = parser.add_argument_group("run").add_argument
    add("--device", help="auto, cpu, cuda, cuda:1, mps (auto)")
    add("--precision", choices=("auto", *utils.PRECISIONS), help="of the mixed precision (auto)")
    add("--seed", type=int, metavar="N", help="of weights, order and augmentation (0)")
    add("--output", type=Path, metavar="DIR", help="folder of the run (runs/NETWORK-TIME)")
    add("--resume", type=Path, metavar="PATH", help="go on from the last.pt of a run")
    return vars(parser.parse_args(argv))


def new_settings(given: dict[str, Any], device: torch.device) -> Settings:
    """The settings of a fresh run: the flags, and the network's own recipe for the rest."""
    model = given.get("model", models.names()[0])
    recipe = replace(recipes.RECIPES[model], **{k: given[k] for k in RECIPE_FLAGS if k in given})
    source = given.get("data", "auto")
    eval_split = given.get("eval_split")
    need = required_splits(eval_split or "test")
    directory = given.get("data_dir", data.DEFAULT_DIRECTORY)
    found = data.find(source, directory, need=need, download_url=given.get("download_url"))
    if eval_split is None:
        eval_split = "val" if found == "sample" else "test"
    precision = utils.pick_precision(given.get("precision", "auto"), device)
    return Settings(
        model=model,
        config=models.config_dict(model),
        recipe=recipe,
        source=found,
        eval_split=eval_split,
        precision=utils.precision_name(precision),
        seed=given.get("seed", 0),
    )


def settings_of(checkpoint: dict[str, Any], given: dict[str, Any], path: Path) -> Settings:
    """The settings of an interrupted run, which no flag may contradict."""
    if "training" not in checkpoint:
        raise utils.RunError(
            f"{path} holds released weights, which cannot be resumed: use a last.pt"
        )
    settled = [name for name in SETTLED if name in given]
    if settled:
        flags = ", ".join("--" + name.replace("_", "-") for name in settled)
        raise utils.RunError(f"{flags} cannot change with --resume: start a new run instead")
    settings = dict(checkpoint["training"]["settings"])
    recipe = dict(settings.pop("recipe"))
    recipe["milestones"] = tuple(tuple(row) for row in recipe["milestones"])
    return Settings(recipe=Recipe(**recipe), **settings)


def required_splits(eval_split: str) -> tuple[str, ...]:
    train_split = "train" if eval_split == "val" else "train+val"
    return (train_split,) if eval_split == "none" else (train_split, eval_split)


def make_output(given: dict[str, Any], settings: Settings) -> Path:
    """Create the folder of the run; a resumed run stays where it was.

    Raises:
        utils.RunError: it cannot be created, or holds another run.
    """
    resumed = given.get("resume")
    if "output" in given:
        output = given["output"]
    elif resumed is not None:
        output = resumed.parent
    else:
        output = ROOT / "runs" / f"{settings.model}-{datetime.now():%Y%m%d-%H%M%S}"
    utils.make_folder(output)
    if (output / "last.pt").exists() and (
        resumed is None or not resumed.samefile(output / "last.pt")
    ):
        raise utils.RunError(f"{output} already holds a run: resume it, or choose another --output")
    return output


def build_loaders(
    settings: Settings, directory: Path, device: torch.device
) -> tuple[data.Loader, data.Loader | None, data.Split | None]:
    """The training and the evaluation loader, and the split evaluated (None where there is none)."""
    recipe = settings.recipe
    augmentation = data.Augmentation(
        recipe.crop_padding, recipe.padding_mode, recipe.flip, recipe.cutout
    )
    common = {
        "seed": settings.seed,
        "device": device,
        "mean": data.MEAN,
        "std": data.STD,
        "dtype": utils.PRECISIONS[settings.precision],
    }
    split = data.load(settings.source, directory, settings.train_split)
    train = data.Loader(split, recipe.batch_size, augmentation=augmentation, shuffle=True, **common)
    if settings.eval_split == "none":
        return train, None, None
    split = data.load(settings.source, directory, settings.eval_split)
    size = min(EVALUATION_BATCH, len(split))
    return train, data.Loader(split, size, augmentation=None, shuffle=False, **common), split


def build_run(settings: Settings, device: torch.device, steps_per_epoch: int) -> Run:
    model = models.build(settings.model, **settings.config)
    model = model.to(device, memory_format=torch.channels_last)
    optimizer = recipes.build_optimizer(model, settings.recipe)
    scaled = settings.precision == "fp16"
    return Run(
        settings=settings,
        model=model,
        optimizer=optimizer,
        scheduler=recipes.build_scheduler(optimizer, settings.recipe, steps_per_epoch),
        ema=recipes.build_ema(model, settings.recipe),
        scaler=GradScaler(device.type, enabled=scaled),
        device=device,
    )


def train_one_epoch(run: Run, loader: data.Loader) -> tuple[engine.Metrics, float, float]:
    """Train epoch `run.epoch`; returns its metrics, seconds, and learning rate at its start."""
    recipes.begin_epoch(run.optimizer, run.settings.recipe, run.epoch)
    loader.set_epoch(run.epoch)
    learning_rate = run.scheduler.get_last_lr()[0]
    monitor = Monitor(run, len(loader))
    start = time.perf_counter()
    metrics = engine.train_epoch(
        run.model,
        loader,
        run.optimizer,
        run.scheduler,
        run.ema,
        run.scaler,
        engine.RunningMetrics(run.device),
        label_smoothing=run.settings.recipe.label_smoothing,
        precision=utils.PRECISIONS[run.settings.precision],
        after_step=monitor,
    )
    monitor.close(metrics.loss)
    return metrics, time.perf_counter() - start, learning_rate


def print_epoch(
    run: Run, row: dict[str, Any], train: engine.Metrics, scored: engine.Metrics | None
) -> None:
    """The two lines of results, and one of how it goes on."""
    epochs = run.settings.recipe.epochs
    print(f"Epoch {run.epoch}/{epochs}")
    print(utils.metrics_line("Train", train.loss, train.correct, train.total))
    if scored is not None:
        name = run.settings.eval_split.capitalize()
        print(utils.metrics_line(name, scored.loss, scored.correct, scored.total))
    left = (epochs - run.epoch) * sum(r["seconds"] for r in run.history) / len(run.history)
    print(
        f"Learning rate {row['learning_rate']:.4g}, {row['seconds']:.1f} s,"
        f" {row['images_per_second']:.0f} images/s, {utils.duration(left)} left",
        flush=True,
    )


def train(
    run: Run, loader: data.Loader, eval_loader: data.Loader | None, output: Path
) -> engine.Evaluation | None:
    """Train to the last epoch, saving after each; returns the last evaluation (or None)."""
    evaluation = None
    precision = utils.PRECISIONS[run.settings.precision]
    while run.epoch < run.settings.recipe.epochs:
        metrics, seconds, learning_rate = train_one_epoch(run, loader)
        scored = None
        if eval_loader is not None:
            evaluation = engine.evaluate(run.scored, eval_loader, precision=precision)
            scored = evaluation.metrics
        run.epoch += 1
        row = {
            "epoch": run.epoch,
            "train_loss": metrics.loss,
            "train_accuracy": metrics.accuracy,
            "eval_loss": None if scored is None else scored.loss,
            "eval_accuracy": None if scored is None else scored.accuracy,
            "learning_rate": learning_rate,
            "seconds": seconds,
            "images_per_second": metrics.total / seconds,
        }
        run.history.append(row)
        print_epoch(run, row, metrics, scored)
        utils.save_checkpoint(output / "last.pt", {**run.weights(), "training": run.state_dict()})
        utils.write_history(output / "history.csv", run.history)
    return evaluation


def draw_augmentation(settings: Settings, loader: data.Loader, output: Path) -> None:
    """Training images as the network sees them, brought back to pixels."""
    images, _ = next(iter(loader))
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (data.MEAN, data.STD))
    pixels = (images.float().cpu() * std + mean).mul(255).round().clamp(0, 255).byte()
    title = f"{settings.title}: training images as the network sees them"
    plots.augmentation(pixels, output / "augmentation.png", title=title)


def draw(run: Run, evaluation: engine.Evaluation | None, output: Path) -> None:
    """The figures of a finished run."""
    settings = run.settings
    plots.validation(
        run.history,
        output / "validation.png",
        title=settings.title,
        eval_split=settings.eval_split,
        label_smoothed=settings.recipe.label_smoothing > 0,
    )
    if evaluation is None:
        return
    title = f"{settings.title}, {settings.eval_split} split"
    confusion = evaluation.confusion
    correct, total = confusion.diag().tolist(), confusion.sum(1).tolist()
    print(utils.class_table(correct, total, data.CLASSES))
    plots.class_accuracy(correct, total, data.CLASSES, output / "class_accuracy.png", title=title)
    plots.confusion_matrix(confusion, data.CLASSES, output / "confusion_matrix.png", title=title)


def main(argv: list[str] | None = None) -> None:
    given = parse_arguments(argv)
    if given.get("summary"):
        utils.print_summary(models.build(given.get("model", models.names()[0])), IMAGE_SIZE)
        return
    device = utils.pick_device(given.get("device", "auto"))
    checkpoint = utils.load_checkpoint(given["resume"]) if "resume" in given else None
    if checkpoint is None:
        settings = new_settings(given, device)
    else:
        settings = settings_of(checkpoint, given, given["resume"])
    if settings.source == "sample":
        print(SAMPLE_WARNING, flush=True)
    directory = given.get("data_dir", data.DEFAULT_DIRECTORY)
    loader, eval_loader, _ = build_loaders(settings, directory, device)
    output = make_output(given, settings)
    utils.seed_everything(settings.seed)
    run = build_run(settings, device, len(loader))
    if checkpoint is not None:
        run.load_state_dict(checkpoint["training"], checkpoint["epoch"], checkpoint["history"])
    utils.print_summary(models.build(settings.model, **settings.config), IMAGE_SIZE)
    utils.write_json(output / "config.json", asdict(settings))
    draw_augmentation(settings, loader, output)
    evaluation = train(run, loader, eval_loader, output)
    utils.save_checkpoint(output / "weights.pt", run.weights())
    draw(run, evaluation, output)
    print(f"Weights, history and figures are in {output}")
    if settings.source == "sample":
        print(SAMPLE_WARNING)


if __name__ == "__main__":
    utils.run_script(main, data.DataError, models.ModelError, recipes.RecipeError)
