"""docs/your-own-network.md: a copy of the repository in which everything is done that it says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import ROOT

PAGE = ROOT / "docs" / "your-own-network.md"
BLOCK = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"`((?:models|training|tests)/\w+\.py)`")


def sections() -> dict[str, str]:
    """The page by its headings."""
    _, *parts = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def insert(content: str, block: str) -> str:
    """`content` with the lines of `block` marked + after the one line of it that stands there."""
    context, *added = block.splitlines()
    assert context[0] == " " and all(line[0] == "+" for line in added), block
    lines = content.splitlines()
    assert lines.count(context[1:]) == 1, f"the page names a line that is not there: {context}"
    place = lines.index(context[1:]) + 1
    return "\n".join([*lines[:place], *(line[1:] for line in added), *lines[place:], ""])


def follow(section: str, repository: Path) -> str:
    """Do what a section says: each code block is for the file that was named last before it.

    Returns what its commands printed.
    """
    said = ""
    for found in BLOCK.finditer(section):
        kind, block = found.groups()
        if kind == "bash":
            for command in block.splitlines():
                said += run(command, repository)
            continue
        path = repository / FILE.findall(section[: found.start()])[-1]
        content = block if kind == "python" else insert(path.read_text(encoding="utf-8"), block)
        path.write_text(content, encoding="utf-8")
    return said


def run(command: str, repository: Path) -> str:
    """The output of a command of the page, with the Python that runs this test."""
    program, *arguments = command.split()
    start = {"python": [sys.executable], "pytest": [sys.executable, "-m", "pytest"]}[program]
    result = subprocess.run(
        [*start, *arguments], cwd=repository, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("copy") / "repository"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "raw", "runs", "*venv*")
    shutil.copytree(ROOT, copy, ignore=ignored)
    return copy


@pytest.mark.slow
def test_the_page_adds_a_network(repository: Path) -> None:
    steps = [text for heading, text in sections().items() if heading[0].isdigit()]
    assert len(steps) == 5
    said = "".join(follow(text, repository) for text in steps)
    assert "Parameters: 24,346\n" in said and "24,346" in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_page_brings_back_the_network_without_mirrors(repository: Path) -> None:
    follow(sections()["A variant of a network"], repository)
    summary = run("python train.py --model plain --summary", repository)
    assert "Parameters: 96,118\n" in summary and "96,118" in PAGE.read_text(encoding="utf-8")
