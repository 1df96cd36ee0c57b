"""The recipes: their values, the ranges of these, and a flag for each."""

import dataclasses

import pytest

import models
import train
from training.recipe import RECIPES, Recipe, RecipeError

NO_MATRIX = ("baseline", "muon")  # it has no pointwise convolution as a matrix
PLAIN = Recipe(epochs=10, batch_size=8, optimizer="sgd", learning_rate=0.5, schedule="linear")


def plain(**changes):
    return dataclasses.replace(PLAIN, **changes)


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
        "epochs": [0, -1],
        "batch_size": [0, -1],
        "optimizer": ["adam"],
        "learning_rate": [0.0, -0.1, float("inf"), float("nan")],
        "schedule": ["exponential"],
        "warmup": [-0.1, 1.0, float("nan")],
        "momentum": [-0.1, 1.0, float("nan")],
        "weight_decay": [-0.1, float("inf"), float("nan")],
        "muon_weight_decay": [-0.1, float("inf"), float("nan")],
        "label_smoothing": [-0.1, 1.0, float("nan")],
        "ema_decay": [-0.1, 1.0, float("nan")],
    }.items(),
)
def test_values_out_of_range_are_refused_by_name(field, values):
    for value in values:
        with pytest.raises(RecipeError, match=field) as error:
            plain(**{field: value})
        assert "\n" not in str(error.value) and repr(value) in str(error.value)


def test_steps_need_milestones():
    with pytest.raises(RecipeError, match="recipe with milestones"):
        plain(schedule="steps")


def test_every_network_has_a_recipe():
    assert RECIPES.keys() == set(models.names())


@pytest.mark.parametrize("name", ["under50k", "under25k"])
def test_a_smaller_network_is_trained_as_the_default_one_for_100_epochs(name):
    assert RECIPES[name] == dataclasses.replace(RECIPES["under100k"], epochs=100)


@pytest.mark.parametrize("name", models.names())
def test_every_field_of_a_recipe_has_a_flag(name):
    """But for two that only the notebook's recipe needs: the flags bring back the recipe."""
    values = dataclasses.asdict(RECIPES[name])
    del values["milestones"], values["nesterov"]
    flags = [f"--{field.replace('_', '-')}={value}" for field, value in values.items()]
    assert train.parse_arguments(flags) == values
