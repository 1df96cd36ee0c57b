"""The scripts as programs, on the built-in sample.

Starting Python and importing torch takes seconds, so most calls run the script in this process,
by `runpy` (see conftest.py), as the interpreter would: as `__main__`, to its exit status.
"""

import csv
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch
from fakes import ROOT

import data
import models
import utils
from training import checkpoint as checkpoints
from training import engine

FIGURES = {"validation.png", "class_accuracy.png", "confusion_matrix.png", "augmentation.png"}
SCORED = {"class_accuracy.png", "confusion_matrix.png", "mistakes.png"}
# Two epochs of 20 steps; every kind of state that a resume has to bring back.
SMALL = """--model baseline --data sample --epochs 2 --batch-size 100 --seed 3 --schedule cosine
    --learning-rate 0.05 --warmup 0.1 --ema-decay 0.5 --flip alternating --cutout 8
    --label-smoothing 0.1 --weight-decay 5e-4 --device cpu --precision fp32""".split()
METRICS = r"(\w+) set: Average loss: (\d+\.\d{4}), Accuracy: (\d+)/(\d+) \((\d+\.\d\d)%\)"
SCORES = r"(\w+) loss (\d+\.\d{4}), accuracy (\d+\.\d\d) %"  # in the line of an epoch
CLASS = r"Accuracy of (\w+) *: +([\d.]+) % \((\d+)/(\d+)\)"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two epochs, by a process of its own in a working directory of its own, and what it
    printed."""
    folder = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, "--output", "some/run"]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return folder / "some" / "run", process


@pytest.fixture
def run(finished):
    """The folder of that run, which no test may change."""
    folder, _ = finished
    before = contents(folder)
    yield folder
    assert contents(folder) == before


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def load(path):
    return checkpoints.load_checkpoint(path)


def read_history(folder):
    with open(folder / "history.csv", newline="") as file:
        return list(csv.DictReader(file))


def metrics_of(out):
    """(split, loss, correct, total) of each line of results."""
    return [(s, float(loss), int(n), int(of)) for s, loss, n, of, _ in re.findall(METRICS, out)]


def scores_of(out):
    """(correct, total, loss) of the one line of results."""
    ((_, loss, correct, total),) = metrics_of(out)
    return correct, total, pytest.approx(loss, abs=1e-4)


def last_scores(folder):
    """The same, of the validation images after the last epoch, as the history has them."""
    row = read_history(folder)[-1]
    return round(500 * float(row["eval_accuracy"])), 500, float(row["eval_loss"])


def is_picture(path):
    return matplotlib.image.imread(path).shape[1:] == (1260, 4)


# ------------------------------------------------------------------------------------- train.py


@pytest.mark.slow
def test_a_run_leaves_its_files(run, finished):
    files = {path.name for path in run.iterdir()}
    assert (
        files
        >= {"config.json", "summary.txt", "history.csv", "last.safetensors", "weights.safetensors"}
        | FIGURES
    )
    assert [name for name in files if name.endswith((".unfinished", ".partial"))] == []
    assert all(is_picture(run / name) for name in FIGURES)
    assert [path.name for path in run.parent.parent.iterdir()] == ["some"]
    settings = json.loads((run / "config.json").read_text())
    assert settings["model"] == "baseline" and settings["seed"] == 3
    assert settings["recipe"]["epochs"] == 2 and settings["recipe"]["cutout"] == 8
    environment = settings["environment"]
    assert environment["torch"] == torch.__version__ and environment["processes"] == 1
    assert "Total params: 112,966\n" in (run / "summary.txt").read_text()
    assert "some/run" in finished[1].stdout.replace("\\", "/")


def test_history_has_a_row_an_epoch_with_what_was_printed(run, finished):
    rows = read_history(run)
    assert tuple(rows[0]) == (
        "epoch",
        "train_loss",
        "train_accuracy",
        "eval_loss",
        "eval_accuracy",
        "learning_rate",
        "seconds",
        "images_per_second",
    )
    assert [row["epoch"] for row in rows] == ["1", "2"]
    expected = []
    for row in rows:
        for prefix, split in (("train", "train"), ("eval", "val")):
            loss, accuracy = float(row[f"{prefix}_loss"]), float(row[f"{prefix}_accuracy"])
            assert 0.5 < loss < 5  # nats an image, neither sum nor raw
            expected.append((split, f"{loss:.4f}", f"{100 * accuracy:.2f}"))
        seconds, rate = float(row["seconds"]), float(row["images_per_second"])
        assert rate == pytest.approx(2000 / seconds)
    assert re.findall(SCORES, finished[1].stdout) == expected
    # That of an epoch's first step: the first of 4 in the warm-up, then 16 steps after it, of 36.
    rates = [0.05 / 5, 0.05 * (1 + math.cos(math.pi * 16 / 36)) / 2]
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx(rates)


def test_a_run_prints_lines_for_a_file_and_says_what_it_trained_on(finished):
    out, err = finished[1].stdout, finished[1].stderr
    lines = out.splitlines()
    assert "NOT CIFAR-10" in lines[-1]
    names = ["Network", "Device", "Data", "Recipe", "Output", "Epoch", "Epoch", "Accuracy"]
    assert [line.split()[0] for line in lines[:8]] == names  # one line an epoch, nothing between
    assert lines[0].split(maxsplit=1)[1] == "baseline, 112,966 parameters"
    data_line = "the built-in sample, not CIFAR-10: 2,000 images to train on (train), 500 (val)"
    assert data_line in lines[2] and "2 epochs of 20 steps" in lines[3]
    assert lines[5].startswith("Epoch 1/2: ") and lines[5].endswith(" left")
    assert lines[6].startswith("Epoch 2/2: ") and lines[6].endswith(" images/s")
    assert (err, "\r" in out) == ("", False)
    classes = re.findall(CLASS, out)
    assert tuple(name for name, *_ in classes) == data.CLASSES
    assert all(of == "50" for *_, of in classes)
    rights = sum(int(right) for *_, right, _ in classes)
    assert f"{100 * rights / 500:.2f}" == re.findall(SCORES, out)[-1][2]


def test_checkpoints_carry_what_rebuilds_the_network(run):
    last, weights = load(run / "last.safetensors"), load(run / "weights.safetensors")
    for checkpoint in (last, weights):
        assert checkpoint["model"] == "baseline"
        assert checkpoint["config"] == models.config_dict("baseline")
        assert checkpoint["normalization"] == {"mean": list(data.MEAN), "std": list(data.STD)}
        assert checkpoint["classes"] == list(data.CLASSES)
        trained = {"source": "sample", "train_split": "train", "eval_split": "val"}
        assert trained.items() <= checkpoint["data"].items()
        assert checkpoint["epoch"] == 2
        models.build("baseline").load_state_dict(checkpoint["state_dict"])
    assert "training" in last and "training" not in weights


def test_the_moving_average_is_saved_and_scored(run):
    last = load(run / "last.safetensors")
    assert not torch.equal(last["training"]["model"]["fc.weight"], last["state_dict"]["fc.weight"])

    model = models.build("baseline")
    model.load_state_dict(last["state_dict"])
    split = data.load("sample", data.DEFAULT_DIRECTORY, "val")
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (data.MEAN, data.STD))
    images = (split.images / 255 - mean) / std
    metrics = engine.evaluate(model, [(images, split.labels)], precision=torch.float32).metrics
    row = read_history(run)[-1]
    assert metrics.accuracy == pytest.approx(float(row["eval_accuracy"]), abs=1e-9)
    assert metrics.loss == pytest.approx(float(row["eval_loss"]), rel=1e-5)


class PowerCut(BaseException):
    """What no script foresees."""


def dying(step_number):
    """engine.train_epoch that dies in that step."""
    train_epoch, steps = engine.train_epoch, itertools.count(1)

    def dies(*arguments, after_step, **options):
        def step(loss):
            if next(steps) == step_number:
                raise PowerCut
            after_step(loss)

        return train_epoch(*arguments, after_step=step, **options)

    return dies


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(run, program, tmp_path, monkeypatch):
    """Bit for bit. The first of its two processes dies in the middle of the second epoch."""
    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr(engine, "train_epoch", dying(23))
        program("train.py", *SMALL, "--output", tmp_path)
    assert load(tmp_path / "last.safetensors")["epoch"] == 1
    assert load(tmp_path / "weights.safetensors")["epoch"] == 1
    torch.manual_seed(99)  # a new process starts anywhere

    status, out, err = program(
        "train.py", "--resume", tmp_path / "last.safetensors", "--device", "cpu"
    )
    assert status == 0, err
    assert "Epoch 2/2" in out and "Epoch 1/2" not in out
    for name in ("last.safetensors", "weights.safetensors"):
        expected, resumed = load(run / name), load(tmp_path / name)
        assert resumed["epoch"] == expected["epoch"]
        for key, tensor in expected["state_dict"].items():
            assert torch.equal(resumed["state_dict"][key], tensor), key
    expected, resumed = (
        load(folder / "last.safetensors")["training"] for folder in (run, tmp_path)
    )
    for key, tensor in expected["model"].items():
        assert torch.equal(resumed["model"][key], tensor), key
    for row, other in zip(read_history(run), read_history(tmp_path), strict=True):
        for column in set(row) - {"seconds", "images_per_second"}:
            assert row[column] == other[column]
    assert {path.name for path in tmp_path.iterdir()} >= FIGURES


@pytest.mark.slow
def test_a_compiled_network_trains_the_same_weights(run, program, tmp_path, monkeypatch):
    """Through the compiler's tracing; its code generation needs a C++ compiler and a minute."""
    compiled = []

    def trace(module, **options):
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    output = tmp_path / "compiled"
    status, _, err = program("train.py", *SMALL, "--compile", "--output", output)
    assert status == 0, err
    assert len(compiled) == 1
    torch.testing.assert_close(
        load(output / "weights.safetensors")["state_dict"],
        load(run / "weights.safetensors")["state_dict"],
    )


