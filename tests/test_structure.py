"""The shape of the repository: arrows point downwards, functions and modules stay short."""

import ast

import pytest
from fakes import ROOT

TOOLS = ("benchmarks", "experiments", "stress", "demo")
COMMANDS = ("train", "test", "predict", "export", "hubconf")
GROUND = ("data", "models", "plots", "utils")
# What each part imports of the others.
ALLOWED = {
    **dict.fromkeys(GROUND, set()),
    "startup": set(),
    "training": {*GROUND},
    **dict.fromkeys(COMMANDS, {*GROUND, "startup", "training"}),
    **dict.fromkeys(TOOLS, {*GROUND, "startup", "training", *TOOLS}),
}
LONGEST_FUNCTION, LONGEST_MODULE = 40, 300  # lines

# The folders of tests/ are for what only tests use.
MODULES = [
    path.relative_to(ROOT)
    for part in (*ALLOWED, "tests")
    for path in sorted([ROOT / f"{part}.py", *(ROOT / part).glob("*.py")])
    if path.exists()
]


def tree(module):
    return ast.parse((ROOT / module).read_text())


def imported(module):
    """The parts of the repository that a module imports."""
    names = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names & ALLOWED.keys()


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] != "tests"], ids=str)
def test_arrows_point_downwards(module):
    part = module.parts[0].removesuffix(".py")
    assert imported(module) <= ALLOWED[part] | {part}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_functions_and_modules_are_short(module):
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]
    assert long == []
    if module.parts[0] != "tests":  # there is one for each subject, of as many tests as it takes
        assert len((ROOT / module).read_text().splitlines()) <= LONGEST_MODULE
