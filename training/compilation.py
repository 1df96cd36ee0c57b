"""What makes steps fast, done before the clock starts: CUDA graphs and torch.compile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import data
import utils
from training import devices, distributed
from training.engine import Passes
from training.run import Run

WARM_UP = 3  # passes before the recorded one, in which libraries choose kernels and reserve memory


class RecordedPasses:
    """The passes of batches of one size, recorded as a CUDA graph and replayed as one launch.

    A small network's passes take longer to launch, operation by operation, than to compute. A graph
    reads and writes the same memory each time, so the loss, the logits and the gradients are valid
    until the next call. What a network does in Python, besides operations on tensors, happens only
    while it is recorded.

    Args:
        images, labels: a batch, in the layout and the types of those to come.
    """

    def __init__(self, passes: Passes, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images.clone(), labels.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                passes(self._images, self._labels)
                # Without gradients, so that the next pass writes them instead of adding to them.
                passes.model.zero_grad(set_to_none=True)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._results = passes(self._images, self._labels)
        self._gradients = [(parameter, parameter.grad) for parameter in passes.model.parameters()]
        passes.model.zero_grad(set_to_none=True)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As Passes."""
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        return self._results


def takes_graphs(device: torch.device) -> bool:
    """Whether passes can be recorded. Under torchrun they exchange gradients, so they are not."""
    return device.type == "cuda" and not distributed.is_launched()


def prepare(run: Run, loader: data.Loader, *, compile: bool = False, graph: bool = True) -> None:
    """Compile the network, if `compile`, and on one GPU record its passes, if `graph`: for both
    sizes of batch, the loader's and that of an epoch's last. The run's weights and random state
    stay as they are.

    Raises:
        utils.RunError: PyTorch cannot compile the network here, for example without Triton or a C++
            compiler, or cannot record it.
    """
    graph = graph and takes_graphs(run.device)
    if not (graph or compile):
        return
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    random = devices.random_state(run.device)
    run.model.train()
    passes = run.passes
    shorter = [len(loader) - 1] if loader.images % loader.batch_size else []
    batches = [loader.example(batch) for batch in (0, *shorter)]
    if compile:
        with explained("this network cannot be compiled here"):
            run.model.compile(dynamic=False)
            for images, labels in batches:
                passes(images, labels)
        run.model.zero_grad(set_to_none=True)
    if graph:
        with explained("this network cannot be recorded as a CUDA graph", ": pass --no-graph"):
            for images, labels in batches:
                run.recorded[images.shape, labels.shape] = RecordedPasses(passes, images, labels)
    run.model.load_state_dict(state)
    devices.set_random_state(random, run.device)


@contextmanager
def explained(what: str, advice: str = "") -> Iterator[None]:
    """Raise utils.RunError for PyTorch's errors, except for a lack of memory."""
    try:
        yield
    except RuntimeError as error:
        if devices.is_lack_of_memory(error):
            raise
        raise utils.RunError(f"{what} ({devices.first_line(error)}){advice}") from error
