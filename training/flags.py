"""Flags: what a setting is for and may be, said once for flag, check, message and --help."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import utils

LARGEST = sys.float_info.max
METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME"}


@dataclass(frozen=True)
class Setting:
    """What a setting is for, and what it may be: one of `choices`, or else a finite number.

    Attributes:
        at_least, at_most: the first and the last number of its range.
        above, below: bounds that do not belong to the range, where it has such.
    """

    help: str
    choices: Sequence[str] = ()
    at_least: float = 0
    at_most: float = LARGEST
    above: float | None = None
    below: float | None = None

    def allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        within = self.at_least <= value <= self.at_most
        above = self.above is None or value > self.above
        return within and above and (self.below is None or value < self.below)

    @property
    def range(self) -> str:
        """The values that are allowed, in words."""
        if self.choices:
            *others, last = self.choices
            return f"{', '.join(others)} or {last}" if others else last
        if self.above is not None:
            return f"more than {self.above}"
        if self.below is not None:
            return f"{self.at_least} to less than {self.below}"
        if self.at_most == LARGEST:
            return f"{self.at_least} or more"
        return f"{self.at_least} to {self.at_most}"


def setting(help: str, *, default: Any = MISSING, **allowed: Any) -> Any:
    """A field of a dataclass that is a Setting; without a `default`, each object names its own."""
    return field(default=default, metadata={"setting": Setting(help, **allowed)})


def settings_of(record: Any) -> dict[str, Setting]:
    """The fields of a dataclass, or of an object of one, that are settings."""
    return {f.name: f.metadata["setting"] for f in fields(record) if "setting" in f.metadata}


def flag(name: str) -> str:
    """batch_size -> --batch-size"""
    return "--" + name.replace("_", "-")


def check(record: Any, error: type[Exception]) -> None:
    """Raises `error`, which names flag, value and range, where a setting is out of its range."""
    for name, allowed in settings_of(record).items():
        value = getattr(record, name)
        if not allowed.allows(value):
            raise error(f"{flag(name)} {value}: choose {allowed.range}")


def add_flag(
    group: argparse._ActionsContainer, name: str, setting: Setting, default: Any, kind: Any = None
) -> None:
    """A flag for a setting, of the type `kind` or its default's. What is out of range is a usage
    error."""
    kind = kind or type(default)

    def value(text: str) -> int | float | str:
        try:
            parsed = kind(text)
            if setting.allows(parsed):
                return parsed
        except ValueError:  # not a number
            pass
        raise argparse.ArgumentTypeError(
            f"{utils.clean(text, 60) or repr(text)}: choose {setting.range}"
        )

    shown = "" if default is None else f" ({default:g})" if kind is float else f" ({default})"
    text = f"{setting.help}; {setting.range}{shown}".replace("%", "%%")
    # A parser may leave out what was not given; otherwise it has the default.
    missing = group.argument_default or default
    group.add_argument(flag(name), type=value, metavar=METAVARS[kind], default=missing, help=text)


def add_flags(group: argparse._ActionsContainer, record: Any) -> None:
    """A flag for each setting of a dataclass, whose default is that of the object `record`."""
    kinds = get_type_hints(type(record))
    for name, allowed in settings_of(record).items():
        add_flag(group, name, allowed, kinds[name](getattr(record, name)))


def folder(text: str) -> Path:
    """A flag's folder. An empty one, as of an unset variable of the shell, is a usage error."""
    return _path(text, "a folder")


def file(text: str) -> Path:
    """A flag's file, as `folder`."""
    return _path(text, "a file")


def _path(text: str, what: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError(f"is empty: name {what}")
    return Path(text)


def compact(prog: str) -> argparse.HelpFormatter:
    """Help that gives a flag one line, where the terminal has 100 columns."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28)
