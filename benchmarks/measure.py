"""Running a command in a process of its own, and keeping what was measured."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from RegMambaLib.evaluation.memory import peak_of

from .cases import ROOT

RESULTS = ROOT / "docs" / "benchmarks"
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
# Seconds between two looks at the memory of a process and its children.
LOOK = 0.02

Row = dict[str, Any]


class Failed(RuntimeError):
    """A command that ended with an error or took too long; the message says which."""


def environment(threads: int, **changes: str) -> dict[str, str]:
    """This process's environment with the thread counts set and the repository importable."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return os.environ | dict.fromkeys(THREADS, str(threads)) | {"PYTHONPATH": path} | changes


def run(command: list[str], log: Path, limit: float, given: dict[str, str]) -> dict[str, float]:
    """Run a command in its own process: wall and CPU seconds, and the most memory its process tree held (GiB).

    Memory is looked at every `LOOK` seconds: the larger of the sum over the tree and the peak of the process itself.

    Args:
        log: file that takes what it says.
        limit: seconds after which it is ended.
        given: its environment.

    Raises:
        Failed: it ended with an error, or was ended.
    """
    with log.open("wb") as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, env=given, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        watch = _Watch(process.pid)
        late = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        late.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            seconds = time.perf_counter() - began
            late.cancel()
            most = watch.end()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode == -signal.SIGKILL and seconds >= limit:
        raise Failed(f"ended after {limit:g} s")
    if process.returncode != 0:
        said_last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["nothing said"]
        raise Failed(f"exit code {process.returncode}: {said_last[0][:200]}")
    return {
        "process_seconds": seconds,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "memory_gb": most / 2**30,
    }


class _Watch(threading.Thread):
    """The most bytes that a process and its descendants held together.

    Looks now and then, and on Linux asks for the peak of the process itself.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.most, self.over = pid, 0, threading.Event()
        self.start()

    def run(self) -> None:
        import psutil

        while True:
            try:
                root = psutil.Process(self.pid)
                members = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            total = 0
            for member in members:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += member.memory_info().rss
            self.most = max(self.most, total, peak_of(self.pid))
            if self.over.wait(LOOK):
                return

    def end(self) -> int:
        self.over.set()
        self.join()
        return self.most


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, memory, system, GPU."""
    import psutil
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":", 1)[1].strip() if models else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def version(package: str) -> str | None:
    """Of an installed package, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The repository's commit; "+" after it where files differ from it."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return told.stdout.strip()


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")


class Store:
    """A JSON file of rows; rows with the same key replace each other, and every change is on disk at once.

    `{"machine": {...}, "versions": {...}, "commands": [...], "rows": [{...}, ...]}`
    """

    def __init__(self, path: Path, keys: tuple[str, ...], packages: tuple[str, ...]) -> None:
        """
        Raises:
            SystemExit: the file holds numbers of another machine.
        """
        self.path, self.keys = path, keys
        here = machine()
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if kept and kept["machine"] != here:
            raise SystemExit(f"{path} holds numbers of another machine ({kept['machine']}); give another --json file.")
        self.rows: list[Row] = kept.get("rows", [])
        self.head = {
            "machine": here,
            "versions": kept.get("versions", {}) | {name: version(name) for name in packages},
            "commands": list(dict.fromkeys([*kept.get("commands", []), _command()])),
        }

    def has(self, row: Row) -> bool:
        """Whether there is a figure for this key: a row that neither failed nor was absent."""
        return any(self._same(row, other) and not reason(other) for other in self.rows)

    def put(self, row: Row) -> None:
        stamped = row | {"date": now(), "commit": commit()}
        self.rows = [other for other in self.rows if not self._same(row, other)] + [stamped]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.head | {"rows": self.rows}, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)

    def _same(self, row: Row, other: Row) -> bool:
        return all(row[key] == other[key] for key in self.keys)


def reason(row: Row) -> str | None:
    """Why a row has no figures, or None."""
    return next((f"{kind}: {row[kind]}" for kind in ("absent", "failed") if kind in row), None)


def _command() -> str:
    name = Path(sys.argv[0]).stem
    return shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]])
