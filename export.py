"""Write a checkpoint's network as ONNX, in fp32 and quantised to int8, and measure both beside it.

Both files take uint8 RGB pixels (batch, 3, 32, 32), of any batch size, and give logits
(batch, 10): the normalisation is inside. Their metadata name the classes. With --maps they also say
how much each pixel of the last features speaks for each class: maps (batch, 10, 16, 16), whose mean
plus the bias of the class is its logit.
"""

import argparse
import importlib
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
from torch import Tensor, nn

import data
import models
import utils
from models import explain
from models.mirror import untied
from training import checkpoint as checkpoints
from training import engine

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
INPUT, OUTPUT, MAPS = "pixels", "logits", "maps"
BATCH_SIZE = 100
TOLERANCE = 1e-3  # of the logits, between PyTorch and the same network in ONNX
ROUNDS, CALLS = 40, 10  # of the measurement of latency


class PixelClassifier(nn.Module):
    """A network with its normalisation: uint8 pixels (N, 3, 32, 32) -> logits (N, K), and with
    `maps` also its class activation maps (N, K, H, W)."""

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        maps: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.maps = maps
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        images = data.normalize(pixels, self.mean, self.std, torch.float32)
        if not self.maps:
            return self.network(images)
        features = self.network.forward_features(images)
        maps = explain.class_activation_maps(self.network.fc, features)
        return self.network.forward_head(features), maps


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        metavar="PATH",
        default=models.RELEASED_WEIGHTS,
        help="weights to export (the released ones)",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of NAME.onnx and NAME.int8.onnx (that of the checkpoint NAME)",
    )
    add(
        "--data",
        choices=data.SOURCES,
        default="auto",
        help="auto: the sample if the weights come from it, else CIFAR-10 if it can be had",
    )
    add(
        "--data-dir",
        type=Path,
        metavar="DIR",
        default=data.DEFAULT_DIRECTORY,
        help="CIFAR-10 lies or is downloaded here (data/raw)",
    )
    add(
        "--calibration-images",
        type=int,
        metavar="N",
        default=1000,
        help="training images that set the ranges of int8 (1000)",
    )
    add("--maps", action="store_true", help="also give class activation maps, as a second output")
    return parser.parse_args(argv)


def require_packages() -> None:
    """Raises utils.RunError where a package that exporting needs cannot be imported."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise utils.RunError(
                f"exporting needs {name} ({error}): pip install -r requirements-export.txt"
            ) from error


def export_onnx(classifier: PixelClassifier, path: Path, metadata: dict[str, str]) -> None:
    """Write `classifier` to `path` with PyTorch's own exporter."""
    # Of two, because the exporter takes a batch of 1 for a constant.
    example = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.onnx.export(
            classifier,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT, MAPS] if classifier.maps else [OUTPUT],
            dynamic_shapes={INPUT: {0: "batch"}},
            verbose=False,
        )
    model = program.model_proto  # serialised anew at each access
    graph = model.graph
    # Where in this machine's files each operation comes from is nobody's business, and is large.
    for part in (graph, *graph.input, *graph.output, *graph.node, *graph.value_info):
        part.ClearField("metadata_props")
    finish(model, path, metadata)


def finish(model: Any, path: Path, metadata: dict[str, str]) -> None:
    """Check the ONNX `model` and write it to `path` with `metadata`."""
    import onnx

    onnx.helper.set_model_props(model, metadata)
    used = {node.domain for node in model.graph.node}  # onnxruntime names every domain it knows
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def quantize(source: Path, path: Path, images: Tensor, metadata: dict[str, str]) -> None:
    """Write the ONNX network at `source` to `path` with weights and activations of 8 bits.

    Static quantisation by onnxruntime: `images` (N, 3, 32, 32) uint8 set the ranges of the
    activations; each output channel's weights have a scale of their own.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(BATCH_SIZE))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch.numpy()}

    prepared = path.with_suffix(".prepared")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)  # the exporter knows them all
    # onnxruntime does not know the channels of a transposed convolution in groups.
    whole = {
        node.input[1]: [{"quant_type": quantization.QuantType.QInt8}]
        for node in onnx.load(prepared).graph.node
        if node.op_type == "ConvTranspose"
    }
    quantization.quantize_static(
        prepared,
        path,
        Images(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"TensorQuantOverrides": whole},
    )
    finish(onnx.load(path), path, metadata)


def open_session(content: bytes) -> Callable[[Tensor], Tensor]:
    """The ONNX network in `content` on one CPU thread: uint8 pixels (N, 3, 32, 32) -> logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])


@torch.inference_mode()
def evaluate(run: Callable[[Tensor], Tensor], split: data.Split) -> engine.Evaluation:
    logits = [run(images) for images in split.images.split(BATCH_SIZE)]
    return engine.Evaluation(torch.cat(logits), split.labels)


