"""ONNX export of a network with its normalisation, in fp32 and quantised to int8."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import utils
from training.weights import PixelClassifier

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
INPUT, OUTPUT, MAPS = "pixels", "logits", "maps"
MAX_FOLDED = 2**20  # numbers in a kernel, at most, that the optimizer computes at export
CALIBRATION_BATCH = 10  # images


def require_packages() -> None:
    """Raises utils.RunError if a package that the export needs cannot be imported."""
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise utils.RunError(
                f"the export needs {name} ({error}): pip install -r requirements-export.txt"
            ) from error


def export_onnx(classifier: PixelClassifier, path: Path, metadata: dict[str, str]) -> None:
    """Write `classifier` to `path` with PyTorch's own exporter.

    Tied weights are assembled here, and norms are folded into the convolutions before them, so the
    file holds complete kernels and no norms.
    """
    from onnxscript import optimizer, rewriter

    # A batch of 2, because the exporter takes a batch size of 1 for a constant.
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
    assert program is not None
    # By default the largest kernels are not folded, nor are the norms behind them.
    model = optimizer.optimize(program.model_proto, input_size_limit=MAX_FOLDED)
    model = rewriter.rewrite(model)
    graph = model.graph
    # Drop the source locations: they name this machine's files, and are large.
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
    """Quantise the ONNX network at `source` to int8 weights and uint8 activations, at `path`.

    Static quantisation by onnxruntime: `images`, uint8 (N, 3, 32, 32), calibrate the ranges of the
    activations; each output channel's weights have their own scale. A range is the mean of those of
    small batches: that of all images would be as wide as a few outliers.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(images.split(CALIBRATION_BATCH))

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
        # 7 bits: a processor without VNNI adds pairs of products in 16 bits, and 8 overflow there.
        reduce_range=True,
        extra_options={"TensorQuantOverrides": whole, "CalibMovingAverage": True},
    )
    finish(onnx.load(path), path, metadata)


def open_session(content: bytes) -> Callable[[Tensor], Tensor]:
    """The ONNX network in `content` on one CPU thread: uint8 pixels (N, 3, 32, 32) -> logits."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run([OUTPUT], {INPUT: pixels.numpy()})[0])
