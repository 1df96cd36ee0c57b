"""How many operations a training step launches on a GPU, by part, and how often it waits.

    python benchmarks/launches.py

needs no GPU, and must see none: it takes a few steps with tensors that have no values
(fake_cuda.py). Each launch costs Python and PyTorch 5 to 10 microseconds, so on a fast GPU a small
network's step takes about as long as its launches. An operation counts as one launch even if it
runs several kernels without Python, as a cuDNN convolution or `_foreach_lerp_` over many tensors
may. On one GPU, forward pass, loss and backward pass are a CUDA graph, which is one launch
(training/compilation.py).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the packages lie

import torch

import models
import utils
from benchmarks import common
from benchmarks.fake_cuda import last_step
from training import devices

PARTS = ("augmentation", "forward", "loss", "backward", "optimizer", "EMA", "metrics")


def main() -> None:
    parser = utils.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operations", action="store_true", help="name them, with their number")
    named = parser.parse_args().operations
    if torch.cuda.is_available():
        raise utils.RunError("hide the GPU: CUDA_VISIBLE_DEVICES= python benchmarks/launches.py")
    rows: list[tuple[str, ...]] = [("network", "precision", *PARTS, "all", "with graph", "waits")]
    for model in models.names():
        for precision in devices.PRECISIONS:
            step = last_step(model, precision)
            counts = [step.launches[part] for part in PARTS]
            totals = (step.launches.total(), step.launches_with_a_graph, step.waits.total())
            numbers = (*counts, *totals)
            rows.append((model, precision, *map(str, numbers)))
            for part in PARTS if named else ():
                names = step.operations[part].most_common()
                print(f"{model} {precision} {part}: " + ", ".join(f"{n} {op}" for op, n in names))
    print(common.aligned(rows, right=range(2, len(rows[0]))))


if __name__ == "__main__":
    utils.run_script(main)
