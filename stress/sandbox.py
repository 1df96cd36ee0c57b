"""Where hostile cases run: intact files, a server, and an audit hook in each process."""

import base64
import gc
import json
import os
import pickle
import resource
import runpy
import shutil
import signal
import socketserver
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.datasets import CIFAR10
from tqdm import tqdm

import data
import models
import plots
from benchmarks.common import ROOT
from data import batch_files as files
from data import cifar10, download
from stress import life
from stress.cases import Case, joined, parts
from training import checkpoint as checkpoints
from training import devices, figures, onnx_files, settings

IMAGES = 10  # of a split, at most
CLOCK = 60  # seconds after which a command is killed, generous on a busy machine
ADDRESS_SPACE = 6 << 30  # bytes, besides the libraries and what the tests already hold
SMALL = {"widths": (8, 16), "hidden": (8, 16), "depths": (1, 1, 1, 1)}  # of the mirror network
FIGURES = ("class_accuracy", "confusion_matrix", "mistakes", "predictions", "validation")
REAL = {name: getattr(plots, name) for name in FIGURES}


# ------------------------------------------------------------------------------------- intact files


def write_cifar10(here: Path) -> None:
    """Write a small test split and its archive, and make this process accept them as CIFAR-10."""
    cifar10.BATCH_SIZE, name = 20, "test_batch"
    pixels = np.random.RandomState(0).randint(0, 256, (20, cifar10.PIXELS), np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    content = np.hstack([labels[:, None], pixels]).tobytes()
    pickled = pickle.dumps({b"labels": labels.tolist(), b"data": pixels}, protocol=2)
    for folder, made in ((files.BINARY_FOLDER, content), (files.PYTHON_FOLDER, pickled)):
        (here / folder).mkdir()
        (here / folder / (name + files.SUFFIXES[folder])).write_bytes(made)
    with tarfile.open(here / CIFAR10.filename, "w:gz") as archive:
        archive.add(here / files.PYTHON_FOLDER, files.PYTHON_FOLDER)
    Mirror.archive = (here / CIFAR10.filename).read_bytes()
    download.ARCHIVE_BYTES = len(Mirror.archive)
    files.TEST_BATCHES[name], files.PICKLES[name] = files.md5(content), files.md5(pickled)
    CIFAR10.tgz_md5 = files.md5(Mirror.archive)


def write_checkpoints(here: Path) -> None:
    """Write checkpoints of interrupted runs of two networks, and their weights. train.py runs in
    this process, so that everything it needs is imported."""
    flags = f"--data sample --batch-size 5 --epochs 2 --output {here}/run --model".split()
    config_dict = models.config_dict
    for suffix, model, config in (("", "baseline", {}), ("-mirror", "under100k", SMALL)):
        models.config_dict = {model: config}.__getitem__  # type: ignore[assignment]
        sys.argv = ["train.py", *flags, model]
        with suppress(SystemExit), life.interrupted_after(4):  # in its second epoch
            runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
        content = checkpoints.load_checkpoint(here / "run" / "last.safetensors")
        assert len(content["history"]) == 1
        for row in (*content["history"], content["training"]):  # the same each time
            row |= {name: 1.0 for name in ("seconds", "images_per_second") if name in row}
        released = {key: value for key, value in content.items() if key != "training"}
        for name, part in (("last", content), ("weights", released)):
            sealed = joined(*parts(checkpoints.serialize(part)))
            (here / f"{name}{suffix}.safetensors").write_bytes(sealed)
        shutil.rmtree(here / "run")
    models.config_dict = config_dict


def convert(classifier: object, path: Path, metadata: dict[str, str]) -> None:
    """Stands in for PyTorch's exporter, which takes seconds."""
    for text in metadata.values():
        text.encode()  # or no ONNX file can hold it
    sys.exit()


def hurry() -> None:
    """Use few images, blank figures and short timeouts, and import what is imported late."""
    tqdm.monitor_interval = 0  # no thread, for this process forks
    Image.init()
    life.hurry(IMAGES)
    vars(plots).update(dict.fromkeys((*FIGURES, "explanations"), life.blank))
    figures.draw_augmentation = lambda *arguments: None
    devices.why_not = cache(devices.why_not)
    for precision in devices.PRECISIONS.values():
        devices.why_not(torch.device("cpu"), precision)
    onnx_files.require_packages, onnx_files.export_onnx = (lambda: None), convert
    download.PATIENCE, download.SILENCE = 0.2, 0.3
    for script in ("test.py", "predict.py", "export.py"):
        runpy.run_path(str(ROOT / script))


class Mirror(socketserver.StreamRequestHandler):
    """Answers as the path says, which cases.downloads wrote."""

    archive = b""

    def handle(self) -> None:
        with suppress(OSError, ValueError, IndexError):
            path = self.rfile.readline().split()[1].decode()
            status, headers, body = json.loads(base64.urlsafe_b64decode(path.strip("/")))
            while self.rfile.readline().strip():
                pass
            head = "\r\n".join([f"HTTP/1.1 {status}", *headers, "\r\n"])
            head = head.replace("SELF", path).replace("LONG", "x" * 70_000)
            known = {"zeros": bytes(1000), "archive": self.archive, "half": self.archive[:1000]}
            self.wfile.write(head.encode("latin-1") + known.get(body, b""))
            while body in ("endless", "slow"):
                self.wfile.write(bytes(1 << 20 if body == "endless" else 1))
                time.sleep(0.001 if body == "endless" else 0.05)


# ----------------------------------------------------------------------------------- the audit hook

CHANGES = "os.mkdir os.remove os.rmdir os.rename os.link os.truncate os.chmod shutil.rmtree".split()
PROGRAMS = ("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "pty.")
CONNECTIONS = ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto")
MIRROR, OFFICIAL = "127.0.0.1", "www.cs.toronto.edu"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def is_own(path: Any, folder: str) -> bool:
    """Whether a command may write there: to its folder or to a device."""
    with suppress(ValueError, TypeError):  # it is no path, as the system will say, or is open
        return os.path.realpath(os.fsdecode(path)).startswith((folder, "/dev/", "/proc/"))
    return True


def watch(folder: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that forbids what a command must not do and records it in `deeds`."""
    descriptor, own = os.open(folder / "deeds", os.O_WRONLY | os.O_CREAT), os.path.realpath(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        bad = event.startswith(PROGRAMS)
        if event == "open":
            bad = bool(arguments[2] & WRITING) and not is_own(arguments[0], own)
        elif event in CHANGES and arguments[-1] in (-1, None):  # else relative to an open folder
            bad = not all(is_own(argument, own) for argument in arguments)
        elif event == "exec":
            bad = not arguments[0].co_filename.startswith(("/", "<frozen "))
        elif event in CONNECTIONS:
            bad = MIRROR not in repr(arguments)
            if OFFICIAL in repr(arguments):
                raise OSError("there is no network here")
        if bad:
            os.write(descriptor, f"{event} {arguments!r:.300}\n".encode("ascii", "replace"))
            raise PermissionError("forbidden")

    return hook


class Box:
    """A folder and a server for cases, in a process that has imported all that the commands
    need."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.here = folder, folder / "here"
        shutil.copytree(cifar10.SAMPLE_DIRECTORY, self.here / "sample")
        shutil.copy(self.here / "sample" / "val_0.png", self.here / "picture.png")
        with redirect_stdout(open(os.devnull, "w")):
            hurry()
            write_checkpoints(self.here)
        write_cifar10(self.here)
        gc.collect()
        gc.freeze()  # so that a child's collector touches, and copies, less memory
        server = socketserver.ThreadingTCPServer((MIRROR, 0), Mirror)
        self.address = f"http://{MIRROR}:{server.server_address[1]}"
        get_context("fork").Process(target=server.serve_forever, daemon=True).start()
        server.server_close()

    def lay_out(self, case: Case, folder: Path) -> list[str]:
        """Write a case's files and link the intact ones beside them; returns its command."""
        folder.mkdir()
        for path, content in ((folder / name, content) for name, content in case.files.items()):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            for other in (self.here / path.parent.name).glob("*"):  # none for a case's own folder
                if other.name != path.name:
                    (path.parent / other.name).symlink_to(other)
        if case.kind == "flags":
            (folder / "file").write_bytes(b"a file")
            (folder / "folder").mkdir()
            os.mkfifo(folder / "fifo")
            (folder / "loop").symlink_to("loop")
            (folder / "dangling").symlink_to("nothing")
        here, server = str(self.here), self.address
        return [word.replace("HERE", here).replace("SERVER", server) for word in case.command]

    def enter(self, case: Case, folder: Path, drawn: bool) -> None:
        """Prepare this process, just forked, for a case."""
        os.chdir(folder / "in")
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a forked process cannot use a GPU
        tempfile.tempdir, settings.RUNS = str(folder), folder / "in" / "runs"
        data.DEFAULT_DIRECTORY = folder / "in" / "raw"
        if case.kind == "sample":
            life.load_splits.cache_clear()
            cifar10.SAMPLE_DIRECTORY = folder / "in" / "sample"
        vars(plots).update(REAL if drawn else {})
        life.interrupted_after(3).__enter__()
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        limit = held + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.alarm(CLOCK)
        sys.addaudithook(watch(folder))
