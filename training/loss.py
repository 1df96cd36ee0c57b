"""What a training minimises."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """The mean loss of a batch in nats per image, called with its images, logits (N, K) and labels,
    (N,) or the share of each class (N, K).

    Cross-entropy with smoothed labels. With a teacher, `share` of the loss is how far the network's
    probabilities are from the teacher's (Kullback-Leibler divergence), both at a temperature T
    (Hinton et al. 2015, arXiv:1503.02531). T^2 gives its gradient the size that it has without T.
    The teacher sees the very images that the network sees (Beyer et al. 2021, arXiv:2106.05237).

    Attributes:
        teacher: images -> logits (N, K), without gradients.
    """

    label_smoothing: float = 0.0
    teacher: Callable[[Tensor], Tensor] | None = None
    share: float = 0.9
    temperature: float = 2.0

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        if len(labels) == 0:
            return logits.sum()  # 0, where a mean over nothing is not a number
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.teacher is None:
            return loss
        ours, theirs = (
            (answer.float() / self.temperature).log_softmax(1)
            for answer in (logits, self.teacher(images))
        )
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (1 - self.share) * loss + self.share * self.temperature**2 * divergence
