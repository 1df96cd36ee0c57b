"""How fast our loop is beside the reference loop (reference.py), and where its time goes.

    python benchmarks/throughput.py --data-dir DIR

measures in turn, several times, and prints medians, their range and ratios of
  data       images/s of augmented, normalised batches: our loader, torchvision's transforms
  training   steps/s of the same network in our loop and in the reference loop
  shares     what a step of our loop spends its time on
  inference  images/s of our networks and of a ResNet-20, at batch 1 and 500
  memory     peak resident memory of train.py over one epoch of 50,000 images
  start      from starting train.py to its first step, data on disk
On an accelerator the shares are taken with a wait after each part, so that none hides another.
"""

import functools
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from torchvision.transforms import v2
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file

import data
import engine
import models
import utils
from benchmarks import common, ours, reference
from benchmarks.common import Row
from benchmarks.resnet20 import ResNet20
from recipe import RECIPES

SHARES = ("data", "forward", "backward", "optimizer", "EMA", "statistics", "logging")
OVERHEAD = ("data", "statistics", "logging")
PROFILED_STEPS = 20

# Runs train.py with the arguments given, and ends the process after the first training step.
FIRST_STEP = """
import os, sys
import engine, train

train_epoch = engine.train_epoch

def end(loss):
    loss.item()
    print("first step", flush=True)
    os._exit(0)

engine.train_epoch = lambda *args, **kwargs: train_epoch(*args, **{**kwargs, "after_step": end})
train.main(sys.argv[1:])
"""
# Prints the peak resident memory of the command given, in bytes, as the last line. A process starts
# with its parent's peak for its own, so it takes this parent, which is small, to see a child's.
PEAK_MEMORY = """
import resource, subprocess, sys

code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode
unit = 1 if sys.platform == "darwin" else 1024
print(unit * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True)
class Conditions:
    """What every part is measured under."""

    split: data.Split
    directory: Path
    device: torch.device
    repetitions: int
    quick: bool

    @property
    def precision(self) -> torch.dtype:
        return utils.pick_precision("auto", self.device)

    def images_per_second(
        self, work: Callable[[Iterable[Any]], int], batches: Iterable[Any], seconds: float
    ) -> float:
        seconds = 0.01 if self.quick else seconds
        return common.images_per_second(work, batches, seconds=seconds, device=self.device)


@dataclass(frozen=True)
class OneCropABatch:
    """torchvision.transforms.v2 on whole batches: fast, but it draws once for all images of one."""

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
    name, size = utils.precision_name(precision), reference.BATCH_SIZE
    fp32, trained = "our loader, fp32", f"our loader, {name}"
    pil = "PIL transforms, DataLoader of {} workers"
    sources: dict[str, Callable[[], Iterable[tuple[Tensor, Tensor]]]] = {
        fp32: functools.partial(ours.build_loader, split, plain, device, torch.float32),
        trained: functools.partial(ours.build_loader, split, plain, device, precision),
        f"{trained}, augmented for {default}": functools.partial(
            ours.build_loader, split, full, device, precision
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


def progress(model: nn.Module, device: torch.device) -> Callable[[Tensor], None]:
    """What train.py does after a step: the weights are checked and the loss goes to a progress bar,
    here one that nobody sees; on an accelerator, where looking means waiting, every 50th step."""
    bar = tqdm(file=io.StringIO())

    def after_step(loss: Tensor) -> None:
        if device.type == "cpu" or bar.n % 50 == 0:
            utils.is_finite(model)
            bar.set_description_str(f"loss={loss.item():.4f} batch_id={bar.n}", refresh=False)
        bar.update()

    return after_step


def measure_training(conditions: Conditions) -> list[Row]:
    return [row for name in models.names() for row in training_rows(name, conditions)]


def training_rows(name: str, conditions: Conditions) -> list[Row]:
    split, device, recipe = conditions.split, conditions.device, RECIPES[name]
    trained = ours.build(name, recipe, split, device)
    size = trained.loader.batch_size
    model = models.build(name).to(device)
    optimizer = reference.build_optimizer(model, 0)
    reference_loader = reference.build_loader(split, device, batch_size=size)
    after_step = progress(trained.model, device)

    def ours_a_second() -> float:
        return conditions.images_per_second(
            lambda batches: trained.train(batches, after_step=after_step).total,
            common.endless(trained.loader),
            5,
        )

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
    target = 3 if name == reference.MODEL else None
    return [*rows, Row("training", f"{name}: ours / reference", times, "x", at_least=target)]


def recorded(part: str, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function`, with its time on the profiler's record under the name of `part`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            result = function(*args, **kwargs)
            common.synchronize(device)
        return result

    return call


def record_parts(trained: ours.Training, device: torch.device) -> None:
    """Have the parts of a step that are `trained`'s own recorded from now on."""
    model, optimizer, scaler = trained.model, trained.optimizer, trained.scaler
    model.forward = recorded("forward", model.forward, device)
    optimizer.zero_grad = recorded("optimizer", optimizer.zero_grad, device)
    scaler.step = recorded("optimizer", scaler.step, device)
    scaler.update = recorded("optimizer", scaler.update, device)
    trained.scheduler.step = recorded("optimizer", trained.scheduler.step, device)
    if trained.ema is not None:
        trained.ema.update_parameters = recorded("EMA", trained.ema.update_parameters, device)
    scale = scaler.scale

    def scale_and_record(loss: Tensor) -> Tensor:
        scaled = scale(loss)
        scaled.backward = recorded("backward", scaled.backward, device)
        return scaled

    scaler.scale = scale_and_record


