"""Names of labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError


def read_label_names(source: str | Path) -> dict[int, str]:
    """Names of the labels that count.

    Args:
        source: a shipped table by its name (`training.datasets.tables`; the labels that the literature evaluates), a
            JSON file {"17": "left hippocampus"} or of the form of those tables, a data set's manifest, or a CSV with
            the columns label and name.

    Raises:
        InputError: missing, or none of these.
    """
    path = Path(source)
    if path.suffix.lower() == ".csv":
        return _read_csv(path)
    if path.is_file():
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} is no readable JSON ({error}); give label names as JSON or CSV.") from error
        if isinstance(manifest, dict) and isinstance(manifest.get("label_names"), dict):
            try:
                return {int(label): str(name) for label, name in manifest["label_names"].items()}
            except ValueError as error:
                raise InputError(f"{path} has a label that is no number; label_names go by values.") from error
    from ..training.datasets.tables import load_table

    return load_table(source).kept(every=False)


def _read_csv(path: Path) -> dict[int, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return {int(row["label"]): row["name"].strip() for row in csv.DictReader(stream)}
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no label names; give a CSV with the columns label and name.") from error


def structure_name(label: Any, names: Mapping[int, str]) -> str:
    """The name of a label, with its number; only the number where it has none."""
    name = names.get(int(label))
    return f"{name} ({label})" if name else str(label)
