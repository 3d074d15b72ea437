"""From the progress of stages to a share of everything and the seconds left."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

EXPECTED = {
    "read": 0.5,
    "start": 2.0,
    "preprocess": 1.5,
    "linear": 4.0,
    "network": 3.0,
    "refine": 8.0,
    "repair": 1.5,
    "write": 3.0,
    "evaluate": 1.5,
}
"""Stages in their order, with about how long each takes compared with the others."""
_EVERY = 0.1


@dataclass
class Tracker:
    """Turns (stage, share) into progress events, at most ten a second.

    Attributes:
        emit: takes stage, share, total (0 to 1, never falls) and eta (seconds left, None at first).
        costs: the relative time of each stage, from the run before where there was one.
        clock: seconds.
    """

    emit: Callable[..., None]
    costs: dict[str, float] = field(default_factory=lambda: dict(EXPECTED))
    clock: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._began = self._entered = self.clock()
        self._last = -_EVERY
        self._stage = ""
        self._total = 0.0

    def __call__(self, stage: str, share: float) -> None:
        """The stage has done this share (0 to 1)."""
        now = self.clock()
        changed = stage != self._stage
        if changed:
            self.finish(now)
            self._stage, self._entered = stage, now
        if not changed and share < 1 and now - self._last < _EVERY:
            return
        self._last = now
        total = self._share_of_all(stage, share)
        self._total = max(self._total, total)
        spent = now - self._began
        eta = spent * (1 - self._total) / self._total if self._total > 0.1 else None
        self.emit(stage=stage, share=share, total=round(self._total, 4), eta=None if eta is None else round(eta, 1))

    def finish(self, now: float | None = None) -> None:
        """Note the time of the stage that ends."""
        if self._stage:
            now = self.clock() if now is None else now
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._entered

    def _share_of_all(self, stage: str, share: float) -> float:
        names = list(EXPECTED)
        place = names.index(stage) if stage in names else 0
        whole = sum(self.costs.get(name, 0.0) for name in names) or 1.0
        before = sum(self.costs.get(name, 0.0) for name in names[:place])
        return min((before + self.costs.get(stage, 0.0) * share) / whole, 1.0)
