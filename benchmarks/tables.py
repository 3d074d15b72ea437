"""Rows of results as Markdown tables: pure functions of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median

from RegMambaLib.evaluation import text

from .measure import Row, reason

# Column, heading, format. Quality: mean over the pairs; cost: median of all runs, with the range where there are more.
QUALITY = (
    ("dice", "Dice", ".3f"),
    ("dice_cortical", "cortical", ".3f"),
    ("dice_subcortical", "subcortical", ".3f"),
    ("hd95_mm", "HD95, mm", ".2f"),
    ("folding_percent", "folds, %", ".2g"),
    ("folding_strict_percent", "strict, %", ".2g"),
    ("nondiffeomorphic_percent", "NDV, %", ".2g"),
    ("sd_log_jacobian", "SDlogJ", ".2f"),
)
COST = (
    ("registration_seconds", "registration, s", ".1f"),
    ("linear_seconds", "of it linear, s", ".1f"),
    ("process_seconds", "process, s", ".1f"),
    ("cpu_seconds", "CPU, s", ".0f"),
    ("memory_gb", "memory, GiB", ".2f"),
)


def number(value: float | None, style: str) -> str:
    """ "-" for what does not exist; no sign or exponent for a plain zero."""
    if value is None or not math.isfinite(value):
        return "-"
    return "0" if value == 0 else format(value, style)


def milliseconds(seconds: float) -> str:
    """Three digits, or all before the point."""
    return format(1000 * seconds, ",.0f" if seconds >= 0.1 else ".3g")


def over_pairs(rows: Iterable[Row], column: str) -> float | None:
    """Mean over the pairs of the median over the repetitions of each."""
    pairs: dict[str, list[float]] = {}
    for row in rows:
        if row.get(column) is not None:
            pairs.setdefault(row["pair"], []).append(row[column])
    return sum(median(values) for values in pairs.values()) / len(pairs) if pairs else None


def over_runs(rows: Iterable[Row], column: str, style: str, middle: Callable[[Sequence[float]], float] = median) -> str:
    """Median (or another middle) of all runs and, of several, their range: "12.6 (12.1 to 13.4)"."""
    values = [row[column] for row in rows if row.get(column) is not None]
    if not values:
        return "-"
    shown = number(middle(values), style)
    low, high = number(min(values), style), number(max(values), style)
    return shown if low == high else f"{shown} ({low} to {high})"


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """The library's Markdown table, without the newline at its end."""
    return text.markdown(heads, lines).rstrip("\n")


def by_method(rows: Iterable[Row], methods: Sequence[str]) -> dict[str, list[Row]]:
    """Rows of each method, in the order of `methods`; others follow."""
    groups: dict[str, list[Row]] = {method: [] for method in methods}
    for row in rows:
        groups.setdefault(row["method"], []).append(row)
    return {method: group for method, group in groups.items() if group}


