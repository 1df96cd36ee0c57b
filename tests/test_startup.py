"""What a command does before it imports PyTorch."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import startup

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = SETTING.read_text() if SETTING.exists() else ""
# Allocates and frees four blocks of 16 MB, 16,384 pages, twenty times, and prints the page faults.
BLOCKS = """
import resource, startup
startup.begin()
for _ in range(20):
    blocks = [bytearray(1 << 24) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def faults(**environment):
    return int(
        subprocess.run(
            [sys.executable, "-c", BLOCKS],
            cwd=startup.__file__.rpartition("/")[0],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


@needs_glibc
@pytest.mark.skipif("[always]" in HUGE_PAGES, reason="with huge pages, few faults either way")
def test_freed_blocks_are_kept_unless_the_user_says_no():
    assert faults() < 2 * 16_384
    assert faults(KEEP_MEMORY="0") > 10 * 16_384


@pytest.mark.parametrize("largest, kept", [(1 << 30, True), (1 << 25, True), (0, False)])
def test_an_older_glibc_takes_a_smaller_threshold(largest, kept, monkeypatch):
    asked = []

    def mallopt(parameter, value):
        asked.append(parameter)
        return int(parameter == startup.M_TRIM_THRESHOLD or value <= largest)

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.30"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert startup.keep_memory() is kept
    assert (startup.M_TRIM_THRESHOLD in asked) is kept


@pytest.mark.parametrize("system, libc", [("Darwin", ""), ("Windows", ""), ("Linux", "musl")])
def test_nothing_happens_without_glibc(system, libc, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked for the C library"))
    assert not startup.keep_memory()
