"""What the documents name is there: links, files, commands with their flags, names in the code."""

import re

import pytest
from fakes import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)
ENDINGS = "py|txt|md|csv|ipynb|safetensors|onnx|png|jpg"
NAMED_FILE = re.compile(rf"(?<![\w/.-])(?!runs/)(?:[\w.-]+/)*[\w-]+\.(?:{ENDINGS})\b")
COMMAND = re.compile(r"\bpython (-m )?([\w./]+)([^`\n&|]*)")
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
# What a training or an export writes, and what a page has its reader write.
WRITTEN = {"history.csv", "last.safetensors", "previous.safetensors", "weights.safetensors"}
WRITTEN |= {"validation.png", "grid.png", "summary.txt", "models/tiny.py", "models/plain.py"}


def text(path):
    return path.read_text(encoding="utf-8")


def code(path):
    return CODE.findall(text(path))


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.name)
def document(request):
    return request.param


@pytest.mark.parametrize("name, most", [("README.md", 130), ("CONTRIBUTING.md", 40)])
def test_what_everyone_reads_is_short(name, most):
    assert len(text(ROOT / name).splitlines()) <= most


def test_links_and_pictures_lead_somewhere(document):
    for target in LINK.findall(text(document)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        page = document.parent / file if file else document
        assert page.exists(), target
        headings = re.findall(r"^#+ (.+)$", text(page), re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w -]", "", line).lower().replace(" ", "-") for line in headings}
        assert not anchor or anchor in slugs, target


def test_named_files_are_there(document):
    named = {name for span in code(document) for name in NAMED_FILE.findall(span)} - WRITTEN
    folders = (ROOT, ROOT / "tests", ROOT / "models")
    assert [name for name in sorted(named) if not any((f / name).exists() for f in folders)] == []


@pytest.fixture
def flags_of(program):
    """The flags that a command's --help names."""
    known = {}

    def ask(script):
        if script not in known:
            status, out, err = program(script, "--help")
            assert status == 0, err
            known[script] = set(FLAG.findall(out))
        return known[script]

    return ask


def test_commands_know_their_flags(document, flags_of):
    commands = [found for span in code(document) for found in COMMAND.findall(span)]
    for module, name, arguments in commands:
        script = f"{name.replace('.', '/')}.py" if module else name
        if script.endswith(".py"):
            assert set(FLAG.findall(arguments)) <= flags_of(script), f"{script}{arguments}"


def test_flags_named_alone_belong_to_a_command(document, flags_of):
    scripts = ("train.py", "test.py", "predict.py", "export.py", "experiments/search.py")
    known = set().union(*map(flags_of, scripts))
    for span in code(document):
        if FLAG.match(span.strip("`")):
            assert set(FLAG.findall(span)) <= known, span


def test_named_tests_and_parts_of_modules_are_there(document):
    """`test_x.py::test_y`, and rows like | what | `folder/module.py` | `name` |."""
    pairs = [(f"tests/{a}", b) for a, b in re.findall(r"`(test_\w+\.py)::(\w+)`", text(document))]
    rows = re.findall(r"\| `([\w/]+\.py)` \| ((?:`\w+`(?:, )?)+)", text(document))
    pairs += [(path, name) for path, names in rows for name in re.findall(r"\w+", names)]
    for path, name in pairs:
        pattern = rf"^(?: *(?:def|class) {name}\b|{name}\b.*=)"
        assert re.search(pattern, text(ROOT / path), re.MULTILINE), f"{path}: {name}"
