"""The download of CIFAR-10's archive, from servers on this machine, good and bad."""

import base64
import contextlib
import http.server
import shutil
import signal
import socket
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from fakes import error_of, md5, python2_pickle
from torchvision.datasets import CIFAR10

import data
import train
from data import download


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
    monkeypatch.setattr(download, "ARCHIVE_BYTES", archive.stat().st_size)
    return archive


class Handler(http.server.SimpleHTTPRequestHandler):
    """Has the archive, for whoever knows the password under /private/; else as its path says."""

    def do_GET(self):
        getattr(self, "get" + self.path.split("/")[1], super().do_GET)()

    def getprivate(self):
        login = self.headers.get("Authorization")
        if login == "Basic " + base64.b64encode(b"me:s@cret").decode():
            self.path = self.path.removeprefix("/private")
            return super().do_GET()
        self.send_error(401, "\x1b[31mno")

    def getendless(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(2**20))

    def getsilent(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(bytes(100))
        time.sleep(0.5)

    def getdrip(self):
        self.send_response(200)
        self.end_headers()
        self.drip(b"\x00")

    def getdripping_header(self):
        self.wfile.write(b"HTTP/1.0 200 OK\r\nX: ")
        self.drip(b"x")

    def drip(self, byte):
        while True:
            self.wfile.write(byte)
            time.sleep(0.02)

    def handle(self):
        with contextlib.suppress(OSError):  # the client has gone
            super().handle()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(archive):
    """The address of a server that has the archive."""
    handler = partial(Handler, directory=archive.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.fixture
def mirror(server, archive):
    return server + archive.name


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.2)


@pytest.mark.parametrize("source", ["auto", "cifar10"])
def test_download_from_a_mirror(fake, mirror, tmp_path, source, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    directory = tmp_path / "new" / "raw"
    assert data.find(source, directory, need=("train", "test"), download_url=mirror) == "cifar10"
    assert "100%" in capfd.readouterr().err  # the progress bar
    test = data.load("cifar10", directory, "test")
    assert torch.equal(test.images, fake.images("test_batch"))
    assert not list(directory.glob(".*"))
    # What is there now is used: no server is asked again.
    assert data.find(source, directory, need=("train",), download_url="http://x.invalid") == (
        "cifar10"
    )


def test_download_to_a_named_folder_from_a_mirror_folder(server, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    assert data.find("cifar10", folder, need=("test",), download_url=server) == "cifar10"
    assert (folder / "test_batch").exists() and not (folder / folder.name).exists()


def test_a_resumed_run_downloads_its_images_again(mirror, tmp_path, monkeypatch, capsys):
    """As on another machine, which has the run's folder but not the images."""
    directory, output = tmp_path / "raw", tmp_path / "run"
    flags = ["--model", "baseline", "--epochs", "2", "--batch-size", "40", "--device", "cpu"]
    flags += ["--data", "cifar10", "--data-dir", str(directory), "--download-url", mirror]
    flags += ["--output", str(output), "--resume", "auto"]
    stop = lambda after_epoch: signal.raise_signal(signal.SIGTERM)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(train.AfterEpoch, "__call__", stop)
        with pytest.raises(SystemExit):
            train.main(flags)
    shutil.rmtree(directory)
    train.main(flags)
    assert "Resumed  after 1 epoch" in capsys.readouterr().out
    shutil.rmtree(directory)
    train.main(flags)
    assert not directory.exists(), "a complete run needs no images"


def failed_download(url, directory):
    """The error with "cifar10"; "auto" says it on standard error and takes the sample. Neither
    leaves a folder."""
    message = error_of(data.find, "cifar10", directory, need=("train",), download_url=url)
    assert "cannot download CIFAR-10" in message and "--download-url" in message
    assert data.find("auto", directory, need=("train", "test"), download_url=url) == "sample"
    assert not directory.exists()
    return message


def test_download_of_a_damaged_archive(archive, mirror, tmp_path):
    archive.write_bytes(archive.read_bytes()[:-100])
    assert "corrupted" in failed_download(mirror, tmp_path / "new" / "raw")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "url, reason",
    [
        ("nonsense", "begin with one of https://, http://, file://"),
        ("ftp://127.0.0.1/a.tar.gz", "begin with one of https://, http://, file://"),
        ("http://[", "Invalid IPv6"),
        ("http://127.0.0.1:1/a.tar.gz", "refused"),
        ("file:///no/such/file", "No such file"),
    ],
)
def test_download_from_nowhere(fake, tmp_path, url, reason):
    message = failed_download(url, tmp_path / "raw")
    assert url in message and reason in message


def test_download_from_a_server_that_is_silent(fake, tmp_path, impatient):
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.tar.gz"
        assert "0 bytes in" in failed_download(url, tmp_path / "raw")


def test_download_from_a_server_that_falls_silent(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE", 0.2)
    assert "timed out" in failed_download(f"{server}silent/", tmp_path / "raw")


@pytest.mark.parametrize("kind", ["drip", "dripping_header"])
def test_download_from_a_server_that_sends_a_byte_now_and_then(server, tmp_path, impatient, kind):
    start = time.monotonic()
    message = failed_download(f"{server}{kind}/", tmp_path / "raw")
    assert "fewer than 100 kB a second" in message
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("address", ["endless/", "/dev/zero"])
def test_no_more_comes_than_the_archive_has(server, tmp_path, address):
    url = "file://" + address if address == "/dev/zero" else server + address
    assert "more than the archive's" in failed_download(url, tmp_path / "raw")


def test_download_from_a_file(fake, archive, tmp_path):
    url = archive.as_uri()
    assert data.find("cifar10", tmp_path / "raw", need=("test",), download_url=url) == "cifar10"
    assert archive.exists()
    test = data.load("cifar10", tmp_path / "raw", "test")
    assert torch.equal(test.images, fake.images("test_batch"))


def test_an_archive_that_is_there_is_unpacked(archive, no_network):
    assert data.find("cifar10", archive.parent, need=("train", "test")) == "cifar10"
    assert archive.exists()


def test_a_password_is_sent_and_never_printed(server, archive, tmp_path):
    private = f"{server}private/{archive.name}".replace("://", "://me:{}@")
    message = failed_download(private.format("wr0ng"), tmp_path / "raw")
    assert f"{server}private" in message and "401" in message
    assert "wr0ng" not in message and "me:" not in message
    url = private.format("s%40cret")
    assert data.find("cifar10", tmp_path / "raw", need=("test",), download_url=url) == "cifar10"


def test_a_servers_answer_is_printed_as_one_clean_line(server, tmp_path, refused):
    url = f"{server}private/".replace("://", "://me:wr0ng@") + "\u202e" + "x" * 5000
    flags = ["--data", "cifar10", "--data-dir", tmp_path / "raw", "--download-url", url]
    line = refused("train.py", *flags)
    assert "cannot download CIFAR-10 from http://127" in line and line.isprintable()
    assert "wr0ng" not in line and len(line) < 1100
    url = f"{server}private/".replace("://", "://me:wr0ng@")
    line = refused("train.py", *flags[:-1], url)
    assert r"answered 401 \x1b[31mno" in line and line.isprintable() and "wr0ng" not in line


def test_what_a_killed_download_left_is_removed(mirror, tmp_path):
    (tmp_path / download.PARTIAL / "cifar-10-batches-py").mkdir(parents=True)
    (tmp_path / ".theirs.partial").touch()
    data.find("cifar10", tmp_path, need=("test",), download_url=mirror)
    assert {path.name for path in tmp_path.glob(".*")} == {".theirs.partial"}


@pytest.mark.skipif(download.fcntl is None, reason="needs flock")
def test_a_download_waits_for_another_to_the_same_folder(fake, tmp_path, caplog):
    finding = partial(data.find, "cifar10", tmp_path, need=("test",), download_url="http://[")
    with ThreadPoolExecutor(1) as pool:
        with download._alone(tmp_path):
            found = pool.submit(finding)
            while not caplog.records and not found.done():
                time.sleep(0.01)
            fake.write_python(tmp_path)
        assert found.result() == "cifar10"
    assert "another process" in caplog.text


def test_what_another_process_has_just_downloaded_is_used(fake, tmp_path, monkeypatch):
    """It finishes after this process has looked, and before this one would have waited for it."""
    original = download._alone

    def alone(directory):
        fake.write_python(directory)
        return original(directory)

    monkeypatch.setattr(download, "_alone", alone)
    assert data.find("auto", tmp_path, need=("test",), download_url="http://[") == "cifar10"


def test_download_to_where_nothing_can_be_written(mirror, tmp_path):
    (tmp_path / "file").write_text("no folder can be made in here")
    failed_download(mirror, tmp_path / "file" / "raw")


def test_the_reason_of_the_fallback_is_logged(fake, tmp_path, no_network, caplog):
    assert data.find("auto", tmp_path, need=("train", "test")) == "sample"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "cannot download CIFAR-10" in caplog.text
