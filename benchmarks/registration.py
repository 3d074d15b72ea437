"""RegMamba beside other registration tools, on pairs of real images.

    python -m benchmarks.registration                                    every case, pair and method
    python -m benchmarks.registration --cases mindboggle_1mm --pairs "1<-2" --methods RegMamba "greedy 100x50x10"
    python -m benchmarks.registration --repeat 3 --resume                go on after an interruption

Every run is a process of its own, and the methods take turns, so that a drift of the machine meets all of them.
Process seconds are those of the whole process: start, reading, registering, writing. Only the moving labels are
given to it; nothing is evaluated within the time. Rows already in the file stay: cells asked for again are
replaced, or with --resume left as they are. A tool that is not installed, fails or takes too long is a row too.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import judge
from .cases import CASES, DATA, Case, Job, jobs
from .measure import RESULTS, Failed, Row, Store, environment, reason, run, version
from .peers import PEERS

FILE = RESULTS / "registration.json"
KEYS = ("case", "pair", "method", "repeat")
# Ways to call RegMamba: options of `register`.
VARIANTS: dict[str, tuple[str, ...]] = {
    "RegMamba": (),
    "RegMamba, no structures": ("--set", "structures=false"),
    "RegMamba, no network": ("--weights", "none"),
    "RegMamba, no network, longer": ("--weights", "none", "--set", "iterations=80,60,14"),
    "RegMamba, network only": ("--set", "iterations=[]"),
}
START = "start"
METHODS = (START, *VARIANTS, *PEERS)
PACKAGES = ("regmamba", "torch", "numba", "SimpleITK", "numpy", *dict.fromkeys(p.package for p in PEERS.values()))
SHOWN = ("dice", "hd95_mm", "folding_percent", "registration_seconds", "process_seconds", "memory_gb")


@dataclass(frozen=True)
class Cell:
    """One run that is asked for."""

    case: str
    pair: str
    method: str
    repeat: int
    job: Job

    @property
    def key(self) -> Row:
        return {name: getattr(self, name) for name in KEYS}


def regmamba_command(job: Job, options: tuple[str, ...]) -> list[str]:
    """The real command, as a user types it."""
    program = shutil.which("regmamba", path=str(Path(sys.executable).parent))
    command = [program] if program else [sys.executable, "-m", "RegMambaLib"]
    command += ["register", str(job.fixed), str(job.moving), "-o", str(job.folder / "out"), "--quiet"]
    command += ["--moving-labels", str(job.moving_labels), "--threads", str(job.threads), *options]
    return command + (["--affine", "none"] if job.aligned else [])


def peer_command(job: Job, method: str) -> list[str]:
    described = job.folder / "job.json"
    job.write(described)
    return [sys.executable, "-m", "benchmarks.peers", method, str(described)]


def measured(cell: Cell, limit: float) -> Row:
    """A cell's figures; {"absent": why} or {"failed": why} where there are none."""
    job, case = cell.job, CASES[cell.case]
    missing = [path for path in job.inputs if not path.exists()]
    if missing:
        return {"absent": f"{missing[0].name} is not in the data folder"}
    if cell.method == START:
        return judge.judge_start(job, case)
    log, given = job.folder / "log.txt", environment(job.threads)
    try:
        if cell.method in VARIANTS:
            figures = run(regmamba_command(job, VARIANTS[cell.method]), log, limit, given)
            return {**figures, **judge.judge_regmamba(job, case), "version": version("regmamba")}
        peer = PEERS[cell.method]
        if importlib.util.find_spec(peer.module) is None:
            return {"absent": f"{peer.package} is not installed"}
        figures = run(peer_command(job, cell.method), log, limit, given)
        return {**figures, **judge.judge_peer(job, case), "version": version(peer.package)}
    except Failed as error:
        return {"failed": str(error)}


def cells(arguments: argparse.Namespace, folder: Path) -> Iterator[Cell]:
    """All runs that are asked for, the methods taking turns; each turn begins with another method."""
    methods = arguments.methods or [m for m in METHODS if arguments.peers or m not in PEERS]
    for repeat in range(arguments.repeat):
        for name in arguments.cases or CASES:
            case: Case = CASES[name]
            for turn, (pair, job) in enumerate(jobs(arguments.data, case, arguments.pairs, folder, arguments.threads)):
                first = (repeat + turn) % len(methods)
                for method in (*methods[first:], *methods[:first]):
                    if method != START or repeat == 0:
                        yield Cell(name, pair, method, repeat, job)


def line(row: Row) -> str:
    """A row for the terminal."""
    head = f"{row['case']:<18}{row['pair']:<10}{row['method']:<24}{row['repeat']:<3}"
    why = reason(row)
    return head + (why or "  ".join(f"{name} {row[name]:.4g}" for name in SHOWN if name in row))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.registration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="which data sets; by default all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--pairs", nargs="+", metavar="F<-M", help="such as 1<-2; by default all")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="run other tools too")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each cell")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds after which a run is ended")
    parser.add_argument("--resume", action="store_true", help="run only cells that have no figures yet")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="where the numbers are kept")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    store = Store(arguments.json, KEYS, PACKAGES)
    bad = False
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for cell in cells(arguments, folder):
            if arguments.resume and store.has(cell.key):
                continue
            for left in folder.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            row = cell.key | measured(cell, arguments.limit)
            bad |= "failed" in row and cell.method in VARIANTS
            store.put(row)
            print(line(row), flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
