"""The loop of the worker: requests from stdin, one at a time, answers on a stdout that nothing else can reach."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import queue
import shutil
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ..allocation import keep_freed_memory, return_freed_memory
from ..evaluation.plain import finite
from .failures import describe

TEMPORARY_PREFIX = "RegMamba-"
"""How the name of a folder begins that the worker may remove when its client is gone."""


def main() -> None:
    """Serve until `quit` or the end of stdin."""
    keep_freed_memory()
    answers = _protect_stdout()
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    server = Server(answers)
    threading.Thread(target=server.listen, args=(sys.stdin,), daemon=True).start()
    server.run()


class Server:
    """Runs requests in the order they came."""

    def __init__(self, answers: TextIO) -> None:
        self._answers = answers
        self._writing = threading.Lock()
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._temporary: set[str] = set()

    def listen(self, lines: TextIO) -> None:
        """Queue the requests of `lines`; end the process where they end, whatever is running."""
        try:
            self._queue_requests(lines)
            for folder in list(self._temporary):  # a run that ends now takes its folder out
                if Path(folder).name.startswith(TEMPORARY_PREFIX):
                    os.chdir(Path(folder).parent)  # Windows keeps a folder that a process works in
                    shutil.rmtree(folder, ignore_errors=True)
        finally:
            os._exit(0)

    def _queue_requests(self, lines: TextIO) -> None:
        for line in lines:
            if not line.strip():
                continue
            try:
                request = json.loads(line)
                if not isinstance(request, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                self.emit(None, "error", kind="crash", message=f"The worker got a line that is no request: {error}.")
                continue
            if request.get("command") == "quit":
                return
            if request.get("temporary"):
                self._temporary.add(request["temporary"])
            self._requests.put(request)

    def run(self) -> None:
        """Answer requests for ever."""
        self.emit(None, "ready", pid=os.getpid())
        while True:
            request = self._requests.get()
            self._answer(request)
            _free_memory()
            self._temporary.discard(request.get("temporary", ""))

    def emit(self, request_id: Any, event: str, **values: Any) -> None:
        """Write one answer; the process ends if nobody reads it any more."""
        text = json.dumps({"id": request_id, "event": event, **values}, default=_plain)
        try:
            with self._writing:
                self._answers.write(text + "\n")
                self._answers.flush()
        except (OSError, ValueError):
            os._exit(0)

    def _answer(self, request: dict[str, Any]) -> None:
        name = request.get("id")
        try:
            from . import tasks

            known = {"register": tasks.register, "info": tasks.info, "warmup": tasks.warmup}
            command = request.get("command")
            if command not in known:
                raise ValueError(f"unknown command {command!r}; known are {', '.join(known)} and quit")
            with _working_in(request.get("temporary")):
                report, files = known[command](request, lambda **values: self.emit(name, "progress", **values))
            self.emit(name, "done", report=finite(report), files=files)
        except BaseException as error:
            traceback.print_exc(file=sys.stderr)
            kind, message = describe(error, request)
            self.emit(name, "error", kind=kind, message=message)


@contextlib.contextmanager
def _working_in(folder: str | None) -> Iterator[None]:
    """Work in a folder, if given: ITK on Windows opens no path with letters beyond ASCII, but relative ones within.

    See ITK issue 6739; a user's name, and so the folder of temporary files, may hold such letters.
    """
    before = os.getcwd()
    if folder:
        os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _protect_stdout() -> TextIO:
    """A stream on the process's stdout; `print`, and C libraries, then reach stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def _free_memory() -> None:
    """Give back what the run held, on the graphics card too: other programs want it between runs."""
    gc.collect()
    return_freed_memory()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _plain(value: Any) -> Any:
    """Numpy numbers and arrays, tuples of settings and paths for JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
