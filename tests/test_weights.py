"""What test.py, predict.py and export.py share: no weights and no images are taken for better than
they are."""

import pytest
from fakes import ROOT

import models
from training import checkpoint as checkpoints
from training import onnx_files

PICTURE = ROOT / "docs" / "pictures" / "bird.png"


@pytest.fixture
def changed(weights, tmp_path):
    """Write fresh weights of the baseline, a quick network, after a function has changed what the
    checkpoint holds; returns its path."""

    def write(change):
        content = checkpoints.load_checkpoint(weights)
        content.update(
            model="baseline",
            config=models.config_dict("baseline"),
            state_dict=models.build("baseline").state_dict(),
        )
        change(content)
        checkpoints.save_checkpoint(tmp_path / "changed.pt", content)
        return tmp_path / "changed.pt"

    return write


@pytest.mark.parametrize("script", ["test.py", "export.py"])
def test_cifar10_that_cannot_be_had_is_never_replaced(
    script, changed, refused, no_network, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx_files, "PACKAGES", ())
    path = changed(lambda content: content["data"].update(source="cifar10"))
    places = ["--data-dir", tmp_path / "none", "--output", tmp_path / "output"]
    line = refused(script, "--checkpoint", path, *places)
    assert "cannot download CIFAR-10" in line
    assert all(way in line for way in ("--download-url", "--data-dir", "--data sample"))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    "script, arguments",
    [
        ("test.py", ["--data", "sample", "--device", "cpu"]),
        ("export.py", ["--data", "sample"]),
        ("predict.py", ["--json", PICTURE]),
    ],
)
def test_results_that_are_not_finite_are_none(
    script, arguments, changed, program, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx_files, "PACKAGES", ())

    def negative(content):
        content["data"]["source"] = "cifar10"
        state = content["state_dict"]
        next(v for name, v in state.items() if "running_var" in name).fill_(-1)

    output = [] if script == "predict.py" else ["--output", tmp_path / "output"]
    path = changed(negative)
    status, out, err = program(script, "--checkpoint", path, *arguments, *output)
    assert status == 2 and "nan" not in out.lower() and "{" not in out
    assert err == (
        f"{script}: error: the weights in {path} give infinite or NaN results:"
        " use another checkpoint\n"
    )
