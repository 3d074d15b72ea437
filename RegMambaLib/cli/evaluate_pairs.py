"""The part of `regmamba evaluate` that goes through a list of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status

from ..evaluation.names import read_label_names
from ..evaluation.pairs import PairFiles, read_pairs
from ..io.atomic import staged
from .output import print_json, to_json

if TYPE_CHECKING:
    from ..evaluation.results import Row
    from ..registration.settings import Settings

CHARTS = ("dice", "hd95_mm", "volume_similarity")
TABLES = ("results.csv", "results.json", "results.md")
OUTPUTS = (*TABLES, "report.html", *(f"{name}.png" for name in CHARTS))
PAIR_FAILED = 1


def evaluate_list(
    path: Path,
    output: Path,
    settings: Settings,
    label_names: Path | None,
    *,
    pictures: bool,
    overwrite: bool,
    json: bool,
    quiet: bool,
) -> int:
    """Evaluate the pairs of a CSV into a folder. Returns the exit code: 0, or `PAIR_FAILED`."""
    from ..evaluation.cohort import RESULT

    pairs = read_pairs(path)
    names = read_label_names(label_names) if label_names else {}
    if pictures:
        from ..evaluation.figures import check_matplotlib

        check_matplotlib()
    # Results of an earlier run on this list are made anew from its pairs; files of anything else are not ours.
    ours = any((output / pair.folder / RESULT).is_file() for pair in pairs)
    with staged(output, OUTPUTS, overwrite=overwrite or ours) as folder:
        from ..evaluation.cohort import Cohort, evaluate_pairs
        from ..evaluation.results import compare_methods, rows_of, summarise, to_csv
        from ..evaluation.text import results_text

        with _Progress(len(pairs), quiet=quiet) as progress:
            cohort = Cohort(output, settings, names, pictures)
            results, failed = evaluate_pairs(pairs, cohort, overwrite=overwrite, progress=progress)
        rows = [row for result in results for row in rows_of(result, names)]
        summary = summarise(rows)
        comparisons = _comparisons(rows, compare_methods)
        about = _about(settings, pairs)
        whole = {
            "summary": summary,
            "comparisons": [{"first": a, "second": b, "rows": found} for (a, b), found in comparisons.items()],
            "failed": failed,
            **about,
        }
        (folder / "results.csv").write_text(to_csv(rows), encoding="utf-8")
        (folder / "results.json").write_text(to_json(whole), encoding="utf-8")
        (folder / "results.md").write_text(results_text(summary, failed, comparisons), encoding="utf-8")
        if pictures:
            from ..evaluation.evaluation_page import evaluation_page
            from ..evaluation.figures import box_plot

            drawn = {name: box_plot(rows, name) for name in CHARTS}
            charts = {name: chart for name, chart in drawn.items() if chart is not None}
            for name, chart in charts.items():
                (folder / f"{name}.png").write_bytes(chart)
            folders = {(pair.method, pair.name): pair.folder for pair in pairs}
            text = evaluation_page(
                f"Evaluation of {path.name}", rows, summary, comparisons, charts, failed, folders, output, about
            )
            (folder / "report.html").write_text(text, encoding="utf-8")
    if json:
        print_json(whole)
    elif not quiet:
        _print_summary(summary, output)
    return PAIR_FAILED if failed else 0


class _Progress:
    """Says on stderr which pair is worked on, and what became of each; of failures also when quiet."""

    def __init__(self, count: int, *, quiet: bool) -> None:
        self._count, self._quiet = count, quiet
        self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
        self._status = Status("starting", console=self._console)

    def __enter__(self) -> _Progress:
        if not self._quiet and self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._status.stop()

    def __call__(self, number: int, pair: PairFiles, outcome: str) -> None:
        line = f"{number}/{self._count} {pair.name} ({pair.method})"
        if outcome == "begun":
            self._status.update(line)
        elif not self._quiet or outcome.startswith("failed"):
            self._console.print(f"{line}: {outcome}")


def _comparisons(rows: list[Row], compare: Any) -> dict[tuple[str, str], list[Row]]:
    """The first method against each other that shares pairs with it."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    own = {method: [row for row in rows if row["method"] == method] for method in methods}
    found = {}
    for other in methods[1:]:
        if {row["pair"] for row in own[methods[0]]} & {row["pair"] for row in own[other]}:
            found[methods[0], other] = compare(own[methods[0]], own[other])
    return found


def _about(settings: Settings, pairs: list[PairFiles]) -> dict[str, dict[str, Any]]:
    from .system import versions

    registered = any(not pair.transform for pair in pairs)
    return {"settings": settings.to_dict() if registered else {}, "versions": versions()}


def _print_summary(summary: dict[str, Any], output: Path) -> None:
    from rich.table import Table

    from ..evaluation.text import OVERALL_HEADER, overall_rows

    table = Table(*OVERALL_HEADER)
    for row in overall_rows(summary):
        table.add_row(*map(str, row))
    Console(highlight=False).print(table)
    print(f"Wrote {output}.")
