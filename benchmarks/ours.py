"""Our loop, put together from `data`, `models`, `recipe` and `engine` as train.py does it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

import data
import engine
import models
import recipe as recipes
import utils
from recipe import Recipe
from train import augmentation_of


@dataclass
class Training:
    """One network, and all that trains it."""

    recipe: Recipe
    model: nn.Module
    loader: data.Loader
    optimizer: Optimizer
    scheduler: LRScheduler
    ema: AveragedModel | None
    scaler: GradScaler
    precision: torch.dtype

    @property
    def scored(self) -> nn.Module:
        """The network that is evaluated: the moving average, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def begin_epoch(self, epoch: int) -> None:
        """Epoch `epoch`, counted from 0, is what `loader` shows next."""
        recipes.begin_epoch(self.optimizer, self.recipe, epoch)
        self.loader.set_epoch(epoch)

    def train(
        self,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        metrics: engine.RunningMetrics | None = None,
        after_step: Callable[[Tensor], None] = lambda loss: None,
    ) -> engine.Metrics:
        """Take a step a batch; returns the training metrics."""
        return engine.train_epoch(
            self.model,
            batches,
            self.optimizer,
            self.scheduler,
            self.ema,
            self.scaler,
            metrics or engine.RunningMetrics(self.loader.device),
            label_smoothing=self.recipe.label_smoothing,
            precision=self.precision,
            after_step=after_step,
        )


def build_loader(
    split: data.Split, recipe: Recipe, device: torch.device, dtype: torch.dtype, *, seed: int = 0
) -> data.Loader:
    """The batches that `recipe` trains on; fewer images than a batch make one batch."""
    return data.Loader(
        split,
        min(recipe.batch_size, len(split)),
        augmentation=augmentation_of(recipe),
        seed=seed,
        device=device,
        mean=data.MEAN,
        std=data.STD,
        dtype=dtype,
        shuffle=True,
    )


def build(
    name: str, recipe: Recipe, split: data.Split, device: torch.device, *, seed: int = 0
) -> Training:
    """A fresh network of that name, and what trains it by `recipe` on `split`."""
    utils.seed_everything(seed)
    precision = utils.pick_precision("auto", device)
    model = models.build(name).to(device, memory_format=torch.channels_last)
    loader = build_loader(split, recipe, device, precision, seed=seed)
    optimizer = recipes.build_optimizer(model, recipe)
    return Training(
        recipe=recipe,
        model=model,
        loader=loader,
        optimizer=optimizer,
        scheduler=recipes.build_scheduler(optimizer, recipe, len(loader)),
        ema=recipes.build_ema(model, recipe),
        scaler=GradScaler(device.type, enabled=precision == torch.float16),
        precision=precision,
    )
