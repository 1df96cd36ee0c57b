"""A training step on CUDA without a GPU: what it launches, and where it waits for the device.

PyTorch's fake tensors have a device, a dtype and strides, but no values. So a complete step runs on
"cuda" without a GPU, and an operation on tensors of two devices is an error. They cannot show time
or failures inside cuDNN, cuBLAS and kernels. Where PyTorch sees a GPU, a complete step fails:
PyTorch 2.11 cannot copy such tensors there.
"""

import dataclasses
import functools
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

import data
import models
from benchmarks.common import settings_for
from benchmarks.shares import record_parts
from training import engine
from training.epochs import take_steps
from training.recipe import RECIPES
from training.run import Run, build_loader, build_run

CUDA = torch.device("cuda")
BATCH = 20  # images: no layer has as many channels. The counts do not depend on it
ITEM = torch.ops.aten._local_scalar_dense.default
RECORDED = ("forward", "loss", "backward")  # the parts of a step in a graph
NO_KERNEL = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
}


def launches_kernel(function: Any) -> bool:
    """Whether an operation does more than describe or reserve memory."""
    if function.namespace != "aten":
        return False
    schema = function._schema
    views = [r.alias_info is not None and not r.alias_info.is_write for r in schema.returns]
    return schema.name.removeprefix("aten::") not in NO_KERNEL and not (views and all(views))


def is_reserve(name: str, tensors: list[Tensor]) -> bool:
    """Whether this copies what cuDNN's BatchNorm kept for its backward pass. It happens only here,
    because `backward` below walks a graph that Python might walk again."""
    return name == "clone" and all(tensor.dtype == torch.uint8 for tensor in tensors)


def crosses_devices(function: Any, tensors: list[Tensor]) -> bool:
    """Whether an operation makes the CPU wait for values from the device, or the device for
    pageable memory of the CPU. (A scalar on the CPU is a kernel argument.)"""
    if function is ITEM:
        return tensors[0].device.type == "cuda"
    copies = "copy" in str(function)
    return len({t.device.type for t in tensors if t.ndim or copies}) > 1


@dataclass
class Step:
    """What one training step did: kernel launches by part, and waits by operation."""

    launches: Counter[str] = field(default_factory=Counter)
    operations: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    waits: Counter[str] = field(default_factory=Counter)
    outputs: list[tuple[str, str, Tensor]] = field(default_factory=list)  # part, operation, tensor

    @property
    def launches_with_a_graph(self) -> int:
        """As on one GPU: the graph of the passes, and the copies of images and labels into it."""
        return self.launches.total() - sum(self.launches[part] for part in RECORDED) + 3


class Watch(TorchDispatchMode):
    """Counts every operation under the part of the step that it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self.part = "loss"  # unless `within` says otherwise
        self.step = Step()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if function is ITEM:
            result: Any = True  # a fake tensor has no number
        elif name.startswith("_fused_"):
            result = None  # PyTorch has no fake of these, which work in place
        else:
            result = function(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        on_device = any(tensor.device.type == "cuda" for tensor in tensors)
        if on_device and name.startswith("_fused_"):
            assert all(tensor.device.type == "cuda" for tensor in tensors), f"{name}: devices"
        if tensors and crosses_devices(function, tensors):
            self.step.waits[name] += 1
        if on_device and launches_kernel(function) and not is_reserve(name, tensors):
            self.step.launches[self.part] += 1
            self.step.operations[self.part][name] += 1
            outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.step.outputs += [(self.part, name, output) for output in outputs]
        return result

    def within(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its operations counted under `part`."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before, self.part = self.part, part
            try:
                return function(*args, **kwargs)
            finally:
                self.part = before

        return call


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """`loss.backward()`, node by node: PyTorch's own engine would ask the driver for streams."""
    nodes: list[Any] = [loss.grad_fn]
    gradients: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    for node in nodes:  # grows
        nodes += {parent for parent, _ in node.next_functions if parent} - set(nodes)
    for node in sorted(nodes, key=lambda n: (hasattr(n, "variable"), -n._sequence_nr())):
        inputs = [gradients[node].get(i) for i in range(len(node._input_metadata))]
        if hasattr(node, "variable"):
            accumulate(node.variable, gradients[node][0])
            continue
        outputs = node(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for (parent, index), gradient in zip(node.next_functions, outputs, strict=True):
            if parent and gradient is not None:
                like, into = parent._input_metadata[index], gradients.setdefault(parent, {})
                gradient = gradient.sum_to_size(like.shape).to(like.dtype)
                into[index] = into[index] + gradient if index in into else gradient


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """As autograd's engine does: keep the first gradient if it has the parameter's layout, or else
    copy it."""
    assert parameter.grad is None, "a step starts without gradients"
    if any(
        size > 1 and one != other
        for size, one, other in zip(
            parameter.shape, gradient.stride(), parameter.stride(), strict=True
        )
    ):
        gradient = torch.empty_like(parameter).copy_(gradient)
    parameter.grad = gradient.detach()


def convolution_backend(select: Callable[..., Any]) -> Callable[..., Any]:
    """What picks a convolution's kernels, as on a GPU with bfloat16: PyTorch asks the driver
    whether cuDNN has them, and without a GPU takes the slow ones that know no channels_last."""

    def call(*args: Any, **kwargs: Any) -> Any:
        images = args[0] if args else kwargs["input"]  # before PyTorch 2.14 all by keyword
        if images.dtype != torch.bfloat16:
            return select(*args, **kwargs)
        backends = torch._C._ConvBackend  # type: ignore[attr-defined]
        return backends.CudnnTranspose if kwargs["transposed"] else backends.Cudnn

    return call


@contextmanager
def fake_cuda() -> Iterator[Watch]:
    """A context in which tensors are fake and may be "on" a GPU that does not exist."""
    replaced = [
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda *args, **kwargs: True),
        (torch._C, "_select_conv_backend", convolution_backend(torch._C._select_conv_backend)),
        (Tensor, "backward", backward),
        # A real network, of which `.to("cuda")` then makes fakes.
        (models, "build", _disable_current_modes()(models.build)),
    ]
    with ExitStack() as stack, warnings.catch_warnings():
        # copy.deepcopy asks a fake for its address, and takes the answer, 0.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        for owner, name, value in replaced:
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Watch())


def fake_run(model: str, precision: str) -> tuple[Run, data.Loader]:
    """A run of the network on "cuda" by its own recipe, and three batches of BATCH images. Call it
    within `fake_cuda`."""
    pixels = torch.zeros(3 * BATCH, 3, 32, 32, dtype=torch.uint8)
    split = data.Split(pixels, torch.zeros(3 * BATCH, dtype=torch.int64), "train", "noise")
    recipe = dataclasses.replace(RECIPES[model], batch_size=BATCH)
    settings = settings_for(model, recipe, split, precision)
    loader = build_loader(settings, split, CUDA, train=True)
    return build_run(settings, CUDA, len(loader)), loader


def last_step(model: str, precision: str) -> Step:
    """The last of three training steps on "cuda"; the first two prepare state that it finds."""
    steps: list[Step] = []
    with fake_cuda() as watch:
        run, loader = fake_run(model, precision)
        record_parts(run, watch.within)
        metrics = engine.RunningMetrics(CUDA)
        metrics.update = watch.within("metrics", metrics.update)
        next_batch = watch.within("augmentation", functools.partial(next, iter(loader), None))
        watch.step = Step()

        def after_step(loss: Tensor) -> None:
            steps.append(watch.step)
            watch.step = Step()

        take_steps(run, iter(next_batch, None), metrics, after_step=after_step)
    return steps[-1]
