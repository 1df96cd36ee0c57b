"""The exported networks compute what PyTorch computes, from pixels, on batches of any size."""

import contextlib
import io
import json
import re
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from fakes import ROOT

import data
import export
import models
from models.convolutions import DepthwiseConv2d
from training import onnx_files
from training.weights import PixelClassifier


class Exported:
    """What one call of export.py printed and wrote: the fp32 and the int8 network."""

    def __init__(self, folder, stdout):
        import onnx
        import onnxruntime

        self.stdout = stdout
        self.paths = [folder / "weights.onnx", folder / "weights.int8.onnx"]
        assert sorted(folder.iterdir()) == sorted(self.paths)
        self.models = [onnx.load(path) for path in self.paths]
        self.sessions = [
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            for path in self.paths
        ]


@pytest.fixture(scope="module")
def exported(weights, tmp_path_factory):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="exporting needs requirements-export.txt")
    folder = tmp_path_factory.mktemp("exported")
    arguments = ["--checkpoint", weights, "--output", folder, "--calibration-images", 150, "--maps"]
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(export, "ROUNDS", 1)  # a rough latency is enough
        export.main([str(argument) for argument in arguments])
    return Exported(folder, stdout.getvalue())


@pytest.fixture(scope="module")
def answer(network):
    """The logits of the network for uint8 images (N, 3, 32, 32), by PyTorch."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.MEAN, data.STD))

    @torch.no_grad()
    def answer(images):
        return network((images / 255 - mean) / std).numpy()

    return answer


@pytest.mark.slow
def test_input_output_and_metadata_say_what_they_are(exported):
    for session, model in zip(exported.sessions, exported.models, strict=True):
        (pixels,), (logits, maps) = session.get_inputs(), session.get_outputs()
        assert (pixels.name, pixels.type) == ("pixels", "tensor(uint8)")
        assert pixels.shape == ["batch", 3, 32, 32]
        assert (logits.name, logits.type) == ("logits", "tensor(float)")
        assert logits.shape == ["batch", 10]
        assert (maps.name, maps.type) == ("maps", "tensor(float)")
        assert maps.shape == ["batch", 10, 16, 16]
        metadata = session.get_modelmeta().custom_metadata_map
        assert json.loads(metadata["classes"]) == list(data.CLASSES)
        assert metadata["model"] == "under100k"
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]


@pytest.mark.slow
def test_logits_are_those_of_pytorch_for_every_batch_size(exported, answer):
    images = data.load("sample", ROOT, "val").images
    for count in (1, 2, 7):
        (logits,) = exported.sessions[0].run(["logits"], {"pixels": images[:count].numpy()})
        np.testing.assert_allclose(logits, answer(images[:count]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("file", [0, 1])
def test_maps_add_up_to_the_logits(exported, network, file):
    """The mean of a map plus the bias of its class; int8 rounds both."""
    images = data.load("sample", ROOT, "val").images[:20]
    logits, maps = exported.sessions[file].run(["logits", "maps"], {"pixels": images.numpy()})
    metadata = exported.sessions[file].get_modelmeta().custom_metadata_map
    bias = np.array(json.loads(metadata["bias"]), np.float32)
    np.testing.assert_array_equal(bias, network.fc.bias.detach().numpy())
    assert maps.std((2, 3)).min() > 0.01  # not the mean everywhere
    difference = np.abs(maps.mean((2, 3)) + bias - logits).max()
    assert difference < (1e-4 if file == 0 else 0.05 * np.ptp(logits))


@pytest.mark.slow
def test_the_file_holds_whole_kernels_and_no_norm(exported):
    graph = exported.models[0].graph
    weights = {tensor.name for tensor in graph.initializer}
    layers = [n for n in graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm")]
    assert len(layers) > 30 and all(layer.input[1] in weights for layer in layers)
    operations = {node.op_type for node in graph.node}
    assert operations.isdisjoint({"BatchNormalization", "Concat", "Gather", "Slice"})


@pytest.mark.slow
def test_without_maps_there_are_none(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs requirements-export.txt")
    pytest.importorskip("onnxscript", reason="exporting needs requirements-export.txt")
    network = models.build("baseline")
    classifier = PixelClassifier(network, data.MEAN, data.STD).eval()
    onnx_files.export_onnx(classifier, tmp_path / "a.onnx", {})
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [output.name for output in session.get_outputs()] == ["logits"]
    assert "maps" not in export.describe({"model": "", "classes": []}, None)


@pytest.mark.slow
def test_int8_stays_near(exported, answer):
    images = data.load("sample", ROOT, "val").images[:200]
    (logits,) = exported.sessions[1].run(["logits"], {"pixels": images.numpy()})
    assert np.corrcoef(logits.ravel(), answer(images).ravel())[0, 1] > 0.98
    fp32, int8 = (path.stat().st_size for path in exported.paths)
    assert int8 < 0.6 * fp32


@pytest.mark.slow
def test_every_convolution_of_int8_takes_int8_weights(exported):
    """Of 7 bits, so that the sum of two products with uint8 fits 16 bits on every processor."""
    from onnx import TensorProto, numpy_helper

    (model,) = exported.models[1:]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    sources = {node.output[0]: node for node in model.graph.node}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm")]
    assert layers
    for layer in layers:
        dequantized = sources[layer.input[1]]
        assert dequantized.op_type == "DequantizeLinear"
        weight = tensors[dequantized.input[0]]
        assert weight.data_type == TensorProto.INT8
        assert 32 < np.abs(numpy_helper.to_array(weight).astype(int)).max() <= 64


@pytest.mark.slow
def test_dilated_convolutions_take_no_detour(exported, network):
    expected = sorted(
        module.dilation
        for module in network.modules()
        if isinstance(module, DepthwiseConv2d) and module.dilation > (1, 1)
    )
    assert expected
    for model in exported.models:
        dilations = [
            tuple(attribute.ints)
            for node in model.graph.node
            for attribute in node.attribute
            if attribute.name == "dilations"
        ]
        assert sorted(d for d in dilations if d > (1, 1)) == expected


@pytest.mark.slow
def test_the_files_name_no_path_of_this_machine(exported):
    for path in exported.paths:
        content = path.read_bytes()
        assert str(ROOT).encode() not in content and b".py" not in content


@pytest.mark.slow
def test_the_table_compares_size_accuracy_and_latency(exported):
    number = r"([\d.e+-]+)"
    row = rf"(.+?) +{number} KB +{number} % \((\d+)/500\) +{number} +(\d+)/500 +{number} ms"
    rows = re.findall(row, exported.stdout)
    assert [name for name, *_ in rows] == ["PyTorch fp32", "ONNX fp32", "ONNX int8"]
    pytorch, fp32, int8 = ([float(value) for value in values] for _, *values in rows)
    assert fp32[1:3] == pytorch[1:3] and fp32[3] < 1e-3 and fp32[4] == 500
    for row, path in zip((fp32, int8), exported.paths, strict=True):
        size, accuracy, correct, *_, latency = row
        assert size == round(path.stat().st_size / 1000)
        assert accuracy == pytest.approx(correct / 5, abs=0.005)
        assert latency > 0
    assert "500 images of the val split of the built-in sample" in exported.stdout


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_how_to_install_it(package, refused, monkeypatch):
    for other in ("onnx", "onnxscript", "onnxruntime"):  # installed or not
        monkeypatch.setitem(sys.modules, other, ModuleType(other))
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    line = refused("export.py")
    assert f"needs {package} " in line and "pip install -r requirements-export.txt" in line


@pytest.mark.slow
def test_bad_input_is_one_line_and_writes_nothing(refused, weights, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="exporting needs requirements-export.txt")
    (tmp_path / "file").write_text("not a folder")

    def line(*arguments, checkpoint=weights):
        return refused("export.py", "--checkpoint", checkpoint, *arguments)

    sample = ("--data", "sample", "--output", tmp_path)
    assert "no checkpoint at" in line(*sample, checkpoint=tmp_path / "no.pt")
    assert "is damaged or is not" in line(*sample, checkpoint=tmp_path / "file")
    assert "choose 1 to 2000" in line(*sample, "--calibration-images", 2001)
    assert "cannot write to folder" in line("--data", "sample", "--output", tmp_path / "file")
    assert "is not a folder" in line("--data", "cifar10", "--data-dir", tmp_path / "file")
    assert "choose auto, cifar10 or sample" in line("--data", "imagenet")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
