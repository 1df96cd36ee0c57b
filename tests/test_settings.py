"""What a run is: its recipe by name, what it is scored on, and the run that it goes on with."""

import hashlib
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from fakes import released

import models
import utils
from train import parse_arguments
from training import checkpoint as checkpoints
from training import interruption
from training import settings as settings_file
from training.interruption import resume_command
from training.recipe import RECIPES, named_recipe
from training.settings import (
    find_folder,
    find_requested,
    make_plan,
    new_settings,
    resumed_settings,
)

CPU = torch.device("cpu")
SAMPLE = {"data": "sample"}


def checkpoint_of(settings):
    return {
        "model": settings.model,
        "config": settings.config,
        "training": {"settings": asdict(settings)},
    }


def test_a_run_is_scored_on_images_that_it_is_not_trained_on():
    settings = new_settings(SAMPLE, CPU)
    assert (settings.train_split, settings.eval_split) == ("train", "val")


def test_recipes_have_names_and_flags_come_after_them():
    default = RECIPES["under100k"]
    short = replace(default, epochs=16, warmup=0.2, ema_decay=0.98, cutout=0, mixup=0.0)
    assert named_recipe("under100k", {}, "default") == default
    assert new_settings({**SAMPLE, "recipe": "short"}, CPU).recipe == short
    given = {**SAMPLE, "recipe": "short", "epochs": 3}
    assert new_settings(given, CPU).recipe == replace(short, epochs=3)


def test_a_new_run_has_a_folder_of_its_own_that_goes_if_it_stays_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(settings_file, "RUNS", tmp_path / "runs")
    with ExitStack() as locks:
        used, unused = (make_plan(SAMPLE, CPU, locks).output for _ in range(2))
        assert used != unused and used.is_dir() and unused.is_dir()
        (used / "last.safetensors").touch()
    assert list((tmp_path / "runs").iterdir()) == [used]


def test_a_config_that_no_checkpoint_can_hold_is_refused_before_the_training(monkeypatch):
    monkeypatch.setattr(models, "config_dict", lambda name: {"words": 8192})
    with pytest.raises(models.ModelError, match="config of under100k .* numbers up to 4096"):
        new_settings(SAMPLE, CPU)


@pytest.mark.parametrize("flags", [{"recipe": "short"}, {"recipe": "short", "epochs": 3}])
def test_a_resumed_run_may_be_called_by_the_name_of_its_recipe(flags):
    given = {**SAMPLE, **flags}
    settings = new_settings(given, CPU)
    assert resumed_settings(checkpoint_of(settings), given, Path("last.safetensors")) == settings


@pytest.mark.parametrize(
    "flags",
    [{"recipe": "default"}, {"recipe": "short", "epochs": 3}, {"recipe": "short", "mixup": 0.1}],
)
def test_a_resumed_run_keeps_its_recipe(flags):
    settings = new_settings({**SAMPLE, "recipe": "short"}, CPU)
    with pytest.raises(utils.RunError, match="cannot change with --resume"):
        resumed_settings(checkpoint_of(settings), {**SAMPLE, **flags}, Path("last.safetensors"))


def test_a_run_from_before_there_were_teachers_goes_on():
    settings = new_settings(SAMPLE, CPU)
    checkpoint = checkpoint_of(settings)
    kept = checkpoint["training"]["settings"]
    del kept["teachers"], kept["recipe"]["distillation"], kept["recipe"]["temperature"]
    assert resumed_settings(checkpoint, SAMPLE, Path("last.safetensors")) == settings


def test_a_run_is_resumed_by_its_folder_too(tmp_path):
    (tmp_path / "last.safetensors").touch()
    for path in (tmp_path, tmp_path / "last.safetensors"):
        given = {"resume": path}
        assert find_folder(given) == tmp_path
        assert find_requested(given, tmp_path) == tmp_path / "last.safetensors"
    assert find_folder({}) is None and find_requested({}, None) is None


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("folder", ["a b", "it's", "\x1b[0m\n\u202e'\\", "\udcff", "字"])
def test_the_command_that_resumes_is_safe_to_print_and_to_paste(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    command = resume_command({"data_dir": Path(folder)}, Path(folder))
    assert command.isprintable()
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True).stdout
    expected = ["python", "train.py", "--resume", f"{folder}/last.safetensors"]
    expected += ["--data-dir", folder]
    assert words.split(b"\0")[:-1] == [word.encode(errors="surrogateescape") for word in expected]


