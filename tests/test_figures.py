"""A training that can be watched: its folder and TensorBoard show it while it goes on."""

import dataclasses
import itertools
from contextlib import ExitStack

import numpy as np
import pytest
import torch

import data
import utils
from training import checkpoint as checkpoints
from training import figures, run_folder, tensorboard
from training.epochs import Saver, train
from training.run import build_loaders, build_run
from training.settings import make_plan

FLAGS = {
    "data": "sample",
    "model": "baseline",
    "epochs": 3,
    "batch_size": 20,
    "eval_split": "val",
    "precision": "fp32",
    "ema_decay": 0.5,
}
CPU = torch.device("cpu")


@pytest.fixture
def training(tmp_path, few_images):
    """A run of three epochs of two steps, its loaders and its folder."""
    settings = make_plan({**FLAGS, "output": tmp_path}, CPU, ExitStack()).settings
    loaders = build_loaders(settings, tmp_path, CPU)
    utils.seed_everything(0)
    return build_run(settings, CPU, len(loaders[0])), loaders, tmp_path


def test_weights_and_curves_are_there_after_each_epoch(training, monkeypatch):
    run, loaders, folder = training
    drawn, seen = [], []
    monkeypatch.setattr(figures, "MAX_DRAWING", 1e9)
    draw = figures.plots.validation

    def spy(history, path, **words):
        drawn.append((len(history), words["averaged"], words["precision"]))
        draw(history, path, **words)

    monkeypatch.setattr(figures.plots, "validation", spy)
    update = figures.AfterEpoch(run, folder)

    def after_epoch() -> None:
        update()
        content = checkpoints.load_checkpoint(folder / "weights.safetensors")
        last = checkpoints.load_checkpoint(folder / run_folder.LAST)
        assert content["epoch"] == last["epoch"] == len(content["history"])
        for name, tensor in run.eval_model.state_dict().items():
            assert torch.equal(content["state_dict"][name], tensor)
        seen.append((folder / "validation.png").read_bytes())

    train(run, *loaders, Saver(run, folder, 5.0), after_epoch)
    assert drawn == [(1, True, "fp32"), (2, True, "fp32"), (3, True, "fp32")]
    assert len(set(seen)) == 3 and all(png.startswith(b"\x89PNG") for png in seen)


def test_drawing_takes_no_more_than_its_share_of_the_time(training, monkeypatch, clock):
    """Epochs of 30 s and figures of 0.4 s: the first, and then every second one."""
    run, _, folder = training
    monkeypatch.setattr(figures.checkpoints, "save_checkpoint", lambda *arguments: None)
    drawn = []

    def draw(run, output):
        drawn.append(round(clock[0]))
        clock[0] += 0.4

    monkeypatch.setattr(figures, "draw_curves", draw)
    after_epoch = figures.AfterEpoch(run, folder)
    for _ in range(6):
        clock[0] += 30
        after_epoch()
    assert drawn == [130, 190, 251]
    assert 0.4 * (len(drawn) - 1) <= figures.MAX_DRAWING * (clock[0] - 130)


def test_augmentation_shows_no_mixup_that_the_training_has_not(training, monkeypatch):
    run, (loader, _), folder = training
    recipe = dataclasses.replace(
        run.settings.recipe, mixup=0.5, crop_padding=0, flip="none", cutout=0
    )
    settings = dataclasses.replace(run.settings, recipe=recipe)
    given = []
    monkeypatch.setattr(figures.plots, "augmentation", lambda *a, **k: given.append(a))
    monkeypatch.setattr(loader, "mixup_epochs", 1)
    figures.draw_augmentation(settings, loader, folder)
    ((originals, epochs, *_),) = given
    assert [torch.equal(images, originals) for images in epochs] == [False, True, True, True]


def test_augmentation_shows_one_image_a_class_as_the_epochs_show_it(training, monkeypatch):
    run, (loader, _), folder = training
    given = []
    monkeypatch.setattr(figures.plots, "augmentation", lambda *a, **k: given.append(a))
    figures.draw_augmentation(run.settings, loader, folder)
    ((originals, epochs, names, path),) = given
    split = data.load("sample", folder, "train")
    assert tuple(names) == data.CLASSES and path == folder / "augmentation.png"
    for label, image in enumerate(originals):
        first = (split.labels == label).nonzero()[0, 0]
        assert torch.equal(image, split.images[first])
    assert len(epochs) == figures.AUGMENTED_EPOCHS
    # The baseline's recipe only crops and mirrors: every pixel of the inside is an original's.
    for images, (one, original) in itertools.product(epochs, enumerate(originals)):
        corners = itertools.product(range(9), range(9))
        padded = torch.nn.functional.pad(original, (4, 4, 4, 4))
        crops = [padded[:, top : top + 32, left : left + 32] for top, left in corners]
        shown = images[one]
        assert any(torch.equal(shown, view) or torch.equal(shown, view.flip(-1)) for view in crops)
    assert not torch.equal(epochs[0], epochs[1])


def events_of(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def test_tensorboard_gets_recipe_rows_and_figures(training):
    pytest.importorskip("tensorboard")
    run, loaders, folder = training
    board = tensorboard.Board(run, folder / "tensorboard")
    train(run, *loaders, Saver(run, folder, 5.0), figures.AfterEpoch(run, folder, board))
    events = events_of(folder / "tensorboard")  # while the training goes on
    for tag, column in (
        ("accuracy/train", "train_accuracy"),
        ("accuracy/val", "eval_accuracy"),
        ("loss/train", "train_loss"),
        ("loss/val", "eval_loss"),
        ("run/learning_rate", "learning_rate"),
        ("run/images_per_second", "images_per_second"),
    ):
        scalars = events.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        values = [row[column] for row in run.history]
        np.testing.assert_allclose([scalar.value for scalar in scalars], values, rtol=1e-6)
    assert set(events.Tags()["scalars"]) == {
        "accuracy/train", "accuracy/val", "loss/train", "loss/val",
        "run/learning_rate", "run/seconds", "run/images_per_second",
    }  # fmt: skip
    board.close([folder / "validation.png"])
    events = events_of(folder / "tensorboard")
    assert events.Tags()["images"] == ["validation"]
    assert events.Images("validation")[0].width == 1260
    (text,) = events.Tensors("recipe/text_summary")
    assert b"| batch_size | 20 |" in text.tensor_proto.string_val[0]


def test_tensorboard_has_a_resumed_run_once(training):
    pytest.importorskip("tensorboard")
    run, loaders, folder = training
    row = {"epoch": 1, "train_loss": 2.0, "eval_loss": None, "seconds": 3.0}
    for _ in range(2):
        run.history = [row]
        tensorboard.Board(run, folder).close()
        events = events_of(folder)
        assert [scalar.value for scalar in events.Scalars("loss/train")] == [2.0]
        assert events.Tags()["scalars"] == ["loss/train", "run/seconds"]


def test_without_tensorboard_one_line_says_what_to_install(refused, monkeypatch, tmp_path):
    find_spec = tensorboard.importlib.util.find_spec
    monkeypatch.setattr(
        tensorboard.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorboard" else find_spec(name, *rest),
    )
    line = refused("train.py", "--data", "sample", "--tensorboard", "--output", tmp_path / "run")
    assert "pip install tensorboard" in line
    assert not (tmp_path / "run").exists()
