"""Flags: a setting's purpose and range, stated once for flag, check, message and --help."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_origin, get_type_hints

import utils

LARGEST = sys.float_info.max
T = TypeVar("T")
METAVARS: dict[type, str] = {int: "N", float: "X", str: "NAME"}


@dataclass(frozen=True)
class Setting:
    """A setting's purpose and allowed values: one of `choices`, or a number in a range.

    Attributes:
        at_least, at_most: inclusive bounds.
        above, below: exclusive bounds, if any.
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
        """The allowed values, in words."""
        if self.choices:
            *others, last = self.choices
            return f"{', '.join(others)} or {last}" if others else last
        if self.above is not None:
            most = "" if self.at_most == LARGEST else f", at most {self.at_most}"
            return f"more than {self.above}{most}"
        if self.below is not None:
            return f"{self.at_least} to less than {self.below}"
        if self.at_most == LARGEST:
            return f"{self.at_least} or more"
        return f"{self.at_least} to {self.at_most}"


def setting(help: str, *, default: Any = MISSING, **allowed: Any) -> Any:
    """A dataclass field that is a Setting; without `default`, every object has to give a value."""
    return field(default=default, metadata={"setting": Setting(help, **allowed)})


def settings_of(record: Any) -> dict[str, Setting]:
    """The fields of a dataclass or its object that are settings."""
    return {f.name: f.metadata["setting"] for f in fields(record) if "setting" in f.metadata}


def flag(name: str) -> str:
    """batch_size -> --batch-size"""
    return "--" + name.replace("_", "-")


def check(record: Any, error: type[Exception]) -> None:
    """Raises `error`, naming flag, value and range, if a setting is out of range."""
    for name, allowed in settings_of(record).items():
        value = getattr(record, name)
        if not allowed.allows(value):
            raise error(f"{flag(name)} {value}: choose {allowed.range}")


def check_types(record: Any) -> None:
    """TypeError if a field of a dataclass object is not of its declared type."""
    for name, kind in get_type_hints(type(record)).items():
        kind = (int, float) if kind is float else get_origin(kind) or kind
        if not isinstance(getattr(record, name), kind):
            raise TypeError(f"{name} is not of type {kind}")


def with_flags(record: T, given: dict[str, Any]) -> T:
    """A copy of a dataclass object with the values of the flags that are fields of it."""
    names = (f.name for f in fields(record))  # type: ignore[arg-type]
    return replace(record, **{name: given[name] for name in names if name in given})  # type: ignore[type-var]


def add_flag(
    group: argparse._ActionsContainer, name: str, setting: Setting, default: Any, kind: Any = None
) -> None:
    """Add a flag for a setting, of type `kind` or its default's. A value out of range is a usage
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
    # A parser with argparse.SUPPRESS omits flags that were not given; others get the default.
    missing = group.argument_default or default
    group.add_argument(flag(name), type=value, metavar=METAVARS[kind], default=missing, help=text)


def add_flags(group: argparse._ActionsContainer, record: Any) -> None:
    """Add a flag for each setting of a dataclass object, whose values are the defaults."""
    kinds = get_type_hints(type(record))
    for name, allowed in settings_of(record).items():
        add_flag(group, name, allowed, kinds[name](getattr(record, name)))


def folder(text: str) -> Path:
    """A flag's folder. An empty path, as from an unset shell variable, is a usage error."""
    return Path(_not_empty(text, "a folder"))


def file(text: str) -> Path:
    """A flag's file, checked as in `folder`."""
    return Path(_not_empty(text, "a file"))


def url(text: str) -> str:
    """A flag's URL, checked as in `folder`."""
    return _not_empty(text, "a URL")


def _not_empty(text: str, what: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError(f"is empty: name {what}")
    return text


def compact(prog: str) -> argparse.HelpFormatter:
    """Help with one line per flag on a terminal of 100 columns."""
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=28)
