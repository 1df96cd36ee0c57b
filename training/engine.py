"""The two loops: train a network for one epoch, evaluate it on one split."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from training.ema import WeightAverage
from training.loss import Loss

Batches = Iterable[tuple[Tensor, Tensor]]
# Passes recorded as CUDA graphs, by the shapes of images and labels (see compilation.py).
Recorded = dict[tuple[torch.Size, torch.Size], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Metrics:
    """Mean loss in nats per image, and how many of `total` images were classified correctly."""

    loss: float
    correct: int
    total: int

    @property
    def accuracy(self) -> float:
        """Fraction of the images that were classified correctly, from 0 to 1."""
        return self.correct / self.total


class RunningMetrics:
    """Sums over the batches of an epoch, kept on the device until they are read.

    Reading them waits for the device, so the loop seldom does.

    Args:
        sum_over_processes: maps the three sums of this process to those of all processes, which
            then have to read them at the same time.
    """

    def __init__(
        self,
        device: torch.device,
        sum_over_processes: Callable[[list[float]], list[float]] = lambda sums: sums,
    ) -> None:
        # MPS has no float64; elsewhere it keeps the sum of 50,000 losses exact to the last digit.
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self.loss_sum = torch.zeros((), dtype=dtype, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.total = 0
        self._sum_over_processes = sum_over_processes

    def update(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, logits (N, K) and labels (N,), or (N, K) if mixed: then the
        class with the largest share is the correct one."""
        classes = labels if labels.ndim == 1 else labels.argmax(1)
        self.loss_sum.add_(loss.detach(), alpha=len(labels))
        self.correct += (logits.detach().argmax(1) == classes).sum()
        self.total += len(labels)

    def compute(self) -> Metrics:
        """The metrics of the epoch so far, over all processes."""
        sums = self.state_dict()
        return Metrics(sums["loss_sum"] / sums["total"], sums["correct"], sums["total"])

    def own(self) -> Metrics:
        """The metrics of this process's images only."""
        return Metrics(float(self.loss_sum) / self.total, int(self.correct), self.total)

    def state_dict(self) -> dict[str, Any]:
        own = [float(self.loss_sum), int(self.correct), self.total]
        loss_sum, correct, total = self._sum_over_processes(own)
        return {"loss_sum": loss_sum, "correct": int(correct), "total": int(total)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loss_sum.fill_(state["loss_sum"])
        self.correct.fill_(state["correct"])
        self.total = state["total"]


@dataclass(frozen=True)
class Evaluation:
    """A network's logits (N, K) on a split and the labels (N,), both on the CPU."""

    logits: Tensor
    labels: Tensor

    @property
    def predictions(self) -> Tensor:
        """The predicted class of each image, (N,)."""
        return self.logits.argmax(1)

    @property
    def metrics(self) -> Metrics:
        """Cross-entropy without label smoothing, and accuracy."""
        loss = F.cross_entropy(self.logits.double(), self.labels)
        correct = (self.predictions == self.labels).sum()
        return Metrics(float(loss), int(correct), len(self.labels))

    @property
    def confusion(self) -> Tensor:
        """Counts (K, K): a row per true class, a column per predicted class."""
        classes = self.logits.shape[1]
        pairs = self.labels * classes + self.predictions
        return torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Mixed precision on `device`; float32 switches it off."""
    return torch.autocast(device.type, precision, enabled=precision != torch.float32)


@dataclass(frozen=True)
class Passes:
    """The forward and the backward pass of a batch, in mixed precision: the gradients are left in
    the parameters. `weight` is a factor on the loss."""

    model: nn.Module
    loss_of: Loss
    scaler: GradScaler
    precision: torch.dtype

    def __call__(
        self, images: Tensor, labels: Tensor, weight: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Returns the loss, a scalar, and the logits (N, K), detached: their graph beside the next
        one would take 0.1 GB on a CPU."""
        with autocast(images.device, self.precision):
            logits = self.model(images)
            loss = self.loss_of(images, logits, labels)
        self.scaler.scale(loss if weight == 1 else weight * loss).backward()
        return loss.detach(), logits.detach()


def train_epoch(
    passes: Passes,
    batches: Batches,
    optimizer: Optimizer,
    scheduler: LRScheduler,
    ema: WeightAverage | None,
    metrics: RunningMetrics,
    *,
    recorded: Recorded | None = None,
    loss_weights: Iterable[float] = repeat(1.0),
    after_step: Callable[[Tensor], None] = lambda loss: None,
) -> Metrics:
    """Take one step per batch; returns the metrics of the batches as trained on.

    Args:
        batches: images (N, 3, H, W) and their labels, (N,) or the share of each class (N, K).
        metrics: sums to add to; not empty if the epoch was interrupted and resumed.
        recorded: batches of these shapes take recorded passes; their loss weights are 1.
        loss_weights: a factor on each batch's loss; not 1 if the batch is a process's part of a
            larger one (see data.Loader.loss_weights). Such a part may be empty.
        after_step: called after every step with the loss of the batch, a scalar on the device that
            may change with the next step.
    """
    passes.model.train()
    for (images, labels), weight in zip(batches, loss_weights, strict=False):
        optimizer.zero_grad(set_to_none=True)
        replay = recorded.get((images.shape, labels.shape)) if recorded else None
        loss, logits = replay(images, labels) if replay else passes(images, labels, weight)
        passes.scaler.step(optimizer)
        passes.scaler.update()
        scheduler.step()
        if ema is not None:
            ema.update()
        metrics.update(loss, logits, labels)
        after_step(loss)
    return metrics.compute()


@torch.inference_mode()
def evaluate(
    model: nn.Module, batches: Batches, *, precision: torch.dtype, mirror: bool = False
) -> Evaluation:
    """Classify every image of a split in evaluation mode.

    Args:
        mirror: average the class probabilities of each image with those of its mirror image
            (test-time augmentation); the logits returned are then their logarithms.
    """
    model.eval()
    logits, labels = [], []
    for images, batch_labels in batches:
        with autocast(images.device, precision):
            outputs = model(images).float()
            if mirror:
                both = torch.stack([outputs, model(images.flip(3)).float()]).log_softmax(2)
                outputs = both.logsumexp(0) - math.log(2)
        logits.append(outputs)
        labels.append(batch_labels)
    return Evaluation(torch.cat(logits).cpu(), torch.cat(labels).cpu())
