"""Where the files of CIFAR-10 come from: found on disk, or downloaded."""

import http.server
import os
import shutil
import socket
import tarfile
import threading
from functools import partial

import pytest
import torch
from fakes import BATCHES, ROOT, error_of, md5, python2_pickle
from torchvision.datasets import CIFAR10

import data
from data import files


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


# ----------------------------------------------------------------------------------------- download


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
    monkeypatch.setattr(files, "DOWNLOAD_TIMEOUT", 0.2)
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
