"""Checkpoint files: written whole, and read warily.

stress/inputs.py finds what nobody thought of; here stands what must be refused by name.
"""

import gc
import json
import os
import resource
import time
import weakref

import pytest
import safetensors.torch
import torch

import models
import utils
from models import mirror
from training import checkpoint as checkpoints
from training.checkpoint_content import check_like
from training.flags import settings_of
from training.recipe import Recipe
from utils import RunError


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(RunError) as refused:
        checkpoints.load_checkpoint(path)
    line = str(refused.value)
    assert "\n" not in line and str(path) in line
    return line


def test_what_is_saved_is_loaded(tmp_path, content):
    path = tmp_path / "ä b.safetensors"
    checkpoints.save_checkpoint(path, content)
    loaded = checkpoints.load_checkpoint(path)
    assert torch.equal(loaded["state_dict"].pop("weight"), content["state_dict"].pop("weight"))
    assert torch.equal(loaded["state_dict"].pop("count"), content["state_dict"].pop("count"))
    assert loaded == content
    plain = safetensors.torch.load_file(path)  # which needs nothing of this repository
    assert plain.keys() == {"state_dict/weight", "state_dict/count"}


def test_any_tree_comes_back_but_for_its_tuples(tmp_path, content):
    more = {
        "a": [{"b": torch.ones(2)}, {}, [], (1, 2.5)],
        3: {"4": None},
        "c": {"tensor": 1, "d": 2},
    }
    checkpoints.save_checkpoint(tmp_path / "a.safetensors", content | {"more": more})
    loaded = checkpoints.load_checkpoint(tmp_path / "a.safetensors")["more"]
    assert torch.equal(loaded["a"][0].pop("b"), torch.ones(2))
    assert loaded == {"a": [{}, {}, [], [1, 2.5]], 3: {4: None}, "c": {"tensor": 1, "d": 2}}


def test_what_is_saved_is_not_kept_in_memory(content):
    """Not even until the collector comes: such garbage lies between larger blocks, and the heap
    grew by 0.1 GB in 200,000 steps."""
    gc.disable()
    try:
        copy = weakref.ref(checkpoints.encode(content)[1]["state_dict/weight"])
        assert copy() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_checkpoint_from_a_gpu_names_no_gpu(tmp_path, content):
    content["state_dict"]["weight"] = content["state_dict"]["weight"].cuda()
    checkpoints.save_checkpoint(tmp_path / "a.safetensors", content)
    assert checkpoints.load_checkpoint(tmp_path / "a.safetensors")["state_dict"]["weight"].is_cpu


# -------------------------------------------------------------------------------------- refused


def test_no_file_or_none_of_ours(tmp_path):
    assert "no checkpoint at" in refusal(tmp_path / "missing.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")  # which nobody writes to: reading it would never end
    assert "not a file" in refusal(tmp_path / "pipe.safetensors")
    (tmp_path / "empty.safetensors").touch()
    assert "not a checkpoint" in refusal(tmp_path / "empty.safetensors")
    safetensors.torch.save_file({"weight": torch.ones(1)}, tmp_path / "other.safetensors")
    assert "not a checkpoint" in refusal(tmp_path / "other.safetensors")
    torch.save({"epoch": 1}, tmp_path / "old.pt")
    assert "is a .pt file, not a safetensors file" in refusal(tmp_path / "old.pt")


def test_every_flipped_bit_of_a_weight_is_noticed(tmp_path, content):
    path = tmp_path / "a.safetensors"
    checkpoints.save_checkpoint(path, content)
    intact = path.read_bytes()
    weights = content["state_dict"]["weight"].numpy().tobytes()
    at = intact.index(weights)
    for byte in range(len(weights)):
        damaged = bytearray(intact)
        damaged[at + byte] ^= 1 << byte % 8
        path.write_bytes(damaged)
        assert "damaged" in refusal(path)


def rewritten(path, tensors=None, **metadata):
    """Change what a checkpoint holds, as any program can that writes safetensors."""
    with safetensors.safe_open(path, "pt") as file:
        found = file.metadata()
    tensors = safetensors.torch.load_file(path) if tensors is None else tensors
    safetensors.torch.save_file(tensors, path, found | metadata)


