"""Progress per stage on stderr: a live line on a terminal, else one line for every stage that is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Stages:
    """A context that shows stages and times them; callable as the `progress` of `register`.

    Attributes:
        seconds: time of every stage run with `stage`.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.seconds: dict[str, float] = {}
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal and not quiet
        self._bars = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=4,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task: TaskID | None = None
        self._name = ""
        self._began = 0.0

    def __enter__(self) -> Stages:
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        if self._live:
            self._bars.stop()

    def __call__(self, stage: str, fraction: float) -> None:
        """Show that a stage is done to this fraction; a new name ends the stage before."""
        if stage != self._name:
            self._finish()
            self._name, self._began = stage, time.perf_counter()
            self._task = self._bars.add_task(stage, total=1.0)
        if self._task is not None:
            self._bars.update(self._task, completed=fraction)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show and time a block as a stage."""
        self(name, 0.0)
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began

    def _finish(self) -> None:
        if self._task is None:
            return
        self._bars.update(self._task, completed=1.0)
        self._bars.stop_task(self._task)
        self._task = None
        if not self._live and not self._quiet:
            self._console.print(f"{self._name:<12} {time.perf_counter() - self._began:6.1f} s")
