"""How fast our loop is compared with the reference loop (reference.py), and where its time goes.

    python benchmarks/throughput.py --data-dir DIR

takes several measurements in turn and prints medians, ranges and ratios of
  data       images/s of augmented, normalised batches: our loader, torchvision's transforms
  training   steps/s of the same network in our loop and in the reference loop
  shares     what a step of our loop spends its time on
  inference  images/s of our networks and of a ResNet-20, at batch 1 and 500
  memory     peak resident memory of train.py over one epoch of 50,000 images
  start      from starting train.py to its first step, data on disk
On an accelerator the shares are those of a step without its CUDA graph, with a wait after each
part, so that parts do not overlap.
"""

import functools
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import data
import models
import startup
import utils
from benchmarks import common, reference
from benchmarks.common import Row
from benchmarks.processes import FIRST_STEP, PEAK_MEMORY, run_child
from benchmarks.resnet20 import ResNet20
from benchmarks.shares import SHARES, progress, record_parts, recorded, shares_of_a_step
from training import devices, engine
from training.epochs import CHECK_EVERY
from training.recipe import RECIPES

TRAINED = (models.names()[0], reference.MODEL)
OVERHEAD = ("data", "statistics", "logging")
PROFILED_STEPS = 20


@dataclass(frozen=True)
class Conditions:
    """What all measurements share."""

    split: data.Split
    directory: Path
    device: torch.device
    repetitions: int
    quick: bool

    @property
    def precision(self) -> str:
        return devices.pick_precision("auto", self.device)

    def images_per_second(
        self, work: Callable[[Iterable[Any]], int], batches: Iterable[Any], seconds: float
    ) -> float:
        seconds = self.seconds(seconds)
        return common.images_per_second(work, batches, seconds=seconds, device=self.device)

    def seconds(self, long: float) -> float:
        """How long to measure something that should be measured for `long` seconds."""
        return 0.01 if self.quick else long


@dataclass(frozen=True)
class OneCropABatch:
    """torchvision.transforms.v2 on batches: fast, but all images share one crop and flip."""

    split: data.Split
    batch_size: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(reference.MEAN, reference.STD),
            ]
        )
        for index in torch.randperm(len(self.split)).split(self.batch_size):
            yield transform(self.split.images[index]), self.split.labels[index]


