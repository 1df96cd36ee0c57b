"""The data package: formats, verification, splits, sample, augmentation, loader.

Fakes of CIFAR-10 stand in for the real one, with 20 images a batch. Tests of the real one look
for it in $CIFAR10_DIR, in data/raw and beside the repository, and are skipped where it is not.
"""

import csv
import dataclasses
import hashlib
import http.server
import io
import math
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.datasets import CIFAR10

import data
from data import Augmentation, DataError, Loader, Split, cifar10, make_sample

ROOT = Path(__file__).resolve().parent.parent
BATCHES = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
FAKE_BATCH = 20  # images


# ------------------------------------------------------------------------------ fakes of CIFAR-10


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: byte strings, as in the official files."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        raw = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value):
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


class Fake:
    """A small CIFAR-10: its records, and how to lay it out on disk in either format."""

    def __init__(self):
        random = np.random.RandomState(0)
        self.records = {}
        for batch in BATCHES:
            labels = random.permutation(np.arange(FAKE_BATCH) % 10)
            pixels = random.randint(0, 256, (FAKE_BATCH, 3072))
            self.records[batch] = np.hstack([labels[:, None], pixels]).astype(np.uint8)
        self.binary = {batch: records.tobytes() for batch, records in self.records.items()}
        self.python = {
            batch: python2_pickle(
                {
                    "batch_label": batch,
                    "labels": records[:, 0].tolist(),
                    "data": records[:, 1:],
                    "filenames": [f"{i}.png" for i in range(FAKE_BATCH)],
                }
            )
            for batch, records in self.records.items()
        }

    def write_binary(self, directory, batches=BATCHES):
        folder = directory / "cifar-10-batches-bin"
        folder.mkdir()
        for batch in batches:
            (folder / f"{batch}.bin").write_bytes(self.binary[batch])
        return folder

    def write_python(self, directory, batches=BATCHES):
        folder = directory / "cifar-10-batches-py"
        folder.mkdir()
        for batch in batches:
            (folder / batch).write_bytes(self.python[batch])
        return folder

    def images(self, *batches):
        records = np.concatenate([self.records[batch] for batch in batches])
        return torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def fake(monkeypatch):
    """A Fake whose checksums the code takes for the official ones."""
    fake = Fake()
    for table, batches in (("TRAIN_BATCHES", BATCHES[:5]), ("TEST_BATCHES", BATCHES[5:])):
        monkeypatch.setattr(cifar10, table, {b: md5(fake.binary[b]) for b in batches})
    pickles = [[batch, md5(content)] for batch, content in fake.python.items()]
    monkeypatch.setattr(cifar10, "PICKLES", dict(pickles))
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


