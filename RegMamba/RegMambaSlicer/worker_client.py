"""The client of the worker process: no Qt, no MRML; a timer of the panel calls `poll`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Event = dict[str, Any]
TEMPORARY_PREFIX = "RegMamba-"
_LAST_LINES = 40
_GRACE = 0.6
_TRIES, _PAUSE = 6, 0.05
WINDOWS = os.name == "nt"


class WorkerClient:
    """Starts `python -m RegMambaLib.worker` when first needed and talks with it.

    Args:
        python: the interpreter; None takes PythonSlicer, or outside of Slicer the running one.
        env: environment of the process; None takes `worker_environment`.
        popen: what starts a process, as `subprocess.Popen`.
    """

    def __init__(
        self,
        python: str | None = None,
        env: Mapping[str, str] | None = None,
        *,
        popen: Callable[..., Any] = subprocess.Popen,
    ) -> None:
        self._python = python
        self._env = env
        self._popen = popen
        self._process: Any = None
        self._events: queue.Queue[tuple[Any, Event | None]] = queue.Queue()
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._pending: dict[int, str | None] = {}
        self._readers: list[threading.Thread] = []
        self._next = 1
        # Ends the process when the client is no longer used, or Python ends.
        self._end: weakref.finalize[..., WorkerClient] | None = None

    @property
    def busy(self) -> bool:
        """Whether a request is not answered yet."""
        return bool(self._pending)

    @property
    def pid(self) -> int | None:
        """The process, or None while there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def log(self) -> str:
        """The last lines that the worker wrote for people."""
        return "\n".join(self._last)

    def start(self) -> None:
        """Start the process unless it runs.

        Raises:
            OSError: it cannot be started.
        """
        if self._process is not None and self._process.poll() is None:
            return
        if self._end is not None:
            self._end.detach()
        _remove_all(self._pending)
        python = self._python or find_python()
        options: dict[str, Any] = {"start_new_session": True}
        if WINDOWS:
            flags = ("CREATE_NEW_PROCESS_GROUP", "CREATE_NO_WINDOW")
            options = {"creationflags": sum(getattr(subprocess, name, 0) for name in flags)}
        self._process = self._popen(
            [python, "-m", "RegMambaLib.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(self._env) if self._env is not None else worker_environment(),
            # Python puts this folder first on its path: not one that others can write to.
            cwd=library_folder(),
            **options,
        )
        self._last.clear()
        process = self._process
        self._end = weakref.finalize(self, _shut_down, process, self._pending)
        # The threads hold no reference to the client, which would keep it for ever.
        self._readers = [
            threading.Thread(target=_read_events, args=(process, self._events, self._last), daemon=True),
            threading.Thread(target=_read_log, args=(process, self._last), daemon=True),
        ]
        for thread in self._readers:
            thread.start()

    def submit(self, request: dict[str, Any]) -> int:
        """Send a request and return its id; starts the process if there is none.

        `request["temporary"]`, a folder whose name begins with `TEMPORARY_PREFIX`, is removed on cancel and crash;
        after "done" it is the caller's.
        """
        self.start()
        number = self._next
        self._next += 1
        self._pending[number] = request.get("temporary")
        text = json.dumps({**request, "id": number}) + "\n"
        # A worker that has just died shows up as an error event of `poll`.
        with contextlib.suppress(OSError):
            self._process.stdin.write(text.encode("utf-8"))
            self._process.stdin.flush()
        return number

    def poll(self) -> list[Event]:
        """The events since the last call: progress, done, error; never waits.

        A worker that died answers every pending request with an error event.
        """
        events: list[Event] = []
        while True:
            try:
                process, event = self._events.get_nowait()
            except queue.Empty:
                return events
            if process is not self._process:
                continue
            if event is None:
                events += self._buried()
            elif event.get("id") in self._pending or event["event"] == "ready":
                if event["event"] in ("done", "error"):
                    folder = self._pending.pop(event["id"])
                    if event["event"] == "error":
                        remove_temporary(folder)
                events.append(event)

    def cancel(self) -> None:
        """End the process with all it started and remove the temporary folders; answers within a second."""
        process, self._process = self._process, None
        if process is not None:
            self._end()
        _remove_all(self._pending)

    def shutdown(self) -> None:
        """End the process; for when the scene or the application closes."""
        self.cancel()

    def _buried(self) -> list[Event]:
        """The error events that a dead worker owes."""
        process, self._process = self._process, None
        self._end.detach()
        kill_tree(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        for thread in self._readers:
            if thread is not threading.current_thread():
                thread.join(0.2)
        kind, message = explain_exit(process.returncode, list(self._last))
        _close(process)
        events: list[Event] = [
            {"id": number, "event": "error", "kind": kind, "message": message} for number in self._pending
        ]
        _remove_all(self._pending)
        return events


def _read_events(process: Any, events: queue.Queue[tuple[Any, Event | None]], last: deque[str]) -> None:
    """The worker's events from its stdout, and None at its end."""
    with contextlib.suppress(OSError, ValueError):
        for line in process.stdout:
            try:
                event = json.loads(line.decode("utf-8", "replace"))
            except ValueError:
                last.append(line.decode("utf-8", "replace").rstrip())
                continue
            if isinstance(event, dict) and "event" in event:
                events.put((process, event))
    events.put((process, None))


def _read_log(process: Any, last: deque[str]) -> None:
    with contextlib.suppress(OSError, ValueError):
        for line in process.stderr:
            last.append(line.decode("utf-8", "replace").rstrip())


def find_python() -> str:
    """PythonSlicer, which Slicer has on its path, else the running interpreter.

    Raises:
        FileNotFoundError: there is neither.
    """
    found = shutil.which("PythonSlicer") or sys.executable or ""
    if not Path(found).name.lower().startswith("python"):  # the application itself, which would open a second time
        raise FileNotFoundError("there is no PythonSlicer beside Slicer")
    return found


def worker_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of the worker: it finds RegMambaLib, and speaks UTF-8."""
    env = dict(os.environ if base is None else base)
    for name in ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT"):
        env.pop(name, None)
    home = library_folder()
    paths = [home, *(p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p and p != home)]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    env.update(PYTHONUTF8="1", PYTHONIOENCODING="utf-8", PYTHONUNBUFFERED="1")
    return env


def library_folder() -> str:
    """The folder that holds RegMambaLib."""
    import RegMambaLib

    return str(Path(RegMambaLib.__file__).resolve().parents[1])


def explain_exit(code: int | None, lines: list[str]) -> tuple[str, str]:
    """(kind, message) for a worker that ended by itself, from its exit code and last lines."""
    text = "\n".join(lines)
    if "No module named" in text:
        name = text.rsplit("No module named", 1)[1].split("\n")[0].strip(" '\"")
        return "missing", (
            f"The registration process cannot start: the Python package {name} is missing; install the requirements "
            "of RegMamba and try again."
        )
    # Out-of-memory killers send SIGKILL; Windows reports STATUS_NO_MEMORY or STATUS_COMMITMENT_LIMIT. Slicer's launcher
    # keeps such codes to itself: it ends with 1 and these words.
    by_launcher = [line for line in lines if "exit abnormally" in line]
    lines = [line for line in lines if line not in by_launcher]
    killed = code is not None and (code in (-9, 137) or code & 0xFFFFFFFF in (0xC0000017, 0xC000012D))
    killed = killed or (code == 1 and bool(by_launcher))
    if killed or "out of memory" in text.lower() or "MemoryError" in text:
        return "memory", (
            f"The registration process was ended by the system (exit code {code}), most often because memory ran out; "
            "choose a coarser working grid (spacing) or the device cpu, crop the volumes, and try again."
        )
    said = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    return "crash", (
        f"The registration process ended unexpectedly (exit code {code}; it said last: {said}); try again with the "
        "device cpu or a coarser working grid (spacing)."
    )


def make_temporary(parent: str | None = None) -> Path:
    """A new temporary folder, readable by this user alone, that a worker may remove; None is the system's place."""
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=parent or None))


def remove_temporary(folder: str | Path | None) -> None:
    """Remove a folder of `make_temporary`; on Windows an ending process may hold its files a moment longer."""
    if folder is None or not Path(folder).name.startswith(TEMPORARY_PREFIX):
        return
    for _ in range(_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not Path(folder).exists():
            return
        time.sleep(_PAUSE)


def kill_tree(process: Any) -> None:
    """Kill a process and all that it started, launchers included, and wait a moment for its end."""
    if WINDOWS:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["taskkill", "/PID", str(process.pid), "/T", "/F"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_GRACE,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
    else:
        # The process leads a group of its own, in which what it started stays when it is gone itself.
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.poll() is None:
        with contextlib.suppress(OSError):
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)


def _shut_down(process: Any, pending: dict[int, str | None]) -> None:
    """End a process and remove the temporary folders of its unanswered requests."""
    kill_tree(process)
    _close(process)
    _remove_all(pending)


def _remove_all(pending: dict[int, str | None]) -> None:
    for folder in pending.values():
        remove_temporary(folder)
    pending.clear()


def _close(process: Any) -> None:
    """Close stdin; the other pipes belong to the reader threads, which end with the process."""
    with contextlib.suppress(OSError):
        process.stdin.close()
