"""Score a checkpoint: loss, accuracy, each class, and figures of what it gets wrong."""

import argparse
from datetime import datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import startup

    startup.begin()

import torch
from torch import Tensor, nn

import data
import models
import plots
import utils
from models import explain
from training import devices, engine, weights
from training.flags import Setting, add_flag, folder

ROOT = Path(__file__).resolve().parent
SPLIT = Setting("images to score, by default test, of the sample val", ("test", "val", "train"))
EXPLAINED = Setting(
    "draw what the network looks at in the first N images, by Grad-CAM, and what its channel"
    " attention does",
    at_least=1,
    at_most=plots.MAX_EXPLANATIONS,
)
# fp32, so that every machine gives the same figures.
PRECISION = Setting("of the mixed precision", ("auto", *devices.PRECISIONS))
BATCH_SIZE = 500
SAMPLE_WARNING = (
    "*** NOT CIFAR-10: scoring the few images of the built-in sample. Ask for CIFAR-10 with"
    " --data cifar10. ***"
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(description=__doc__)
    weights.add_checkpoint(parser, required=True)
    weights.add_data(parser)
    add = parser.add_argument
    add_flag(parser, "split", SPLIT, None, str)
    add("--output", type=folder, metavar="DIR", help="folder of figures (runs/test-NETWORK-TIME)")
    add_flag(parser, "explain", EXPLAINED, None, int)
    add("--tta", action="store_true", help="average with the mirrored image")
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1 or mps (auto)")
    add_flag(parser, "precision", PRECISION, "fp32")
    return parser.parse_args(argv)


def load_split(
    source: str, split: str | None, directory: Path, download_url: str | None
) -> data.Split:
    """The images to score; by default CIFAR-10's test split, and of the sample, which has none,
    the validation split.

    Raises:
        data.DataError: they are not there and cannot be had.
    """
    split = split or ("val" if source == "sample" else "test")
    data.find(source, directory, need=(split,), download_url=download_url)
    return data.load(source, directory, split)


def make_loader(
    split: data.Split,
    normalization: dict[str, list[float]],
    device: torch.device,
    precision: torch.dtype,
) -> data.Loader:
    """All images of the split, in order and as they are."""
    return data.Loader(
        split,
        min(BATCH_SIZE, len(split)),
        augmentation=None,
        seed=0,
        device=device,
        mean=normalization["mean"],
        std=normalization["std"],
        dtype=precision,
        shuffle=False,
    )


def describe(checkpoint: dict[str, Any], split: data.Split, tta: bool) -> str:
    """The title of the figures."""
    trained = checkpoint["data"]
    parts = [f"{checkpoint['model']} on CIFAR-10"]
    if trained["source"] == "sample":
        parts.append("trained on the built-in sample only")
    of_sample = " of the built-in sample" if split.source == "sample" else ""
    seen = " (seen in training)" if weights.seen_in_training(trained, split) else ""
    parts.append(f"{split.name} split{of_sample}{seen}")
    if tta:
        parts.append("with mirrored images")
    return ", ".join(parts)


def draw(
    evaluation: engine.Evaluation,
    split: data.Split,
    classes: tuple[str, ...],
    title: str,
    output: Path,
) -> None:
    """Confusion matrix, accuracy of each class, and the most confident mistakes."""
    confusion = evaluation.confusion
    correct, total = confusion.diag(), confusion.sum(1)
    plots.confusion_matrix(confusion, classes, output / "confusion_matrix.png", title=title)
    plots.class_accuracy(correct, total, classes, output / "class_accuracy.png", title=title)
    plots.mistakes(
        split.images,
        evaluation.labels,
        evaluation.predictions,
        evaluation.logits.softmax(1).amax(1),
        classes,
        output / "mistakes.png",
        title=f"{title}: most confident mistakes",
    )


def draw_explanations(
    model: nn.Module,
    images: Tensor,
    evaluation: engine.Evaluation,
    split: data.Split,
    classes: tuple[str, ...],
    count: int,
    title: str,
    output: Path,
) -> None:
    """What the network looks at in the first `count` images of `split`, of which `images`
    (M, 3, 32, 32), normalised, are the first M, M >= count."""
    predicted = evaluation.predictions[:count]
    maps = explain.grad_cam(model, images[:count], predicted.to(images.device))
    gates = explain.attention_gates(model, images)
    confidence = evaluation.logits[:count].softmax(1).amax(1)
    captions = [
        f"true: {classes[label]}\npredicted: {classes[guess]}\n({100 * probability:.1f} %)"
        for label, guess, probability in zip(
            evaluation.labels[:count], predicted, confidence, strict=True
        )
    ]
    plots.explanations(
        split.images[:count],
        captions,
        maps.cpu(),
        {
            f"channel attention\n{explain.in_words(model, name)}": gate.cpu()
            for name, gate in gates.items()
        },
        output / "explanations.png",
        title=f"{title}: what speaks for the predicted class",
    )


def report(
    evaluation: engine.Evaluation,
    split: data.Split,
    classes: tuple[str, ...],
    trained: dict[str, Any],
    tta: bool,
) -> None:
    """Print the loss, the accuracy, and that of each class."""
    metrics, confusion = evaluation.metrics, evaluation.confusion
    mirrored = ", with mirrored images (test-time augmentation)" if tta else ""
    line = utils.metrics_line(split.name.capitalize(), metrics.loss, metrics.correct, metrics.total)
    print(line + mirrored)
    if seen := weights.seen_in_training(trained, split):
        print(seen)
    print(utils.class_table(confusion.diag().tolist(), confusion.sum(1).tolist(), classes))


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    device = devices.pick_device(arguments.device)
    precision = devices.pick_precision(arguments.precision, device)
    # CUDA's default rounds fp32 to TF32.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]

    network, checkpoint = weights.load_network(arguments.checkpoint)
    trained, classes = checkpoint["data"], tuple(map(utils.clean, checkpoint["classes"]))
    source = weights.choose_source(arguments.data, trained)
    split = load_split(source, arguments.split, arguments.data_dir, arguments.download_url)
    name = f"test-{checkpoint['model']}-{datetime.now():%Y%m%d-%H%M%S}"
    output = arguments.output or ROOT / "runs" / name
    utils.make_folder(output)
    if source == "sample":
        print(SAMPLE_WARNING, flush=True)

    loader = make_loader(split, checkpoint["normalization"], device, precision)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    evaluation = engine.evaluate(network, loader, precision=precision, mirror=arguments.tta)
    weights.require_finite(evaluation.logits, arguments.checkpoint)
    report(evaluation, split, classes, trained, arguments.tta)
    title = describe(checkpoint, split, arguments.tta)
    draw(evaluation, split, classes, title, output)
    if arguments.explain is not None:
        images, count = next(iter(loader))[0].float(), arguments.explain
        draw_explanations(network, images, evaluation, split, classes, count, title, output)
    print(f"Figures are in {utils.clean(output)}")
    if source == "sample":
        print(SAMPLE_WARNING)


if __name__ == "__main__":
    utils.run_script(main, data.DataError, models.ModelError, OSError)
