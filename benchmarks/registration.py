"""What `regmamba register` costs and gives on real pairs, beside other tools.

    python benchmarks/registration.py                        every case and method, peers included
    python benchmarks/registration.py --no-peers --json results.json
    python benchmarks/registration.py --cases mindboggle_1mm --methods regmamba greedy --pairs 1-2

Every run is a process of its own: seconds are those of the whole process (start, files and all), memory is the
most it held. Only the moving labels are given to it, so nothing is evaluated within the time. A new data set is a
row of `CASES`, another way to call RegMamba a row of `VARIANTS`, another tool a row of `PEERS`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("REGMAMBA_TEST_DATA", ROOT.parent / "shared" / "data"))
LABELS, WARP = "moved_labels.nii.gz", "warp.nii.gz"


@dataclass(frozen=True)
class Case:
    """Pairs of one folder; subjects are put into the file names.

    Attributes:
        pairs: (fixed, moving) subjects.
        aligned: the images are aligned linearly already, and every tool is told so.
    """

    folder: str
    image: str
    labels: str
    pairs: tuple[tuple[str, str], ...]
    aligned: bool = True


@dataclass(frozen=True)
class Variant:
    """A way to call RegMamba: options of `register`, and whether they also make sense for images not aligned."""

    options: tuple[str, ...] = ()
    unaligned: bool = False


@dataclass(frozen=True)
class Job:
    """One registration: files, whether they are aligned, where the results go."""

    fixed: Path
    moving: Path
    fixed_labels: Path
    moving_labels: Path
    aligned: bool
    folder: Path
    threads: int


@dataclass(frozen=True)
class Peer:
    """Another tool: the module it needs, and a function that writes `LABELS` and, if it can, `WARP`.

    `WARP` is the displacement in LPS mm on the fixed grid without the linear part, as ITK writes it.
    """

    module: str
    run: Callable[[Job], None]


CASES = {
    "mindboggle_1mm": Case(
        "mindboggle_1mm", "sub{}_t1.nii.gz", "sub{}_dkt31cma.nii.gz", (("01", "02"), ("03", "04"), ("05", "06"))
    ),
    "mindboggle_native": Case(
        "mindboggle_native", "sub{}_t1.nii.gz", "sub{}_dkt31cma.nii.gz", (("01", "02"),), aligned=False
    ),
}

VARIANTS = {
    "regmamba": Variant(unaligned=True),
    "regmamba, no network": Variant(("--weights", "none")),
    "regmamba, network only": Variant(("--set", "iterations=[]")),
}


def run_ants(job: Job) -> None:
    """SyN as ANTsPy does it by default (mutual information, 40x20x0), with its own affine stage."""
    import ants

    fixed, moving, labels = (ants.image_read(str(path)) for path in (job.fixed, job.moving, job.moving_labels))
    found = ants.registration(fixed, moving, "SyN", outprefix=str(job.folder / "ants_"))
    moved = ants.apply_transforms(fixed, labels, found["fwdtransforms"], interpolator="nearestNeighbor")
    ants.image_write(moved, str(job.folder / LABELS))
    shutil.copyfile(found["fwdtransforms"][0], job.folder / WARP)


def run_greedy(job: Job) -> None:
    """Greedy with NCC 2x2x2 and 100x50x10 iterations, as its authors suggest for brains."""
    from picsl_greedy import Greedy3D

    tool, affine, warp = Greedy3D(), job.folder / "affine.mat", job.folder / WARP
    images, metric = f"-i {job.fixed} {job.moving}", f"-m NCC 2x2x2 -threads {job.threads}"
    start = ""
    if not job.aligned:
        tool.execute(f"{images} {metric} -a -dof 12 -ia-image-centers -n 100x50x10 -o {affine}")
        start = f"-it {affine}"
    tool.execute(f"{images} {metric} {start} -n 100x50x10 -o {warp}")
    chain = f"{warp} {affine}" if start else f"{warp}"
    tool.execute(f"-rf {job.fixed} -ri NN -rm {job.moving_labels} {job.folder / LABELS} -r {chain}")


PEERS = {"ants syn": Peer("ants", run_ants), "greedy": Peer("picsl_greedy", run_greedy)}


def measure(command: list[str], threads: int, log: Path) -> dict[str, float]:
    """Run a command in its own process; its wall and CPU seconds and the most memory it held.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with log.open("wb") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"exit code {process.returncode}: {log.read_text(errors='replace')[-600:].strip()}")
    memory = usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "memory_gb": memory}


