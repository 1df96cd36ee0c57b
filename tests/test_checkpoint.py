"""Checkpoint files: whole, warily read, one writer a folder.

The fuzz (test_resume.py) finds what nobody thought of; here stands what must be refused by name.
"""

import fcntl
import os
import pickle
import resource
import zipfile

import pytest
import torch
from torch import nn

import data
import models
import utils
from training import checkpoint as checkpoints
from utils import RunError


@pytest.fixture
def content():
    """A small checkpoint in the released form."""
    return {
        "model": "baseline",
        "config": {},
        "state_dict": {"weight": torch.arange(6.0).view(2, 3), "count": torch.tensor(3)},
        "normalization": {"mean": list(data.MEAN), "std": list(data.STD)},
        "classes": list(data.CLASSES),
        "data": {"source": "sample", "train_split": "train", "eval_split": "val"},
        "epoch": 1,
        "history": [dict.fromkeys(utils.HISTORY_COLUMNS, 0.5) | {"epoch": 1, "eval_loss": None}],
    }


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(RunError) as refused:
        checkpoints.load_checkpoint(path)
    line = str(refused.value)
    assert "\n" not in line and str(path) in line
    return line


def test_what_is_saved_is_loaded(tmp_path, content):
    path = tmp_path / "ä b.pt"
    checkpoints.save_checkpoint(path, content)
    loaded = checkpoints.load_checkpoint(path)
    assert torch.equal(loaded["state_dict"].pop("weight"), content["state_dict"].pop("weight"))
    assert torch.equal(loaded["state_dict"].pop("count"), content["state_dict"].pop("count"))
    assert loaded.pop("format") == checkpoints.FORMAT and len(loaded.pop("checksum")) == 64
    assert loaded == content
    plain = torch.load(path, weights_only=True)  # which needs nothing of this repository
    assert plain["model"] == "baseline"


def test_memory_layout_is_kept(tmp_path, content):
    """Resuming bit for bit takes the same kernels, and those depend on the layout."""
    images = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    content["state_dict"]["weight"] = images
    checkpoints.save_checkpoint(tmp_path / "a.pt", content)
    loaded = checkpoints.load_checkpoint(tmp_path / "a.pt")["state_dict"]["weight"]
    assert loaded.stride() == images.stride() and torch.equal(loaded, images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_checkpoint_from_a_gpu_names_no_gpu(tmp_path, content):
    content["state_dict"]["weight"] = content["state_dict"]["weight"].cuda()
    checkpoints.save_checkpoint(tmp_path / "a.pt", content)
    assert torch.load(tmp_path / "a.pt", weights_only=True)["state_dict"]["weight"].is_cpu


# -------------------------------------------------------------------------------------- refused


def test_no_file_or_none_of_ours(tmp_path):
    assert "no checkpoint at" in refusal(tmp_path / "missing.pt")
    (tmp_path / "folder.pt").mkdir()
    assert "not a file" in refusal(tmp_path / "folder.pt")
    os.mkfifo(tmp_path / "pipe.pt")  # which nobody writes to: reading it would never end
    assert "not a file" in refusal(tmp_path / "pipe.pt")
    torch.save({"epoch": 1}, tmp_path / "other.pt")
    assert "not a checkpoint" in refusal(tmp_path / "other.pt")


def test_every_flipped_bit_of_a_weight_is_noticed(tmp_path, content):
    path = tmp_path / "a.pt"
    checkpoints.save_checkpoint(path, content)
    intact = path.read_bytes()
    weights = content["state_dict"]["weight"].numpy().tobytes()
    at = intact.index(weights)
    for byte in range(len(weights)):
        damaged = bytearray(intact)
        damaged[at + byte] ^= 1 << byte % 8
        path.write_bytes(damaged)
        assert "damaged" in refusal(path)


def test_the_checksum_covers_all(content):
    """Also what the archive's own checksums would not notice: that a program changed it."""
    before = {checkpoints.checksum(content)}
    for name, value in [("epoch", 2), ("model", "x"), ("classes", ["a"]), ("more", 1)]:
        before.add(checkpoints.checksum(content | {name: value}))
    weight = content["state_dict"]["weight"]
    for other in (weight + 1, weight.view(3, 2), weight.double(), weight.view(torch.int32)):
        before.add(checkpoints.checksum(content | {"state_dict": {"weight": other}}))
    assert len(before) == 9


def test_an_older_layout_is_refused_by_its_version(tmp_path, content, monkeypatch):
    monkeypatch.setattr(checkpoints, "FORMAT", 0)
    checkpoints.save_checkpoint(tmp_path / "old.pt", content)
    monkeypatch.undo()
    line = refusal(tmp_path / "old.pt")
    assert "format 0" in line and f"reads {checkpoints.FORMAT}" in line


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
    checkpoints.save_checkpoint(tmp_path / "a.pt", content | {name: value})
    assert f"its {name} makes no sense" in refusal(tmp_path / "a.pt")
    del content[name]
    checkpoints.save_checkpoint(tmp_path / "a.pt", content)
    assert f"its {name} makes no sense" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(1 << 40),
        torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"),
        nn.Parameter(torch.zeros(2)),
        {1, 2},
        b"bytes",
        [[]] * (checkpoints.MAX_NODES + 1),
    ],
    ids=["absurd size", "sparse", "meta", "parameter", "set", "bytes", "too many"],
)
def test_nothing_but_plain_values_and_tensors(tmp_path, content, value):
    torch.save(content | {"format": 1, "checksum": "0", "more": value}, tmp_path / "a.pt")
    assert "is damaged or is not a checkpoint" in refusal(tmp_path / "a.pt")


