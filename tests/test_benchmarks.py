"""The benchmarks: that they run, and that what they compare and report is what they say."""

import copy
import itertools
import json
import math
import subprocess
import sys

import pytest
import torch
from fakes import noise

import startup
from benchmarks import (
    common,
    page_faults,
    processes,
    reference,
    scaling,
    shares,
    throughput,
    time_to_accuracy,
)
from benchmarks.common import Row
from benchmarks.resnet20 import ResNet20
from benchmarks.time_to_accuracy import Scored
from training.recipe import RECIPES
from training.run import build_run
from utils import count_parameters

CPU = torch.device("cpu")


def test_both_loops_take_the_same_steps():
    """In float32, on the same batches, they differ in rounding alone."""
    split = noise(48)
    settings = common.settings_for("baseline", RECIPES["baseline"], split, "fp32")
    run = build_run(settings, CPU, 3)
    batches = [(torch.randn(16, 3, 32, 32), labels) for labels in split.labels.split(16)]
    model = copy.deepcopy(run.model)
    torch.manual_seed(1)  # of dropout
    theirs = reference.train_epoch(model, batches, reference.build_optimizer(model, 0), CPU)
    torch.manual_seed(1)
    metrics = common.train(run, batches)
    assert (metrics.correct, metrics.total) == (theirs.correct, theirs.total)
    assert metrics.loss == pytest.approx(theirs.loss, rel=1e-4)
    for value, expected in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-4)


def test_the_reference_shows_whole_normalised_images_and_changes_its_optimizer():
    split = noise(8)
    ((images, labels),) = reference.build_loader(split, CPU, workers=0)
    assert images.shape == (8, 3, 32, 32) and images.dtype == torch.float32
    assert sorted(labels.tolist()) == sorted(split.labels.tolist())
    assert -2.5 < images.min() < 0 < images.max() < 2.8
    model = torch.nn.Linear(1, 1)
    optimizers = {e: reference.build_optimizer(model, e) for e in range(reference.EPOCHS)}
    made = {e: o.param_groups[0] for e, o in optimizers.items() if o is not None}
    rates = {e: (group["lr"], group["momentum"]) for e, group in made.items()}
    assert rates == {0: (0.01, 0.9), 25: (0.001, 0.7), 40: (0.0001, 0.9)}


@pytest.mark.slow
def test_throughput_reports_rates_ratios_and_shares(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(common, "WARM_UP", 1)
    conditions = throughput.Conditions(noise(24), tmp_path, CPU, repetitions=1, quick=True)
    parts = ("data", "training", "shares", "inference")
    rows = throughput.measure(parts, conditions)
    assert {row.part for row in rows} == set(parts)
    assert all(math.isfinite(v) and v >= 0 for row in rows for v in row.values)
    assert all(row.median > 0 for row in rows if row.part != "shares")
    median = {row.measure: row.median for row in rows}
    for name in throughput.TRAINED:
        parts = [median[f"{name}: {part}"] for part in (*shares.SHARES, "other")]
        assert sum(parts) == pytest.approx(100)
        assert parts[-1] < 20 and median[f"{name}: backward"] > 10
    assert median["under100k: EMA"] > 0 == median["baseline: EMA"]
    ratio = median["our loader, fp32"] / median["PIL transforms, DataLoader of 2 workers"]
    assert median["our loader, fp32 / PIL, 2 workers"] == pytest.approx(ratio)

    common.report(rows, tmp_path / "runs" / "t.json", CPU, quick=True)
    assert (tmp_path / "runs" / "t.json").exists()
    assert "baseline: ours / reference" in capsys.readouterr().out


def test_what_needs_cifar10_is_left_out_without_it(tmp_path, capsys):
    conditions = throughput.Conditions(noise(8), tmp_path, CPU, repetitions=1, quick=False)
    assert throughput.measure(("memory", "start"), conditions) == []
    assert capsys.readouterr().out.count("left out: this is measured on CIFAR-10 alone") == 2


def test_peak_memory_is_that_of_the_child_alone():
    child = [sys.executable, "-c", "memory = bytearray(10**8)"]
    peak = int(processes.run_child(["-c", processes.PEAK_MEMORY, *child]))
    assert 1e8 < peak < 1.4e8  # this process, with PyTorch in it, is larger


def test_page_faults_are_measured_in_pairs(tmp_path, monkeypatch):
    measured = iter(([4, 2, 100, 3], [2, 1, 10, 6], [2, 1, 10, 6], [4, 2, 100, 3]))
    kept = []

    def run_child(command, **environment):
        kept.append(environment[startup.KEEP_MEMORY])
        return f"noise\n{list(next(measured))}\n"

    monkeypatch.setattr(processes, "run_child", run_child)
    rows = page_faults.measure_pairs(tmp_path, repetitions=2, quick=True)
    assert kept == ["0", "1", "1", "0"]
    ratios = [row.values for row in rows if row.part == "ratio"]
    assert ratios == [[0.5, 0.5], [0.5, 0.5], [0.1, 0.1], [2, 2]]


def test_a_process_measures_its_steps_and_page_faults(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "QUICK_IMAGES", 16)
    page_faults.print_measures(tmp_path, quick=True)
    seconds, processor, faults, peak = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < seconds < 10 and 0 < processor < 10 and faults >= 0 and 0.1 < peak < 10


def test_rates_count_what_comes_after_the_warm_up(monkeypatch):
    clock = itertools.count()  # a second passes with every look at it
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    seen = []

    def work(batches) -> int:
        seen.append(list(batches))
        return len(seen[-1])

    rate = common.images_per_second(work, common.endless(range(5)), seconds=3, device=CPU)
    assert seen == [[0, 1], [2, 3, 4]]  # looked at the clock at the start and after each batch
    assert rate == 3 / 5


def test_measurements_alternate():
    order = []
    names = "abc"
    measured = common.alternate({n: lambda n=n: order.append(n) or len(order) for n in names}, 2)
    assert "".join(order) == "abccba"
    assert measured == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}


