"""The loop that ours is measured against: what most repositories of this kind do, with the settings
of the notebook that this one started from.

Images are augmented one by one, as PIL images by torchvision's transforms in a DataLoader of 2
worker processes. The network trains in float32 in the default memory layout. Loss and accuracy are
read from the device after every batch.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from data import Split
from training import engine

MODEL = "baseline"
EPOCHS = 50
BATCH_SIZE = 128
WORKERS = 2
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
# First epoch (counted from 0), learning rate and momentum of each optimizer.
OPTIMIZERS = ((0, 0.01, 0.9), (25, 0.001, 0.7), (40, 0.0001, 0.9))


class TransformedImages(Dataset):
    """The images of a split, each converted to a PIL image and transformed on access."""

    def __init__(self, split: Split) -> None:
        self.images = split.images.permute(0, 2, 3, 1).contiguous().numpy()  # (N, 32, 32, 3)
        self.labels = split.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def build_loader(
    split: Split, device: torch.device, *, batch_size: int = BATCH_SIZE, workers: int = WORKERS
) -> DataLoader:
    return DataLoader(
        TransformedImages(split),
        batch_size,
        shuffle=True,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )


def build_optimizer(model: nn.Module, epoch: int) -> SGD | None:
    """The new optimizer of epoch `epoch` (counted from 0), or None if it keeps the old one."""
    for start, learning_rate, momentum in OPTIMIZERS:
        if epoch == start:
            return SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    return None


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: SGD,
    device: torch.device,
) -> engine.Metrics:
    """Take one step per batch; returns the training metrics."""
    model.train()
    loss_sum, correct, total = 0.0, 0, 0
    for images, labels in batches:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
        total += len(labels)
    return engine.Metrics(loss_sum / total, correct, total)
