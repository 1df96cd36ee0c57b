"""Score a checkpoint: loss, accuracy, accuracy by class, and figures of its mistakes."""

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
import plots
import utils
from models import explain
from training import devices, engine, weights
from training.figures import draw_scores
from training.flags import Setting, add_flag, folder

ROOT = Path(__file__).resolve().parent
SPLIT = Setting("split to score, by default test, or val for the sample", ("test", "val", "train"))
EXPLAINED = Setting(
    "draw Grad-CAM and channel attention for the first N images",
    at_least=1,
    at_most=plots.MAX_EXPLANATIONS,
)
# fp32, so that every machine gives the same figures.
PRECISION = Setting("of the computation", ("auto", *devices.PRECISIONS))
BATCH_SIZE = 500
SAMPLE_WARNING = (
    "*** NOT CIFAR-10: scoring the small built-in sample. For CIFAR-10, pass --data cifar10. ***"
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(description=__doc__)
    weights.add_checkpoint(parser, required=True)
    weights.add_data(parser)
    add = parser.add_argument
    add_flag(parser, "split", SPLIT, None, str)
    add(
        "--output",
        type=folder,
        metavar="DIR",
        help="folder for the figures (runs/test-NETWORK-TIME)",
    )
    add_flag(parser, "explain", EXPLAINED, None, int)
    add("--tta", action="store_true", help="average over each image and its mirror image")
    add("--device", metavar="NAME", default="auto", help="auto, cpu, cuda, cuda:1 or mps (auto)")
    add_flag(parser, "precision", PRECISION, "fp32")
    return parser.parse_args(argv)


def load_split(
    source: str, split: str | None, directory: Path, download_url: str | None
) -> data.Split:
    """The images to score; by default the test split, or the sample's validation split, because
    the sample has no test split.

    Raises:
        data.DataError: they are missing and cannot be downloaded.
    """
    split = split or ("val" if source == "sample" else "test")
    data.find(source, directory, need=(split,), download_url=download_url)
    return data.load(source, directory, split)


def describe(checkpoint: dict[str, Any], split: data.Split, tta: bool) -> str:
    """The title of the figures."""
    trained = checkpoint["data"]
    parts = [weights.title(checkpoint["model"], trained)]
    of_sample = " of the built-in sample" if split.source == "sample" else ""
    seen = " (seen in training)" if weights.seen_in_training(trained, split) else ""
    parts.append(f"{split.name} split{of_sample}{seen}")
    if tta:
        parts.append("with mirrored images")
    return ", ".join(parts)


def draw_mistakes(
    evaluation: engine.Evaluation,
    split: data.Split,
    classes: tuple[str, ...],
    title: str,
    output: Path,
) -> None:
    """Draw the most confident mistakes."""
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
    """Draw Grad-CAM and channel attention for the first `count` images of `split`.

    `images` (M, 3, 32, 32) are the first M images of the split, normalised, M >= count.
    """
    predicted = evaluation.predictions[:count]
    try:
        maps = explain.grad_cam(model, images[:count], predicted.to(images.device))
    except ValueError as error:
        raise utils.RunError(f"--explain: {error}") from error
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
            f"channel attention\n{explain.describe_location(model, name)}": gate.cpu()
            for name, gate in gates.items()
        },
        output / "explanations.png",
        title=f"{title}: Grad-CAM and channel attention",
    )


def report(
    evaluation: engine.Evaluation, split: data.Split, trained: dict[str, Any], tta: bool
) -> None:
    """Print the loss and the accuracy."""
    metrics = evaluation.metrics
    mirrored = ", with mirrored images (test-time augmentation)" if tta else ""
    line = utils.metrics_line(split.name.capitalize(), metrics.loss, metrics.correct, metrics.total)
    print(line + mirrored)
    if seen := weights.seen_in_training(trained, split):
        print(seen)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    device = devices.pick_device(arguments.device)
    precision = devices.PRECISIONS[devices.pick_precision(arguments.precision, device)]
    # CUDA's default rounds fp32 to TF32.
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    with devices.refusing_lack_of_memory(device, "choose another --device"):
        score(arguments, device, precision)


def score(arguments: argparse.Namespace, device: torch.device, precision: torch.dtype) -> None:
    """Classify the images, print the scores and draw the figures."""
    network, checkpoint = weights.load_network(arguments.checkpoint)
    trained, classes = checkpoint["data"], tuple(map(utils.clean, checkpoint["classes"]))
    source = weights.choose_source(arguments.data, trained)
    split = load_split(source, arguments.split, arguments.data_dir, arguments.download_url)
    name = f"test-{checkpoint['model']}-{datetime.now():%Y%m%d-%H%M%S}"
    output = arguments.output or utils.new_folder(ROOT / "runs" / name)
    utils.make_folder(output)
    if source == "sample":
        print(SAMPLE_WARNING, flush=True)

    size, normalization = min(BATCH_SIZE, len(split)), checkpoint["normalization"]
    loader = data.Loader(split, size, **normalization, device=device, dtype=precision)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    evaluation = engine.evaluate(network, loader, precision=precision, mirror=arguments.tta)
    weights.require_finite(evaluation.logits, arguments.checkpoint)
    report(evaluation, split, trained, arguments.tta)
    title = describe(checkpoint, split, arguments.tta)
    draw_scores(evaluation, classes, title, output)
    draw_mistakes(evaluation, split, classes, title, output)
    if arguments.explain is not None:
        images, count = next(iter(loader))[0].float(), arguments.explain
        draw_explanations(network, images, evaluation, split, classes, count, title, output)
    print(f"Figures are in {utils.clean(output)}")
    if source == "sample":
        print(SAMPLE_WARNING)


if __name__ == "__main__":
    utils.run_script(main, data.DataError, OSError)
