"""`regmamba info`: what this installation has and can use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .options import Json


def info(json: Json = False) -> None:
    """Show versions, devices, scan backends and the network weights that came along."""
    from .output import print_json

    facts = gather()
    if json:
        print_json(facts)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, version in facts["versions"].items():
        table.add_row(name, version or "not installed")
    table.add_section()
    for device in facts["devices"]:
        table.add_row(device["device"], device["name"])
    for name, reason in facts["scan_backends"].items():
        table.add_row(f"scan {name}", reason or "works")
    for weights in facts["weights"]:
        table.add_row(f"weights {weights['name']}", f"{weights['megabytes']:.1f} MB")
    Console(highlight=False).print(table)


def gather() -> dict[str, Any]:
    """The facts, for JSON: versions, devices, scan backends (None, or why not usable), weights."""
    from ..scan import available_backends
    from .system import versions

    return {
        "versions": versions(),
        "devices": _devices(),
        "scan_backends": available_backends(),
        "weights": [
            {"name": path.stem, "megabytes": path.stat().st_size / 1e6}
            for path in sorted((Path(__file__).parents[1] / "weights").glob("*.safetensors"))
        ],
    }


def _devices() -> list[dict[str, str]]:
    import os
    import platform

    import torch

    processor = platform.processor() or platform.machine()
    found = [{"device": "cpu", "name": f"{processor}, {os.cpu_count()} threads"}]
    for n in range(torch.cuda.device_count()):
        found.append({"device": f"cuda:{n}", "name": torch.cuda.get_device_name(n)})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    return found
