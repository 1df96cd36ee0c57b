"""What a run prints and records: its first lines, a line per epoch, its network, its machine."""

import io
import math
import platform
import re
import subprocess
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchsummary

import data
import models
import utils
from training import distributed
from training.recipe import NAMES, Recipe, named_recipe
from training.run import Run

ROOT = Path(__file__).resolve().parents[1]
IMAGE_SIZE = (3, 32, 32)
ROW = re.compile(r" *(\S.*?) +(\[.*\]|Output Shape) +([\d,]+|Param #)")  # of torchsummary
SOURCES = {"cifar10": "CIFAR-10", "sample": "the built-in sample, not CIFAR-10"}
FORECAST_AFTER = 10.0  # seconds of training


# ----------------------------------------------------------------------------- the network, in rows


def summary(model: str, config: dict[str, Any]) -> str:
    """The layers of a network by torchsummary, its parameters, and its multiply-accumulates per
    image.

    Leaves the random state unchanged.
    """
    table = io.StringIO()
    with torch.random.fork_rng(devices=[]):
        network = models.build(model, **config).eval()  # torchsummary keeps the mode
        macs = utils.count_macs(network, IMAGE_SIZE)
        try:
            with redirect_stdout(table):
                torchsummary.summary(network, IMAGE_SIZE, device="cpu")
            layers = aligned(table.getvalue().splitlines())
        except (AttributeError, IndexError, ValueError):  # a layer not from tensor to tensor
            layers = ["torchsummary cannot list the layers of this network"]
    lines = [
        *layers,
        f"Parameters: {utils.count_parameters(network):,}",
        f"Multiply-accumulates per image: {macs / 1e6:.1f} million",
    ]
    return "\n".join(lines)


def aligned(lines: list[str]) -> list[str]:
    """torchsummary's lines, with a first column as wide as its longest name."""
    rows = [ROW.fullmatch(line) for line in lines]
    width = max(len(row[1]) for row in rows if row)
    result = []
    for line, row in zip(lines, rows, strict=True):
        if row:
            line = f"{row[1]:>{width}}  {row[2]:>25} {row[3]:>15}"
        elif re.fullmatch("-+|=+", line):
            line = line[0] * (width + 43)
        result.append(line)
    return result


# ---------------------------------------------------------------------------- what the run runs on


def environment(device: torch.device) -> dict[str, Any]:
    """What can differ between two runs of the same settings."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        **checkout(),
    }


def device_name(device: torch.device) -> str:
    """The model name of a GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor() if device.type == "cpu" else f"{device.type} of {processor()}"


def processor() -> str:
    """The model name of the processor; only Linux gives it in full."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return utils.clean(names[0]) if names else platform.machine()


def checkout() -> dict[str, Any]:
    """The commit of this folder, and whether its files are as committed; empty without git."""
    if not (ROOT / ".git").exists():  # git would look in the folders above
        return {}
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    try:
        commit, changes = (
            subprocess.run([*git, *words], capture_output=True, check=True, timeout=10).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.decode().strip(), "clean": not changes}


# ------------------------------------------------------------------------------------- first lines


def first_lines(
    run: Run, loader: data.Loader, eval_loader: data.Loader | None, output: Path
) -> str:
    """The run's settings, one per line."""
    settings, epochs = run.settings, run.settings.recipe.epochs
    parameters = utils.count_parameters(distributed.unwrap(run.model))
    device = f"{device_name(run.device)}, {settings.precision}"
    threads, processes = torch.get_num_threads(), distributed.world_size()
    each = f", in each of {processes} processes" if processes > 1 else ""
    trained = f"{loader.images:,} images to train on ({settings.train_split})"
    scored = "none" if eval_loader is None else f"{eval_loader.images:,} ({settings.eval_split})"
    lines = {
        "Network": f"{settings.model}, {parameters:,} parameters",
        "Device": f"{device}, {count(threads, 'thread')}{each}",
        "Data": f"{SOURCES[settings.source]}: {trained}, {scored} to score on",
        "Recipe": f"{recipe_name(settings.model, settings.config, settings.recipe)}:"
        f" {count(epochs, 'epoch')} of {count(len(loader), 'step')}",
        "Output": utils.clean(output),
    }
    for name, files in (("Weights", settings.weights), ("Teacher", settings.teachers)):
        if files:
            lines[name] = ", ".join(utils.clean(file.path) for file in files)
    if run.scheduler.last_epoch:
        lines["Resumed"] = f"after {count(run.epoch, 'epoch')} and {count(run.batch, 'step')}"
    return "\n".join(f"{name:<8} {text}" for name, text in lines.items())


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def recipe_name(model: str, config: dict[str, Any], recipe: Recipe) -> str:
    """The name of the network's recipe that is closest to this one, and the differences."""
    changes = {
        name: [
            f"{setting} {value}"
            for setting, value in asdict(recipe).items()
            if value != getattr(named_recipe(model, config, name), setting)
        ]
        for name in NAMES
    }
    name = min(NAMES, key=lambda name: len(changes[name]))
    return f"{name} with {', '.join(changes[name])}" if changes[name] else name


# ------------------------------------------------------------------------------ while it goes on


class Pace:
    """Estimates the time left in a run from the steps of this process, evaluation included.

    The first step does not count, because it may compile and load libraries.

    Args:
        steps: in the complete run.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.first = self.last = 0  # number of the first and of the last step seen
        self.start = math.inf
        self.announced = False  # whether an estimate was printed

    def step(self, number: int) -> None:
        """Note that the run has taken step `number`."""
        if self.start == math.inf:
            self.first, self.start = number, time.perf_counter()
        self.last = number

    @property
    def left(self) -> float | None:
        """Seconds left; None before the second step."""
        if self.last == self.first:
            return None
        pace = (time.perf_counter() - self.start) / (self.last - self.first)
        return pace * (self.steps - self.last)

    def forecast(self) -> str | None:
        """A line, only once, if the first epoch takes longer than FORECAST_AFTER."""
        if self.announced or self.left is None or time.perf_counter() < self.start + FORECAST_AFTER:
            return None
        self.announced = True
        return f"The run ends in about {duration(self.left)}"


def epoch_line(row: dict[str, Any], epochs: int, eval_split: str, left: float | None) -> str:
    """The line printed for a row of the history; `left`: seconds left in the run, if known."""
    scores = [
        f"{split} loss {loss:.4f}, accuracy {100 * accuracy:.2f} %"
        for split, loss, accuracy in (
            ("train", row["train_loss"], row["train_accuracy"]),
            (eval_split, row["eval_loss"], row["eval_accuracy"]),
        )
        if loss is not None
    ]
    times = f"{row['seconds']:.1f} s, {row['images_per_second']:,.0f} images/s"
    if left is not None and row["epoch"] < epochs:
        times += f", {duration(left)} left"
    parts = [*scores, f"learning rate {row['learning_rate']:.4g}", times]
    return f"Epoch {row['epoch']}/{epochs}: " + "; ".join(parts)


def duration(seconds: float) -> str:
    """Hours and minutes, or seconds below one minute."""
    if round(seconds) < 60:
        return f"{round(seconds)} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