def error_of(function, *args, **kwargs):
    """The message of the DataError that a call raises: one line, without a word of Python's."""
    with pytest.raises(DataError) as caught:
        function(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message and "Error" not in message
    return message


def same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


# ------------------------------------------------------------------------------- the real CIFAR-10


@pytest.fixture(scope="module")
def real_directory():
    places = [os.environ.get("CIFAR10_DIR"), ROOT / "data" / "raw", ROOT.parent / "shared" / "data"]
    for place in places:
        if place and cifar10._on_disk(Path(place)):
            return Path(place)
    pytest.skip("CIFAR-10 is not on disk")


@pytest.fixture(scope="module")
def real(real_directory):
    return data.load("cifar10", real_directory, "train+val")


def test_normalisation_constants_are_those_of_the_training_images(real):
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(3):
        counts = torch.bincount(real.images[:, channel].flatten(), minlength=256)
        mean = (counts * values).sum() / counts.sum()
        std = ((counts * (values - mean) ** 2).sum() / counts.sum()).sqrt()
        assert data.MEAN[channel] == pytest.approx(mean.item(), abs=5e-6)
        assert data.STD[channel] == pytest.approx(std.item(), abs=5e-6)


def test_real_splits(real, real_directory):
    train = data.load("cifar10", real_directory, "train")
    val = data.load("cifar10", real_directory, "val")
    assert train.images.shape == (45_000, 3, 32, 32)
    assert val.images.shape == (5_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [4500] * 10
    assert torch.bincount(val.labels).tolist() == [500] * 10
    train_indices, val_indices = cifar10.split_indices(real.labels.numpy())
    assert torch.equal(real.images[train_indices], train.images)
    assert torch.equal(real.images[val_indices], val.images)
    # The split of the released weights: it must never move.
    assert md5(val_indices.astype("<i8").tobytes()) == "812cc58fbf5a0641ac752e48411dc67b"


# ----------------------------------------------------------------------------------- load: formats


def test_both_formats_give_the_same_tensors(fake, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    fake.write_binary(tmp_path / "a")
    fake.write_python(tmp_path / "b")
    for name, count in (("train", 80), ("val", 20), ("train+val", 100), ("test", 20)):
        a = data.load("cifar10", tmp_path / "a", name)
        b = data.load("cifar10", tmp_path / "b", name)
        assert same(a, b)
        assert a.images.shape == (count, 3, 32, 32) and a.images.dtype == torch.uint8
        assert a.labels.shape == (count,) and a.labels.dtype == torch.int64
        assert a.images.is_contiguous() and len(a) == count
        assert (a.name, a.source) == (name, "cifar10")
    everything = data.load("cifar10", tmp_path / "a", "train+val")
    assert torch.equal(everything.images, fake.images(*BATCHES[:5]))
    assert torch.equal(data.load("cifar10", tmp_path / "b", "test").images, fake.images(BATCHES[5]))


def test_the_folder_itself_may_be_named(fake, tmp_path, monkeypatch):
    for folder in (fake.write_binary(tmp_path), fake.write_python(tmp_path)):
        assert data.find("cifar10", folder, need=("train",)) == "cifar10"
        assert len(data.load("cifar10", str(folder), "train")) == 80
        monkeypatch.chdir(folder)
        assert len(data.load("cifar10", ".", "train")) == 80


def test_of_two_formats_the_one_that_has_the_split_is_read(fake, tmp_path):
    fake.write_binary(tmp_path, BATCHES[:5])
    fake.write_python(tmp_path, BATCHES[1:])
    assert data.find("auto", tmp_path, need=("train", "test")) == "cifar10"
    assert len(data.load("cifar10", tmp_path, "train")) == 80
    assert len(data.load("cifar10", tmp_path, "test")) == 20


def test_only_the_files_of_the_split_are_read(fake, tmp_path):
    folder = fake.write_binary(tmp_path)
    (folder / "test_batch.bin").write_bytes(b"damaged")
    assert len(data.load("cifar10", tmp_path, "val")) == 20
    assert "test_batch is damaged" in error_of(data.load, "cifar10", tmp_path, "test")


# ------------------------------------------------------------------------------ load: verification


@pytest.mark.parametrize("position", [0, 1, 3073 * FAKE_BATCH - 1])
def test_one_flipped_bit_in_the_binary_version(fake, tmp_path, position):
    path = fake.write_binary(tmp_path) / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    message = error_of(data.load, "cifar10", tmp_path, "train")
    assert message.startswith("data_batch_3 is damaged")
    assert str(path) in message and "replace it" in message


def test_one_flipped_bit_in_the_python_version(fake, tmp_path):
    path = fake.write_python(tmp_path) / "data_batch_3"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    message = error_of(data.load, "cifar10", tmp_path, "val")
    assert message.startswith("data_batch_3 is damaged")
    assert str(path) in message and "replace it" in message


def test_content_is_verified_whatever_the_pickle(fake, tmp_path, monkeypatch):
    """A file whose own checksum is right still has to hold the official images."""
    records = fake.records["data_batch_2"].copy()
    records[5, 100] ^= 1
    content = python2_pickle({"labels": records[:, 0].tolist(), "data": records[:, 1:]})
    path = fake.write_python(tmp_path) / "data_batch_2"
    path.write_bytes(content)
    monkeypatch.setitem(cifar10.PICKLES, "data_batch_2", md5(content))
    assert "data_batch_2 is damaged" in error_of(data.load, "cifar10", tmp_path, "train")


@pytest.mark.parametrize("layout", ["write_binary", "write_python"])
def test_truncated_file(fake, tmp_path, layout):
    folder = getattr(fake, layout)(tmp_path)
    path = next(folder.glob("data_batch_5*"))
    path.write_bytes(path.read_bytes()[:-1])
    message = error_of(data.load, "cifar10", tmp_path, "train")
    assert message.startswith("data_batch_5 is damaged") and str(path) in message


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_is_unpickled_unchecked(fake, tmp_path, monkeypatch):
    trace = tmp_path / "trace"
    content = pickle.dumps(Attack(str(trace)), protocol=2)
    (fake.write_python(tmp_path) / "data_batch_1").write_bytes(content)
    error_of(data.load, "cifar10", tmp_path, "train")
    # Nor does a file with the right checksum get to run code.
    monkeypatch.setitem(cifar10.PICKLES, "data_batch_1", md5(content))
    assert "does not hold a batch" in error_of(data.load, "cifar10", tmp_path, "train")
    assert not trace.exists()


@pytest.mark.parametrize("value", [[], {}, {"labels": [1], "data": [[1, 2]]}, {"labels": "x"}])
def test_a_pickle_of_something_else(fake, tmp_path, monkeypatch, value):
    content = python2_pickle(value)
    (fake.write_python(tmp_path) / "test_batch").write_bytes(content)
    monkeypatch.setitem(cifar10.PICKLES, "test_batch", md5(content))
    assert "test_batch is damaged" in error_of(data.load, "cifar10", tmp_path, "test")


def test_a_folder_in_the_place_of_a_file(fake, tmp_path):
    for layout in (fake.write_binary, fake.write_python):
        path = next(layout(tmp_path).glob("data_batch_1*"))
        path.unlink()
        path.mkdir()
        assert "data_batch_1" in error_of(data.load, "cifar10", tmp_path, "train")
        shutil.rmtree(path.parent)


def test_unknown_names():
    assert "choose one of train" in error_of(data.load, "sample", "x", "training")
    assert "choose one of train" in error_of(data.find, "sample", "x", need=("validation",))
    assert "choose cifar10 or sample" in error_of(data.load, "auto", "x", "train")
    assert "choose one of auto" in error_of(data.find, "imagenet", "x", need=())


# ------------------------------------------------------------------------------------ load: splits


def test_split_is_disjoint_stratified_and_stable():
    labels = np.random.RandomState(1).permutation(np.arange(50_000) % 10)
    train, val = cifar10.split_indices(labels)
    assert np.array_equal(np.sort(np.concatenate([train, val])), np.arange(50_000))
    assert np.bincount(labels[val]).tolist() == [500] * 10
    assert np.bincount(labels[train]).tolist() == [4500] * 10
    assert (np.diff(train) > 0).all() and (np.diff(val) > 0).all()
    assert md5(val.astype("<i8").tobytes()) == "b77317dfa3979a2b201f934ed0a8f533"
    np.random.seed(3)  # nor does it depend on anybody's random state
    assert np.array_equal(cifar10.split_indices(labels)[1], val)


def test_train_and_val_are_the_parts_of_train_plus_val(fake, tmp_path):
    fake.write_binary(tmp_path)
    parts = [data.load("cifar10", tmp_path, name) for name in ("train", "val", "train+val")]
    train, val, both = ({bytes(image.numpy()) for image in part.images} for part in parts)
    assert not train & val and train | val == both and len(both) == 100
    assert torch.bincount(parts[1].labels).tolist() == [2] * 10


# -------------------------------------------------------------------------------------------- find


def test_find_sample_looks_nowhere(tmp_path):
    assert data.find("sample", tmp_path / "none", need=("train",)) == "sample"


def test_default_directory_stands_in_the_repository():
    assert data.DEFAULT_DIRECTORY == ROOT / "data" / "raw"


@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_a_missing_test_split_is_an_error_with_a_way_out(fake, tmp_path, source):
    folder = fake.write_binary(tmp_path, BATCHES[:5])
    assert data.find(source, tmp_path, need=("train", "val")) == "cifar10"
    message = error_of(data.find, source, tmp_path, need=("train", "test"))
    assert "test split is not on disk" in message and "--eval-split val" in message
    assert str(folder) in message and "test_batch.bin" in message


@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_a_missing_batch_is_an_error_that_names_it(fake, tmp_path, source):
    folder = fake.write_python(tmp_path, [b for b in BATCHES if b != "data_batch_4"])
    message = error_of(data.find, source, tmp_path, need=("train",))
    assert f"{folder} has no data_batch_4;" in message


@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_damage_never_leads_to_the_sample(fake, tmp_path, source):
    (fake.write_binary(tmp_path) / "data_batch_1.bin").write_bytes(b"")
    source = data.find(source, tmp_path, need=("train",))
    assert source == "cifar10"
    assert "data_batch_1 is damaged" in error_of(data.load, source, tmp_path, "train")


@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_a_file_in_the_place_of_the_directory(tmp_path, source):
    path = tmp_path / "file"
    path.write_text("not a folder")
    assert "is not a folder" in error_of(data.find, source, path, need=("train",))


def test_a_directory_that_cannot_be_looked_into(tmp_path, no_network):
    error_of(data.find, "cifar10", tmp_path / ("x" * 300), need=("train",))
    if os.geteuid() != 0:  # root reads everything
        (tmp_path / "locked" / "cifar-10-batches-bin").mkdir(parents=True)
        (tmp_path / "locked").chmod(0)
        assert "Permission" in error_of(data.find, "auto", tmp_path / "locked", need=("train",))
        (tmp_path / "locked").chmod(0o700)


def test_load_where_nothing_is(tmp_path):
    assert "no CIFAR-10 in" in error_of(data.load, "cifar10", tmp_path, "train")


# ---------------------------------------------------------------------------------------- download


@pytest.fixture
def archive(fake, tmp_path, monkeypatch):
    """The fake's cifar-10-python.tar.gz in a folder of its own."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    source = fake.write_python(folder)
    meta = python2_pickle({"label_names": list(data.CLASSES)})
    (source / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(meta)})
    archive = folder / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, source.name)
    shutil.rmtree(source)
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive.read_bytes()))
    return archive


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def mirror(archive):
    """The address of a server that has the archive."""
    handler = partial(QuietHandler, directory=archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/{archive.name}"
        server.shutdown()


@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_download_from_a_mirror(fake, mirror, tmp_path, source, capfd):
    directory = tmp_path / "new" / "raw"
    assert data.find(source, directory, need=("train", "test"), download_url=mirror) == "cifar10"
    assert "100%" in capfd.readouterr().err  # torchvision's progress bar
    test = data.load("cifar10", directory, "test")
    assert torch.equal(test.images, fake.images("test_batch"))
    assert socket.getdefaulttimeout() is None
    # What is there now is used: no server is asked again.
    assert data.find(source, directory, need=("train",), download_url="http://x.invalid") == (
        "cifar10"
    )


def test_download_to_a_named_folder_from_a_mirror_folder(mirror, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    url = mirror.rsplit("/", 1)[0] + "/"
    assert data.find("cifar10", folder, need=("test",), download_url=url) == "cifar10"
    assert (folder / "test_batch").exists() and not (folder / folder.name).exists()


def failed_download(url, directory):
    """The error with "cifar10"; "auto" says it on standard error and takes the sample."""
    message = error_of(data.find, "cifar10", directory, need=("train",), download_url=url)
    assert "cannot download CIFAR-10" in message and "--download-url" in message
    assert data.find("auto", directory, need=("train", "test"), download_url=url) == "sample"
    return message


def test_download_of_a_damaged_archive(archive, mirror, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-100])
    assert "corrupted" in failed_download(mirror, tmp_path / "raw")


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:1/a.tar.gz", "file:///no/such/file"])
def test_download_from_nowhere(fake, tmp_path, url):
    assert url in failed_download(url, tmp_path / "raw")


def test_download_from_a_server_that_is_silent(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "DOWNLOAD_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.tar.gz"
        assert "timed out" in failed_download(url, tmp_path / "raw")


def test_download_to_where_nothing_can_be_written(mirror, tmp_path):
    (tmp_path / "file").write_text("no folder can be made in here")
    failed_download(mirror, tmp_path / "file" / "raw")


def test_the_reason_of_the_fallback_is_logged(fake, tmp_path, no_network, caplog):
    assert data.find("auto", tmp_path, need=("train", "test")) == "sample"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot download CIFAR-10" in caplog.text


# ------------------------------------------------------------------------------ the built-in sample


def sample_rows():
    with open(cifar10.SAMPLE_DIRECTORY / "labels.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_sample_splits():
    train, val, both = (data.load("sample", "unused", s) for s in ("train", "val", "train+val"))
    assert (train.name, train.source, both.name) == ("train", "sample", "train+val")
    assert train.images.shape == (2_000, 3, 32, 32) and train.images.dtype == torch.uint8
    assert train.images.is_contiguous() and train.labels.dtype == torch.int64
    assert torch.bincount(train.labels).tolist() == [200] * 10
    assert torch.bincount(val.labels).tolist() == [50] * 10
    assert torch.equal(both.images, torch.cat([train.images, val.images]))
    assert torch.equal(both.labels, torch.cat([train.labels, val.labels]))
    assert "--eval-split val" in error_of(data.load, "sample", "unused", "test")


def test_sample_is_small_and_its_labels_are_consistent():
    sizes = [path.stat().st_size for path in cifar10.SAMPLE_DIRECTORY.iterdir()]
    assert sum(sizes) < 7_000_000 and max(sizes) < 2_000_000
    rows = sample_rows()
    assert len({row["index"] for row in rows}) == len(rows) == 2_500
    assert all(row["class"] == data.CLASSES[int(row["label"])] for row in rows)
    assert Counter(row["split"] for row in rows) == {"train": 2_000, "val": 500}


def test_sample_is_cut_out_of_the_official_images(real):
    train, val = (set(indices) for indices in cifar10.split_indices(real.labels.numpy()))
    for split, pool in (("train", train), ("val", val)):
        indices = [int(row["index"]) for row in sample_rows() if row["split"] == split]
        sample = data.load("sample", "unused", split)
        assert pool.issuperset(indices)
        assert torch.equal(sample.images, real.images[indices])
        assert torch.equal(sample.labels, real.labels[indices])


def test_sample_is_what_its_script_makes(real_directory, tmp_path):
    command = [sys.executable, "-m", "data.make_sample", "--data-dir", real_directory]
    made = subprocess.run(
        [*command, "--output", tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout.split() == [word for item in cifar10.SAMPLE_SPLITS.items() for word in item]
    assert (tmp_path / "labels.csv").read_text() == (
        cifar10.SAMPLE_DIRECTORY / "labels.csv"
    ).read_text()


def test_make_sample_without_data(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["make_sample", "--data-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        make_sample.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: no CIFAR-10 in")


@pytest.fixture
def sample_copy(tmp_path, monkeypatch):
    directory = tmp_path / "sample"
    shutil.copytree(cifar10.SAMPLE_DIRECTORY, directory)
    monkeypatch.setattr(cifar10, "SAMPLE_DIRECTORY", directory)
    return directory


def test_sample_survives_other_line_endings(sample_copy):
    labels = sample_copy / "labels.csv"
    labels.write_bytes(labels.read_bytes().replace(b"\n", b"\r\n"))
    assert len(data.load("sample", "unused", "train+val")) == 2_500


def other_label(directory):
    labels = directory / "labels.csv"
    labels.write_text(labels.read_text().replace("train_0.png,0,9", "train_0.png,0,8"))


def fewer_rows(directory):
    labels = directory / "labels.csv"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:100]))


def no_rows(directory):
    (directory / "labels.csv").write_text("split,sheet\n")


def labels_of_noise(directory):
    (directory / "labels.csv").write_bytes(bytes(range(256)))


def label_is_no_number(directory):
    labels = directory / "labels.csv"
    labels.write_text(labels.read_text().replace("train_0.png,0,9", "train_0.png,0,truck"))


def no_such_position(directory):
    labels = directory / "labels.csv"
    labels.write_text(labels.read_text().replace("train_0.png,0,", "train_0.png,500,"))


def swapped_sheets(directory):
    shutil.copy(directory / "train_1.png", directory / "train_0.png")


def truncated_sheet(directory):
    sheet = directory / "train_0.png"
    sheet.write_bytes(sheet.read_bytes()[:1000])


def enormous_sheet(directory):
    sheet = directory / "train_0.png"
    content = bytearray(sheet.read_bytes())
    content[16:24] = struct.pack(">II", 1 << 30, 1 << 30)
    sheet.write_bytes(content)


def enormous_file(directory):
    with open(directory / "train_0.png", "r+b") as sheet:
        sheet.truncate(1 << 40)  # sparse: it takes no space


def sheet_of_another_size(directory):
    Image.new("RGB", (800, 32)).save(directory / "train_0.png")


def grey_sheet(directory):
    Image.new("L", (800, 640)).save(directory / "train_0.png")


def not_a_png(directory):
    Image.new("RGB", (800, 640)).save(directory / "train_0.png", format="BMP")


def missing_sheet(directory):
    (directory / "train_0.png").unlink()


def missing_labels(directory):
    (directory / "labels.csv").unlink()


@pytest.mark.parametrize(
    "damage",
    [
        other_label,
        fewer_rows,
        no_rows,
        labels_of_noise,
        label_is_no_number,
        no_such_position,
        swapped_sheets,
        truncated_sheet,
        enormous_sheet,
        enormous_file,
        sheet_of_another_size,
        grey_sheet,
        not_a_png,
        missing_sheet,
        missing_labels,
    ],
)
def test_damaged_sample(sample_copy, damage):
    damage(sample_copy)
    message = error_of(data.load, "sample", "unused", "train")
    assert "built-in sample" in message and f"restore {sample_copy}" in message


# ------------------------------------------------------- augmentation against an oracle, per image


def random_images(n, size=32, seed=0, channels_last=False):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def is_channels_last(images):
    return images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode, numpy_mode", [("reflect", "reflect"), ("zeros", "constant")])
@pytest.mark.parametrize("padding", [0, 1, 4, 31])
def test_pad_against_numpy(mode, numpy_mode, padding):
    images = random_images(3)
    padded = data.pad(images, padding, mode)
    width = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    assert np.array_equal(padded.numpy(), np.pad(images.numpy(), width, mode=numpy_mode))
    assert is_channels_last(padded)


@pytest.mark.parametrize("channels_last", [False, True])
def test_crop_against_slicing(channels_last):
    padded = random_images(81, 40, channels_last=channels_last)
    top, left = torch.arange(81) // 9, torch.arange(81) % 9  # every offset once
    cropped = data.crop(padded, top, left, 32)
    for i in range(81):
        y, x = int(top[i]), int(left[i])
        assert torch.equal(cropped[i], padded[i, :, y : y + 32, x : x + 32])
    assert is_channels_last(cropped) and cropped.dtype == torch.uint8


@pytest.mark.parametrize("channels_last", [False, True])
def test_flip_against_reversed_rows(channels_last):
    images = random_images(16, channels_last=channels_last)
    before = images.clone()
    mask = torch.arange(16) % 3 == 0
    flipped = data.flip(images, mask)
    for i in range(16):
        expected = images[i].numpy()[:, :, ::-1] if i % 3 == 0 else images[i].numpy()
        assert np.array_equal(flipped[i].numpy(), expected)
    assert torch.equal(images, before)
    assert is_channels_last(flipped) == channels_last


def test_mix_by_hand():
    images, others = torch.tensor([[0.0, 8.0], [2.0, 2.0]]), torch.tensor([[4.0, 0.0], [6.0, 6.0]])
    mixed = data.mix(images, others, torch.tensor([0.25, 0.0]))
    assert mixed.tolist() == [[1.0, 6.0], [2.0, 2.0]]


@pytest.mark.parametrize("size", [1, 7, 8, 32])
def test_cutout_against_slicing(size):
    images = 1 + torch.rand(64, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    generator = torch.Generator().manual_seed(size)
    top = torch.randint(-size, 33, (64,), generator=generator)  # some hang over, some are outside
    left = torch.randint(-size, 33, (64,), generator=generator)
    blanked = data.cutout(images, top, left, size)
    for i in range(64):
        y, x = int(top[i]), int(left[i])
        expected = images[i].clone()
        expected[:, max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)] = 0
        assert torch.equal(blanked[i], expected)
    assert torch.equal(images, before) and is_channels_last(blanked)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalize_against_the_definition(dtype):
    images = random_images(4, channels_last=True)
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (data.MEAN, data.STD))
    normalized = data.normalize(images, mean, std, dtype)
    expected = np.empty(images.shape)
    for channel in range(3):
        pixels = images[:, channel].numpy() / 255
        expected[:, channel] = (pixels - data.MEAN[channel]) / data.STD[channel]
    assert normalized.dtype == dtype and is_channels_last(normalized)
    error = (normalized.double() - torch.from_numpy(expected)).abs()
    # One rounding to the precision of `dtype`, no more.
    assert (error.numpy() <= 0.51 * torch.finfo(dtype).eps * np.abs(expected) + 1e-6).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_padding": -1},
        {"crop_padding": 32},
        {"padding_mode": "edge"},
        {"flip": "vertical"},
        {"cutout": -1},
        {"cutout": 33},
        {"mixup": -0.1},
        {"mixup": 0.6},
        {"mixup": math.nan},
    ],
)
def test_augmentation_refuses(wrong):
    assert "choose" in error_of(Augmentation, **wrong)


# ------------------------------------------------------------------------------------------ Loader


def numbered_split(n, seed=0):
    """Images whose labels are their places in the split."""
    return Split(random_images(n, seed=seed), torch.arange(n), "train", "cifar10")


def loader(split, batch_size=16, augmentation=None, shuffle=False, seed=0, **changes):
    values = {"device": "cpu", "mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}
    values |= {"dtype": torch.float32, "shuffle": shuffle} | changes  # pixels keep their values
    return Loader(split, batch_size, augmentation=augmentation, seed=seed, **values)


def epoch(loader, *where):
    if where:
        loader.set_epoch(*where)
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)


FULL = Augmentation(crop_padding=4, padding_mode="reflect", flip="alternating", cutout=8)
MIXED = dataclasses.replace(FULL, mixup=0.5)


def test_loader_without_augmentation_gives_the_split_in_order():
    split = numbered_split(50)
    batches = list(loader(split, 16, mean=data.MEAN, std=data.STD))
    assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
    images = torch.cat([images for images, _ in batches])
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (data.MEAN, data.STD))
    assert torch.allclose(images, (split.images / 255 - mean) / std, atol=1e-5)
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)


@pytest.mark.parametrize(
    "n, batch_size, length", [(50, 16, 4), (48, 16, 3), (16, 16, 1), (3, 1, 3)]
)
def test_loader_has_a_length(n, batch_size, length):
    batches = loader(numbered_split(n), batch_size)
    assert len(batches) == len(list(batches)) == length


@pytest.mark.parametrize("augmentation", [None, FULL, Augmentation(0, "zeros", "none", 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loader_batches_are_channels_last_and_of_the_dtype(augmentation, dtype):
    for images, labels in loader(numbered_split(40), 32, augmentation, True, dtype=dtype):
        assert images.dtype == dtype and is_channels_last(images)
        assert images.shape[1:] == (3, 32, 32) and labels.dtype == torch.int64


def test_loader_shuffles_every_epoch_anew():
    batches = loader(numbered_split(200), shuffle=True)
    orders = [epoch(batches, number)[1].tolist() for number in range(3)]
    assert all(sorted(order) == list(range(200)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != list(range(200))


def test_loader_depends_on_seed_and_epoch_alone():
    split = numbered_split(100)
    first = loader(split, augmentation=FULL, shuffle=True, seed=5)
    images, labels = epoch(first, 7)
    torch.manual_seed(123)  # nobody's random state matters
    epoch(first, 2)
    for again in (first, loader(split, augmentation=FULL, shuffle=True, seed=5)):
        for _ in range(2):  # nor how often it was iterated
            other_images, other_labels = epoch(again, 7)
            assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
    assert not torch.equal(epoch(first, 8)[1], labels)
    other_seed = loader(split, augmentation=FULL, shuffle=True, seed=6)
    assert not torch.equal(epoch(other_seed, 7)[1], labels)
    # Seed and epoch do not stand in for each other either.
    assert not torch.equal(epoch(other_seed, 5)[1], epoch(first, 6)[1])


@pytest.mark.parametrize("first_batch", [0, 1, 3, 6, 7])
def test_first_batch_skips(first_batch):
    batches = loader(numbered_split(100), 16, FULL, shuffle=True)
    batches.set_epoch(4)
    whole = list(batches)
    batches.set_epoch(4, first_batch)
    rest = list(batches)
    assert len(rest) == len(whole) - first_batch and len(batches) == len(whole)
    for (images, labels), (other_images, other_labels) in zip(
        rest, whole[first_batch:], strict=True
    ):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
    batches.set_epoch(4)
    assert len(list(batches)) == len(whole)


def squares_of(image, padding, mode):
    """{bytes: (top, left, flipped)} of every crop of an image (3, 32, 32), slowly."""
    width = ((0, 0), (padding, padding), (padding, padding))
    padded = np.pad(image.numpy(), width, mode="reflect" if mode == "reflect" else "constant")
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            square = padded[:, top : top + 32, left : left + 32]
            found[square.tobytes()] = (top, left, False)
            found[square[:, :, ::-1].tobytes()] = (top, left, True)
    return found


def recognise(split, augmentation, number, seed=0):
    """What the loader did to each image of an epoch, found by trying everything."""
    images, labels = epoch(loader(split, 32, augmentation, shuffle=True, seed=seed), number)
    done = {}
    for image, label in zip(images.round().to(torch.uint8), labels.tolist(), strict=True):
        padding, mode = augmentation.crop_padding, augmentation.padding_mode
        done[label] = squares_of(split.images[label], padding, mode)[image.numpy().tobytes()]
    assert len(done) == len(split)
    return done


def flips_of(split, augmentation, number, seed=0):
    """Whether each image of the split, in its order, is shown flipped."""
    done = recognise(split, augmentation, number, seed)
    return [done[i][2] for i in range(len(split))]


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
def test_loader_crops_everywhere_and_flips_half(mode):
    done = recognise(numbered_split(200), Augmentation(4, mode, "random", 0), 0)
    tops, lefts, flips = (Counter(values) for values in zip(*done.values(), strict=True))
    assert set(tops) == set(lefts) == set(range(9)) and max(tops.values()) < 45
    assert 70 < flips[True] < 130
    assert len(set(done.values())) > 80  # of 162: the three are drawn independently


def test_random_flip_is_drawn_every_epoch():
    split, augmentation = numbered_split(100), Augmentation(0, "zeros", "random", 0)
    flips = [flips_of(split, augmentation, number) for number in range(3)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert 25 < sum(x != y for x, y in zip(flips[a], flips[b], strict=True)) < 75


def test_alternating_flip_shows_every_other_epoch_the_other_side():
    split, augmentation = numbered_split(100), Augmentation(0, "zeros", "alternating", 0)
    first, second, third = (flips_of(split, augmentation, number) for number in range(3))
    assert 25 < sum(first) < 75
    assert second == [not flipped for flipped in first] and third == first
    assert flips_of(split, augmentation, 0, seed=1) != first


def test_no_flip():
    done = recognise(numbered_split(50), Augmentation(4, "reflect", "none", 0), 0)
    assert not any(flipped for _, _, flipped in done.values())


@pytest.mark.parametrize("size", [8, 5])
def test_loader_cuts_out_squares_with_centres_anywhere(size):
    images = torch.full((3000, 3, 32, 32), 255, dtype=torch.uint8)
    split = Split(images, torch.arange(3000), "train", "cifar10")
    blank = epoch(loader(split, 500, Augmentation(0, "zeros", "none", size)))[0] == 0
    assert (blank == blank[:, :1]).all()  # the same square in each channel
    rows, columns = blank[:, 0].any(2), blank[:, 0].any(1)  # (N, 32)
    assert torch.equal(blank[:, 0], rows[:, :, None] & columns[:, None, :])  # a rectangle
    for side in (rows, columns):
        heights = side.sum(1)
        assert set(heights.tolist()) == set(range(size - size // 2, size + 1))  # cut by the border
        assert (heights == size).float().mean() > 0.7
        # Every pixel is a centre; those within half a side of a border are blanked less often.
        assert (side.float().mean(0)[size:-size] - size / 32).abs().max() < 0.05


def test_loader_blanks_with_the_mean():
    images, _ = next(
        iter(loader(numbered_split(8), 8, Augmentation(0, "zeros", "none", 32), mean=data.MEAN))
    )
    assert ((images == 0).flatten(1).sum(1) >= 3 * 16 * 16).all()


def test_loader_mixes_each_image_and_its_label_with_another():
    """The partner stands as far from the end of the batch; here three batches, the last short."""
    plain, mixed = (dataclasses.replace(FULL, mixup=share) for share in (0.0, 0.4))
    split = numbered_split(40)
    split = dataclasses.replace(split, labels=split.labels % 10)
    shares = []
    batches = zip(
        loader(split, 16, plain, shuffle=True), loader(split, 16, mixed, shuffle=True), strict=True
    )
    for (images, labels), (mixed_images, targets) in batches:
        assert targets.shape == (len(labels), 10) and targets.dtype == torch.float32
        assert is_channels_last(mixed_images)
        for i, label in enumerate(labels.tolist()):
            j = len(labels) - 1 - i
            share = (mixed_images[i] - images[i]).mean() / (images[j] - images[i]).mean()
            expected = (1 - share) * images[i] + share * images[j]
            torch.testing.assert_close(mixed_images[i], expected, atol=0.05, rtol=0)
            expected = (1 - share) * F.one_hot(labels[i], 10) + share * F.one_hot(labels[j], 10)
            torch.testing.assert_close(targets[i], expected, atol=0.02, rtol=0)
            assert label == int(labels[j]) or targets[i].argmax() == label
            shares.append(float(share))
    assert 0 <= min(shares) < 0.05 and 0.35 < max(shares) <= 0.401
    assert len({round(share, 4) for share in shares}) > 35


@pytest.mark.parametrize("n", [37, 33])  # of 33 the last batch has one image, and some parts none
@pytest.mark.parametrize("world_size", [2, 3])
def test_parts_of_a_mixed_batch_make_the_whole(world_size, n):
    split = numbered_split(n)
    split = dataclasses.replace(split, labels=split.labels % 10)
    whole = list(loader(split, 16, MIXED, shuffle=True))
    parts = [
        loader(split, 16, MIXED, shuffle=True, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for (images, labels), *others in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([part for part, _ in others]), images)
        assert torch.equal(torch.cat([part for _, part in others]), labels)


def test_loader_leaves_the_split_alone():
    split = numbered_split(32)
    before = split.images.clone()
    for augmentation in (None, FULL, Augmentation(0, "zeros", "random", 8)):
        list(loader(split, 8, augmentation, shuffle=True))
    assert torch.equal(split.images, before)


def test_loader_refuses():
    split = numbered_split(10)
    message = error_of(loader, split, 11)
    assert "batch size 11 is larger than the train split of 10 images" in message
    assert "choose 1 or more" in error_of(loader, split, 0)
    assert "choose 1 or more" in error_of(loader, split, -4)
    assert "choose 0 or more" in error_of(loader, split, 1, seed=-1)
    assert len(loader(split, 10)) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loader_gives_the_same_on_the_gpu():
    split = numbered_split(100)
    images, labels = epoch(loader(split, augmentation=FULL, shuffle=True), 3)
    gpu = loader(split, augmentation=FULL, shuffle=True, device="cuda")
    gpu_images, gpu_labels = epoch(gpu, 3)
    assert gpu_images.is_cuda and gpu_labels.is_cuda
    assert torch.equal(gpu_images.cpu(), images) and torch.equal(gpu_labels.cpu(), labels)