def test_rows_know_whether_they_met_their_target():
    assert Row("a", "b", [1, 9, 3], "x", at_least=3).met
    assert not Row("a", "b", [1, 9, 2], "x", at_least=3).met
    assert Row("a", "b", [0.5], "GB", at_most=1.5).met
    text = common.table([Row("a", "b", [2], "s", at_most=1), Row("a", "c", [12345.6], "images/s")])
    assert "<= 1: NOT MET" in text and "12,346" in text


def test_resnet20_is_the_published_one():
    model = ResNet20()
    assert count_parameters(model) == 269_722
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_time_to_accuracy_extrapolates_from_measured_epochs_and_says_so():
    run = time_to_accuracy.ReferenceRun(noise(8), noise(8), CPU)
    run.scored = [Scored(20, 0.3), Scored(60, 0.5)]
    assert run.seconds_an_epoch == [20, 40]
    for history, accuracy, minutes, words in (
        (None, 0.8, 25, "extrapolated to all epochs: 50 epochs"),
        ([0.3, 0.5, 0.7, 0.81, 0.8], 0.8, 2, "extrapolated: 4 epochs"),
        ([0.3, 0.5, 0.7], 0.8, 1.5, "never reached in the history: 3 epochs"),
        (None, 0.4, 1, "measured: 2 epochs"),
    ):
        rows, found = time_to_accuracy.reference_rows(run, history, accuracy)
        assert found == pytest.approx(minutes) and words in rows[-1].measure
    runs = [[Scored(30, 0.5), Scored(60, 0.81)]]
    rows = time_to_accuracy.our_rows(runs, 0.8, 25)
    assert (rows[-1].part, rows[-1].median, rows[-1].met) == ("ratio", 25, True)
    rows = time_to_accuracy.our_rows(runs, 0.9, 25)
    assert (rows[-1].measure, rows[-1].met) == ("accuracy, validation split", False)


def test_time_to_accuracy_stops_where_it_is_reached(monkeypatch):
    monkeypatch.setattr(time_to_accuracy, "MODEL", "baseline")
    monkeypatch.setattr(time_to_accuracy, "CONFIG", {})
    recipe = time_to_accuracy.short_recipe({"epochs": 3, "batch_size": 8})
    assert (recipe.schedule, recipe.epochs, recipe.milestones) == ("linear", 3, ())
    run = time_to_accuracy.run_ours(recipe, noise(8), noise(8), CPU, accuracy=0, seed=0)
    assert len(run) == 1 and run[0].seconds > 0


def test_shrunk_images_are_sampled_between_their_pixels():
    ramp = torch.arange(32.0).expand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    ((images, labels),) = time_to_accuracy.shrunk([(ramp, torch.tensor([3, 4]))], 24)
    assert images.shape == (2, 3, 24, 24) and labels.tolist() == [3, 4]
    assert images.is_contiguous(memory_format=torch.channels_last)
    # The centre of pixel i of 24 lies at (i + 1/2) * 32 / 24 of 32.
    torch.testing.assert_close(images[0, 0, 7], (torch.arange(24) + 0.5) * 32 / 24 - 0.5)


def test_scaling_measures_and_draws_every_quantity(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "MODEL", "baseline")
    monkeypatch.setattr(scaling, "IMAGES", (16, 32))
    monkeypatch.setattr(scaling, "BATCH_SIZES", (8, 16))
    threads = torch.get_num_threads()
    rows = scaling.measure(scaling.sweeps(noise(48), CPU, seconds=0.01), 1)
    assert torch.get_num_threads() == threads
    measured = [(row.part, row.measure) for row in rows]
    assert measured[:5] == [
        *(("images", n) for n in ("16", "32", "48")),
        *(("batch size", n) for n in ("8", "16")),
    ]
    assert measured[5] == ("threads", "1") and measured[-1] == ("threads", str(threads))
    assert all(row.median > 0 for row in rows)
    scaling.draw(rows, tmp_path / "scaling.png", title="noise")
    assert (tmp_path / "scaling.png").exists()


@pytest.mark.slow
def test_a_benchmark_runs_as_a_file_and_says_what_is_wrong_in_one_line(tmp_path):
    command = [sys.executable, "benchmarks/time_to_accuracy.py", "--data-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "no CIFAR-10 in" in result.stderr
