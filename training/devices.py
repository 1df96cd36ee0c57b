"""The device and the precision to compute in; both are tried out before a run relies on them."""

import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

import models
import utils
from training.engine import autocast
from training.muon import make_layout, orthogonalized, sgd_update

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
# The default network with all of its operations, as small as it can be.
SMALL = {"widths": (16, 16), "hidden": (16, 16), "depths": (1, 1, 1, 1)}


def pick_device(name: str) -> torch.device:
    """ "auto": CUDA where there is one, then MPS, then the CPU; else the device of that name.

    Raises:
        utils.RunError: PyTorch does not know the device, does not find it, or has no kernels for
            it, as for a GPU older than those it was built for.
    """
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    try:
        device = torch.device(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about an old GPU: the kernel decides
            run_kernel(device)
    except (ImportError, RuntimeError, AssertionError) as error:
        other = "" if name == "cpu" else ": choose another, such as --device cpu"
        raise utils.RunError(
            f"--device {name!r} is not usable here ({first_line(error)}){other}"
        ) from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what PyTorch says about "the" GPU is about this one
    return device


def run_kernel(device: torch.device) -> None:
    """Run one tiny kernel and wait for its result."""
    torch.ones(2, device=device).sum().item()


def pick_precision(name: str, device: torch.device) -> str:
    """The name of the first precision in which a tiny training step works.

    "auto" tries bfloat16 if the hardware has it, then float16 on CUDA devices, then float32. Any
    other name is tried alone. If none works on a GPU, all are tried again without cuDNN, which has
    no depthwise convolution for some older GPUs. Failures are reported on standard error.

    Raises:
        utils.RunError: the precision is unknown, or none works on the device.
    """
    if name not in ("auto", *PRECISIONS):
        raise utils.RunError(f"unknown precision {name!r}: choose one of {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type != "cuda":
        raise utils.RunError("--precision fp16 needs a CUDA device; bf16 or fp32 does not")
    names = candidates(device) if name == "auto" else [name]
    attempts = [(candidate, candidate) for candidate in names]
    if device.type == "cuda":
        attempts += [(candidate, f"{candidate} without cuDNN, slowly") for candidate in names]
    for index, (candidate, _) in enumerate(attempts):
        if index == len(names):
            torch.backends.cudnn.enabled = False
        reason = why_not(device, PRECISIONS[candidate])
        if reason is None:
            return candidate
        failure = f"precision {candidate} does not work on device {str(device)!r} ({reason})"
        if index + 1 < len(attempts):
            print(utils.clean(f"{failure}: trying {attempts[index + 1][1]}", 400), file=sys.stderr)
    raise utils.RunError(f"{failure}: choose another --precision or --device")


def candidates(device: torch.device) -> list[str]:
    """The precisions that the device should support, the fastest first."""
    if device.type == "cuda":
        # emulation would run, slowly, on devices without bfloat16 in hardware
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ["bf16", "fp16", "fp32"] if has_bf16 else ["fp16", "fp32"]
    if device.type == "cpu":
        # An older PyTorch cannot ask a CPU; float32 is right on every one.
        features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        if any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
            return ["bf16", "fp32"]
    return ["fp32"]


def why_not(device: torch.device, precision: torch.dtype) -> str | None:
    """Why training in that precision fails, or None if it works.

    Raises:
        utils.RunError: the device has no memory left, which says nothing about the precision.
    """
    advice = "choose another --device, or end what else runs on it"
    try:
        with refusing_lack_of_memory(device, advice):
            loss = take_tiny_step(device, precision)
    except (RuntimeError, AssertionError) as error:
        return first_line(error)
    return None if math.isfinite(loss) else f"a loss of {loss}"


@contextmanager
def refusing_lack_of_memory(device: torch.device, advice: str) -> Iterator[None]:
    """Raise utils.RunError with `advice` where `device` runs out of memory in this context."""
    try:
        yield
    except RuntimeError as error:
        if not is_lack_of_memory(error):
            raise
        raise utils.RunError(f"device {str(device)!r} is out of memory: {advice}") from error


def is_lack_of_memory(error: RuntimeError) -> bool:
    """Whether PyTorch raised `error` for want of memory. On a CPU, on MPS and in cuBLAS, only the
    message says so."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(text in said for text in NO_MEMORY)


def take_tiny_step(device: torch.device, precision: torch.dtype) -> float:
    """Run forward, backward and both optimizers' arithmetic on two images; return the loss.

    It makes no Optimizer, because the first one of a process takes PyTorch a second.
    """
    with torch.random.fork_rng(devices=[]):  # what is drawn later is as it would be without this
        model = models.build("under100k", **SMALL)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.ones(2, 3, 32, 32, dtype=precision, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    with autocast(device, precision):
        loss = F.cross_entropy(model(images), labels)
    loss.backward()
    with torch.no_grad():
        parameters: list[torch.Tensor] = list(model.parameters())
        gradients = [p.grad for p in parameters if p.grad is not None]
        sgd_update(parameters, gradients, 0.1, 0.0, None, None)
        matrices = [gradient for gradient in gradients if gradient.ndim == 2]
        orthogonalized(matrices, make_layout([m.shape for m in matrices], device, together=True))
    return loss.item()


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the random generators: the CPU's and, for a GPU, its own."""
    cuda = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Restore what `random_state` returned; a GPU's generator stays as it is if it was saved
    without one."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and state["cuda"]:
        torch.cuda.set_rng_state(state["cuda"][0], device)


def make_deterministic() -> None:
    """Make a GPU compute bit-identical results from now on, so that resuming is exact there.

    Call it before anything runs on the GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it as it starts
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    # An operation without a deterministic form still runs, and PyTorch warns of it.
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads uninitialised memory, so that filling it would only cost launches.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def first_line(error: BaseException) -> str:
    """A PyTorch error in short: its first line, or its type if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
