"""Where the time of a training step goes: PyTorch's profiler over the parts of our loop."""

import functools
import io
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

import data
from benchmarks import common
from training import engine
from training.epochs import CHECK_EVERY, check_finite, take_steps
from training.run import Run

SHARES = ("data", "forward", "backward", "optimizer", "EMA", "statistics", "logging")


def progress(run: Run) -> Callable[[Tensor], None]:
    """What training.epochs.Monitor does after a step, in outline: move the progress bar, here a
    hidden one, and every so many steps check the weights and show the loss."""
    bar = tqdm(file=io.StringIO())
    interval = CHECK_EVERY[run.device.type]

    def after_step(loss: Tensor) -> None:
        if bar.n % interval == 0:
            value = loss.item()
            check_finite(run, value)
            bar.set_postfix_str(f"loss {value:.4f}", refresh=False)
        bar.update()

    return after_step


def recorded(part: str, function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function`, with its time in the profiler's record under the name of `part`."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            result = function(*args, **kwargs)
            common.synchronize(device)
        return result

    return call


def record_parts(run: Run, record: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
    """Record the parts of a step that belong to `run` from now on. `record` takes a part's name
    and its function and returns one that is also recorded."""
    model, optimizer, scaler = run.model, run.optimizer, run.scaler
    model.forward = record("forward", model.forward)
    optimizer.zero_grad = record("optimizer", optimizer.zero_grad)
    scaler.step = record("optimizer", scaler.step)
    scaler.update = record("optimizer", scaler.update)
    run.scheduler.step = record("optimizer", run.scheduler.step)
    if run.ema is not None:
        run.ema.update = record("EMA", run.ema.update)
    scale = scaler.scale

    def scale_and_record(loss: Tensor) -> Tensor:
        scaled = scale(loss)
        scaled.backward = record("backward", scaled.backward)
        return scaled

    scaler.scale = scale_and_record  # type: ignore[assignment]


def shares_of_a_step(
    run: Run, loader: data.Loader, device: torch.device, steps: int
) -> dict[str, float]:
    """Profile `steps` steps after `record_parts`. Returns each part's fraction of the time and that
    of "other", together 1, and as "read" the values read from the device per step."""
    run.recorded.clear()  # passes in one launch have no parts
    metrics = engine.RunningMetrics(device)
    metrics.update = recorded("statistics", metrics.update, device)
    metrics.compute = recorded("statistics", metrics.compute, device)
    after_step = recorded("logging", progress(run), device)
    iterator = common.endless(loader)
    common.train(run, islice(iterator, common.WARM_UP))
    batches = islice(iterator, steps)
    next_batch = recorded("data", lambda: next(batches, None), device)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, record_function("all"):
        take_steps(run, iter(next_batch, None), metrics, after_step=after_step)
    events = {event.key: event for event in profiler.key_averages()}
    total = events["all"].cpu_time_total
    shares = {
        part: events[part].cpu_time_total / total if part in events else 0.0 for part in SHARES
    }
    shares["other"] = 1 - sum(shares.values())
    reads = "aten::_local_scalar_dense"
    shares["read"] = events[reads].count / steps if reads in events else 0.0
    return shares