def sealed(path, tensors, content):
    """The same with a checksum that fits."""
    digest = checkpoints.checksum(content, tensors)
    rewritten(path, tensors, content=content, sha256=digest)


def test_the_checksum_covers_all(tmp_path, content):
    path = tmp_path / "a.safetensors"
    checkpoints.save_checkpoint(path, content)
    tensors = safetensors.torch.load_file(path)
    weight = tensors["state_dict/weight"]
    for other in (weight + 1, weight.view(3, 2), weight.double(), weight.view(torch.int32)):
        checkpoints.save_checkpoint(path, content)
        rewritten(path, tensors | {"state_dict/weight": other})
        assert "its checksum does not match" in refusal(path)
    rewritten(path, tensors | {"other": weight.clone()})
    assert "its checksum does not match" in refusal(path)
    checkpoints.save_checkpoint(path, content)
    rewritten(path, content=json.dumps(content | {"state_dict": {}, "epoch": 2}))
    assert "its checksum does not match" in refusal(path)


def test_another_version_is_refused_by_its_number(tmp_path, content, monkeypatch):
    monkeypatch.setattr(checkpoints, "VERSION", "1")
    checkpoints.save_checkpoint(tmp_path / "old.safetensors", content)
    monkeypatch.undo()
    line = refusal(tmp_path / "old.safetensors")
    assert "version '1'" in line and f"reads {checkpoints.VERSION}" in line


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"epoch": NaN}',
        '{"epoch": 1' + "0" * 5000 + "}",
        '{"state_dict": {"tensor": "state_dict/weight"}}',
        '{"a": {"tensor": "state_dict/weight"}, "b": {"tensor": "state_dict/weight"}}',
        '{"a": {"tensor": "nowhere"}}',
        '{"a": {"tensor": ["state_dict/weight"]}}',
        '{"\u0663": {"\u00b2": 1}}',
        "[" * 100_000,
        '{"a":' * 50_000,
    ],
    ids=lambda text: text[:30],
)
def test_json_that_makes_no_sense_is_refused_though_sealed(tmp_path, content, text):
    path = tmp_path / "a.safetensors"
    checkpoints.save_checkpoint(path, content)
    sealed(path, safetensors.torch.load_file(path), text)
    assert "is damaged" in refusal(path)


NAN, LARGE = float("nan"), 10**400


