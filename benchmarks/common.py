"""What the benchmarks share: flags, data, training, alternating measurement, and the report."""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from torch import Tensor

import data
import models
import utils
from training import devices, engine
from training.compilation import prepare
from training.epochs import take_steps
from training.flags import Setting, add_flag
from training.recipe import Recipe
from training.report import processor
from training.run import Run, build_loader, build_run
from training.settings import Settings

K = TypeVar("K")
V = TypeVar("V")
ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 2  # batches before the clock starts
QUICK_IMAGES = 1500
IMAGES = 50_000  # of CIFAR-10, to train on


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, a value per repetition, and the target, if any."""

    part: str
    measure: str
    values: Sequence[float]
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether the median is on the right side of the target; None without a target."""
        if self.at_least is not None:
            return self.median >= self.at_least
        if self.at_most is not None:
            return self.median <= self.at_most
        return None


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Ours divided by theirs, per repetition: what slows the machine down in one repetition slows
    both down."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def parser(
    description: str, output: str, repetitions: int, *, device: str | None = "auto"
) -> utils.ArgumentParser:
    """The flags that every benchmark has; --device, with this default, unless that is None."""
    result = utils.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = result.add_argument
    directory = data.DEFAULT_DIRECTORY
    add("--data-dir", type=Path, default=directory, metavar="DIR", help="CIFAR-10 (data/raw)")
    if device is not None:
        add("--device", default=device, help=f"auto, cpu, cuda, cuda:1, mps ({device})")
    add("--output", type=Path, default=ROOT / output, metavar="FILE", help=f"JSON ({output})")
    add_flag(result, "repetitions", Setting("of each measurement", at_least=1), repetitions)
    add("--quick", action="store_true", help="see that all of it runs; its figures mean nothing")
    return result


def first(split: data.Split, count: int) -> data.Split:
    """The first `count` images of a split."""
    return data.Split(split.images[:count], split.labels[:count], split.name, split.source)


def training_images(directory: Path, *, quick: bool) -> data.Split:
    """All training images of CIFAR-10 from disk, or, where they are not there, noise of their
    shape.

    Noise takes as long to augment and to train on as photographs do. The first few images, if
    `quick`. Nothing is downloaded.
    """
    try:
        images = data.load("cifar10", directory, "train+val")
    except data.DataError as error:
        print(f"Measured on noise of CIFAR-10's shape, which takes the same time ({error})")
        pixels = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8)
        images = data.Split(pixels, torch.randint(10, (IMAGES,)), "train+val", "noise")
    return first(images, QUICK_IMAGES) if quick else images


def settings_for(
    model: str,
    recipe: Recipe,
    split: data.Split,
    precision: str,
    *,
    seed: int = 0,
    **config: object,
) -> Settings:
    """Settings to train the network on `split`. Fewer images than a batch make one batch."""
    return Settings(
        model=model,
        config=models.config_dict(model, **config),
        recipe=replace(recipe, batch_size=min(recipe.batch_size, len(split))),
        source=split.source,
        eval_split="none",
        precision=precision,
        seed=seed,
    )


def training_loader(
    model: str, recipe: Recipe, split: data.Split, device: torch.device, precision: str
) -> data.Loader:
    """The batches that the network trains on by `recipe`."""
    settings = settings_for(model, recipe, split, precision)
    return build_loader(settings, split, device, train=True)


def fresh_run(
    model: str,
    recipe: Recipe,
    split: data.Split,
    device: torch.device,
    *,
    seed: int = 0,
    **config: object,
) -> tuple[Run, data.Loader]:
    """A run that trains a fresh network by `recipe`, and the batches of `split`; `config` overrides
    fields of the network's config."""
    precision = devices.pick_precision("auto", device)
    settings = settings_for(model, recipe, split, precision, seed=seed, **config)
    utils.seed_everything(seed)
    loader = build_loader(settings, split, device, train=True)
    run = build_run(settings, device, len(loader))
    prepare(run, loader)
    return run, loader