@torch.inference_mode()
def latencies(runs: Sequence[Callable[[Tensor], Tensor]], image: Tensor) -> list[float]:
    """The median time in seconds that each of `runs` takes for one `image` (1, 3, 32, 32).

    They take turns, so that whatever else the machine does falls on all of them.
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
    """Raises utils.RunError where ONNX does not compute what PyTorch does."""
    difference = float((reference.logits - exported.logits).abs().max())
    if not difference <= TOLERANCE:
        raise utils.RunError(
            f"the exported network's logits differ from PyTorch's by {difference:.3g}: nothing was"
            " written; report the versions of torch, onnxscript and onnxruntime"
        )


def report(
    names: Sequence[str],
    sizes: Sequence[int],
    evaluations: Sequence[engine.Evaluation],
    seconds: Sequence[float],
) -> str:
    """The table, a row a network; the first is what the others are compared with.

    `sizes` are in bytes, `seconds` those of one image.
    """
    header = ("", "size", "accuracy", "largest difference", "equal predictions", "latency")
    lines = ["{:<13}{:>9}{:>22}{:>21}{:>20}{:>11}".format(*header)]
    reference = evaluations[0]
    for name, size, evaluation, latency in zip(names, sizes, evaluations, seconds, strict=True):
        metrics = evaluation.metrics
        accuracy = f"{100 * metrics.accuracy:.2f} % ({metrics.correct}/{metrics.total})"
        difference = float((evaluation.logits - reference.logits).abs().max())
        equal = int((evaluation.predictions == reference.predictions).sum())
        lines.append(
            f"{name:<13}{size / 1000:>6.0f} KB{accuracy:>22}{difference:>21.2g}"
            f"{equal:>15}/{metrics.total:<4}{1000 * latency:>8.2f} ms"
        )
    return "\n".join(line.rstrip() for line in lines)


def main(argv: list[str] | None = None) -> None:
    arguments = parse_arguments(argv)
    require_packages()
    checkpoint = checkpoints.load_checkpoint(arguments.checkpoint)
    network = checkpoints.rebuild(models.build, checkpoint, arguments.checkpoint)
    classifier = PixelClassifier(network, **checkpoint["normalization"]).eval()
    whole = PixelClassifier(untied(network), **checkpoint["normalization"], maps=arguments.maps)

    from_sample = checkpoint["data"]["source"] == "sample"
    source = "sample" if arguments.data == "auto" and from_sample else arguments.data
    source = data.find(source, arguments.data_dir, need=("train", "val"))
    train, val = (data.load(source, arguments.data_dir, name) for name in ("train", "val"))
    count = arguments.calibration_images
    if not 1 <= count <= len(train):
        raise utils.RunError(f"{count} calibration images: choose 1 to {len(train)}")
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:count]

    output = arguments.output or arguments.checkpoint.parent
    utils.make_folder(output)
    metadata = {
        "model": checkpoint["model"],
        "classes": json.dumps(checkpoint["classes"]),
        "input": "uint8 RGB pixels (batch, 3, 32, 32); the normalisation is inside",
        "output": "logits (batch, classes); their softmax is the probabilities",
    }
    if arguments.maps:
        bias = network.fc.bias.tolist()
        metadata["maps"] = "class activation maps; the mean of one plus the bias is the logit"
        metadata["bias"] = json.dumps(bias)
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder, "fp32.onnx"), Path(folder, "int8.onnx")
        export_onnx(whole.eval(), fp32, metadata)
        quantize(fp32, int8, train.images[chosen], metadata)
        contents = [path.read_bytes() for path in (fp32, int8)]

    runs = [classifier, *(open_session(content) for content in contents)]
    evaluations = [evaluate(run, val) for run in runs]
    check(*evaluations[:2])
    sizes = [4 * utils.count_parameters(classifier), *map(len, contents)]
    names = ("PyTorch fp32", "ONNX fp32", "ONNX int8")
    of_sample = " of the built-in sample" if source == "sample" else ""
    print(f"{len(val)} images of the val split{of_sample}; differences are of logits, to PyTorch:")
    print(report(names, sizes, evaluations, latencies(runs, val.images[:1])))
    print("Latency: one image on one thread, the median of calls taken in turn.")
    if "val" in checkpoint["data"]["train_split"].split("+"):
        print("The network was trained on these images: this is no estimate for new ones.")
    for suffix, content in zip((".onnx", ".int8.onnx"), contents, strict=True):
        path = output / (arguments.checkpoint.stem + suffix)
        utils.write_atomically(path, content)
        print(f"Wrote {path} (opset {OPSET}, input {INPUT}, output {OUTPUT})")


if __name__ == "__main__":
    utils.run_script(main, data.DataError, models.ModelError, OSError)