def test_a_structure_that_contains_itself(tmp_path, content):
    content["config"]["self"] = content
    torch.save(content | {"format": 1, "checksum": "0"}, tmp_path / "a.pt")
    assert "is damaged" in refusal(tmp_path / "a.pt")


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def archive(path, pickled, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_no_pickle_runs_code(tmp_path, protocol):
    pickled = pickle.dumps(Attack(str(tmp_path / "trace")), protocol=protocol)
    archive(tmp_path / "archive.pt", pickled)
    (tmp_path / "bare.pt").write_bytes(pickled)
    torch.save(Attack(str(tmp_path / "trace")), tmp_path / "saved.pt")
    for name in ("archive.pt", "bare.pt", "saved.pt"):
        assert "is damaged or is not a checkpoint" in refusal(tmp_path / name)
    assert not (tmp_path / "trace").exists()


def test_absurd_sizes_cost_nothing(tmp_path, content):
    with open(tmp_path / "sparse.pt", "wb") as file:
        file.truncate(1 << 40)  # it takes no space on the disk
    assert "larger than" in refusal(tmp_path / "sparse.pt")
    archive(tmp_path / "bomb.pt", bytes(1 << 28), zipfile.ZIP_DEFLATED)
    archive(tmp_path / "allocates.pt", pickle.dumps(bytearray, 2)[:-1] + b"(J\0\0\0\x7ftR.")
    archive(tmp_path / "long.pt", b"\x80\x02" + b"N0" * (1 << 21) + b"N.")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in ("bomb.pt", "allocates.pt", "long.pt"):
        assert "is damaged" in refusal(tmp_path / name)
    # Kilobytes; on macOS, where it counts bytes, this holds all the more.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_only_the_format_that_pytorch_writes_today(tmp_path, content):
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert "is damaged or is not a checkpoint" in refusal(tmp_path / "a.pt")


# -------------------------------------------------------------------------------------- networks


def test_a_network_is_rebuilt_from_its_checkpoint(tmp_path, content):
    network = models.build("baseline").eval()
    content |= {"state_dict": network.state_dict()}
    checkpoints.save_checkpoint(tmp_path / "a.pt", content)
    rebuilt = checkpoints.rebuild(
        models.build, checkpoints.load_checkpoint(tmp_path / "a.pt"), "a.pt"
    )
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(images), network(images))