def train(
    run: Run,
    batches: Iterable[tuple[Tensor, Tensor]],
    after_step: Callable[[Tensor], None] = lambda loss: None,
) -> engine.Metrics:
    """Take one step per batch; returns their metrics."""
    return take_steps(run, batches, engine.RunningMetrics(run.device), after_step=after_step)


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished its queue. Does nothing on a CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, epoch after epoch without end."""
    return chain.from_iterable(repeat(batches))


def for_seconds(batches: Iterable[Any], seconds: float) -> Iterator[Any]:
    """Yield batches for `seconds`, at least one."""
    end = time.perf_counter() + seconds
    for batch in batches:
        yield batch
        if time.perf_counter() >= end:
            return


def images_per_second(
    work: Callable[[Iterable[Any]], int],
    batches: Iterable[Any],
    *,
    seconds: float,
    device: torch.device,
) -> float:
    """The speed of `work`, which takes batches and returns their number of images.

    The first batches, which include the start of worker processes, are not timed.
    """
    iterator = iter(batches)
    work(islice(iterator, WARM_UP))
    synchronize(device)
    start = time.perf_counter()
    images = work(for_seconds(iterator, seconds))
    synchronize(device)
    return images / (time.perf_counter() - start)


def training_speed(
    run: Run,
    loader: data.Loader,
    *,
    seconds: float,
    after_step: Callable[[Tensor], None] = lambda loss: None,
) -> float:
    """Images per second that `run` trains on, epoch after epoch of `loader`."""
    return images_per_second(
        lambda batches: train(run, batches, after_step).total,
        endless(loader),
        seconds=seconds,
        device=run.device,
    )


def alternate(measurements: Mapping[K, Callable[[], V]], repetitions: int) -> dict[K, list[V]]:
    """Take all measurements in turn, `repetitions` times; returns each one's values.

    Every other round runs backwards, so that a machine that slowly changes favours none.
    """
    values: dict[K, list[V]] = {name: [] for name in measurements}
    for repetition in range(repetitions):
        names = list(measurements)
        for name in names[::-1] if repetition % 2 else names:
            values[name].append(measurements[name]())
    return values


def machine(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that the figures depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    preloaded = os.environ.get("LD_PRELOAD", "").replace(":", " ").split()
    return {
        "processor": processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": devices.pick_precision("auto", device),
        "preloaded": [Path(library).name for library in preloaded],
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def report(rows: Sequence[Row], path: Path, device: torch.device, *, quick: bool) -> None:
    """Print the machine and the table, and write both as JSON.

    Raises:
        utils.RunError: the file cannot be written.
    """
    described = machine(device)
    print(
        ", ".join(f"{key} {value}" for key, value in described.items() if value not in ([], None))
    )
    print(table(rows))
    if quick:
        print("Quick: these figures show that the benchmark runs, nothing else.")
    content = [{**asdict(row), "median": row.median, "met": row.met} for row in rows]
    utils.make_folder(path.parent)
    utils.write_json(path, {"machine": described, "quick": quick, "rows": content})


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text: medians, the range of the repetitions, and targets."""
    lines: list[tuple[str, ...]] = [("part", "measure", "median", "from", "to", "unit", "target")]
    for row in rows:
        numbers = (row.median, min(row.values), max(row.values))
        target = ""
        if row.met is not None:
            bound = f">= {row.at_least:g}" if row.at_least is not None else f"<= {row.at_most:g}"
            target = f"{bound}: {'met' if row.met else 'NOT MET'}"
        lines.append((row.part, row.measure, *map(number, numbers), row.unit, target))
    return aligned(lines, right=(2, 3, 4))


def aligned(lines: Sequence[Sequence[str]], right: Container[int]) -> str:
    """Columns of equal width, right-aligned if their index is in `right`, else left-aligned."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float) -> str:
    """Four significant digits, or the whole integer part."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
