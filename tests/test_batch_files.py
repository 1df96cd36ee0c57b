"""Which files of CIFAR-10 are on disk."""

import os

import pytest
from fakes import BATCHES, ROOT, error_of
from torchvision.datasets import CIFAR10

import data
from data import batch_files


def test_find_sample_looks_nowhere(tmp_path):
    assert data.find("sample", tmp_path / "none", need=("train",)) == "sample"


def test_default_directory_stands_in_the_repository():
    assert data.DEFAULT_DIRECTORY == ROOT / "data" / "raw"


def test_the_checksums_of_the_pickles_are_torchvisions():
    official = CIFAR10.train_list + CIFAR10.test_list
    assert [[name, md5] for name, md5 in batch_files.PICKLES.items()] == official
    assert batch_files.PYTHON_FOLDER == CIFAR10.base_folder


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
    assert f"{folder} lacks data_batch_4;" in message


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


def test_a_directory_that_is_a_loop_of_links(tmp_path, no_network):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    for directory in (tmp_path / "a", tmp_path / "a" / "raw"):
        for source in ("auto", "cifar10"):
            message = error_of(data.find, source, directory, need=("train",))
            assert "Too many levels of symbolic links" in message


def test_a_link_to_a_folder_of_another_name(fake, tmp_path):
    store, given = tmp_path / "store", tmp_path / "given"
    for folder in (store, given):
        folder.mkdir()
    fake.write_python(store).rename(store / "cifar")
    (given / "cifar-10-batches-py").symlink_to(store / "cifar")
    for directory in (given, given / "cifar-10-batches-py"):
        assert data.find("cifar10", directory, need=("train", "test")) == "cifar10"


def test_load_where_nothing_is(tmp_path):
    assert "no CIFAR-10 in" in error_of(data.load, "cifar10", tmp_path, "train")