def regmamba_command(job: Job, options: Iterable[str]) -> list[str]:
    """The real command, as a user types it."""
    program = shutil.which("regmamba", path=str(Path(sys.executable).parent))
    command = [program] if program else [sys.executable, "-m", "RegMambaLib"]
    command += ["register", str(job.fixed), str(job.moving), "-o", str(job.folder / "out")]
    command += ["--moving-labels", str(job.moving_labels), "--threads", str(job.threads), *options]
    return command + (["--affine", "none"] if job.aligned else [])


def peer_command(job: Job, name: str) -> list[str]:
    """This file again, as the process that runs one peer."""
    places = (job.fixed, job.moving, job.fixed_labels, job.moving_labels, job.folder)
    return [sys.executable, str(Path(__file__).resolve()), "--run-peer", name, *map(str, places), str(job.aligned)]


def dice(fixed: Path, moved: Path) -> tuple[float, int]:
    """Mean Dice over all labels that both maps hold, and their number."""
    import SimpleITK as sitk

    first, second = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.int64).ravel() for path in (fixed, moved)
    )
    names, place = np.unique(np.concatenate([first, second]), return_inverse=True)
    a, b = place[: first.size], place[first.size :]
    in_a, in_b = np.bincount(a, minlength=names.size), np.bincount(b, minlength=names.size)
    both = np.bincount(a[a == b], minlength=names.size)
    common = (in_a > 0) & (in_b > 0) & (names != 0)
    return float((2 * both / (in_a + in_b))[common].mean()), int(common.sum())


def regularity(displacement: np.ndarray) -> dict[str, float]:
    """Folding by central differences and by any difference (percent of voxels), and SDlogJ."""
    from RegMambaLib.evaluation.folding import folding_percent, sd_log_jacobian
    from RegMambaLib.spatial.jacobian import jacobian_determinant

    central = jacobian_determinant(displacement)
    return {
        "folding_percent": folding_percent(central),
        "folding_strict_percent": folding_percent(jacobian_determinant(displacement, strict=True)),
        "sd_log_jacobian": sd_log_jacobian(central),
    }


def judge_regmamba(job: Job) -> dict[str, Any]:
    """Dice, regularity, inverse error and stage seconds from what `register` wrote."""
    from RegMambaLib.registration.result import Registration
    from RegMambaLib.spatial import fields

    result = Registration.load(job.folder / "out")
    left = fields.compose(result.displacement, result.inverse_displacement)
    report = json.loads((job.folder / "out" / "report.json").read_text(encoding="utf-8"))
    score, count = dice(job.fixed_labels, job.folder / "out" / LABELS)
    return {
        "dice": score,
        "labels": count,
        **regularity(result.displacement),
        "inverse_error_mm": float(np.sqrt(np.square(left).sum(0).max())) * max(result.grid.spacing),
        "stages": report["seconds"],
        "details": report["details"],
        "versions": report["versions"],
    }


def judge_peer(job: Job) -> dict[str, Any]:
    """Dice, and regularity where the peer wrote its displacement."""
    import SimpleITK as sitk

    from RegMambaLib.spatial.grid import Grid
    from RegMambaLib.spatial.itk import mm_to_voxels

    score, count = dice(job.fixed_labels, job.folder / LABELS)
    found: dict[str, Any] = {"dice": score, "labels": count}
    if (job.folder / WARP).exists():
        field = sitk.ReadImage(str(job.folder / WARP))
        found |= regularity(mm_to_voxels(sitk.GetArrayFromImage(field), Grid.of(field)))
    return found


def judge_start(job: Job) -> dict[str, Any]:
    """Dice before anything: moving labels looked up through the world."""
    import SimpleITK as sitk

    from RegMambaLib.spatial.grid import Grid

    fixed, moving = (sitk.ReadImage(str(path)) for path in (job.fixed_labels, job.moving_labels))
    sitk.WriteImage(Grid.of(fixed).resample(moving, labels=True), str(job.folder / LABELS))
    score, count = dice(job.fixed_labels, job.folder / LABELS)
    return {"dice": score, "labels": count}


def run(job: Job, method: str) -> dict[str, Any]:
    """One row's numbers; {"absent": ...} or {"failed": ...} where there are none."""
    if method == "start":
        return judge_start(job)
    log = job.folder / "log.txt"
    try:
        if method in VARIANTS:
            return measure(regmamba_command(job, VARIANTS[method].options), job.threads, log) | judge_regmamba(job)
        if importlib.util.find_spec(PEERS[method].module) is None:
            return {"absent": f"{PEERS[method].module} is not installed"}
        return measure(peer_command(job, method), job.threads, log) | judge_peer(job)
    except RuntimeError as error:
        return {"failed": str(error)}


def run_peer(name: str, places: list[str], aligned: bool) -> None:
    """The inside of a peer's process."""
    threads = int(os.environ["OMP_NUM_THREADS"])
    PEERS[name].run(Job(*map(Path, places[:4]), aligned, Path(places[4]), threads))