def shares_of_a_step(trained: ours.Training, device: torch.device, steps: int) -> dict[str, float]:
    """Profile `steps` steps of what `record_parts` has seen to: the fraction of their time that
    each part takes, and "other", together 1; and the values "read" from the device a step."""
    metrics = engine.RunningMetrics(device)
    metrics.update = recorded("statistics", metrics.update, device)
    metrics.compute = recorded("statistics", metrics.compute, device)
    after_step = recorded("logging", progress(trained.model, device), device)
    iterator = common.endless(trained.loader)
    trained.train(islice(iterator, common.WARM_UP))
    batches = islice(iterator, steps)
    next_batch = recorded("data", lambda: next(batches, None), device)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("all"):
        trained.train(iter(next_batch, None), metrics=metrics, after_step=after_step)
    events = {event.key: event for event in profiler.key_averages()}
    total = events["all"].cpu_time_total
    shares = {
        part: events[part].cpu_time_total / total if part in events else 0.0 for part in SHARES
    }
    shares["other"] = 1 - sum(shares.values())
    reads = "aten::_local_scalar_dense"
    shares["read"] = events[reads].count / steps if reads in events else 0.0
    return shares


def measure_shares(conditions: Conditions) -> list[Row]:
    device, rows = conditions.device, []
    steps = 3 if conditions.quick else PROFILED_STEPS
    for name in models.names():
        trained = ours.build(name, RECIPES[name], conditions.split, device)
        record_parts(trained, device)
        shares = [shares_of_a_step(trained, device, steps) for _ in range(conditions.repetitions)]
        for part in (*SHARES, "other"):
            rows.append(Row("shares", f"{name}: {part}", [100 * s[part] for s in shares], "%"))
        overhead = [100 * sum(s[part] for part in OVERHEAD) for s in shares]
        target = 3 if name == models.names()[0] else None
        rows += [
            Row("shares", f"{name}: {', '.join(OVERHEAD)}", overhead, "%", at_most=target),
            Row("shares", f"{name}: values read by the host", [s["read"] for s in shares], "/step"),
        ]
    return rows


def measure_inference(conditions: Conditions) -> list[Row]:
    device, precision = conditions.device, conditions.precision
    networks: dict[str, nn.Module] = {name: models.build(name) for name in models.names()}
    networks["ResNet-20"] = ResNet20()

    def work(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> int:
        return len(engine.evaluate(model, batches, precision=precision).labels)

    measurements = {}
    for size in (1, 500):
        images = torch.randn(size, 3, 32, 32, device=device).to(precision)
        batch = images.to(memory_format=torch.channels_last), torch.zeros(size, dtype=torch.int64)
        for name, model in networks.items():
            model.to(device, memory_format=torch.channels_last)
            measurements[f"{name}, batch {size}"] = functools.partial(
                conditions.images_per_second, functools.partial(work, model), repeat(batch), 1
            )
    values = common.alternate(measurements, conditions.repetitions)
    return [Row("inference", name, rates, "images/s") for name, rates in values.items()]


def train_arguments(conditions: Conditions, eval_split: str, output: str) -> list[str]:
    """Arguments of train.py for one epoch of the default network.

    Raises:
        utils.RunError: CIFAR-10 is not on disk, and noise would not do.
    """
    source = "sample" if conditions.quick else "cifar10"
    if source == "cifar10" and conditions.split.source != source:
        raise utils.RunError("this is measured on CIFAR-10 alone: name its folder with --data-dir")
    values = {
        "--data": source,
        "--data-dir": conditions.directory.resolve(),
        "--device": conditions.device,
        "--eval-split": eval_split,
        "--epochs": 1,
        "--output": output,
    }
    return [str(word) for pair in values.items() for word in pair]


def run_child(command: list[str]) -> str:
    """Run a Python program in the root of the repository; returns what it printed.

    Raises:
        utils.RunError: it failed.
    """
    child = subprocess.run(
        [sys.executable, *command], cwd=common.ROOT, capture_output=True, text=True
    )
    if child.returncode:
        raise utils.RunError(f"train.py failed: {child.stderr.strip().splitlines()[-1:]}")
    return child.stdout


def measure_memory(conditions: Conditions) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        train = [sys.executable, "train.py", *train_arguments(conditions, "none", folder)]
        printed = run_child(["-c", PEAK_MEMORY, *train])
    images = "the built-in sample" if conditions.quick else "50,000 images"
    peak = int(printed.splitlines()[-1]) / 1e9
    return [Row("memory", f"peak resident memory, {images}", [peak], "GB", at_most=1.5)]


def measure_start(conditions: Conditions) -> list[Row]:
    seconds = []
    for _ in range(conditions.repetitions):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            printed = run_child(["-c", FIRST_STEP, *train_arguments(conditions, "val", folder)])
            seconds.append(time.perf_counter() - start)
        if not printed.endswith("first step\n"):
            raise utils.RunError("train.py no longer trains through engine.train_epoch")
    return [Row("start", "from import to the first training step", seconds, "s", at_most=15)]


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
        except utils.RunError as error:
            print(f"{part} left out: {error}")
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = common.parser(__doc__, "runs/throughput.json", 3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="these parts")
    args = parser.parse_args(argv)
    conditions = Conditions(
        split=common.training_images(args.data_dir, "train+val", quick=args.quick),
        directory=args.data_dir,
        device=utils.pick_device(args.device),
        repetitions=1 if args.quick else args.repetitions,
        quick=args.quick,
    )
    common.report(measure(args.only, conditions), args.output, conditions.device, quick=args.quick)


if __name__ == "__main__":
    utils.run_script(main)
