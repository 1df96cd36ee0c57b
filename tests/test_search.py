"""The search: its candidates, its table, and the ablation that is drawn of it."""

import pytest

import data
import models
import plots
import utils
from experiments import search
from training.optimizer import build_optimizer
from utils import count_parameters


@pytest.mark.parametrize(
    "name, candidate", [*search.CANDIDATES.items(), *search.SMALL_ABLATION.items()]
)
def test_every_candidate_can_be_trained(name, candidate):
    recipe = search.recipe_of(candidate, 3)
    assert recipe.epochs == 3
    assert (recipe.flip == "none") == candidate.config.get("mirror", name != "random_flip")
    model = models.build(candidate.model, **candidate.config)
    build_optimizer(model, recipe)
    parameters, whole = (
        count_parameters(network) for network in (model, models.build(candidate.model))
    )
    assert parameters < 101_000
    if name in search.ABLATION:
        assert abs(parameters / whole - 1) < 0.05


def test_the_search_compares_speed_in_turn_and_writes_no_row(tmp_path, monkeypatch, capsys):
    turns, table = [], tmp_path / "search.csv"

    def timer(candidate, images, device):
        seconds = iter(range(100 if candidate.recipe else 60, 1000, 2))
        return lambda: turns.append(bool(candidate.recipe)) or next(seconds)

    monkeypatch.setattr(search, "timer", timer)
    monkeypatch.setattr(data, "load_splits", lambda *arguments: (None, None))
    search.main(["--speed", "--only", "full", "sgd", "--output", str(table)])
    _, full, sgd = capsys.readouterr().out.splitlines()
    assert full.split()[1:5] == ["full", "64", "60", "68"]
    assert sgd.split()[1:5] == ["sgd", "104", "100", "108"]
    assert turns[:4] == [False, True, True, False] and not table.exists()


@pytest.mark.parametrize("flags", ["--epochs=0", "--minutes=nan", "--minutes=inf", "--epochs=x"])
def test_a_budget_out_of_range_is_refused(flags, capsys):
    with pytest.raises(SystemExit) as error:
        search.main([flags])
    assert error.value.code == 2 and "choose" in capsys.readouterr().err


def test_the_small_ablation_has_no_other_candidates():
    with pytest.raises(utils.RunError, match="--small has no sgd"):
        search.main(["--epochs=1", "--small", "--only", "full", "sgd"])


def test_another_table_is_refused(tmp_path):
    table = tmp_path / "table.csv"
    for text in ("a,b\n1,2\n", "candidate,epochs\nno_dilated,x\n"):
        table.write_text(text)
        with pytest.raises(utils.RunError, match="table.csv is not a table"):
            search.main(["--figure", str(tmp_path / "x.png"), "--output", str(table)])


def test_the_ablation_is_drawn_at_its_largest_budget(tmp_path, monkeypatch):
    table, drawn = tmp_path / "search.csv", []
    for name, seed, epochs, accuracy in (
        ("full", 0, 4, 0.8),
        ("full", 0, 16, 0.95),
        ("full", 0, 12, 0.9),
        ("full", 1, 12, 0.91),
        ("sgd", 0, 20, 0.7),
        ("no_dilated", 0, 12, 0.89),
    ):
        row = {"candidate": name, "seed": seed, "epochs": epochs, "val_accuracy": accuracy}
        search.append(row | {"parameters": 96118}, table)
    monkeypatch.setattr(plots, "ablation", lambda accuracies, path, title: drawn.append(accuracies))
    search.main(["--figure", str(tmp_path / "x.png"), "--output", str(table)])
    whole, without = "the complete network", "no dilation"
    size = "\n96,118 parameters"
    assert drawn == [{whole + size: {0: 0.9, 1: 0.91}, without + size: {0: 0.89}}]
    assert search.IN_WORDS.keys() == search.ABLATION.keys()


def test_an_ablation_without_the_complete_network_is_refused(tmp_path):
    table = tmp_path / "search.csv"
    row = {"candidate": "no_dilated", "epochs": 8}
    search.append(row, table)
    search.append(row | {"candidate": "full", "epochs": 4}, table)
    with pytest.raises(utils.RunError, match="no row of the complete network at 8 epochs"):
        search.main(["--figure", str(tmp_path / "x.png"), "--output", str(table)])
    assert not (tmp_path / "x.png").exists()