@pytest.mark.parametrize(
    "name, value",
    [
        ("model", 7),
        ("model", "x\ny"),
        ("config", []),
        ("config", {"widths": [1 << 40] * 3}),
        ("state_dict", {}),
        ("state_dict", {"weight": [1.0]}),
        ("state_dict", {"weight": torch.tensor([1.0, NAN])}),
        ("state_dict", {"weight": torch.tensor([1.0, float("inf")])}),
        ("normalization", {"mean": [0.5] * 3}),
        ("normalization", {"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}),
        ("normalization", {"mean": [0.5] * 3, "std": [0.5, NAN, 0.5]}),
        ("normalization", {"mean": [0.5] * 3, "std": [0.5] * 3, "more": [0.5] * 3}),
        ("normalization", {"mean": [0.5] * 2, "std": [0.5] * 2}),
        ("classes", ["cat"] * 9),
        ("classes", list(range(10))),
        ("data", {"source": "sample"}),
        ("epoch", -1),
        ("epoch", 1.0),
        ("epoch", True),
        ("epoch", LARGE),
        ("history", {}),
        ("history", [{"epoch": 1}]),
        ("history", [dict.fromkeys(utils.HISTORY_COLUMNS, 2)]),
        ("history", [dict.fromkeys(utils.HISTORY_COLUMNS, NAN) | {"epoch": 1}]),
        ("history", [dict.fromkeys(utils.HISTORY_COLUMNS, LARGE) | {"epoch": 1}]),
        ("history", [dict.fromkeys(utils.HISTORY_COLUMNS) | {"epoch": 1}]),
    ],
)
def test_what_makes_no_sense_is_refused_though_sealed(tmp_path, content, name, value):
    checkpoints.save_checkpoint(tmp_path / "a.safetensors", content | {name: value})
    assert f"its {name} is invalid" in refusal(tmp_path / "a.safetensors")
    del content[name]
    checkpoints.save_checkpoint(tmp_path / "a.safetensors", content)
    assert f"its {name} is invalid" in refusal(tmp_path / "a.safetensors")


def test_weights_of_a_type_that_cannot_be_checked_are_refused(tmp_path, content):
    content["state_dict"] = {"weight": torch.ones(2).to(torch.float8_e4m3fn)}
    checkpoints.save_checkpoint(tmp_path / "a.safetensors", content)
    assert "is damaged" in refusal(tmp_path / "a.safetensors")


def header(path, length=None, **entries):
    text = json.dumps(entries).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text)


def test_absurd_sizes_cost_nothing(tmp_path):
    with open(tmp_path / "sparse.safetensors", "wb") as file:
        file.truncate(1 << 40)  # it takes no space on the disk
    assert "larger than" in refusal(tmp_path / "sparse.safetensors")
    large = {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 1 << 32]}
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header(tmp_path / "tensor.safetensors", a=large)
    header(tmp_path / "shape.safetensors", a=large | {"data_offsets": [0, 0]})
    header(tmp_path / "overflow.safetensors", a=large | {"shape": [1 << 62, 1 << 62]})
    header(tmp_path / "header.safetensors", length=1 << 40)
    header(tmp_path / "long.safetensors", __metadata__={"a": "a" * (1 << 21)})
    header(tmp_path / "many.safetensors", **{str(i): empty for i in range(10_000)})
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    for name in ("tensor", "shape", "overflow", "header", "long", "many"):
        assert "is damaged" in refusal(tmp_path / f"{name}.safetensors")
    assert time.perf_counter() - start < 2
    # Kilobytes; on macOS, where it counts bytes, this holds all the more.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("limit", ["MAX_BYTES", "MAX_HEADER_BYTES", "MAX_TENSORS"])
def test_what_could_not_be_read_again_is_not_written(tmp_path, content, monkeypatch, limit):
    path = tmp_path / "a.safetensors"
    checkpoints.save_checkpoint(path, content)
    before = path.read_bytes()
    monkeypatch.setattr(checkpoints, limit, 1)
    with pytest.raises(utils.RunError, match="too large for a checkpoint"):
        checkpoints.save_checkpoint(path, content)
    assert path.read_bytes() == before


# -------------------------------------------------------------------------------------- networks


def test_a_network_is_rebuilt_from_its_checkpoint(tmp_path, content):
    network = models.build("baseline").eval()
    content |= {"state_dict": network.state_dict()}
    path = tmp_path / "a.safetensors"
    checkpoints.save_checkpoint(path, content)
    rebuilt = checkpoints.rebuild(checkpoints.load_checkpoint(path), path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), network(images))


