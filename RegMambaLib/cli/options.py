"""Options that several commands share, and those that come from `Settings`: its help, default and choices."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..registration.settings import CHOICES, Settings

Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="File to write.")]
TransformFile = Annotated[Path, typer.Argument(metavar="TRANSFORM", help="Transform file or displacement image.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and only that, to stdout.")]
Reference = Annotated[
    Path | None,
    typer.Option("--reference", "-r", metavar="IMAGE", help="Image whose grid the output gets."),
]
LabelNames = Annotated[
    Path | None,
    typer.Option(
        metavar="TABLE",
        help="Label names: a shipped table (lpba40, dkt31 ...), JSON {number: name}, a manifest, or CSV label,name.",
    ),
]
Preset = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE", help="A preset: JSON file.", rich_help_panel="Settings"),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Any setting.", rich_help_panel="Settings"),
]
_FIELDS = {f.name: f for f in fields(Settings)}


def setting(name: str) -> Any:
    """The option of one setting. Not given, it is None, so that a preset's value stays."""
    field = _FIELDS[name]
    flag = "--" + name.replace("_", "-")
    return typer.Option(
        f"{flag}/--no-{flag[2:]}" if field.type == "bool" else flag,
        help=f"{field.metadata['help']} Default: {_shown(field.default)}.",
        show_default=False,
        metavar="|".join(CHOICES[name]) if name in CHOICES else None,
        rich_help_panel="Settings",
    )


def settings_help() -> str:
    """Every setting with its help and default, for `--set`."""
    rows = [f"- {f.name} ({_shown(f.default)}): {f.metadata['help']}" for f in _FIELDS.values()]
    return "\n".join(["Settings for --set, with their defaults:\n", *rows])


def resolve_settings(preset: Path | None, assignments: list[str], **given: Any) -> Settings:
    """Settings from, in rising order, the defaults, a preset file, `name=value` texts and options not None.

    Raises:
        InputError: an unreadable preset, an unknown name, a bad value.
    """
    values = Settings.load(preset).to_dict() if preset else {}
    values |= dict(_assignment(text) for text in assignments)
    values |= {name: value for name, value in given.items() if value is not None}
    return Settings.from_dict(values)


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise InputError(f"--set takes name=value, not {text!r}; --set metric=mind, for instance.")
    default = _FIELDS[name].default if name in _FIELDS else ""
    if isinstance(default, str):
        return name, value
    try:
        parsed = json.loads(f"[{value.strip().strip('()[]')}]".lower())
    except ValueError as error:
        raise InputError(f"--set {name} cannot be {value!r}; its default is {_shown(default)}.") from error
    if isinstance(default, tuple):
        return name, tuple(parsed)
    if len(parsed) != 1:
        raise InputError(f"--set {name} takes one value, not {value!r}; its default is {_shown(default)}.")
    return name, parsed[0]


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return ",".join(str(v) for v in default)
    return str(default).lower() if isinstance(default, bool) else str(default)
