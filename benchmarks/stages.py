"""Where the time of one `regmamba register` goes, what a cold start costs, and how time and memory grow with size.

    python -m benchmarks.stages                                 all of it
    python -m benchmarks.stages --parts imports register        the first two parts

`imports`: a Python process that loads one package more each time. `register`: a 1 mm brain with compiled kernels on
disk, and with none (an empty cache folder). `warm`: registrations of that pair one after another in one process, as in
Slicer. `sizes`: the same brain resampled so that the working grid has 64^3 to 320^3 voxels, and an image of 512^3
voxels with the settings as they come.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import judge
from .cases import CASES, DATA, Job, jobs
from .measure import RESULTS, Failed, Row, Store, environment, reason, run
from .registration import PACKAGES, regmamba_command

FILE = RESULTS / "stages.json"
KEYS = ("part", "run", "repeat")
PARTS = ("imports", "register", "warm", "sizes")
CASE = "mindboggle_1mm"
IMPORTS = {
    "Python alone": "pass",
    "+ RegMambaLib": "import RegMambaLib",
    "+ the command line": "import RegMambaLib.cli.main",
    "+ numpy, SimpleITK": "import RegMambaLib.cli.main, numpy, SimpleITK",
    "+ numba": "import RegMambaLib.cli.main, numpy, SimpleITK, numba",
    "+ torch": "import RegMambaLib.cli.main, numpy, SimpleITK, numba, torch",
    "everything register loads": "import RegMambaLib.cli.main, RegMambaLib.registration.pipeline, torch",
}
EDGES = (64, 96, 128, 192, 256, 320)
LARGE = 512


def imports(log: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """Seconds of processes that only import."""
    given = environment(arguments.threads)
    for repeat in range(arguments.repeat):
        for name, code in IMPORTS.items():
            figures = run([sys.executable, "-c", code], log, arguments.limit, given)
            yield {"part": "imports", "run": name, "repeat": repeat, **figures}


def register(job: Job, options: tuple[str, ...], limit: float, **changes: str) -> Row:
    """Figures of one `regmamba register` with what its report says; {"failed": why} if it failed."""
    with tempfile.TemporaryDirectory() as made:
        here = replace(job, folder=Path(made))
        given = environment(job.threads, **changes)
        try:
            figures = run(regmamba_command(here, options), here.folder / "log.txt", limit, given)
        except Failed as error:
            return {"failed": str(error)}
        report = json.loads((here.folder / "out" / "report.json").read_text(encoding="utf-8"))
    seconds = dict(report["seconds"])
    seconds = {"process start and end": figures["process_seconds"] - seconds["total"]} | seconds
    size = report["details"]["grid_size"]
    return {
        **figures,
        "stages": seconds,
        "registration_seconds": sum(seconds.get(name, 0.0) for name in judge.STAGES),
        "grid_size": size,
        "grid_voxels": int(np.prod(size)),
    }


def caches(job: Job, arguments: argparse.Namespace) -> Iterator[Row]:
    """One registration with compiled kernels, and one without: the first after an installation."""
    for repeat in range(arguments.repeat):
        row = register(job, (), arguments.limit)
        yield {"part": "register", "run": "kernels on disk", "repeat": repeat, **row}
    with tempfile.TemporaryDirectory() as empty:
        row = register(job, (), arguments.limit, NUMBA_CACHE_DIR=empty, TRITON_CACHE_DIR=empty)
        yield {"part": "register", "run": "no kernels on disk", "repeat": 0, **row}


def warm(job: Job, arguments: argparse.Namespace) -> Iterator[Row]:
    """Registrations in this process, with the network and without; the first of each does not count."""
    from RegMambaLib import Settings
    from RegMambaLib import register as run_once
    from RegMambaLib.allocation import keep_freed_memory
    from RegMambaLib.io.images import read_image
    from RegMambaLib.registration.warmup import load_kernels

    keep_freed_memory()  # as the program does
    fixed, moving = read_image(job.fixed), read_image(job.moving)
    for name, weights in (("with the network", "auto"), ("without", "none")):
        settings = Settings(affine="none", weights=weights, device=arguments.device, threads=arguments.threads)
        load_kernels(settings)
        _forget_card_memory()
        for repeat in range(-1, arguments.repeat):
            result = run_once(fixed, moving, settings=settings)
            if repeat >= 0:
                run_name = f"{result.details['device']}, {name}"
                stages = {**result.seconds, "total": sum(result.seconds.values())}
                yield {"part": "warm", "run": run_name, "repeat": repeat, "stages": stages, **_card_memory()}


def _forget_card_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _card_memory() -> Row:
    """The most that torch held on the graphics card, GiB; nothing where it held none."""
    import torch

    most = torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0
    return {"gpu_memory_gb": most} if most else {}


def spacing_for(job: Job, voxels: int) -> float:
    """The spacing (mm) at which the working grid of a pair has so many voxels."""
    import SimpleITK as sitk

    from RegMambaLib.registration.grid import working_grid
    from RegMambaLib.registration.preprocess import prepare
    from RegMambaLib.spatial.grid import Grid

    images = [sitk.ReadImage(str(path), sitk.sitkFloat32) for path in (job.fixed, job.moving)]
    sides = [
        (Grid.of(image), prepare(image, name).foreground())
        for image, name in zip(images, ("fixed", "moving"), strict=True)
    ]
    low, high = 0.1, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        grid = working_grid(*sides[0], *sides[1], np.eye(4), middle)
        low, high = (middle, high) if np.prod(grid.size) > voxels else (low, middle)
    return high


def resampled(job: Job, spacing: float, edge: int | None, folder: Path) -> Job:
    """The pair and its moving labels at another spacing; as cubes of `edge` voxels about the middle, if given."""
    import SimpleITK as sitk

    from RegMambaLib.spatial.grid import Grid

    files = {}
    for name in ("fixed", "moving", "moving_labels"):
        image = sitk.ReadImage(str(getattr(job, name)))
        grid = Grid.of(image).with_spacing((spacing,) * 3)
        if edge is not None:
            before = [(edge - n) // 2 for n in grid.size]
            grid = grid.crop((-before[0], -before[1], -before[2]), (edge,) * 3)
        labels = name == "moving_labels"
        made = sitk.Cast(grid.resample(image, labels=labels), image.GetPixelID())
        files[name] = folder / f"{name}.nii"
        sitk.WriteImage(made, str(files[name]))
    return replace(job, **files)


def sizes(job: Job, arguments: argparse.Namespace) -> Iterator[Row]:
    """Registrations on working grids of growing size; repeated once where they are quick."""
    for edge in arguments.edges:
        with tempfile.TemporaryDirectory() as made:
            if edge == LARGE:
                # Settings as they come: the working grid is coarser than the image. The brain fills the cube.
                pair = resampled(job, 192 / LARGE, LARGE, Path(made))
                options: tuple[str, ...] = ()
            else:
                spacing = spacing_for(job, edge**3)
                pair = resampled(job, spacing, None, Path(made))
                options = ("--set", f"spacing={spacing:.6f}")
            name = f"image of {edge}^3" if edge == LARGE else f"{edge}^3"
            for repeat in range(arguments.repeat):
                row = register(pair, options, arguments.limit)
                yield {"part": "sizes", "run": name, "repeat": repeat, "voxels": edge**3, **row}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.stages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--edges", nargs="+", type=int, default=[*EDGES, LARGE], help="of the part sizes")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto", help="of the part warm: auto, cpu or cuda")
    parser.add_argument("--limit", type=float, default=1800.0, help="seconds after which a run is ended")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="where the numbers are kept")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    store = Store(arguments.json, KEYS, PACKAGES)
    with tempfile.TemporaryDirectory() as made:
        log = Path(made) / "log.txt"
        (_, job), *_ = jobs(arguments.data, CASES[CASE], None, Path(made), arguments.threads)
        work = {
            "imports": lambda: imports(log, arguments),
            "register": lambda: caches(job, arguments),
            "warm": lambda: warm(job, arguments),
            "sizes": lambda: sizes(job, arguments),
        }
        if set(arguments.parts) - {"imports"}:
            register(job, (), arguments.limit)  # compiles what is not compiled yet
        for part in arguments.parts:
            for row in work[part]():
                store.put(row)
                figures = {**row, "total": row.get("stages", {}).get("total")}
                shown = (f"{n} {figures[n]:.4g}" for n in ("process_seconds", "total", "memory_gb") if figures.get(n))
                print(f"{row['part']:<10}{row['run']:<28}{reason(row) or '  '.join(shown)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
