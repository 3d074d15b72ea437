"""What commands print on stdout."""

from __future__ import annotations

import json
from typing import Any

from ..evaluation.plain import finite


def print_json(value: Any) -> None:
    """A report as JSON."""
    print(to_json(value), end="")


def to_json(value: Any) -> str:
    """A report as JSON text; NaN and infinity, which JSON does not know, become null."""
    return json.dumps(finite(value), indent=2, allow_nan=False) + "\n"


def shown(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
