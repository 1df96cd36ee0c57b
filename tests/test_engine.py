"""The loops, held against the same figures worked out by hand."""

import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

import data
import models
from training import engine
from training.ema import WeightAverage
from training.loss import Loss
from training.optimizer import build_optimizer
from training.recipe import Recipe
from training.schedule import learning_rate_factor

CPU = torch.device("cpu")
NO_SCALING = GradScaler("cpu", enabled=False)


def split(n, seed=0):
    """Images (n, 3, 32, 32) and labels (n,)."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, 32, 32, generator=generator)
    return images, torch.randint(10, (n,), generator=generator)


def batches(n, size, seed=0):
    images, labels = split(n, seed)
    return list(zip(images.split(size), labels.split(size), strict=True))


def network(seed=0):
    """A small network whose mode matters: BatchNorm differs in training."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.AvgPool2d(8), nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 10)
    )


def train_epoch(model, batches, **changes):
    """`engine.train_epoch` with the plainest arguments, and `changes` to them."""
    optimizer = changes.pop("optimizer", None) or SGD(model.parameters(), lr=0.1)
    scheduler = changes.pop("scheduler", None) or LambdaLR(optimizer, lambda step: 1.0)
    ema = changes.pop("ema", None)
    metrics = changes.pop("metrics", None) or engine.RunningMetrics(CPU)
    loss_of = changes.pop("loss_of", Loss())
    precision = changes.pop("precision", torch.float32)
    passes = engine.Passes(model, loss_of, NO_SCALING, precision)
    return engine.train_epoch(passes, batches, optimizer, scheduler, ema, metrics, **changes)


