"""Export a checkpoint to ONNX, in fp32 and quantised to int8, and compare both with PyTorch.

Both files take uint8 RGB pixels (batch, 3, 32, 32), of any batch size, and return logits
(batch, 10): the normalisation is inside. Their metadata name the classes. With --maps they also
return class activation maps (batch, 10, H, W), 16x16 for the default network: how much each pixel
of the last features supports each class. A map's mean plus the bias of its class is the logit.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    import startup

    startup.begin()

import torch
from torch import Tensor

import data
import utils
from models.mirror import untied
from training import engine, onnx_files, weights
from training.flags import Setting, add_flag, folder
from training.onnx_files import INPUT, MAPS, OPSET, OUTPUT
from training.weights import PixelClassifier

CALIBRATION = Setting("training images that calibrate int8", at_least=1, at_most=45_000)
BATCH_SIZE = 100
TOLERANCE = 1e-3  # of the logits, between PyTorch and the same network in ONNX
NETWORKS = ("PyTorch fp32", "ONNX fp32", "ONNX int8")
ROUNDS, CALLS = 40, 10  # of the measurement of latency


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(description=__doc__)
    weights.add_checkpoint(parser)
    weights.add_data(parser)
    add = parser.add_argument
    add(
        "--output",
        type=folder,
        metavar="DIR",
        help="folder for NAME.onnx and NAME.int8.onnx (the folder of the checkpoint NAME)",
    )
    add_flag(parser, "calibration_images", CALIBRATION, 1000)
    add("--maps", action="store_true", help="add class activation maps as a second output")
    return parser.parse_args(argv)


@torch.inference_mode()
def evaluate(run: Callable[[Tensor], Tensor], split: data.Split) -> engine.Evaluation:
    logits = [run(images) for images in split.images.split(BATCH_SIZE)]
    return engine.Evaluation(torch.cat(logits), split.labels)


@torch.inference_mode()
def latencies(runs: Sequence[Callable[[Tensor], Tensor]], image: Tensor) -> list[float]:
    """The median time in seconds that each of `runs` takes for one `image` (1, 3, 32, 32).

    They take turns, so that other work on the machine slows all of them alike.
    """
    seconds: list[list[float]] = [[] for _ in runs]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(ROUNDS):
        for run, times in zip(runs, seconds, strict=True):
            run(image)  # what ran before has emptied the caches
            for _ in range(CALLS):
                start = time.perf_counter()
                run(image)
                times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return [median(times) for times in seconds]


def check(reference: engine.Evaluation, exported: engine.Evaluation) -> None:
    """Raises utils.RunError if ONNX and PyTorch give different logits."""
    difference = float((reference.logits - exported.logits).abs().max())
    if not difference <= TOLERANCE:
        raise utils.RunError(
            f"the exported network's logits differ from PyTorch's by {difference:.3g}: nothing was"
            " written; report the versions of torch, onnxscript and onnxruntime"
        )


def report(
    sizes: Sequence[int],
    evaluations: Sequence[engine.Evaluation],
    seconds: Sequence[float],
) -> str:
    """The table, one row per network; the others are compared with the first.

    `sizes` are in bytes, `seconds` per image.
    """
    header = ("", "size", "accuracy", "largest difference", "equal predictions", "latency")
    lines = ["{:<13}{:>9}{:>22}{:>21}{:>20}{:>11}".format(*header)]
    reference = evaluations[0]
    for name, size, evaluation, latency in zip(NETWORKS, sizes, evaluations, seconds, strict=True):
        metrics = evaluation.metrics
        accuracy = f"{100 * metrics.accuracy:.2f} % ({metrics.correct}/{metrics.total})"
        difference = float((evaluation.logits - reference.logits).abs().max())
        equal = int((evaluation.predictions == reference.predictions).sum())
        lines.append(
            f"{name:<13}{size / 1000:>6.0f} KB{accuracy:>22}{difference:>21.2g}"
            f"{equal:>15}/{metrics.total:<4}{1000 * latency:>8.2f} ms"
        )
    return "\n".join(line.rstrip() for line in lines)


def load_images(
    source: str, directory: Path, download_url: str | None, count: int
) -> tuple[Tensor, data.Split]:
    """`count` random training images, uint8 (N, 3, 32, 32), that calibrate int8, and the
    validation split.

    Raises:
        data.DataError: they are missing and cannot be downloaded.
        utils.RunError: there are fewer than `count`.
    """
    data.find(source, directory, need=("train", "val"), download_url=download_url)
    train, val = data.load_splits(source, directory, ("train", "val"))
    if count > len(train):
        raise utils.RunError(f"--calibration-images {count}: choose 1 to {len(train)}")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return train.images[order[:count]], val


def describe(checkpoint: dict[str, Any], bias: Sequence[float] | None) -> dict[str, str]:
    """The metadata of the files; `bias`: of each class, if they return maps."""
    metadata = {
        "model": checkpoint["model"],
        "classes": json.dumps(checkpoint["classes"]),
        "input": "uint8 RGB pixels (batch, 3, 32, 32); the normalisation is inside",
        "output": "logits (batch, classes); their softmax is the probabilities",
    }
    if bias is not None:
        metadata["maps"] = "class activation maps; the mean of one plus the bias is the logit"
        metadata["bias"] = json.dumps(bias)
    return metadata


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    onnx_files.require_packages()
    network, checkpoint = weights.load_network(arguments.checkpoint)
    classifier = PixelClassifier(network, **checkpoint["normalization"]).eval()
    whole = PixelClassifier(untied(network), **checkpoint["normalization"], maps=arguments.maps)

    source = weights.choose_source(arguments.data, checkpoint["data"])
    calibration_images, val = load_images(
        source, arguments.data_dir, arguments.download_url, arguments.calibration_images
    )
    reference = evaluate(classifier, val)
    weights.require_finite(reference.logits, arguments.checkpoint)

    output = arguments.output or arguments.checkpoint.parent
    utils.make_folder(output)
    metadata = describe(checkpoint, classifier.network.fc.bias.tolist() if arguments.maps else None)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        onnx_files.export_onnx(whole.eval(), fp32, metadata)
        onnx_files.quantize(fp32, int8, calibration_images, metadata)
        contents = [path.read_bytes() for path in (fp32, int8)]

    runs: list[Callable[[Tensor], Tensor]] = [classifier]
    runs += [onnx_files.open_session(content) for content in contents]
    evaluations = [reference, *(evaluate(run, val) for run in runs[1:])]
    check(*evaluations[:2])
    sizes = [4 * utils.count_parameters(classifier), *map(len, contents)]
    of_sample = " of the built-in sample" if source == "sample" else ""
    print(f"{len(val)} images of the val split{of_sample}; logit differences are from PyTorch's:")
    print(report(sizes, evaluations, latencies(runs, val.images[:1])))
    print("Latency: one image on one thread, the median of interleaved calls.")
    if seen := weights.seen_in_training(checkpoint["data"], val):
        print(seen)
    for suffix, content in zip((".onnx", ".int8.onnx"), contents, strict=True):
        path = output / (arguments.checkpoint.stem + suffix)
        utils.write_atomically(path, content)
        written = utils.clean(path)
        outputs = f"outputs {OUTPUT} and {MAPS}" if arguments.maps else f"output {OUTPUT}"
        print(f"Wrote {written} (opset {OPSET}, input {INPUT}, {outputs})")


if __name__ == "__main__":
    utils.run_script(main, data.DataError, OSError)
