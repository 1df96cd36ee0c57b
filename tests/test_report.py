"""What a run says: its first lines, its pace, its progress bar, what it ran on."""

import io
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import hurry

import models
import train
from training import epochs, report
from training.recipe import named_recipe
from training.run import build_loaders, build_run
from training.settings import Settings

CPU = torch.device("cpu")
FLAGS = "--model baseline --batch-size 10 --device cpu --precision fp32".split()


@pytest.fixture
def trained(monkeypatch, capsys):
    """Train on few images, without figures; returns what was printed."""
    hurry(monkeypatch)

    def run(output, *flags):
        capsys.readouterr()
        train.main([*FLAGS, "--output", str(output), *flags])
        return capsys.readouterr().out

    return run


def test_first_lines(tmp_path, monkeypatch):
    recipe = named_recipe("baseline", {}, "default")
    settings = Settings(
        "baseline", models.config_dict("baseline"), recipe, "sample", "val", "bf16", 0
    )
    loaders = build_loaders(settings, tmp_path, CPU)
    run = build_run(settings, CPU, len(loaders[0]))
    monkeypatch.setattr(report, "processor", lambda: "a processor")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert report.first_lines(run, *loaders, Path("runs/a")).splitlines() == [
        "Network  baseline, 112,966 parameters",
        "Device   a processor, bf16, 3 threads",
        "Data     the built-in sample, not CIFAR-10: 2,000 images to train on (train),"
        " 500 (val) to score on",
        "Recipe   default: 50 epochs of 16 steps",
        "Output   runs/a",
    ]
    run.epoch, run.batch, run.scheduler.last_epoch = 3, 1, 49
    lines = report.first_lines(run, loaders[0], None, Path("runs/a")).splitlines()
    assert lines[2].endswith(" 2,000 images to train on (train), none to score on")
    assert lines[-1] == "Resumed  after 3 epochs and 1 step"


def test_a_recipe_by_its_name_and_what_is_changed():
    for name in ("default", "short"):
        assert report.recipe_name("under100k", {}, named_recipe("under100k", {}, name)) == name
    changed = replace(named_recipe("under100k", {}, "short"), epochs=2, cutout=4)
    assert report.recipe_name("under100k", {}, changed) == "short with epochs 2, cutout 4"


def test_summary_has_columns_whatever_the_names_and_draws_nothing():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    lines = report.summary("under100k", {}).splitlines()
    assert torch.equal(torch.rand(1), expected)
    rows = [line for line in lines if re.search(r"\[-1, .*\]", line)]
    assert max(len(line.split()[0]) for line in rows) > 20  # what torchsummary leaves room for
    rules = [line for line in lines if line and set(line) <= set("-=")]
    assert len({len(line) for line in rows + rules}) == 1
    assert len({line.index("]") for line in rows}) == 1


class Around(torch.nn.Module):
    """A network of one layer, and how it calls the layer."""

    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


@pytest.mark.parametrize(
    ("layer", "call", "parameters"),
    [
        (torch.nn.LSTM(96, 4, bias=False), lambda lstm, x: lstm(x.flatten(1, 2).mT)[0], 1_600),
        (torch.nn.Linear(32, 2), lambda linear, x: linear(input=x), 66),
    ],
)
def test_a_network_that_torchsummary_cannot_list_has_its_counts(
    monkeypatch, layer, call, parameters
):
    monkeypatch.setattr(models, "build", lambda name: Around(layer, call))
    first, *counts = report.summary("around", {}).splitlines()
    assert first == "torchsummary cannot list the layers of this network"
    assert counts[0] == f"Parameters: {parameters:,}" and len(counts) == 2


# ---------------------------------------------------------------------------- what the run runs on