def wanted_rows(arguments: argparse.Namespace) -> Iterable[tuple[str, str, str, str]]:
    """(case, fixed, moving, method) of every run asked for."""
    methods = arguments.methods or ["start", *VARIANTS, *(PEERS if arguments.peers else ())]
    for name in arguments.cases or CASES:
        case = CASES[name]
        for fixed, moving in case.pairs:
            if arguments.pairs and f"{int(fixed)}-{int(moving)}" not in arguments.pairs:
                continue
            for method in methods:
                if case.aligned or method not in VARIANTS or VARIANTS[method].unaligned:
                    yield name, fixed, moving, method


def job_of(data: Path, case: Case, fixed: str, moving: str, folder: Path, threads: int) -> Job:
    """The files of a pair."""
    base = data / case.folder
    names = (case.image.format(fixed), case.image.format(moving), case.labels.format(fixed), case.labels.format(moving))
    return Job(*(base / name for name in names), case.aligned, folder, threads)


COLUMNS: dict[str, tuple[str, str]] = {
    "dice": ("Dice", ".4f"),
    "seconds": ("wall s", ".1f"),
    "cpu_seconds": ("CPU s", ".1f"),
    "memory_gb": ("GiB", ".2f"),
    "folding_percent": ("fold %", ".4f"),
    "folding_strict_percent": ("strict %", ".4f"),
    "sd_log_jacobian": ("SDlogJ", ".3f"),
    "inverse_error_mm": ("inv mm", ".3f"),
}
STAGES = ("read", "start", "preprocess", "linear", "network", "refine", "repair", "write")
WIDTHS = (18, 24, 8)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    head = "".join(f"{row[name]:<{width}}" for name, width in zip(("case", "method", "pair"), WIDTHS, strict=True))
    for reason in ("absent", "failed"):
        if reason in row:
            return f"{head}{reason}: {row[reason]}"
    cells = [format(row[name], style) if name in row else "-" for name, (_, style) in COLUMNS.items()]
    stages = [f"{row['stages'].get(name, 0):.1f}" for name in STAGES] if "stages" in row else []
    return head + "".join(f"{cell:>9}" for cell in cells) + "   " + " ".join(f"{cell:>6}" for cell in stages)


def header() -> str:
    """The table's first line."""
    head = "".join(f"{name:<{width}}" for name, width in zip(("case", "method", "pair"), WIDTHS, strict=True))
    stages = " ".join(f"{name[:6]:>6}" for name in STAGES)
    return head + "".join(f"{title:>9}" for title, _ in COLUMNS.values()) + "   " + stages


def means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for every case and method that ran on several pairs: the mean of every column."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if "dice" in row:
            groups.setdefault((row["case"], row["method"]), []).append(row)
    found = []
    for (case, method), group in groups.items():
        if len(group) < 2:
            continue
        mean: dict[str, Any] = {"case": case, "method": method, "pair": "mean"}
        mean |= {n: float(np.mean([row[n] for row in group])) for n in COLUMNS if all(n in row for row in group)}
        if all("stages" in row for row in group):
            mean["stages"] = {n: float(np.mean([row["stages"].get(n, 0.0) for row in group])) for n in STAGES}
        found.append(mean)
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--cases", nargs="+", choices=CASES, help="which data sets; by default all")
    parser.add_argument("--methods", nargs="+", choices=["start", *VARIANTS, *PEERS], help="by default all")
    parser.add_argument("--pairs", nargs="+", metavar="F-M", help="such as 1-2; by default all")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True, help="run other tools too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    parser.add_argument("--run-peer", nargs=7, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    if arguments.run_peer:
        name, *places, aligned = arguments.run_peer
        run_peer(name, places, aligned == "True")
        return 0
    rows = []
    print(header())
    for case, fixed, moving, method in wanted_rows(arguments):
        row: dict[str, Any] = {"case": case, "method": method, "pair": f"{int(fixed)}<-{int(moving)}"}
        with tempfile.TemporaryDirectory() as folder:
            job = job_of(arguments.data, CASES[case], fixed, moving, Path(folder), arguments.threads)
            absent = [
                path for path in (job.fixed, job.moving, job.fixed_labels, job.moving_labels) if not path.exists()
            ]
            row |= {"absent": f"no {absent[0]}"} if absent else run(job, method)
        rows.append(row)
        print(line(row), flush=True)
    averages = means(rows)
    for row in averages:
        print(line(row))
    if arguments.json:
        machine = {"cores": os.cpu_count(), "threads": arguments.threads}
        text = json.dumps({"machine": machine, "rows": rows, "means": averages}, indent=2)
        arguments.json.write_text(text, encoding="utf-8")
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