def same_weights(model, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


# ------------------------------------------------------------------------------------ evaluation


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize("size", [1, 8, 19, 37])
def test_evaluate_is_one_batch_of_everything_however_it_is_cut(name, size):
    """The last batch is short: 37 = 4 * 8 + 5 = 19 + 18."""
    torch.manual_seed(0)
    model = models.build(name)
    images, labels = split(37)
    evaluation = engine.evaluate(model, batches(37, size), precision=torch.float32)
    with torch.no_grad():
        logits = model.eval()(images)
    torch.testing.assert_close(evaluation.logits, logits, atol=1e-5, rtol=1e-4)
    assert torch.equal(evaluation.labels, labels)
    assert evaluation.metrics.loss == pytest.approx(F.cross_entropy(logits, labels).item(), 1e-5)
    assert evaluation.metrics.correct == (logits.argmax(1) == labels).sum()
    assert evaluation.metrics.total == 37


def test_evaluate_leaves_the_network_as_it_is():
    model = network().train()
    before = copy.deepcopy(model)
    evaluation = engine.evaluate(model, batches(8, 4), precision=torch.float32)
    assert same_weights(model, before)  # and BatchNorm's statistics
    assert not evaluation.logits.requires_grad


@pytest.mark.parametrize("mirror", [False, True])
def test_evaluate_returns_float32_from_mixed_precision(mirror):
    model = network()
    plain = engine.evaluate(model, batches(8, 4), precision=torch.float32, mirror=mirror)
    mixed = engine.evaluate(model, batches(8, 4), precision=torch.bfloat16, mirror=mirror)
    assert mixed.logits.dtype == torch.float32
    assert not torch.equal(mixed.logits, plain.logits)
    torch.testing.assert_close(mixed.logits, plain.logits, atol=0.05, rtol=0.05)


def test_mirrored_evaluation_averages_probabilities():
    model = network().eval()
    images, _ = split(10)
    with torch.no_grad():
        expected = (model(images).softmax(1) + model(images.flip(3)).softmax(1)) / 2
        plain = model(images).softmax(1)
    evaluation = engine.evaluate(model, batches(10, 4), precision=torch.float32, mirror=True)
    torch.testing.assert_close(evaluation.logits.exp(), expected)
    torch.testing.assert_close(evaluation.logits.softmax(1), expected)
    assert not torch.allclose(expected, plain, atol=1e-3)


def test_metrics_by_hand():
    """Probabilities 3/4 and 1/4: right, right, wrong."""
    logits = torch.tensor([[3.0, 1.0], [1.0, 3.0], [1.0, 3.0]]).log()
    metrics = engine.Evaluation(logits, torch.tensor([0, 1, 0])).metrics
    assert metrics.loss == pytest.approx((2 * math.log(4 / 3) + math.log(4)) / 3)
    assert (metrics.correct, metrics.total, metrics.accuracy) == (2, 3, 2 / 3)


def test_confusion_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    predictions = torch.tensor([0, 2, 2, 1, 0, 2])
    evaluation = engine.Evaluation(F.one_hot(predictions, 4).float(), labels)
    assert torch.equal(evaluation.predictions, predictions)
    assert evaluation.confusion.tolist() == [  # row: the true class; the fourth has no images
        [1, 0, 2, 0],
        [0, 1, 0, 0],
        [1, 0, 1, 0],
        [0, 0, 0, 0],
    ]


# -------------------------------------------------------------------------------------- training


def epoch_by_hand(model, smoothing, rate, momentum, decay):
    """SGD with momentum and a rate of rate / step, written out: the losses of the batches, the
    number of correct images, and the average of the weights. `model` is trained."""
    average = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    velocity = [torch.zeros_like(p) for p in model.parameters()]
    correct, losses = 0, []
    for step, (images, labels) in enumerate(batches(20, 8)):
        logits = model(images)
        target = F.one_hot(labels, 10) * (1 - smoothing) + smoothing / 10
        loss = -(target * logits.log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, v, g in zip(model.parameters(), velocity, gradients, strict=True):
                v.mul_(momentum).add_(g)
                p.sub_(rate / (step + 1) * v)
        kept = min(decay, (1 + step) / (10 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                average[name] = kept * average[name] + (1 - kept) * tensor
            else:
                average[name] = tensor.clone()
        losses.append(loss.item())
        correct += int((logits.argmax(1) == labels).sum())
    return losses, correct, average


def test_train_epoch_by_hand():
    """Weights, moving average and metrics are those of a loop written out; the last batch of 20
    images in eights has only 4, and counts for 4."""
    smoothing, rate, momentum, decay = 0.1, 0.2, 0.9, 0.5
    by_hand = network().train()
    losses, correct, average = epoch_by_hand(by_hand, smoothing, rate, momentum, decay)

    model = network()
    optimizer = SGD(model.parameters(), lr=rate, momentum=momentum)
    scheduler = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    ema = WeightAverage(model, decay)
    seen = []
    metrics = train_epoch(
        model,
        batches(20, 8),
        optimizer=optimizer,
        scheduler=scheduler,
        ema=ema,
        loss_of=Loss(smoothing),
        after_step=lambda loss: seen.append(loss.item()),
    )
    loss_sum = sum(loss * count for loss, count in zip(losses, (8, 8, 4), strict=True))
    assert metrics.loss == pytest.approx(loss_sum / 20, rel=1e-5)
    assert (metrics.correct, metrics.total) == (correct, 20)
    assert seen == pytest.approx(losses, rel=1e-5)
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)
    for name, tensor in average.items():
        torch.testing.assert_close(ema.module.state_dict()[name], tensor)
    assert scheduler.get_last_lr() == [pytest.approx(rate / 4)]


def test_train_epoch_trains_a_network_that_was_evaluated():
    model = network()
    engine.evaluate(model, batches(4, 4), precision=torch.float32)
    statistics = model[2].running_mean.clone()
    train_epoch(model, batches(8, 4))
    assert model.training and not torch.equal(model[2].running_mean, statistics)


def test_train_epoch_goes_on_from_the_metrics_it_is_given():
    """Two halves of an epoch, the second with the state of the first, add up to the whole."""
    whole = train_epoch(network(), batches(20, 8))
    model, first = network(), engine.RunningMetrics(CPU)
    train_epoch(model, batches(20, 8)[:2], metrics=first)
    state = json.loads(json.dumps(first.state_dict()))  # plain numbers
    second = engine.RunningMetrics(CPU)
    second.load_state_dict(state)
    assert second.compute() == first.compute()
    assert train_epoch(model, batches(20, 8)[2:], metrics=second) == whole


def test_running_metrics_weigh_each_batch_by_its_images():
    running = engine.RunningMetrics(CPU)
    logits = torch.eye(3)
    running.update(torch.tensor(1.0), logits, torch.tensor([0, 1, 0]))
    running.update(torch.tensor(5.0), logits[:1], torch.tensor([0]))
    assert running.compute() == engine.Metrics(loss=2.0, correct=3, total=4)


def test_running_metrics_of_mixed_labels():
    running = engine.RunningMetrics(CPU)
    labels = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.7, 0.0], [0.2, 0.0, 0.8]])
    running.update(torch.tensor(1.0), torch.eye(3)[[0, 1, 0]], labels)
    assert running.compute() == engine.Metrics(loss=1.0, correct=2, total=3)


def test_mixed_precision_trains_float32_weights():
    model = network()
    metrics = train_epoch(model, batches(16, 8), precision=torch.bfloat16)
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
    assert metrics.loss == pytest.approx(train_epoch(network(), batches(16, 8)).loss, rel=0.02)


@pytest.mark.slow
def test_default_network_learns_32_images_by_heart():
    torch.manual_seed(0)
    sample = data.load("sample", data.DEFAULT_DIRECTORY, "val")
    chosen = torch.randperm(len(sample))[:32]
    some = data.Split(sample.images[chosen], sample.labels[chosen], "val", "sample")
    loader = data.Loader(some, 16, mean=data.MEAN, std=data.STD, shuffle=True)
    model = models.build(models.names()[0])
    model = model.to(memory_format=torch.channels_last)
    plan = Recipe(24, 16, "muon", 0.1, "linear", warmup=0.2)
    optimizer = build_optimizer(model, plan)
    scheduler = LambdaLR(optimizer, learning_rate_factor(plan, len(loader)))
    for epoch in range(plan.epochs):
        loader.set_epoch(epoch)
        train_epoch(model, loader, optimizer=optimizer, scheduler=scheduler)
    metrics = engine.evaluate(model, loader, precision=torch.float32).metrics
    assert metrics.correct == 32
    assert metrics.loss < 0.2
