"""What a run needs besides learning: seed, signals, files, and what it prints."""

import csv
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import utils
from utils import RunError


def test_macs_are_products_not_operations():
    assert utils.count_macs(nn.Conv2d(3, 4, 3, padding=1), (3, 8, 8)) == 3 * 4 * 9 * 64


def test_commands_of_the_same_second_have_folders_of_their_own(tmp_path):
    folders = [utils.new_folder(tmp_path / "runs" / "a-1") for _ in range(3)]
    assert [folder.name for folder in folders] == ["a-1", "a-1-2", "a-1-3"]
    assert all(folder.is_dir() for folder in folders)


def test_an_error_of_the_user_is_one_line_and_status_2(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some where/train.py"])

    def fails():
        raise LookupError("no\n such   thing")

    with pytest.raises(SystemExit) as end:
        utils.run_script(fails, LookupError)
    assert end.value.code == 2
    assert capsys.readouterr().err == "train.py: error: no such thing\n"
    with pytest.raises(LookupError):  # what is not expected is a fault of ours, to be seen whole
        utils.run_script(fails)


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error():
    code = "import utils; utils.run_script(lambda: print('line\\n' * 100_000))"
    script = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(utils.__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert script.stdout.readline() == b"line\n"
    script.stdout.close()
    assert script.stderr.read() == b"" and script.wait() == 1
    script.stderr.close()


@pytest.mark.parametrize("script", ["train.py", "test.py", "predict.py", "export.py"])
def test_ctrl_c_while_pytorch_is_imported_says_nothing(script, tmp_path):
    (tmp_path / "torch.py").write_text("import time; print('here', flush=True); time.sleep(60)")
    process = subprocess.Popen(
        [sys.executable, Path(utils.__file__).with_name(script)],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell has its background jobs ignore Ctrl-C, and pytest may be one of them.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == (b"", b"")
    assert process.returncode == -signal.SIGINT  # which a shell calls 130


@pytest.mark.slow
def test_closed_streams_are_no_error(tmp_path):
    """Nor is a file that is opened taken for one of them."""
    code = (
        "import startup; startup.begin(); import os, sys, utils; file = open('file', 'w');"
        "utils.run_script(lambda: [print('out'), print('err', file=sys.stderr), os.write(1, b'x')])"
    )
    process = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "$0" >&- 2>&-', code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(utils.__file__).parent)},
    )
    assert process.returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("main", ["lambda: print('line')", "lambda: (print('line'), exit(0))"])
def test_a_full_standard_output_is_one_line(main):
    code = f"import utils; utils.run_script({main}, OSError)"
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(utils.__file__).parent,
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert process.returncode == 2
    assert process.stderr.count(b"\n") == 1 and b"No space left" in process.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_error_that_cannot_be_printed_keeps_its_status():
    code = "import utils; utils.run_script(lambda: open('/no/such/file'), OSError)"
    with open("/dev/full", "wb") as full:
        process = subprocess.run(
            [sys.executable, "-c", code], cwd=Path(utils.__file__).parent, stderr=full
        )
    assert process.returncode == 2


def test_foreign_text_becomes_one_short_line():
    assert utils.clean("a ä 猫") == "a ä 猫"
    assert utils.clean("\x1b[31m\n\u202e\udcff\x9b") == r"\x1b[31m\n\u202e\udcff\x9b"
    assert utils.clean("no http://me:s@cret@host/a@b") == "no http://host/a@b"
    long = utils.clean("a" * 10**6 + "\x1b" * 10**6, 100)
    assert len(long) == 100 and long.startswith("aaa") and "…" in long and long.endswith("x1b")


@pytest.mark.slow
def test_what_is_logged_is_cleaned_too():
    code = (
        "import logging, utils;"
        "utils.run_script(lambda: logging.getLogger('data').warning('%s', '\x1b[31m http://a:b@c'))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(utils.__file__).parent, capture_output=True
    )
    assert process.stderr == b"\\x1b[31m http://c\n"


def test_ctrl_c_outside_of_training_is_status_130():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        utils.run_script(interrupted)
    assert end.value.code == 130


# ------------------------------------------------------------------------- randomness and devices


def test_a_seed_fixes_what_is_drawn():
    drawn = []
    for seed in (1, 1, 2):
        utils.seed_everything(seed)
        drawn.append(torch.rand(4))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    for seed in (-1, 2**63):
        with pytest.raises(RunError, match=str(seed)):
            utils.seed_everything(seed)


# -------------------------------------------------------------------------------------------- files


def test_a_file_is_written_whole(tmp_path):
    path = tmp_path / "ä file"
    utils.write_atomically(path, b"first")
    utils.write_atomically(path, b"second")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_we_left_unfinished_is_removed(tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    theirs = (".precious.tmp", ".precious.unfinished", "a.1.unfinished", ".folder.1.unfinished")
    for name in theirs[:-1]:
        (tmp_path / name).touch()
    (tmp_path / theirs[-1]).mkdir()
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        utils.write_atomically(tmp_path / "last", b"content")
    (tmp_path / f".validation.png.{os.getpid()}.unfinished").touch()  # of plots/style.py
    assert len(list(tmp_path.iterdir())) == len(theirs) + 2
    utils.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(theirs)


def test_the_file_before_is_kept_under_another_name(tmp_path):
    path, older = tmp_path / "last", tmp_path / "previous"
    for content in (b"1", b"2", b"3"):
        utils.write_atomically(path, content, keep_as="previous")
    assert (path.read_bytes(), older.read_bytes()) == (b"3", b"2")


def test_one_of_two_names_is_whole_at_every_moment(tmp_path, monkeypatch):
    """The process dies between any two of the operations that change the folder."""
    replace, moments = os.replace, []

    def watched(source, target):
        replace(source, target)
        names = ("last", "previous")
        moments.append([(tmp_path / n).read_bytes() for n in names if (tmp_path / n).exists()])

    monkeypatch.setattr(os, "replace", watched)
    for content in (b"1", b"2", b"3"):
        utils.write_atomically(tmp_path / "last", content, keep_as="previous")
    assert moments == [[b"1"], [b"1"], [b"2", b"1"], [b"2"], [b"3", b"2"]]


@pytest.mark.parametrize("step", ["write", "rename"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, step):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "last"
    utils.write_atomically(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync" if step == "write" else "replace", full)
        with pytest.raises(RunError, match="No space left on device.*intact"):
            utils.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_only_a_file_is_ever_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(RunError, match="not a file"):
            utils.write_atomically(tmp_path / name, b"new")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder"}
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot write to folder"):
        utils.make_folder(tmp_path / "file" / "folder")
    utils.make_folder(tmp_path / "a" / "b")
    utils.make_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_the_history_is_a_table(tmp_path):
    row = dict.fromkeys(utils.HISTORY_COLUMNS, 0.1) | {"epoch": 1, "eval_loss": None}
    utils.write_history(tmp_path / "history.csv", [row, row | {"epoch": 2}])
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == utils.HISTORY_COLUMNS
    assert [r["epoch"] for r in rows] == ["1", "2"]
    assert rows[0]["eval_loss"] == "" and float(rows[0]["train_loss"]) == 0.1


# ------------------------------------------------------------------- networks and what is said


def test_results_in_words():
    line = utils.metrics_line("Val", 1.23456, 3, 8)
    assert line == "Val set: Average loss: 1.2346, Accuracy: 3/8 (37.50%)"
    table = utils.class_table([1, 0], [2, 0], ("cat", "truck"))
    assert table.splitlines() == [
        "Accuracy of cat  :  50.0 % (1/2)",
        "Accuracy of truck:   0.0 % (0/0)",
    ]
