"""The pairs of a run: from which source each comes, and how they are made ahead of their use.

A pair is a function of the seed and its number alone, whatever the number of processes, and whether the run was
interrupted or not. The pairs of step s are those of numbers s * batch to s * batch + batch - 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from RegMambaLib.errors import InputError
from RegMambaLib.training.anatomy import LAST_OTHER, Anatomy, load_anatomies, load_centred
from RegMambaLib.training.config import Prepared, Stage, Synthetic, TrainingConfig
from RegMambaLib.training.datasets.manifest import Case, Manifest, load_manifest
from RegMambaLib.training.synthetic import CPU, Pair, random_pair


@dataclass(frozen=True, eq=False)
class Sample:
    """A pair, its number in the run, and the labels of it that are drawn for the Dice loss."""

    number: int
    pair: Pair
    labels: tuple[int, ...]


class Source(Protocol):
    """Where pairs come from.

    Attributes:
        share: how often, relative to other sources.
        distinct: how many different pairs there are; None for endless.
        largest_label: labels above it take no part in the Dice loss; None for no such limit.
    """

    share: float
    distinct: int | None
    largest_label: int | None

    def to(self, device: torch.device) -> None:
        """Keep on this device what pairs are made from."""

    def pair(self, number: int) -> Pair:
        """The pair of this number, on any device."""


class SyntheticSource:
    """Pairs rendered from label maps, on the device that these lie on; their size follows the stage of the run."""

    distinct: int | None = None
    # 250 and above are parts of the CSF outside, whose border is an accident of the label maps.
    largest_label: int | None = LAST_OTHER

    def __init__(self, anatomies: list[Anatomy], settings: Synthetic, *, seed: int, steps: int, batch: int) -> None:
        self.share = settings.share
        self._anatomies, self._settings, self._rendering = anatomies, settings, settings.rendering()
        self._seed, self._steps, self._batch = seed, steps, batch
        self._device = CPU

    def to(self, device: torch.device) -> None:
        self._device, self._anatomies = device, [anatomy.to(device) for anatomy in self._anatomies]

    def stage(self, number: int) -> Stage:
        """The stage that a pair belongs to."""
        share = number // self._batch / self._steps
        return next((s for s in self._settings.stages if share < s.until), self._settings.stages[-1])

    def pair(self, number: int) -> Pair:
        stage, jitter = self.stage(number), self._settings.size_jitter
        rng = np.random.default_rng([self._seed, number])
        factors = rng.uniform(1 - jitter, 1 + jitter, 3)
        h, w, d = (max(1, round(n * float(factor))) for n, factor in zip(stage.shape, factors, strict=True))
        return random_pair(
            self._anatomies,
            rng,
            shape=(h, w, d),
            spacing=stage.spacing,
            settings=self._rendering,
            device=self._device,
        )


class PreparedSource:
    """Pairs of the split "train" of a prepared data set, drawn with repetition; files are read when needed."""

    largest_label: int | None = None

    def __init__(self, manifest: Manifest, settings: Prepared, *, seed: int) -> None:
        self.share = settings.share
        self._pairs = manifest.pairs("train", settings.pairs)
        self._shrink, self._seed = settings.shrink, seed
        self.distinct: int | None = len(self._pairs)

    def to(self, device: torch.device) -> None:
        """Nothing is kept: files are read to the CPU, and the pair then moves."""

    def pair(self, number: int) -> Pair:
        chosen = np.random.default_rng([self._seed, number]).integers(len(self._pairs))
        fixed, moving, *labels = map(_tensor, read_pair(*self._pairs[chosen], self._shrink))
        return Pair(fixed, moving, labels[0], labels[1], fixed, moving)


def _tensor(array: np.ndarray) -> torch.Tensor:
    # torch can do little with the wider unsigned integers that label maps come in.
    wide = array.dtype.kind == "u" and array.dtype != np.uint8
    return torch.from_numpy(np.ascontiguousarray(array, np.int32 if wide else None))


class Pairs:
    """All sources of a run as one; the pairs come to the device that `to` names, at first the CPU."""

    def __init__(self, sources: Sequence[Source], *, seed: int, labels: int) -> None:
        self._sources = [source for source in sources if source.share > 0]
        shares = np.array([source.share for source in self._sources])
        self._shares, self._seed, self._labels = shares / shares.sum(), seed, labels
        self.device = CPU

    def to(self, device: torch.device) -> None:
        """From now on make the pairs on this device; label maps move there once."""
        self.device = device
        for source in self._sources:
            source.to(device)

    def examples(self, drawn: int) -> int:
        """How many different pairs there are among `drawn`, at most."""
        distinct = [drawn if source.distinct is None else source.distinct for source in self._sources]
        return min(drawn, sum(distinct))

    def sample(self, number: int) -> Sample:
        """The pair of this number, and up to `labels` labels that both of its maps have."""
        source = self._sources[0]
        if len(self._sources) > 1:
            rng = np.random.default_rng([self._seed, number, 2])
            source = self._sources[rng.choice(len(self._sources), p=self._shares)]
        pair = source.pair(number)
        common = common_labels(pair) if self._labels else np.empty(0, int)
        if source.largest_label is not None:
            common = common[common <= source.largest_label]
        order = np.random.default_rng([self._seed, number, 1]).permutation(common)
        return Sample(number, pair.to(self.device), tuple(int(v) for v in order[: self._labels]))


def common_labels(pair: Pair) -> np.ndarray:
    """The labels above 0 that both maps have, in order. A pair that is made on a GPU is waited for."""
    fixed, moving = (labels.unique().cpu().numpy() for labels in (pair.fixed_labels, pair.moving_labels))
    common = np.intersect1d(fixed, moving)
    return common[common > 0]


def load_pairs(config: TrainingConfig) -> Pairs:
    """The pairs that a configuration names.

    Raises:
        InputError: a folder cannot be used.
    """
    sources: list[Source] = []
    data = config.data
    if data.synthetic is not None:
        anatomies = _anatomies(data.synthetic)
        sources.append(
            SyntheticSource(anatomies, data.synthetic, seed=config.seed, steps=config.steps, batch=config.batch)
        )
    sources += [PreparedSource(load_manifest(p.manifest), p, seed=config.seed) for p in data.prepared]
    return Pairs(sources, seed=config.seed, labels=config.losses.dice_labels if config.losses.dice else 0)


def _anatomies(settings: Synthetic) -> list[Anatomy]:
    if settings.labels is None:
        return []
    if not settings.labels.is_dir():
        raise InputError(f"data.synthetic.labels {settings.labels} is no folder; give the folder of the label maps.")
    if settings.frame == "centred":
        return load_centred(settings.labels, settings.voxel)
    return load_anatomies(settings.labels)


def read_pair(fixed: Case, moving: Case, shrink: int = 1) -> tuple[np.ndarray, ...]:
    """Both images, then both label maps, of two cases; a case without labels gets an empty map.

    Raises:
        InputError: the two have different sizes, or a file is damaged.
    """
    images = [shrunk(case.image_array(), shrink) for case in (fixed, moving)]
    labels = [
        shrunk_labels(case.label_array(), shrink) if case.labels else np.zeros(image.shape, np.uint8)
        for case, image in zip((fixed, moving), images, strict=True)
    ]
    if len({array.shape for array in (*images, *labels)}) > 1:
        raise InputError(
            f"The cases {fixed.id} and {moving.id} differ in size ({images[0].shape} and {images[1].shape}, labels "
            f"{labels[0].shape} and {labels[1].shape}); prepare the data set on one grid."
        )
    return (*images, *labels)


def shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean over blocks of `factor` voxels an axis, float32; what is left over at the ends is cut off."""
    if factor == 1:
        return image
    h, w, d = (n // factor for n in image.shape)
    whole = image[: h * factor, : w * factor, : d * factor]
    return whole.reshape(h, factor, w, factor, d, factor).mean(axis=(1, 3, 5), dtype=np.float32)


def shrunk_labels(labels: np.ndarray, factor: int) -> np.ndarray:
    """The label about the middle of each block of `shrunk`."""
    if factor == 1:
        return labels
    ends = [n // factor * factor for n in labels.shape]
    return np.ascontiguousarray(labels[tuple(slice(factor // 2, end, factor) for end in ends)])


def trained_files(data: Sequence[Prepared]) -> dict[Path, str]:
    """Images of prepared sets that no validation pair may show, and the split each belongs to."""
    forbidden = {}
    for settings in data:
        for case in load_manifest(settings.manifest).cases:
            if case.split in ("train", "test"):
                forbidden[case.image.resolve()] = case.split
    return forbidden


def ahead(
    make: Callable[[int], Sample], numbers: Iterable[int], workers: int, device: torch.device = CPU
) -> Iterator[Sample]:
    """The samples of these numbers, in order; while one is used, the next `workers` are made, each in a thread.

    On a GPU all threads and the training share one queue: a sample that comes may still wait in it, before its use.
    """
    coming = iter(numbers)
    with ThreadPoolExecutor(workers, initializer=_work_for, initargs=(device,)) as makers:
        waiting = deque(makers.submit(make, number) for number in islice(coming, workers))
        try:
            while waiting:
                sample = waiting.popleft().result()
                waiting.extend(makers.submit(make, number) for number in islice(coming, 1))
                yield sample
        finally:
            for future in waiting:
                future.cancel()


def _work_for(device: torch.device) -> None:
    # A thread starts with the first GPU, and would take memory there for its copies.
    if device.type == "cuda":
        torch.cuda.set_device(device)