def case_table(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """One case: a line for each method. A method that did not run on every pair says so after its name."""
    good = [row for row in rows if not reason(row)]
    quality = [column for column in QUALITY if any(row.get(column[0]) is not None for row in good)]
    pairs = len({row["pair"] for row in rows})
    lines = []
    for method, group in by_method(rows, methods).items():
        there = [row for row in group if not reason(row)]
        if not there:
            lines.append([method, "; ".join(dict.fromkeys(str(reason(row)) for row in group))])
            continue
        ran = len({row["pair"] for row in there})
        name = method if ran == pairs else f"{method} ({ran} of {pairs} pairs)"
        cells = [number(over_pairs(there, column), style) for column, _, style in quality]
        lines.append([name, *cells, *(over_runs(there, column, style) for column, _, style in COST)])
    heads = ["", *(title for _, title, _ in quality), *(title for _, title, _ in COST)]
    return markdown(heads, ([*cells, *[""] * (len(heads) - len(cells))] for cells in lines))


def pair_table(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Dice of one case pair by pair."""
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    lines = []
    for method, group in by_method(rows, methods).items():
        values = (over_pairs([row for row in group if row["pair"] == pair], "dice") for pair in pairs)
        lines.append([method, *(number(value, ".4f") for value in values)])
    return markdown(["Dice", *pairs], lines)


def problems(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Every run that has no figures, and why; and of each case the methods that were not run at all."""
    found = [f"- {row['case']}, {row['pair']}, {row['method']}: {reason(row)}" for row in rows if reason(row)]
    for case in dict.fromkeys(row["case"] for row in rows):
        ran = {row["method"] for row in rows if row["case"] == case}
        left = [method for method in methods if method not in ran]
        if left:
            found.append(f"- {case}: not run: {', '.join(left)}")
    return "\n".join(found) or "- none"


def scan_table(rows: Sequence[Row], directions: int, step: str) -> str:
    """Milliseconds against sequence length, a line for each backend, with the floor that memory sets."""
    mine = [row for row in rows if row["directions"] == directions and row["step"] == step]
    lengths = sorted({row["length"] for row in mine})
    lines = []
    for method, group in by_method(mine, ()).items():
        there = {row["length"]: row for row in group}
        if all(reason(row) for row in group):
            lines.append(
                [method, "; ".join(dict.fromkeys(str(reason(row)) for row in group)), *[""] * (len(lengths) - 1)]
            )
            continue
        cells = []
        for length in lengths:
            row = there.get(length)
            cells.append("-" if row is None else reason(row) or milliseconds(row["seconds"]))
        lines.append([method, *cells])
    floors = {row["length"]: row["floor_seconds"] for row in mine if "floor_seconds" in row}
    lines.append(["floor set by memory", *(milliseconds(floors[n]) if n in floors else "-" for n in lengths)])
    return markdown(["ms for tokens", *(f"{length:,}" for length in lengths)], lines)


def stage_table(rows: Sequence[Row]) -> str:
    """Seconds of each stage of `register`, a column for each run: medians of the repetitions."""
    runs = list(dict.fromkeys(row["run"] for row in rows))
    stages = list(dict.fromkeys(name for row in rows for name in row.get("stages", {})))
    lines = []
    for stage in stages:
        values = (_stage(rows, run, stage) for run in runs)
        lines.append([stage, *(number(value, ".2f") for value in values)])
    return markdown(["seconds", *runs], lines)


def _stage(rows: Sequence[Row], run: str, stage: str) -> float | None:
    values = [row["stages"][stage] for row in rows if row["run"] == run and stage in row.get("stages", {})]
    return median(values) if values else None


def size_table(rows: Sequence[Row]) -> str:
    """Seconds and memory against the voxels of the working grid."""
    lines = []
    for name, group in _by_run(sorted(rows, key=lambda row: row["voxels"])).items():
        there = [row for row in group if not reason(row)]
        if not there:
            lines.append([name, str(reason(group[0])), *[""] * 5])
            continue
        million = there[0]["grid_voxels"] / 1e6
        each = median([row["registration_seconds"] for row in there]) / million
        lines.append(
            [
                name,
                " x ".join(map(str, there[0]["grid_size"])),
                number(million, ".2f"),
                over_runs(there, "registration_seconds", ".1f"),
                number(each, ".2f"),
                over_runs(there, "process_seconds", ".1f"),
                over_runs(there, "memory_gb", ".2f"),
            ]
        )
    heads = ["", "working grid", "million voxels", "registration, s", "s per million", "process, s", "memory, GiB"]
    return markdown(heads, lines)


def import_table(rows: Sequence[Row]) -> str:
    """Seconds of processes that only load packages."""
    lines = [
        [name, over_runs(group, "process_seconds", ".2f"), over_runs(group, "memory_gb", ".2f")]
        for name, group in _by_run(rows).items()
    ]
    return markdown(["", "process, s", "memory, GiB"], lines)


def _by_run(rows: Iterable[Row]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["run"], []).append(row)
    return groups


def ablation_table(rows: Sequence[Row], titles: dict[str, str]) -> str:
    """A line for each variant of the network: Dice of each case (mean over pairs and seeds), folds, cost."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    groups: dict[str, list[Row]] = {variant: [row for row in rows if row["variant"] == variant] for variant in titles}
    lines = []
    for variant, mine in groups.items():
        if not mine:
            continue
        dice = (mean(row["dice"] for row in mine if row["case"] == case) for case in cases)
        lines.append(
            [
                titles[variant],
                f"{mine[0]['parameters'] / 1e6:.2f}",
                *(f"{value:.3f}" for value in dice),
                number(mean(row["folding_percent"] for row in mine), ".2g"),
                f"{median(row['predict_cpu_seconds'] for row in mine):.2f}",
            ]
        )
    start = (mean(row["dice_start"] for row in rows if row["case"] == case) for case in cases)
    heads = ["", "million weights", *(f"Dice, {case}" for case in cases), "folds, %", "CPU s of a prediction"]
    return markdown(heads, [["without registration", "-", *(f"{value:.3f}" for value in start), "-", "-"], *lines])


def confidence_table(rows: Sequence[Row]) -> str:
    """A line for each case and kind of known pair: means over the pairs, rank correlations with their range."""
    lines = []
    for case, kind in dict.fromkeys((row["case"], row["kind"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["kind"]) == (case, kind)]
        means = (
            mean(row[name] for row in mine) for name in ("error_mm", "expected_mm", "error_low_mm", "error_high_mm")
        )
        lines.append(
            [
                case,
                f"{kind}, {len(mine)} pairs" if len(mine) > 1 else kind,
                *(f"{value:.2f}" for value in means),
                *(over_runs(mine, name, ".2f", mean) for name in ("spearman", "votes_spearman", "label_auc")),
            ]
        )
    heads = [
        *("", "known pairs", "error, mm", "expected, mm", "error where the map is in its lowest fifth"),
        *("in its highest fifth", "rank correlation", "that of the votes' spread", "wrong labels found (.5: chance)"),
    ]
    return markdown(heads, lines)
