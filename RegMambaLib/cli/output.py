"""What commands print on stdout."""

from __future__ import annotations

import json
import math
from typing import Any


def print_json(value: Any) -> None:
    """A report as JSON."""
    print(to_json(value), end="")


def to_json(value: Any) -> str:
    """A report as JSON text; NaN and infinity, which JSON does not know, become null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: float | None, digits: int = 3) -> str:
    """A number for people; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
