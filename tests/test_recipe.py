"""The recipes: their values, the ranges of these, and a flag for each."""

import dataclasses

import pytest
import torch
from fakes import plain

import data
import models
import train
from training.flags import flag, setting, settings_of
from training.loss import Loss
from training.recipe import RECIPES, Recipe, RecipeError
from training.run import augmentation_of, build_loader, build_run
from training.settings import Options, new_settings


def test_baseline_recipe_is_the_notebooks():
    assert RECIPES["baseline"] == Recipe(
        epochs=50,
        batch_size=128,
        optimizer="sgd",
        learning_rate=0.01,
        schedule="steps",
        warmup=0.0,
        milestones=((25 / 50, 0.1, 0.7), (40 / 50, 0.01, 0.9)),
        momentum=0.9,
        nesterov=False,
        weight_decay=0.0,
        label_smoothing=0.0,
        ema_decay=0.0,
        crop_padding=4,
        padding_mode="zeros",
        flip="random",
        cutout=0,
    )


@pytest.mark.parametrize(
    "field, values",
    {
        "epochs": [0, -1, 100_001, 10**400],
        "batch_size": [0, -1, 50_001],
        "optimizer": ["adam"],
        "learning_rate": [0.0, -0.1, float("inf"), float("nan")],
        "schedule": ["exponential"],
        "warmup": [-0.1, 1.0, float("nan")],
        "momentum": [-0.1, 1.0, float("nan")],
        "weight_decay": [-0.1, float("inf"), float("nan"), 10**400],
        "muon_weight_decay": [-0.1, float("inf"), float("nan")],
        "label_smoothing": [-0.1, 1.0, float("nan")],
        "ema_decay": [-0.1, 1.0, float("nan")],
        "crop_padding": [-1, 32],
        "padding_mode": ["mirror"],
        "flip": ["sideways"],
        "cutout": [-1, 33],
        "mixup": [-0.1, 0.51, float("nan")],
        "mixup_until": [-0.1, 1.1, float("nan")],
        "distillation": [-0.1, 1.01, float("nan")],
        "temperature": [0.0, -1.0, 100.5, float("nan")],
    }.items(),
)
def test_values_out_of_range_are_refused_by_name(field, values):
    for value in values:
        with pytest.raises(RecipeError) as error:
            plain(**{field: value})
        assert str(error.value).startswith(f"{flag(field)} {value}: choose ")


def test_steps_need_milestones():
    with pytest.raises(RecipeError, match="recipe with milestones"):
        plain(schedule="steps")


def test_every_network_has_a_recipe():
    assert RECIPES.keys() == set(models.names())


@pytest.mark.parametrize("name", ["under50k", "under25k"])
def test_a_smaller_network_is_trained_as_the_default_one_for_100_epochs(name):
    milder = {"ema_decay": 0.998, "mixup": 0.2}
    assert RECIPES[name] == dataclasses.replace(RECIPES["under100k"], epochs=100, **milder)


@pytest.mark.parametrize(
    ("given", "mixed"),
    [
        ({"epochs": 10, "mixup_until": 0.7}, 7),
        *(({"epochs": n}, m) for n, m in ((1, 0), (10, 9), (25, 24), (100, 96), (300, 288))),
    ],
)
def test_mixup_ends_after_its_fraction_of_the_epochs(given, mixed):
    """By default even a short training ends without mixup."""
    cpu = torch.device("cpu")
    settings = new_settings({"data": "sample", **given}, cpu)
    loader = build_loader(settings, data.load("sample", "", "train"), cpu, train=True)
    assert loader.mixup_epochs == mixed


def test_a_run_is_made_of_its_settings():
    given = {"data": "sample", "seed": 7, "precision": "bf16", "label_smoothing": 0.2}
    given |= {"distillation": 0.3, "temperature": 5.0, "ema_decay": 0.75}
    settings, cpu = new_settings(given, torch.device("cpu")), torch.device("cpu")
    run = build_run(settings, cpu, 10)
    assert run.loss == Loss(0.2, None, 0.3, 5.0)
    assert run.ema.decay == 0.75
    assert build_run(new_settings({"data": "sample", "ema_decay": 0.0}, cpu), cpu, 10).ema is None
    loader = build_loader(settings, data.load("sample", "", "train"), cpu, train=True)
    assert (loader.seed, loader.shuffle, loader.dtype) == (7, True, torch.bfloat16)
    assert loader.augmentation == augmentation_of(settings.recipe)


@pytest.mark.parametrize("name", models.names())
def test_every_field_of_a_recipe_has_a_flag(name):
    """But for two that only the notebook's recipe needs: the flags bring back the recipe."""
    values = dataclasses.asdict(RECIPES[name])
    del values["milestones"], values["nesterov"]
    flags = [f"--{field.replace('_', '-')}={value}" for field, value in values.items()]
    assert train.parse_arguments(flags) == values


def help_of(monkeypatch, capsys):
    """The lines of `python train.py --help`, on a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        train.parse_arguments(["--help"])
    assert end.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_help_fits_on_a_screen_with_each_default_and_range(monkeypatch, capsys):
    lines = help_of(monkeypatch, capsys)
    assert len(lines) <= 50 and max(map(len, lines)) <= 100
    for record in (Options(), RECIPES[Options.model]):
        for name, allowed in settings_of(record).items():
            (line,) = [line for line in lines if line.split()[:1] == [flag(name)]]
            value = getattr(record, name)
            shown = value if isinstance(value, str) else f"{value:g}"
            assert line.endswith(f"; {allowed.range} ({shown})")


@dataclasses.dataclass(frozen=True)
class PatientRecipe(Recipe):
    patience: int = setting("epochs without progress", default=3, at_least=1, at_most=9)


def test_a_setting_is_one_line(monkeypatch, capsys):
    """The field above brings its flag, check, message, line of --help and entry in the config."""
    recipe = PatientRecipe(**dataclasses.asdict(plain()))
    monkeypatch.setitem(RECIPES, Options.model, recipe)
    given = train.parse_arguments(["--patience", "7", "--data", "sample"])
    assert given == {"patience": 7, "data": "sample"}
    settings = new_settings(given, torch.device("cpu"))
    assert dataclasses.asdict(settings)["recipe"]["patience"] == 7
    lines = help_of(monkeypatch, capsys)
    assert "  --patience N            epochs without progress; 1 to 9 (3)" in lines
    with pytest.raises(SystemExit):
        train.parse_arguments(["--patience", "10"])
    assert capsys.readouterr().err.endswith(": error: --patience 10: choose 1 to 9\n")
    with pytest.raises(RecipeError, match="--patience 0: choose 1 to 9"):
        dataclasses.replace(recipe, patience=0)
