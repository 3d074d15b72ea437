"""The results as text and pictures: tables between the markers of docs/benchmarks.md, PNG files beside the numbers.

    python -m benchmarks.report
    python -m benchmarks.report --results FOLDER --page PAGE.md

A part of the page begins with a line `<!-- NAME -->` and ends with `<!-- end NAME -->`; what is between is replaced.
A part without numbers is left as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import pictures, tables
from .ablation import VARIANTS
from .cases import CASES, ROOT
from .measure import RESULTS, Row, reason
from .registration import METHODS
from .scan import CHANNELS, STATES

PAGE = ROOT / "docs" / "benchmarks.md"


def fill(page: str, name: str, text: str) -> str:
    """A page with what is between the markers of a part replaced.

    Raises:
        ValueError: the page has no such part.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    if begin not in page or end not in page:
        raise ValueError(f"The page has no part {name!r}; add the lines {begin} and {end}.")
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)


def origin(head: dict[str, Any]) -> str:
    """Where numbers come from: machine, versions, dates, commands."""
    machine = head["machine"]
    there = [f"{name} {version}" for name, version in head["versions"].items() if version]
    absent = [name for name, version in head["versions"].items() if not version]
    dates = sorted({row["date"][:10] for row in head["rows"]})
    commits = list(dict.fromkeys(row["commit"] for row in head["rows"]))
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GiB, {machine['system']}, "
        f"GPU: {machine['gpu'] or 'none'}; Python {machine['python']}.",
        f"{', '.join(there)}." + (f" Not installed: {', '.join(absent)}." if absent else ""),
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, commit {', '.join(commits)}:",
        "",
        *(f"    {command}" for command in head["commands"]),
    ]
    return "\n".join(lines)


def registration(head: dict[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    """(part, text) of the comparison; the pictures go into the folder."""
    rows: list[Row] = head["rows"]
    yield "registration origin", origin(head)
    pieces = []
    for name, case in CASES.items():
        mine = [row for row in rows if row["case"] == name]
        if not mine:
            continue
        pieces += [f"### {name}", "", f"{case.title}.", "", tables.case_table(mine, METHODS), ""]
        if len({row["pair"] for row in mine}) > 1:
            pieces += [tables.pair_table(mine, METHODS), ""]
        if any("per_label" in row for row in mine):
            picture = f"structures_{name}.png"
            pictures.structures(rows, name, METHODS, folder / picture)
            pieces += [f"![Dice of the structures of {name}](benchmarks/{picture})", ""]
    yield "registration", "\n".join(pieces).rstrip()
    if any("process_seconds" in row for row in rows):
        pictures.time_against_accuracy(rows, METHODS, folder / "time_against_accuracy.png")
        yield "accuracy", "![Dice against seconds](benchmarks/time_against_accuracy.png)"
    yield "problems", tables.problems(rows, METHODS)


def scan(head: dict[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    rows: list[Row] = head["rows"]
    speeds = ", ".join(f"{device} {speed} GB/s" for device, speed in head["bandwidth_gb_s"].items())
    yield (
        "scan origin",
        f"{origin(head)}\n\nMemory, by a copy: {speeds}. {CHANNELS} channels, {STATES} states, float32.",
    )
    pieces = []
    for device in dict.fromkeys(row["device"] for row in rows):
        here = [row for row in rows if row["device"] == device]
        for directions in sorted({row["directions"] for row in here}):
            for step in dict.fromkeys(row["step"] for row in here):
                text = tables.scan_table(here, directions, step)
                noun = "direction" if directions == 1 else "directions"
                pieces += [f"**{device.upper()}, {directions} {noun}, {step}**", "", text, ""]
        drawn = [row["directions"] for row in here if not reason(row)]
        if drawn:
            most = 6 if 6 in drawn else max(drawn)
            pictures.scan_cost(here, most, folder / f"scan_{device}.png")
            pieces += [f"![Cost against length, {most} directions](benchmarks/scan_{device}.png)", ""]
    yield "scan", "\n".join(pieces).rstrip()


def scan_gpu(head: dict[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    for part, text in scan(head, folder):
        yield part.replace("scan", "scan gpu"), text


def stages(head: dict[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    parts: dict[str, list[Row]] = {}
    for row in head["rows"]:
        parts.setdefault(row["part"], []).append(row)
    yield "stages origin", origin(head)
    if "imports" in parts:
        yield "imports", tables.import_table(parts["imports"])
    if "register" in parts:
        yield "stages", tables.stage_table(parts["register"])
    if "warm" in parts:
        yield "warm", tables.stage_table(parts["warm"])
    if "sizes" in parts:
        text = tables.size_table(parts["sizes"])
        if any(not reason(row) for row in parts["sizes"]):
            pictures.growth(parts["sizes"], folder / "growth.png")
            text += "\n\n![Seconds and memory against voxels](benchmarks/growth.png)"
        yield "sizes", text


def ablation(head: dict[str, Any], _: Path) -> Iterator[tuple[str, str]]:
    rows: list[Row] = head["rows"]
    steps, seeds = (sorted({row[name] for row in rows}) for name in ("steps", "seed"))
    counted = f"{', '.join(map(str, steps))} steps each, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}."
    yield "ablation origin", f"{origin(head)}\n\n{counted}"
    yield "ablation", tables.ablation_table(rows, {variant: title for variant, (title, _) in VARIANTS.items()})


def confidence(head: dict[str, Any], _: Path) -> Iterator[tuple[str, str]]:
    yield "confidence origin", origin(head)
    yield "confidence", tables.confidence_table(head["rows"])


PARTS = {
    "registration.json": registration,
    "scan.json": scan,
    "scan_gpu.json": scan_gpu,
    "stages.json": stages,
    "ablation.json": ablation,
    "confidence.json": confidence,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the numbers, and for the pictures")
    parser.add_argument("--page", type=Path, default=PAGE)
    arguments = parser.parse_args()
    page = arguments.page.read_text(encoding="utf-8")
    for name, make in PARTS.items():
        numbers = arguments.results / name
        if not numbers.exists():
            print(f"no {numbers}: its parts of the page stay as they are")
            continue
        for part, text in make(json.loads(numbers.read_text(encoding="utf-8")), arguments.results):
            page = fill(page, part, text)
    arguments.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
