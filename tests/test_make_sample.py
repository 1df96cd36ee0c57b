"""The script that the built-in sample was made by."""

import subprocess
import sys

import pytest
from fakes import ROOT

from data import cifar10, make_sample


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