def git(folder, *words):
    names = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *names, "-C", folder, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_commit_and_whether_the_files_are_as_committed(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    assert report.checkout() == {}  # no repository
    git(tmp_path, "init")
    assert report.checkout() == {}  # nothing committed
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert report.checkout() == {"commit": commit, "clean": True}
    (tmp_path / "file").write_text("b")
    assert report.checkout() == {"commit": commit, "clean": False}
    git(tmp_path, "config", "core.quotePath", "false")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).touch()  # a name that is no text
    assert report.checkout() == {"commit": commit, "clean": False}
    monkeypatch.setattr(report, "ROOT", tmp_path / "folder")
    (tmp_path / "folder").mkdir()
    assert report.checkout() == {}  # not the repository of a folder above
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", "")
    assert report.checkout() == {}  # no git
    assert capfd.readouterr() == ("", "")


def test_the_environment_names_versions_device_and_threads(monkeypatch):
    found = report.environment(CPU)
    assert found["python"] == sys.version.split()[0] and found["torch"] == torch.__version__
    assert found["cuda"] == torch.version.cuda and found["threads"] == torch.get_num_threads()
    assert found["device"] == report.processor() != ""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert report.device_name(torch.device("cuda", 1)) == "GPU 1"


# ------------------------------------------------------------------------------ while it goes on


def test_the_time_left_is_that_of_the_steps_to_come(clock):
    """Steps of 2 s after a first one of 60 s, 4 of them in this process, of 100."""
    pace = report.Pace(100)
    assert pace.left is None
    for number in range(51, 55):
        clock[0] += 60 if number == 51 else 2
        pace.step(number)
    assert pace.left == pytest.approx(46 * 2)
    clock[0] += 6  # an evaluation and a checkpoint after three steps, as after those to come
    assert pace.left == pytest.approx(46 * 4)


def test_the_forecast_comes_once(clock):
    pace = report.Pace(10_000)
    said = []
    for number in range(1, 100):
        pace.step(number)
        said.append(pace.forecast())
        clock[0] += 1
    assert said.index("The run ends in about 2 h 46 min") == 10
    assert len([line for line in said if line]) == 1


def test_the_line_of_an_epoch():
    row = {
        "epoch": 3,
        "train_loss": 1.23456,
        "train_accuracy": 0.5,
        "eval_loss": 1.0,
        "eval_accuracy": 0.61118,
        "learning_rate": 0.0123456,
        "seconds": 40.04,
        "images_per_second": 1123.6,
    }
    line = report.epoch_line(row, 100, "val", 45.0)
    assert line == (
        "Epoch 3/100: train loss 1.2346, accuracy 50.00 %; val loss 1.0000, accuracy 61.12 %;"
        " learning rate 0.01235; 40.0 s, 1,124 images/s, 45 s left"
    )
    row |= {"epoch": 100, "eval_loss": None, "eval_accuracy": None}
    line = report.epoch_line(row, 100, "none", 0.0)
    assert line.endswith("50.00 %; learning rate 0.01235; 40.0 s, 1,124 images/s")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_epoch_its_scores_and_the_time_left(trained, tmp_path, monkeypatch):
    """And the forecast, where the first epoch takes longer than it is waited for."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(report, "FORECAST_AFTER", 0.0)
    bar = epochs.tqdm
    monkeypatch.setattr(epochs, "tqdm", lambda **options: bar(**options, mininterval=0))
    out = trained(tmp_path / "a", "--data", "sample", "--epochs", "2")
    shown = terminal.getvalue().split("\r")
    scores = r"loss \d\.\d{4}, accuracy \d+\.\d\d %"
    for epoch in (1, 2):
        step = rf"Epoch {epoch}/2 .* 3/4, {scores}, \d\d:\d\d left"
        assert any(re.search(step, line) for line in shown), shown
    assert shown[-1] == "" and shown[-2].strip() == ""  # the bar is gone
    assert re.findall(r"The run ends in about \d+ s", out) and out.count("ends in about") == 1
    assert out.index("ends in about") < out.index("Epoch 1/2: ")


def test_durations_in_words():
    assert report.duration(29.4) == "29 s" and report.duration(59.5) == "1 min"
    assert report.duration(89) == "1 min" and report.duration(3599) == "1 h 00 min"
    assert report.duration(5 * 3600 + 61) == "5 h 01 min"
