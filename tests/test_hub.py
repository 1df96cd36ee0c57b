"""torch.hub gives the network, pretrained, on a machine that has torch and nothing else."""

import shutil
import subprocess
import sys

import pytest
import torch
from fakes import ROOT

import data
import hubconf
import models
from training import engine

# Everything that requirements.txt names besides torch, and what comes with it.
ABSENT = ("torchvision", "torchsummary", "tqdm", "matplotlib", "numpy", "PIL")
LOAD = """
import sys

sys.modules.update(dict.fromkeys({absent}))  # importing these fails from now on
import torch

network = torch.hub.load({repository!r}, "under100k", pretrained={pretrained}, source="local")
assert not network.training
logits = network(torch.load("images.pt"))
torch.save([logits, network.__dict__.get("normalization"), network.__dict__.get("classes")], "out")
"""
NAMES = ("data", "models", "plots", "training", "utils")
PROGRAM = """
import copy, io, pickle, sys
import models
import torch

before = set(sys.modules)
network = torch.hub.load({repository!r}, "under100k", pretrained=True, source="local")
assert not {{name for name in set(sys.modules) - before if name.split(".")[0] in {names}}}
for name in {names}:
    assert __import__(name).mine

images = torch.randn(2, 3, 32, 32)
twins = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
twins.append(torch.hub.load({repository!r}, "under100k", source="local"))
file = io.BytesIO()
torch.save(network.state_dict(), file)
twins[-1].load_state_dict(torch.load(io.BytesIO(file.getvalue())))
for twin in twins:
    assert type(twin) is type(network)
    assert torch.equal(twin(images), network(images))
network.train()(images).sum().backward()
assert all(p.grad is not None for p in network.parameters())
"""


@pytest.fixture
def repository(tmp_path):
    """The repository as far as torch.hub needs it, with no released weights."""
    shutil.copy(ROOT / "hubconf.py", tmp_path)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "models", tmp_path / "models", ignore=ignore)
    (tmp_path / "elsewhere").mkdir()
    return tmp_path


def load(repository, pretrained):
    """Load the network in a process that starts in another folder."""
    code = LOAD.format(absent=ABSENT, repository=str(repository), pretrained=pretrained)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=repository / "elsewhere", capture_output=True, text=True)


@pytest.mark.slow
def test_the_pretrained_network_needs_only_torch(repository, weights, network):
    (repository / "checkpoints").mkdir()
    shutil.copy(weights, repository / "checkpoints" / "under100k.safetensors")
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save(images, repository / "elsewhere" / "images.pt")
    process = load(repository, pretrained=True)
    assert process.returncode == 0, process.stderr
    logits, normalization, classes = torch.load(repository / "elsewhere" / "out")
    with torch.no_grad():
        torch.testing.assert_close(logits, network(images))
    assert normalization == {"mean": list(data.MEAN), "std": list(data.STD)}
    assert classes == data.CLASSES


def test_what_cannot_be_loaded_is_said_in_one_line(repository):
    def hub(**settings):
        return torch.hub.load(str(repository), "under100k", source="local", **settings)

    with pytest.raises(ValueError, match="no released weights at .*: load with") as error:
        hub(pretrained=True)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no setting colour"):
        hub(colour="red")
    with pytest.raises(ValueError, match="their own config"):
        hub(pretrained=True, attention=False)
    network = hub(attention=False)
    assert not network.training and not network.config.attention


@pytest.mark.slow
def test_a_program_keeps_its_own_modules_before_and_after(repository, weights):
    """The program has modules of its own under each of our names, one of them imported before."""
    (repository / "checkpoints").mkdir()
    shutil.copy(weights, repository / "checkpoints" / models.RELEASED_WEIGHTS.name)
    for name in NAMES:
        (repository / "elsewhere" / f"{name}.py").write_text("mine = True")
    code = PROGRAM.format(repository=str(repository), names=NAMES)
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, cwd=repository / "elsewhere", capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


RELEASED = ["under100k", "under50k", "under25k"]


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_weights_load(name):
    network = torch.hub.load(str(ROOT), name, source="local", pretrained=True)
    assert network.normalization == {"mean": list(data.MEAN), "std": list(data.STD)}
    assert sum(p.numel() for p in network.parameters()) < 1000 * int(name[5:-1])
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "correct"), [("under100k", 472), ("under50k", 472), ("under25k", 464)]
)
def test_the_released_weights_are_those_that_were_scored(name, correct):
    """On the 500 images of `val` in the sample; fp32 on another processor may differ by a few."""
    network = torch.hub.load(str(ROOT), name, source="local", pretrained=True)
    split = data.load("sample", "", "val")
    loader = data.Loader(split, 100, device="cpu", mean=data.MEAN, std=data.STD)
    metrics = engine.evaluate(network, loader, precision=torch.float32).metrics
    assert abs(metrics.correct - correct) <= 2


def test_the_released_networks_are_the_only_entry_points():
    """torch.hub.list names what is callable, but for private names."""
    entries = [name for name, value in vars(hubconf).items() if callable(value)]
    entries = [name for name in entries if not name.startswith("_")]
    assert entries == RELEASED
    files = {path.stem for path in (ROOT / "checkpoints").glob("*.safetensors")}
    assert {name for name in models.names() if name in files} == {*RELEASED, "teacher"}
