"""Throw hostile flags, files, pictures, names and servers at the real commands.

    python -m stress.inputs

Each case runs a command in its own process, forked from one that has imported everything. It must
exit with 0, with 2 and one line on standard error, or with 143, as after SIGTERM: trainings are
interrupted at their third step. It may use 2 s of processor time and 300 MB on top of the imports.
It must print no control characters, and with --json only valid JSON. It must run no foreign code or
program, and touch no network and no files but its own. A damaged file must be refused or give the
same output as the intact one. `--only N` repeats one case. Needs Linux.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import hypothesis
import torch
from hypothesis import HealthCheck, Phase
from tqdm import tqdm

import utils
from stress.cases import KINDS, Case
from stress.life import Life
from stress.sandbox import Box
from training.flags import Setting, add_flag

SECONDS, MEGABYTES = 2.0, 300
BLOCK = 20  # cases of one kind, drawn by Hypothesis from one seed
DRAWN = 49  # one case in so many draws its figures, which takes a second more
WELL = ("refused", "done")
Result = tuple[str, str, float, int]  # kind, one of WELL or what went wrong, seconds, MB


class Outcome(NamedTuple):
    """How a command ended, what it printed, its forbidden deeds, and its time and memory."""

    status: int
    out: list[str]
    err: list[str]
    deeds: str
    seconds: float
    megabytes: int


def drawn(seed: int, block: int, here: Path) -> list[Case]:
    """The cases of a block, the same every time."""
    found: list[Case] = []

    @hypothesis.seed(seed * 10**9 + block)
    @hypothesis.settings(
        max_examples=BLOCK,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(KINDS[block % len(KINDS)](here))
    def draw(case: Case) -> None:
        found.append(case)

    draw()
    return found


def carry_out(case: Case, box: Box, figures: bool) -> Outcome:
    """Run a case's command in a temporary folder."""
    folder = Path(tempfile.mkdtemp(dir=box.folder))
    try:
        script, *arguments = box.lay_out(case, folder / "in")
        ctypes.CDLL(None).malloc_trim(0)  # or freed memory would hide what a command takes
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        before = (resident - shared) * os.sysconf("SC_PAGE_SIZE")
        life = Life(script, arguments, folder, partial(box.enter, case, folder, figures))
        _, status, usage = os.wait4(life.pid, 0)
        out, err = (p.read_bytes().decode(errors="replace") for p in (life.out, life.err))
        out = re.sub(r"[\d.]+ s, [\d,]+ images/s.*", "", out)  # times differ each time
        deeds = (folder / "deeds").read_text() + leftovers(folder / "in")
        lines = out.split("\n")[:-1], err.split("\n")[:-1]
        seconds = usage.ru_utime + usage.ru_stime
        megabytes = (1024 * usage.ru_maxrss - before) // 2**20
        return Outcome(os.waitstatus_to_exitcode(status), *lines, deeds, seconds, megabytes)
    finally:
        shutil.rmtree(folder)


def is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=int)  # ValueError for NaN
    except ValueError:
        return False
    return True


def leftovers(folder: Path) -> str:
    """Half-written files and invalid JSON files, one line each."""
    paths = [Path(place, name) for place, *found in os.walk(folder) for name in sum(found, [])]
    half = [path for path in paths if path.name.endswith((".unfinished", ".partial"))]
    half += [path for path in paths if path.suffix == ".json" and not is_json(path.read_text())]
    return "".join(f"left {path}\n" for path in half)


def fault(case: Case, outcome: Outcome, figures: bool) -> str | None:
    """The rule that the command broke, or None."""
    script, err = case.command[0], outcome.err
    errors = sum(line.startswith(f"{script}: error: ") for line in err)
    unread = 3 * len([*case.command, *case.files]) if script == "predict.py" else 0  # a line each
    checks = {
        "did what is forbidden": not outcome.deeds,
        "ended otherwise": outcome.status in (0, 2, 128 + signal.SIGTERM),
        "said what cannot be printed": all(line.isprintable() for line in (*outcome.out, *err)),
        "did not say why": outcome.status != 2 or errors == 1 or (err and unread),
        "said too much": errors <= 1 and len(err) <= 2 + unread,
        "complained": not any(re.search(r"Traceback|\wError|\wWarning", line) for line in err),
        "took long": outcome.seconds < SECONDS * (1 + figures),
        "took memory": outcome.megabytes < MEGABYTES,
        "printed no JSON": "--json" not in case.command or all(map(is_json, outcome.out)),
    }
    return next((what for what, well in checks.items() if not well), None)


def try_out(number: int, case: Case, box: Box) -> Result:
    figures = number % DRAWN == DRAWN - 1
    outcome = carry_out(case, box, figures)
    wrong = fault(case, outcome, figures)
    if wrong is None and outcome.status != 2 and case.right is not None:
        (name,) = case.files
        expected = carry_out(replace(case, files={name: case.right}), box, figures)
        wrong = None if outcome.out == expected.out else "took damage for something else"
    verdict = WELL[outcome.status != 2]
    if wrong is not None:
        shown = "\n".join([*outcome.out[-5:], *outcome.err[-15:], outcome.deeds])
        took = f"{outcome.seconds:.1f} s, {outcome.megabytes} MB, status {outcome.status}"
        verdict = f"case {number} {wrong} ({took}): {case.command!r:.2000}\n{shown}"
    return case.kind, verdict, outcome.seconds, outcome.megabytes


def run_block(block: int, box: Box, seed: int, only: int | None) -> list[Result]:
    numbered = enumerate(drawn(seed, block, box.here), start=block * BLOCK)
    return [try_out(number, case, box) for number, case in numbered if only in (None, number)]


def report(results: list[Result]) -> str:
    """A line per kind of case, and the largest time and memory."""
    counts = Counter(
        (kind, verdict if verdict in WELL else "wrong") for kind, verdict, *_ in results
    )
    lines = [
        f"{kind:<22}" + "".join(f"{counts[kind, v]:>8} {v}" for v in (*WELL, "wrong"))
        for kind in sorted({kind for kind, _ in counts})
    ]
    well = sum(verdict in WELL for _, verdict, *_ in results)
    seconds, megabytes = (max((r[column] for r in results), default=0) for column in (2, 3))
    took = f"the slowest took {seconds:.1f} s, the largest {megabytes} MB"
    return "\n".join([*lines, f"{well} of {len(results)} cases ended well; {took}"])


def main(argv: list[str] | None = None) -> None:
    parser = utils.ArgumentParser(description=__doc__.splitlines()[0])
    add_flag(parser, "cases", Setting("in all", at_least=1), 1000)
    add_flag(parser, "seed", Setting("of the cases"), 0)
    add_flag(parser, "only", Setting("try this case alone"), None, int)
    add_flag(parser, "processes", Setting("that try them", at_least=1), 2)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)  # before anything computes, so that the process can fork
    blocks = range(-(-given.cases // BLOCK)) if given.only is None else [given.only // BLOCK]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        box = Box(Path(folder))
        run = partial(run_block, box=box, seed=given.seed, only=given.only)
        bar = tqdm(total=len(blocks) * BLOCK, unit=" cases", disable=None)
        with ProcessPoolExecutor(given.processes, get_context("fork")) as pool, bar:
            for found in pool.map(run, blocks):
                results += found
                bar.update(len(found))
                for _, verdict, *_ in found:
                    if verdict not in WELL:
                        tqdm.write(verdict)
    print(report(results))
    sys.exit(any(verdict not in WELL for _, verdict, *_ in results))


if __name__ == "__main__":
    main()