@pytest.mark.parametrize(
    "change",
    [
        {"state_dict": {}},
        {"state_dict": None},
        {"model": "under100k"},
        {"model": "under100k", "config": {"widths": "wide"}},
        {"model": "under100k", "config": {"widths": (32, 0)}},
        {"model": "under100k", "config": {1: 2}},
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_network_that_does_not_fit_its_weights(content, change):
    content["state_dict"] = models.build("baseline").state_dict()
    content |= change
    if change.get("state_dict", 0) is None:
        content["state_dict"] = models.build("baseline").double().state_dict()
    with pytest.raises(RunError, match="weights of another network"):
        checkpoints.rebuild(content, "a.safetensors")


@pytest.mark.parametrize(
    "config",
    [
        {"widths": (4096, 4096), "hidden": (8192, 8192)},  # 4 GB
        {"widths": (1024, 1024), "hidden": (2048, 2048)},
        {"depths": (4096, 4096, 4096, 4096)},
    ],
)
def test_a_network_too_large_for_its_weights_is_refused_before_it_is_complete(
    content, monkeypatch, config
):
    """Bytes of other types do not count as weights."""
    monkeypatch.setattr(mirror.TiedTensors, "__init__", lambda *_: pytest.fail("it was built"))
    state = models.build("baseline").state_dict()
    bulk = torch.zeros(2**24, dtype=torch.uint8)
    content |= {"model": "under100k", "config": config, "state_dict": {**state, "bulk": bulk}}
    with pytest.raises(RunError, match="larger than the file's weights"):
        checkpoints.rebuild(content, "a.safetensors")


def test_a_network_may_make_more_parameters_than_it_keeps(content, monkeypatch):
    def build(name, **config):
        network = torch.nn.Sequential(torch.nn.LazyLinear(8), torch.nn.Linear(8, 2))
        network(torch.zeros(1, 4))
        wide = torch.nn.Linear(2048, 2048)
        network[1].weight = torch.nn.Parameter(wide.weight[:2, :8].clone())
        return network

    network = build("")
    content |= {"state_dict": network.state_dict()}
    monkeypatch.setattr(models, "build", build)
    rebuilt = checkpoints.rebuild(content, "a.safetensors")
    assert torch.equal(rebuilt[1].weight, network[1].weight)


def test_weights_in_half_precision_compute_in_full(content):
    network = models.build("baseline")
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in network.state_dict().items()
    }
    content |= {"model": "baseline", "config": {}, "state_dict": halves}
    rebuilt = checkpoints.rebuild(content, "a.safetensors").state_dict()
    for name, tensor in network.state_dict().items():
        assert rebuilt[name].dtype == tensor.dtype
        torch.testing.assert_close(rebuilt[name], tensor, rtol=1e-3, atol=1e-6)


def test_a_network_whose_constructor_computes(content, monkeypatch):
    """It reads numbers, and keeps some that a checkpoint does not hold."""

    class Scaled(torch.nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.rates = [rate.item() for rate in torch.linspace(0, 1, 3)]
            self.register_buffer("scale", torch.full((2,), 3.0), persistent=False)

    torch.manual_seed(0)
    network = Scaled()
    content |= {"state_dict": network.state_dict()}
    monkeypatch.setattr(models, "build", lambda name, **config: Scaled())
    before = torch.get_rng_state()
    rebuilt = checkpoints.rebuild(content, "a.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(rebuilt.weight, network.weight)
    assert rebuilt.rates == [0, 0.5, 1] and rebuilt.scale.tolist() == [3, 3]
    content["state_dict"] = {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}
    with pytest.raises(RunError, match="weights of another network"):
        checkpoints.rebuild(content, "a.safetensors")


def test_equal_structure():
    expected = {"a": [1, 2.5, None], "b": torch.zeros(2), "c": {"on": True, "name": "x"}}
    check_like(expected, {"a": [7, 3, None], "b": torch.ones(2), "c": expected["c"]})
    for key, value in [
        ("a", [1, 2.5]),
        ("a", [1.5, 2.5, None]),
        ("a", [1, NAN, None]),
        ("a", [LARGE, 2.5, None]),
        ("a", None),
        ("b", torch.zeros(3)),
        ("b", torch.zeros(2, dtype=torch.float64)),
        ("b", torch.tensor([1.0, NAN])),
        ("b", [0.0, 0.0]),
        ("c", {"on": False, "name": "x"}),
        ("c", {"on": 1, "name": "x"}),
        ("c", {"on": True, "name": "y"}),
        ("c", {"on": True}),
    ]:
        with pytest.raises(ValueError, match=f"training/{key}"):
            check_like(expected, expected | {key: value})


def test_the_longest_run_that_a_recipe_allows_fits(tmp_path, content):
    """Its history is part of the header, which has a limit."""
    longest = settings_of(Recipe)["epochs"].at_most
    row = dict.fromkeys(utils.HISTORY_COLUMNS, 1 / 3)
    content["history"] = [row | {"epoch": i + 1} for i in range(longest)]
    names = {f"wide.0.convolution.dwconv.{i}.running_mean": torch.zeros(1) for i in range(1000)}
    checkpoints.save_checkpoint(tmp_path / "a.safetensors", content | {"training": names})
    assert checkpoints.load_checkpoint(tmp_path / "a.safetensors")["history"] == content["history"]
