"""Training one network in several processes; with one process, all of this does nothing.

    torchrun --nproc-per-node=4 train.py ...

starts them, and PyTorch's DistributedDataParallel (DDP) averages their gradients: over NCCL between
GPUs, over Gloo between CPUs. BatchNorm's statistics go the same way. All other exchange (sums of
metrics, signals, predictions, random states) is on the CPU, over Gloo. torchrun gives each process
one thread (OMP_NUM_THREADS=1) unless that variable is set.
"""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import utils
from models.mirror import MirrorBatchNorm2d
from training import devices

TIMEOUT = timedelta(minutes=30)  # long enough for a process that downloads or draws
LOST = ("peer", "Broken pipe", "process group")  # in PyTorch's error when another process ends


def is_launched() -> bool:
    """Whether torchrun started this process."""
    return dist.is_available() and dist.is_torchelastic_launched()


def rank() -> int:
    """The number of this process, from 0."""
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def is_main() -> bool:
    """Whether this is the process that prints, draws and saves."""
    return rank() == 0


def command() -> list[str]:
    """The command that started this script: python, or torchrun with its counts."""
    if not is_launched():
        return ["python"]
    machines = int(os.environ.get("GROUP_WORLD_SIZE", 1))
    nodes = [f"--nnodes={machines}"] if machines > 1 else []
    return ["torchrun", *nodes, f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}"]


def pick_device(name: str) -> torch.device:
    """As devices.pick_device, but each process on a machine gets its own GPU.

    Raises:
        utils.RunError: there is no such device, or there are fewer GPUs than processes.
    """
    if not is_launched():
        return devices.pick_device(name)
    index, processes = int(os.environ["LOCAL_RANK"]), os.environ["LOCAL_WORLD_SIZE"]
    gpus = torch.cuda.device_count()
    if index < gpus and name != "cpu":
        torch.cuda.set_device(index)  # first, so that no process takes memory of another's GPU
    device = devices.pick_device(name)
    if device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise utils.RunError(
            f"device {str(device)!r} does not work under torchrun: choose cuda (one GPU"
            " per process) or cpu"
        )
    if index >= gpus:
        raise utils.RunError(
            f"{processes} processes on a machine with {gpus} GPUs: choose"
            f" --nproc-per-node={gpus}, or --device cpu"
        )
    return torch.device("cuda", index)


# ------------------------------------------------------------------------- beginning and ending


@contextmanager
def report_once() -> Iterator[None]:
    """Let only the main process print, and only the first process that fails report why.

    The others exit with status 2 and print nothing: they failed alike, or because of the first.
    torchrun then ends the job.
    """
    if not is_launched():
        yield
        return
    with open(os.devnull, "w") as nowhere:
        try:
            with redirect_stdout(sys.stdout if is_main() else nowhere):
                yield
        except Exception:
            # When one process ends, torchrun sends SIGTERM to the others. Let them say why first.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if not _is_first_to_fail():
                sys.exit(2)
            raise


@contextmanager
def only_main_reports() -> Iterator[None]:
    """Around code that fails in all processes alike: only the main one prints the message."""
    with open(os.devnull, "w") as nowhere, redirect_stderr(sys.stderr if is_main() else nowhere):
        yield


def _is_first_to_fail() -> bool:
    """Asks torchrun's own store, which outlives all the processes."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
        return store.add(f"failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", 1) == 1
    except RuntimeError:
        return True  # better twice than never


def is_lost(error: RuntimeError) -> bool:
    """Whether PyTorch raised `error` because another process ended."""
    if not is_launched():
        return False
    known = (dist.DistBackendError, dist.DistNetworkError)
    return isinstance(error, known) or any(part in str(error) for part in LOST)


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Connect the processes inside this context."""
    if not is_launched():
        yield
        return
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT
    )
    try:
        yield
    except SystemExit:  # all end at the same step
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()  # not after an error, when it would wait for the others


def leave() -> None:
    """End a finished process of torchrun at once, without the interpreter's teardown: in it a
    native thread was seen to abort the process, for which the other machines then waited."""
    if is_launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


# ------------------------------------------------------------------ what the processes exchange


def broadcast(value: Any) -> Any:
    """The main process's value, in every process."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Any) -> list[Any]:
    """The values of all processes, by rank, in every process."""
    if not dist.is_initialized():
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def _gather_numbers(values: list[float]) -> Tensor:
    """(world size, number of values), float64: counts stay exact. Twice as fast as `gather`."""
    rows = torch.zeros(world_size(), len(values), dtype=torch.float64)
    rows[rank()] = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(rows)
    return rows


def total(values: list[float]) -> list[float]:
    """The sums over all processes, added in order of rank, so that all get the same bits."""
    return _gather_numbers(values).sum(0).tolist() if dist.is_initialized() else values


def mean(value: float) -> float:
    return total([value])[0] / world_size()


def highest(value: float) -> float:
    return float(_gather_numbers([value]).max()) if dist.is_initialized() else value


# ------------------------------------------------------------------------------------ the network


class DataParallel(DistributedDataParallel):
    """DDP with two additions: BatchNorm's statistics agree after each forward pass, and a process
    may have no image of a batch.

    On GPUs BatchNorm becomes SyncBatchNorm, which normalises over the complete batch, as one
    process would. PyTorch has none for CPUs or for mirror-symmetric norms (models/mirror.py): there
    each process normalises its own part, and the running statistics become the mean over the
    processes, weighted by their images. DDP itself would copy the main process's statistics, and
    only before the next forward pass: too late for the moving average and for a checkpoint.

    A process without an image computes on a blank one and drops the result: its gradients are
    zeros, and DDP and SyncBatchNorm, which wait for every process, can proceed. SyncBatchNorm then
    counts the blank image. This happens only in the last batch of an epoch, and only if it has
    fewer images than there are processes.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        # PyTorch's conversion would untie the scales of a mirror-symmetric norm.
        synchronised = on_gpu and not any(isinstance(m, MirrorBatchNorm2d) for m in model.modules())
        if synchronised:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            # Newer versions call it `forward_sync_buffers`.
            super().__init__(
                model, device_ids=[device] if on_gpu else None, broadcast_buffers=False
            )
        statistics = ("running_mean", "running_var")
        buffers = [buffer for name, buffer in model.named_buffers() if name.endswith(statistics)]
        self.averaged = [] if synchronised else buffers

    def forward(self, images: Tensor) -> Tensor:
        count = len(images)
        if count == 0:
            images = images.new_zeros(1, *images.shape[1:])
        logits = super().forward(images)[:count]
        if self.training and self.averaged:
            self._average_buffers(count)
        return logits

    def _average_buffers(self, count: int) -> None:
        one = self.averaged[0].new_ones(1)
        sums = count * torch.cat([*(buffer.flatten() for buffer in self.averaged), one]).double()
        dist.all_reduce(sums)
        means = (sums[:-1] / sums[-1]).split([buffer.numel() for buffer in self.averaged])
        # Through .data: autograd saved these buffers for backward, but does not read them in
        # training, so the change is safe.
        torch._foreach_copy_([buffer.data for buffer in self.averaged], list(means))


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap the network for training in several processes; `unwrap` undoes it."""
    return DataParallel(model, device) if dist.is_initialized() else model


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside the wrapper DistributedDataParallel, which prefixes the names of its
    weights. `--compile` makes no wrapper."""
    if isinstance(model, DistributedDataParallel):
        return model.module
    return model