@pytest.mark.slow
def test_a_run_without_evaluation_trains_on_everything(program, tmp_path):
    arguments = [*SMALL, "--epochs", "1", "--eval-split", "none", "--output", tmp_path / "run"]
    status, out, err = program("train.py", *arguments)
    assert status == 0, err
    assert "2,500 images to train on (train+val), none to score on" in out
    assert [split for split, *_ in re.findall(SCORES, out)] == ["train"]
    assert [row["eval_loss"] for row in read_history(tmp_path / "run")] == [""]
    assert not (tmp_path / "run" / "confusion_matrix.png").exists()

    status, out, _ = program(
        *("test.py", "--checkpoint", tmp_path / "run" / "last.safetensors", "--split", "val"),
        *("--output", tmp_path / "scores"),
    )
    assert status == 0 and "trained on these images" in out


def test_summary_prints_and_stops(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in models.names():
        status, out, err = program("train.py", "--summary", "--model", name)
        parameters = utils.count_parameters(models.build(name))
        assert (status, err) == (0, "")
        assert f"Parameters: {parameters:,}\n" in out
        assert re.search(r"Multiply-accumulates per image: [\d.]+ million", out)
        assert "Epoch" not in out
    assert list(tmp_path.iterdir()) == []


def test_a_lost_loss_ends_the_run_in_one_line(refused, tmp_path):
    line = refused("train.py", *SMALL, "--learning-rate", "1e30", "--output", tmp_path / "run")
    assert re.search("the loss became|finite", line) and "--learning-rate" in line
    if (tmp_path / "run").exists():
        names = {path.name for path in (tmp_path / "run").iterdir()}
        assert names.isdisjoint({"last.safetensors", "weights.safetensors", "history.csv"})
        assert not [name for name in names if name.endswith((".unfinished", ".partial"))]


# -------------------------------------------------------------------------------------- test.py


@pytest.mark.slow
def test_scores_are_those_of_the_last_epoch(run, tmp_path):
    """By a process of its own in another working directory."""
    checkpoint = shutil.copy(run / "weights.safetensors", tmp_path / "some.safetensors")
    command = [sys.executable, str(ROOT / "test.py"), "--checkpoint", Path(checkpoint).name]
    process = subprocess.run(
        [*command, "--output", "figures"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (process.returncode, process.stderr) == (0, "")
    out = process.stdout
    assert scores_of(out) == last_scores(run)
    assert out.splitlines()[1].startswith("Val set: ") and "test-time" not in out
    assert "built-in sample" in out.splitlines()[0] and "trained on" not in out
    classes = re.findall(CLASS, out)
    assert tuple(name for name, *_ in classes) == data.CLASSES
    assert sum(int(right) for *_, right, _ in classes) == last_scores(run)[0]
    assert all(of == "50" for *_, of in classes)
    assert len({right for *_, right, _ in classes}) > 2  # no network that says one class
    assert {path.name for path in (tmp_path / "figures").iterdir()} == SCORED
    assert all(is_picture(tmp_path / "figures" / name) for name in SCORED)


@pytest.mark.slow
def test_mirrored_scores_say_so(run, program, tmp_path):
    arguments = ["--checkpoint", run / "last.safetensors", "--output", tmp_path, "--device", "cpu"]
    status, out, _ = program("test.py", *arguments, "--tta")
    assert status == 0 and "with mirrored images (test-time augmentation)" in out
    assert scores_of(out) != last_scores(run)


@pytest.mark.slow
def test_images_trained_on_are_called_so(run, program, tmp_path):
    arguments = [
        "--checkpoint",
        run / "weights.safetensors",
        "--output",
        tmp_path,
        "--split",
        "train",
    ]
    status, out, _ = program("test.py", *arguments)
    assert status == 0
    assert [(split, total) for split, _, _, total in metrics_of(out)] == [("Train", 2000)]
    assert "was trained on these images" in out


def test_normalisation_is_the_checkpoints(run, program, tmp_path):
    """Twice the standard deviation and twice the first layer's weights give the same scores."""
    checkpoint = load(run / "weights.safetensors")
    checkpoint["normalization"]["std"] = [2 * x for x in checkpoint["normalization"]["std"]]
    checkpoint["state_dict"]["conv1.weight"] *= 2
    checkpoints.save_checkpoint(tmp_path / "doubled.safetensors", checkpoint)
    arguments = ["--checkpoint", tmp_path / "doubled.safetensors", "--output", tmp_path / "figures"]
    _, out, _ = program("test.py", *arguments, "--device", "cpu")
    assert scores_of(out) == last_scores(run)


# ------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--flip", "sideways"], "--flip sideways: choose none, random or alternating"),
        (["--model", "resnet"], "--model resnet: choose under100k, "),
        (["--epochs", "many"], "--epochs many: choose 1 to 2000"),
        (["--epochs", "0"], "--epochs 0: choose 1 to 2000"),
        (["--epochs", "9" * 23], f"--epochs {'9' * 23}: choose 1 to 2000"),
        (["--epochs", "1" + "0" * 400], ": choose 1 to 2000"),
        (["--epochs", "1" + "0" * 5000], ": choose 1 to 2000"),
        (["--epochs", ""], "--epochs : choose 1 to 2000"),
        (["--batch-size=--"], "--batch-size expected one argument"),
        (["--batch-size", "0"], "--batch-size 0: choose 1 to 50000"),
        (["--batch-size", "2001"], "--batch-size 2001: choose 1 to 2000"),
        (["--learning-rate", "-1"], "--learning-rate -1: choose more than 0"),
        (["--learning-rate", "-1e5"], "--learning-rate -1e5: choose more than 0"),
        (["--learning-rate", "-inf"], "--learning-rate -inf: choose more than 0"),
        (["--learning-rate", "--seed", "1"], "--learning-rate expected one argument"),
        (["--learning-rate", "nan"], "--learning-rate nan: choose more than 0"),
        (["--learning-rate", "1" + "0" * 400], ": choose more than 0"),
        (["--temperature", "1e200"], "--temperature 1e200: choose more than 0, at most 100"),
        (["--weight-decay", "inf"], "--weight-decay inf: choose 0 or more"),
        (["--momentum", "1"], "--momentum 1: choose 0 to less than 1"),
        (["--label-smoothing", "1"], "--label-smoothing 1: choose 0 to less than 1"),
        (["--crop-padding", "32"], "--crop-padding 32: choose 0 to 31"),
        (["--cutout", "33"], "--cutout 33: choose 0 to 32"),
        (["--mixup", "0.6"], "--mixup 0.6: choose 0 to 0.5"),
        (["--optimizer", "muon"], "--optimizer muon needs a network with pointwise convolutions"),
        (["--seed", "-1"], f"--seed -1: choose 0 to {2**63 - 1}"),
        (["--seed", str(2**63)], f"--seed {2**63}: choose 0 to {2**63 - 1}"),
        (["--checkpoint-minutes", "nan"], "--checkpoint-minutes nan: choose 0 or more"),
        (["--output", ""], "--output is empty: name a folder"),
        (["--resume", ""], "--resume is empty: name a folder"),
        (["--data-dir", ""], "--data-dir is empty: name a folder"),
        (["--download-url", ""], "--download-url is empty: name a URL"),
        (["--device", "abacus"], "abacus"),
        (["--precision", "fp16"], "bf16 or fp32"),
        (["--mixup", "red"], "--mixup"),
        (["--eval-split", "test"], "--eval-split val"),
    ],
)
def test_train_refuses_a_flag(refused, tmp_path, arguments, said):
    line = refused("train.py", *SMALL, "--output", tmp_path / "run", *arguments)
    assert said in line.replace("'", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_refusal_is_one_line_of_a_process(tmp_path):
    """What the interpreter itself would add, such as a traceback, would show here."""
    command = [sys.executable, str(ROOT / "train.py"), "--data", "sample", "--epochs", "0"]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 2
    assert process.stderr.startswith("train.py: error: --epochs 0: choose 1 to 2000")
    assert process.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def flip_a_bit(content):
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


DAMAGE = {
    "truncated": lambda content: content[: len(content) // 2],
    "flipped bit": flip_a_bit,
    "empty": lambda content: b"",
    "text": lambda content: b"epoch,accuracy\n1,0.99\n",
}
CHECKPOINT_FLAGS = [
    ("train.py", "--resume", "last.safetensors"),
    ("test.py", "--checkpoint", "weights.safetensors"),
]


@pytest.mark.parametrize("script, flag, name", CHECKPOINT_FLAGS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint(refused, run, tmp_path, script, flag, name, damage):
    path = tmp_path / name
    path.write_bytes(DAMAGE[damage]((run / name).read_bytes()))
    before = contents(tmp_path)
    line = refused(script, flag, path)
    assert str(path) in line and ("damaged" in line or "not a checkpoint" in line)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("script, flag, name", CHECKPOINT_FLAGS)
def test_a_missing_checkpoint(refused, tmp_path, script, flag, name):
    assert "no checkpoint at" in refused(script, flag, tmp_path / name)
    folder = "no checkpoint at" if script == "train.py" else "not a file"
    assert folder in refused(script, flag, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script, flag, name", CHECKPOINT_FLAGS)
@pytest.mark.parametrize("model", ["under100k", "resnet"])
def test_a_checkpoint_of_another_network(refused, run, tmp_path, script, flag, name, model):
    """Its weights do not fit the network that it names, or nothing is known by that name."""
    checkpoint = load(run / name)
    checkpoint["model"] = model
    checkpoint["config"] = models.config_dict("under100k")
    if "training" in checkpoint:
        checkpoint["training"]["settings"]["model"] = model
        checkpoint["training"]["settings"]["config"] = checkpoint["config"]
    checkpoints.save_checkpoint(tmp_path / name, checkpoint)
    before = contents(tmp_path)
    line = refused(script, flag, tmp_path / name)
    assert "another network" in line or "unknown network" in line
    assert {name: contents(tmp_path)[name] for name in before} == before


def test_what_cannot_be_resumed(refused, run):
    assert "released weights" in refused("train.py", "--resume", run / "weights.safetensors")
    line = refused(
        "train.py", "--resume", run / "last.safetensors", "--epochs", "3", "--flip", "none"
    )
    assert "--epochs" in line and "--flip" in line


def test_a_run_is_never_overwritten(refused, run):
    line = refused("train.py", *SMALL, "--output", run)
    assert str(run) in line and "--output" in line


@pytest.fixture
def without_test_images(tmp_path):
    """The folder of a CIFAR-10 that has the training batches alone, and those are empty."""
    folder = tmp_path / "raw" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for batch in range(1, 6):
        (folder / f"data_batch_{batch}.bin").touch()
    return folder.parent


def test_a_split_that_is_not_on_disk(refused, run, tmp_path, without_test_images):
    there = ["--data-dir", without_test_images, "--output", tmp_path / "output"]
    for script, *arguments in (
        ("train.py", "--data", "auto", "--eval-split", "test"),
        ("train.py", "--data", "cifar10", "--eval-split", "test"),
        ("test.py", "--checkpoint", run / "weights.safetensors", "--data", "cifar10"),
    ):
        line = refused(script, *arguments, *there)
        assert "test split is not on disk" in line and "test_batch.bin" in line
    for script, *arguments in (
        ("train.py", "--data", "auto", "--eval-split", "val"),
        (
            "test.py",
            "--checkpoint",
            run / "weights.safetensors",
            "--data",
            "cifar10",
            "--split",
            "val",
        ),
    ):
        assert "data_batch_1 is damaged" in refused(script, *arguments, *there)
    line = refused("test.py", "--checkpoint", run / "weights.safetensors", "--split", "test")
    assert "the built-in sample has no test images" in line
    assert not (tmp_path / "output").exists()


def test_an_output_folder_that_cannot_be_written(refused, run, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        for script, *arguments in (
            ("train.py", *SMALL),
            ("train.py", "--resume", run / "last.safetensors"),
            ("test.py", "--checkpoint", run / "weights.safetensors"),
        ):
            assert str(output) in refused(script, *arguments, "--output", output)
    assert contents(tmp_path) == {"file": b"not a folder"}


@pytest.mark.slow
def test_a_figure_that_cannot_be_written(refused, run, tmp_path):
    for name in ("mistakes.png", "augmentation.png"):
        (tmp_path / name).mkdir()
    line = refused("test.py", "--checkpoint", run / "weights.safetensors", "--output", tmp_path)
    assert "mistakes.png" in line
    assert "augmentation.png" in refused("train.py", *SMALL, "--output", tmp_path)


@pytest.mark.parametrize(
    "script, arguments, said",
    [
        ("test.py", ["--output", "figures"], "--checkpoint"),
        ("test.py", ["--checkpoint", "x", "--split", "all"], "--split all: choose test, val or"),
        ("test.py", ["--checkpoint", "x", "--data", "mnist"], "--data mnist: choose auto, cifar10"),
        ("test.py", ["--checkpoint", "x", "--precision", "8"], "--precision 8: choose auto, fp32"),
        ("test.py", ["--checkpoint", "x", "--explain", "13"], "--explain 13: choose 1 to 12"),
        ("test.py", ["--checkpoint", "x", "--explain", "-1e5"], "--explain -1e5: choose 1 to 12"),
        ("test.py", ["--checkpoint", "x", "--tta", "twice"], "twice"),
        ("predict.py", ["--top", "11", "a.png"], "--top 11: choose 1 to 10"),
        ("predict.py", ["--top", "few", "a.png"], "--top few: choose 1 to 10"),
        ("export.py", ["--calibration-images", "0"], "--calibration-images 0: choose 1 to 45000"),
    ],
)
def test_a_flag_is_refused(refused, tmp_path, monkeypatch, script, arguments, said):
    """Before the checkpoint, which is not there, is looked for."""
    monkeypatch.chdir(tmp_path)
    assert said in refused(script, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "script, arguments, said",
    [
        ("test.py", ["--checkpoint", ""], "--checkpoint is empty: name a file"),
        ("test.py", ["--output", ""], "--output is empty: name a folder"),
        ("export.py", ["--data-dir", ""], "--data-dir is empty: name a folder"),
        ("export.py", ["--download-url", ""], "--download-url is empty: name a URL"),
        ("export.py", ["--output", ""], "--output is empty: name a folder"),
        ("predict.py", [""], "PICTURE is empty: name a file"),
    ],
)
def test_an_empty_path_is_refused(refused, tmp_path, monkeypatch, script, arguments, said):
    """As of a variable of the shell that is not set: it is not the working directory."""
    monkeypatch.chdir(tmp_path)
    assert refused(script, *arguments) == f"{script}: error: {said}"
    assert list(tmp_path.iterdir()) == []