@pytest.mark.parametrize(
    "change",
    [
        {"state_dict": {}},
        {"state_dict": None},
        {"model": "under100k"},
        {"model": "under100k", "config": {"widths": (4096, 4096), "hidden": (8192, 8192)}},
        {"model": "under100k", "config": {"widths": "wide"}},
        {"model": "under100k", "config": {1: 2}},
    ],
)
def test_a_network_that_does_not_fit_its_weights(content, change):
    """It is refused before it takes any memory: the fourth would take 4 GB."""
    content["state_dict"] = models.build("baseline").state_dict()
    content |= change
    if change.get("state_dict", 0) is None:
        content["state_dict"] = models.build("baseline").double().state_dict()
    with pytest.raises(RunError, match="weights of another network"):
        checkpoints.rebuild(models.build, content, "a.pt")


# ------------------------------------------------------------------------------ folder of a run


def test_the_two_newest_checkpoints_are_kept(tmp_path, content):
    for epoch in (0, 1, 2):
        checkpoints.save_latest(tmp_path, content | {"epoch": epoch})
    names = {path.name: checkpoints.load_checkpoint(path)["epoch"] for path in tmp_path.iterdir()}
    assert names == {checkpoints.LAST: 2, checkpoints.PREVIOUS: 1}


def test_a_limit_on_the_size_of_files_leaves_the_old_checkpoint(tmp_path, content):
    checkpoints.save_latest(tmp_path, content)
    before = (tmp_path / checkpoints.LAST).read_bytes()
    content["state_dict"]["weight"] = torch.zeros(1 << 20)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(RunError, match="cannot write .*: File too large.* intact"):
            checkpoints.save_latest(tmp_path, content)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoints.LAST]
    assert (tmp_path / checkpoints.LAST).read_bytes() == before


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    run = tmp_path / "run"
    with checkpoints.locked(run):
        with pytest.raises(RunError, match="another training writes to .*--output"):
            with checkpoints.locked(run):
                pass
        with checkpoints.locked(tmp_path / "another"):
            pass
    with checkpoints.locked(run):
        pass


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / f".{checkpoints.LAST}.123.tmp").write_bytes(b"half")
    (tmp_path / checkpoints.LAST).write_bytes(b"whole")
    with checkpoints.locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            checkpoints.LOCK,
            checkpoints.LAST,
        ]


def test_where_files_cannot_be_locked_one_does_without(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with checkpoints.locked(tmp_path / "run"):
        pass


def test_a_folder_is_claimed_for_its_own_run_alone(tmp_path):
    run, last = tmp_path / "run", tmp_path / "run" / checkpoints.LAST
    run.mkdir()
    checkpoints.claim(run, None, None)
    for name in (checkpoints.LAST, checkpoints.PREVIOUS):
        (run / name).write_bytes(name.encode())
        with pytest.raises(RunError, match="already holds a run"):
            checkpoints.claim(run, None, None)
        other = tmp_path / checkpoints.LAST
        with pytest.raises(RunError, match="already holds a run"):
            checkpoints.claim(run, other, other)
    checkpoints.claim(run, last, last)
    assert last.read_bytes() == b"last.pt"
    checkpoints.claim(run, last, run / checkpoints.PREVIOUS)  # which stood in for a damaged one
    assert last.read_bytes() == b"previous.pt"
    assert not (run / checkpoints.PREVIOUS).exists()


def test_the_newest_of_several_runs(tmp_path):
    assert checkpoints.find_latest([]) is None
    assert checkpoints.find_latest([tmp_path / "nothing"]) is None
    for age, (run, name) in enumerate([("b", "last.pt"), ("a", "previous.pt"), ("c", "other.pt")]):
        (tmp_path / run).mkdir()
        (tmp_path / run / name).touch()
        os.utime(tmp_path / run / name, (age, age))
    assert checkpoints.find_latest(tmp_path.iterdir()) == tmp_path / "a" / "last.pt"


def test_equal_structure():
    expected = {"a": [1, 2.5, None], "b": torch.zeros(2), "c": {"on": True, "name": "x"}}
    checkpoints.check_like(expected, {"a": [7, 3, None], "b": torch.ones(2), "c": expected["c"]})
    for key, value in [
        ("a", [1, 2.5]),
        ("a", [1.5, 2.5, None]),
        ("a", [1, NAN, None]),
        ("a", [LARGE, 2.5, None]),
        ("a", (1, 2.5, None)),
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
            checkpoints.check_like(expected, expected | {key: value})