def measure_data(conditions: Conditions) -> list[Row]:
    split, device, precision = conditions.split, conditions.device, conditions.precision
    default = models.names()[0]
    plain, full = RECIPES[reference.MODEL], RECIPES[default]
    size = reference.BATCH_SIZE
    fp32, trained = "our loader, fp32", f"our loader, {precision}"
    pil = "PIL transforms, DataLoader of {} workers"
    loader = common.training_loader
    sources: dict[str, Callable[[], Iterable[tuple[Tensor, Tensor]]]] = {
        fp32: functools.partial(loader, reference.MODEL, plain, split, device, "fp32"),
        trained: functools.partial(loader, reference.MODEL, plain, split, device, precision),
        f"{trained}, augmented for {default}": functools.partial(
            loader, default, full, split, device, precision
        ),
        **{
            pil.format(n): functools.partial(
                reference.build_loader, split, device, batch_size=size, workers=n
            )
            for n in (0, 2)
        },
        "transforms.v2, one crop a batch": functools.partial(OneCropABatch, split, size),
    }

    def work(batches: Iterable[tuple[Tensor, Tensor]]) -> int:
        return sum(len(images.to(device)) for images, _ in batches)

    def measure(source: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> float:
        return conditions.images_per_second(work, common.endless(source()), 1.5)

    values = common.alternate(
        {name: functools.partial(measure, source) for name, source in sources.items()},
        conditions.repetitions,
    )
    rows = [Row("data", name, rates, "images/s") for name, rates in values.items()]
    for name in dict.fromkeys((fp32, trained)):  # once where they are the same
        times = common.ratios(values[name], values[pil.format(2)])
        rows.append(Row("data", f"{name} / PIL, 2 workers", times, "x", at_least=10))
    return rows


def measure_training(conditions: Conditions) -> list[Row]:
    return [row for name in TRAINED for row in training_rows(name, conditions)]


def training_rows(name: str, conditions: Conditions) -> list[Row]:
    split, device, recipe = conditions.split, conditions.device, RECIPES[name]
    run, loader = common.fresh_run(name, recipe, split, device)
    size = loader.batch_size
    model = models.build(name).to(device)
    optimizer = reference.build_optimizer(model, 0)
    assert optimizer is not None
    reference_loader = reference.build_loader(split, device, batch_size=size)
    after_step = progress(run)

    def ours_a_second() -> float:
        seconds = conditions.seconds(5)
        return common.training_speed(run, loader, seconds=seconds, after_step=after_step)

    def theirs_a_second() -> float:
        return conditions.images_per_second(
            lambda batches: reference.train_epoch(model, batches, optimizer, device).total,
            common.endless(reference_loader),
            5,
        )

    values = common.alternate(
        {"our loop": ours_a_second, "reference loop": theirs_a_second}, conditions.repetitions
    )
    rows = [
        Row("training", f"{name}, batch {size}: {loop}", [rate / size for rate in rates], "steps/s")
        for loop, rates in values.items()
    ]
    times = common.ratios(*values.values())
    target = {reference.MODEL: 3, models.names()[0]: 3.3}[name]
    return [*rows, Row("training", f"{name}: ours / reference", times, "x", at_least=target)]


def measure_shares(conditions: Conditions) -> list[Row]:
    device, rows = conditions.device, []
    # At least as many as from one check of the loss to the next.
    steps = 3 if conditions.quick else max(PROFILED_STEPS, CHECK_EVERY[device.type])
    for name in TRAINED:
        run, loader = common.fresh_run(name, RECIPES[name], conditions.split, device)
        record_parts(run, functools.partial(recorded, device=device))
        shares = [
            shares_of_a_step(run, loader, device, steps) for _ in range(conditions.repetitions)
        ]
        for part in (*SHARES, "other"):
            rows.append(Row("shares", f"{name}: {part}", [100 * s[part] for s in shares], "%"))
        overhead = [100 * sum(s[part] for part in OVERHEAD) for s in shares]
        target = {reference.MODEL: 3, models.names()[0]: 2}[name]
        rows += [
            Row("shares", f"{name}: {', '.join(OVERHEAD)}", overhead, "%", at_most=target),
            Row("shares", f"{name}: values read by the host", [s["read"] for s in shares], "/step"),
        ]
    return rows


def measure_inference(conditions: Conditions) -> list[Row]:
    device, precision = conditions.device, devices.PRECISIONS[conditions.precision]
    networks: dict[str, nn.Module] = {name: models.build(name) for name in models.names()}
    networks["ResNet-20"] = ResNet20()

    def work(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
        return len(engine.evaluate(model, batches, precision=precision).labels)

    measurements: dict[str, Callable[[], float]] = {}
    for size in (1, 500):
        images = torch.randn(size, 3, 32, 32, device=device).to(precision)
        batch = images.to(memory_format=torch.channels_last), torch.zeros(size, dtype=torch.int64)
        for name, model in networks.items():
            model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            measurements[f"{name}, batch {size}"] = functools.partial(
                conditions.images_per_second, functools.partial(work, model), repeat(batch), 1
            )
    values = common.alternate(measurements, conditions.repetitions)
    rows = [Row("inference", name, rates, "images/s") for name, rates in values.items()]
    for name, rates in values.items():
        network, size_of_batch = name.split(", ")
        if network != "ResNet-20":
            times = common.ratios(rates, values[f"ResNet-20, {size_of_batch}"])
            rows.append(Row("inference", f"{network} / ResNet-20, {size_of_batch}", times, "x"))
    return rows


def train_arguments(conditions: Conditions, eval_split: str, output: str) -> list[str]:
    """Arguments of train.py for one epoch of the default network.

    Raises:
        data.DataError: CIFAR-10 is not on disk, and noise cannot replace it.
    """
    source = "sample" if conditions.quick else "cifar10"
    if source == "cifar10" and conditions.split.source != source:
        raise data.DataError("this is measured on CIFAR-10 alone: name its folder with --data-dir")
    values = {
        "--data": source,
        "--data-dir": conditions.directory.resolve(),
        "--device": conditions.device,
        "--eval-split": eval_split,
        "--epochs": 1,
        "--output": output,
    }
    return [str(word) for pair in values.items() for word in pair]


def measure_memory(conditions: Conditions) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, "train.py", *train_arguments(conditions, "none", folder)]
        printed = run_child(["-c", PEAK_MEMORY, *train])
    images = "the built-in sample" if conditions.quick else "50,000 images"
    peak = int(printed.splitlines()[-1]) / 1e9
    return [Row("memory", f"peak resident memory, {images}", [peak], "GB", at_most=1.4)]


def measure_start(conditions: Conditions) -> list[Row]:
    seconds = []
    for _ in range(conditions.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            printed = run_child(["-c", FIRST_STEP, *train_arguments(conditions, "val", folder)])
            seconds.append(time.perf_counter() - start)
        if not printed.endswith("first step\n"):
            raise utils.RunError("train.py no longer trains through engine.train_epoch")
    return [Row("start", "from the start of train.py to its first step", seconds, "s", at_most=4)]


PARTS = {
    "data": measure_data,
    "training": measure_training,
    "shares": measure_shares,
    "inference": measure_inference,
    "memory": measure_memory,
    "start": measure_start,
}


def measure(parts: Iterable[str], conditions: Conditions) -> list[Row]:
    rows = []
    for part in parts:
        print(f"Measuring {part} ...", file=sys.stderr, flush=True)
        try:
            rows += PARTS[part](conditions)
        except data.DataError as error:
            print(f"{part} left out: {error}")
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = common.parser(__doc__, "runs/throughput.json", 3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    args = parser.parse_args(argv)
    conditions = Conditions(
        split=common.training_images(args.data_dir, quick=args.quick),
        directory=args.data_dir,
        device=devices.pick_device(args.device),
        repetitions=1 if args.quick else args.repetitions,
        quick=args.quick,
    )
    common.report(measure(args.only, conditions), args.output, conditions.device, quick=args.quick)


if __name__ == "__main__":
    startup.begin()
    utils.run_script(main)
