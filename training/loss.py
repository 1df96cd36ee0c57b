"""The training loss: cross-entropy, with or without distillation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """The mean loss of a batch in nats per image, called with its images, logits (N, K) and labels,
    (N,) or the share of each class (N, K).

    It is the cross-entropy with label smoothing. With a teacher, the Kullback-Leibler divergence
    of the network's probabilities from the teacher's, both at temperature T, has the weight
    `share` (Hinton et al. 2015, arXiv:1503.02531). The factor T^2 keeps the size of its
    gradient. The teacher sees the same augmented images (Beyer et al. 2021, arXiv:2106.05237).

    Attributes:
        teacher: images -> logits (N, K), without gradients.
    """

    label_smoothing: float = 0.0
    teacher: Callable[[Tensor], Tensor] | None = None
    share: float = 0.9
    temperature: float = 2.0

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if len(labels) == 0:
            return logits.sum()  # 0; a mean over no images would be NaN
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return loss
        ours, theirs = (
            (answer.float() / self.temperature).log_softmax(1)
            for answer in (logits, self.teacher(images))
        )
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (1 - self.share) * loss + self.share * self.temperature**2 * divergence