def test_on_windows_the_command_that_resumes_is_quoted_for_its_shells(monkeypatch):
    monkeypatch.setattr(os, "name", "nt")
    assert interruption._quoted(r"C:\runs\a-1\last.safetensors") == r"C:\runs\a-1\last.safetensors"
    for word in (r"runs\a b\last.safetensors", r"R&D\last.safetensors", "it's", "100%"):
        assert interruption._quoted(word) == f'"{word}"'
    assert interruption._quoted("\x1b[0m").isprintable()


# ------------------------------------------------------------------------- weights to start from


@pytest.fixture
def plain(tmp_path):
    """A checkpoint of a variant of the network: the plain one, smaller, with fresh weights."""
    config = {**models.config_dict("under100k"), "mirror": False, "depths": [1, 1, 1, 1]}
    network = models.build("under100k", **config)
    path = tmp_path / "plain.safetensors"
    content = released("under100k", network.state_dict(), config=config)
    checkpoints.save_checkpoint(path, content)
    return path


def test_weights_bring_their_network_and_its_recipe(plain):
    given = {"data": "sample", "weights": [plain], "epochs": 3}
    settings = new_settings(given, CPU)
    assert settings.config["depths"] == [1, 1, 1, 1] and not settings.config["mirror"]
    # Without mirror symmetry it needs flips, unless the user chooses otherwise.
    assert settings.recipe == replace(RECIPES["under100k"], epochs=3, flip="alternating")
    assert new_settings({**given, "flip": "none"}, CPU).recipe.flip == "none"
    (kept,) = settings.weights
    assert kept.path == str(plain)
    assert kept.sha256 == hashlib.sha256(plain.read_bytes()).hexdigest()


def test_a_resumed_run_keeps_the_weights_that_it_started_from(plain):
    settings = new_settings({"data": "sample", "weights": [plain]}, CPU)
    checkpoint = checkpoint_of(settings)
    plain.rename(plain.with_name("moved"))  # what was trained since replaced them
    for given in ({}, {"weights": [plain]}, {"weights": [plain.with_name("moved")]}):
        assert resumed_settings(checkpoint, given, Path("last.safetensors")) == settings
    with pytest.raises(utils.RunError, match="--weights cannot change with --resume"):
        resumed_settings(checkpoint, {"weights": [Path("other")]}, Path("last.safetensors"))


@pytest.mark.parametrize(
    "before, splits, sources",
    [
        ({"source": "cifar10", "train_split": "train+val"}, ("train+val", "train+val"), "cifar10"),
        ({"source": "cifar10", "train_split": "train"}, ("train", "train+val"), "cifar10"),
        ({"source": "sample", "train_split": "train"}, ("train", "train+val"), "sample"),
    ],
)
def test_weights_that_are_trained_further_remember_what_they_saw(
    plain, before, splits, sources, capsys
):
    content = checkpoints.load_checkpoint(plain)
    content["data"].update(before)
    checkpoints.save_checkpoint(plain, content)
    for eval_split, split in zip(("val", "none"), splits, strict=True):
        given = {"data": "sample", "weights": [plain], "eval_split": eval_split}
        settings = new_settings(given, CPU)
        assert settings.trained_on == {"source": sources, "train_split": split}
        assert ("built-in sample only" in settings.title) == (sources == "sample")
        assert resumed_settings(checkpoint_of(settings), {}, Path("last.safetensors")) == settings
    assert ("was trained on val" in capsys.readouterr().err) == ("val" in before["train_split"])


def test_the_latest_run_is_found_without_the_weights_that_it_started_from():
    assert find_folder({"resume": "auto", "model": "x", "weights": [Path("gone")]}) is None


def test_weights_of_another_network_than_asked_for_are_refused(plain):
    with pytest.raises(utils.RunError, match="plain.safetensors holds under100k, not baseline"):
        new_settings({"data": "sample", "weights": [plain], "model": "baseline"}, CPU)
    with pytest.raises(utils.RunError, match="--weights: no checkpoint at nowhere"):
        new_settings({"data": "sample", "weights": [Path("nowhere")]}, CPU)


@pytest.mark.parametrize(("text", "name"), [("auto", None), ("auto/", "auto"), ("./auto", "auto")])
def test_auto_is_a_word_and_a_folder_may_have_its_name(text, name, tmp_path, monkeypatch):
    (tmp_path / "auto").mkdir()
    monkeypatch.chdir(tmp_path)
    given = {**parse_arguments(["--resume", text]), "model": "no such network"}
    assert find_folder(given) == (None if name is None else Path(name))
