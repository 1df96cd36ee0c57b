"""The folder of a run: the two newest checkpoints, and one writer."""

import fcntl
import os
import shutil

import pytest

from training import checkpoint as checkpoints
from training import run_folder
from utils import RunError


def test_the_two_newest_checkpoints_are_kept(tmp_path, content):
    for epoch in (0, 1, 2):
        run_folder.save_latest(tmp_path, content | {"epoch": epoch})
    names = {path.name: checkpoints.load_checkpoint(path)["epoch"] for path in tmp_path.iterdir()}
    assert names == {run_folder.LAST: 2, run_folder.PREVIOUS: 1}


def test_a_folder_has_one_writer_at_a_time(tmp_path):
    run = tmp_path / "run"
    with run_folder.locked(run):
        with pytest.raises(RunError, match="another training is writing to .*--output"):
            with run_folder.locked(run):
                pass
        with run_folder.locked(tmp_path / "another"):
            pass
    with run_folder.locked(run):
        pass


def test_a_writer_whose_folder_was_removed_leaves_the_next_one_alone(tmp_path, content):
    run = tmp_path / "run"
    with run_folder.locked(run):
        run_folder.save_latest(run, content)
        shutil.rmtree(run)
        for restarted in (False, True):
            if restarted:
                run.mkdir()
                (run / run_folder.LOCK).touch()
            with pytest.raises(RunError, match="run was removed while .*: start again"):
                run_folder.save_latest(run, content)
    assert [path.name for path in run.iterdir()] == [run_folder.LOCK]


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / f".{run_folder.LAST}.123.unfinished").write_bytes(b"half")
    (tmp_path / run_folder.LAST).write_bytes(b"whole")
    with run_folder.locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            run_folder.LOCK,
            run_folder.LAST,
        ]


def test_where_files_cannot_be_locked_one_does_without(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with run_folder.locked(tmp_path / "run"):
        pass


def test_a_folder_is_claimed_for_its_own_run_alone(tmp_path):
    run, last = tmp_path / "run", tmp_path / "run" / run_folder.LAST
    run.mkdir()
    run_folder.claim(run, None, None)
    for name in (run_folder.LAST, run_folder.PREVIOUS):
        (run / name).write_bytes(name.encode())
        with pytest.raises(RunError, match="already holds a run"):
            run_folder.claim(run, None, None)
        other = tmp_path / run_folder.LAST
        with pytest.raises(RunError, match="already holds a run"):
            run_folder.claim(run, other, other)
        copy = run / "after_72_epochs.safetensors"  # what was trained since would be lost
        with pytest.raises(RunError, match="already holds a run"):
            run_folder.claim(run, copy, copy)
    run_folder.claim(run, last, last)
    assert last.read_bytes() == b"last.safetensors"
    run_folder.claim(run, last, run / run_folder.PREVIOUS)  # which stood in for a damaged one
    assert last.read_bytes() == b"previous.safetensors"
    assert not (run / run_folder.PREVIOUS).exists()


def test_the_newest_of_several_runs(tmp_path):
    assert run_folder.find_latest([]) is None
    assert run_folder.find_latest([tmp_path / "nothing"]) is None
    for age, (run, name) in enumerate(
        [("b", "last.safetensors"), ("a", "previous.safetensors"), ("c", "other.safetensors")]
    ):
        (tmp_path / run).mkdir()
        (tmp_path / run / name).touch()
        os.utime(tmp_path / run / name, (age, age))
    assert run_folder.find_latest(tmp_path.iterdir()) == tmp_path / "a" / "last.safetensors"
