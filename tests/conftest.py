"""What several test files need: the scripts as programs, a checkpoint in the released form, and
CIFAR-10, a fake of it or the real one."""

import functools
import os
import runpy
import socket
import sys
import time
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # there is a worker for each core; before torch is imported

import pytest
import torch
from fakes import BATCHES, FAKE_BATCH, ROOT, Fake, exercise, load_few, md5, released

import data
import models
import utils
from data import batch_files, cifar10
from training import checkpoint as checkpoints


def pytest_xdist_auto_num_workers(config):
    """Processes for a whole folder. Each imports torch, for which single files need not wait."""
    few = config.option.keyword or not any(Path(argument).is_dir() for argument in config.args)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if few or cores == 1 else min(cores, 4)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process begins one when the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def fp32_precision():
    """test.py sets it for its process, which is also that of the tests."""
    before = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.fixture
def program(monkeypatch, capfd):
    """Run a script of the repository; returns its exit status, standard output and error."""

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capfd.readouterr()
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code or 0
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def refused(program):
    """Run a script on input that it cannot use; returns the one line that it says."""

    def run(script, *arguments):
        status, _, err = program(script, *arguments)
        lines = err.splitlines()
        assert status == 2 and len(lines) == 1, err
        assert lines[0].startswith(f"{Path(script).name}: error: ")
        return lines[0]

    return run


@pytest.fixture(scope="session")
def network():
    """The default network, not trained, but with no part of it at rest."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return exercise(models.build(models.names()[0]))


@pytest.fixture(scope="session")
def weights(network, tmp_path_factory):
    """A file with the weights of `network`, as they are released."""
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    content = released(models.names()[0], network.state_dict())
    checkpoints.save_checkpoint(path, content)
    return path


@pytest.fixture
def few_images(monkeypatch):
    """Trainings in this process have 40 images."""
    monkeypatch.setattr(data, "load_splits", functools.partial(load_few, 40))


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what is added to its one number."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


# ----------------------------------------------------------------------------------------- CIFAR-10


@pytest.fixture
def fake(monkeypatch):
    """A Fake whose checksums the code takes for the official ones."""
    from torchvision.datasets import CIFAR10  # which takes seconds

    fake = Fake()
    monkeypatch.setenv("no_proxy", "*")  # servers of these tests are on this machine
    for table, batches in (("TRAIN_BATCHES", BATCHES[:5]), ("TEST_BATCHES", BATCHES[5:])):
        monkeypatch.setattr(batch_files, table, {b: md5(fake.binary[b]) for b in batches})
    pickles = [[batch, md5(content)] for batch, content in fake.python.items()]
    monkeypatch.setattr(batch_files, "PICKLES", dict(pickles))
    monkeypatch.setattr(cifar10, "BATCH_SIZE", FAKE_BATCH)
    monkeypatch.setattr(cifar10, "VALIDATION_PER_CLASS", 2)
    monkeypatch.setattr(CIFAR10, "train_list", pickles[:5])
    monkeypatch.setattr(CIFAR10, "test_list", pickles[5:])
    return fake


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def real_directory():
    places = [os.environ.get("CIFAR10_DIR"), ROOT / "data" / "raw", ROOT.parent / "shared" / "data"]
    for place in places:
        if place and batch_files.on_disk(Path(place)):
            return Path(place)
    pytest.skip("CIFAR-10 is not on disk")


@pytest.fixture(scope="session")
def real(real_directory):
    return data.load("cifar10", real_directory, "train+val")


@pytest.fixture
def content():
    """A small checkpoint in the released form."""
    row = dict.fromkeys(utils.HISTORY_COLUMNS, 0.5) | {"epoch": 1, "eval_loss": None}
    tensors = {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)}
    return released("baseline", tensors, config={}, epoch=1, history=[row])
