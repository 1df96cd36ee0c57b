"""torch.compile for a training, before its clock starts."""

import torch

import data
import utils
from training import devices, distributed
from training.engine import autocast
from training.run import Run

PASSES = 3  # of a CUDA graph the first warms up, the second records, the third replays


def compile_network(run: Run, loader: data.Loader) -> None:
    """Compile the network's forward and backward passes for both batch sizes: the loader's, and
    that of an epoch's last batch.

    On one GPU it uses CUDA graphs ("reduce-overhead"): a step of a small network waits for its
    kernel launches, and a graph is one launch. Several processes do without, because their backward
    pass exchanges gradients. The run's weights and random state are left unchanged.

    Raises:
        utils.RunError: PyTorch cannot compile here, for example without Triton or a C++ compiler.
    """
    graphs = run.device.type == "cuda" and distributed.world_size() == 1
    run.model.compile(dynamic=False, mode="reduce-overhead" if graphs else "default")
    state = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    random = devices.random_state(run.device)
    shorter = [len(loader) - 1] if loader.images % loader.batch_size else []
    try:
        for batch in (0, *shorter):
            part = loader.part(batch)
            for _ in range(PASSES):
                pass_through(run, part.stop - part.start, loader.dtype)
    except RuntimeError as error:
        reason = devices.first_line(error)
        raise utils.RunError(f"this network cannot be compiled here ({reason})") from error
    run.model.load_state_dict(state)
    devices.set_random_state(random, run.device)


def pass_through(run: Run, images: int, dtype: torch.dtype) -> None:
    """One forward and one backward pass of `images` grey images, without an optimizer step."""
    batch = torch.zeros(images, 3, 32, 32, dtype=dtype, device=run.device)
    labels = torch.zeros(images, dtype=torch.int64, device=run.device)
    run.model.train()
    batch = batch.contiguous(memory_format=torch.channels_last)
    with autocast(run.device, run.precision):
        logits = run.model(batch)  # alive during the backward pass, as in training
        loss = run.loss(batch, logits, labels)
    loss.backward()
    run.optimizer.zero_grad(set_to_none=True)
