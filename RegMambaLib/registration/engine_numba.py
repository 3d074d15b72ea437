"""Refinement of one level on the CPU, by fused numba kernels."""

from __future__ import annotations

import numba
import numpy as np

from ..spatial import fields
from ..spatial import kernels as spatial_kernels
from ..spatial.fields import gaussian_taps
from . import kernels, lncc_kernels
from .map_pull import MapPull
from .refine import ADAM_BETAS, ADAM_FLOOR, LNCC_EPSILON, SAME_LNCC, THIN, Pair
from .settings import Settings

# Voxels beyond the active region in which the displacement may still fade out, at every level.
MARGIN = 1


class NumbaEngine:
    """Holds a level's buffers; every array is float32 and (3, k, j, i) or (k, j, i).

    It works on `start` itself.
    """

    def __init__(
        self, pair: Pair, start: np.ndarray, settings: Settings, metric: str, floor: float = ADAM_FLOOR
    ) -> None:
        shape = pair.fixed.shape
        self.pair = pair
        self.settings = settings
        self.slabs = max(1, min(shape[0], numba.get_num_threads()))
        self.spans = level_spans(pair)
        self.u = np.ascontiguousarray(start, np.float32)
        self.force = np.zeros_like(self.u)
        # Outside the spans u stays as it came: the buffer holds it there, so that smoothing meets no edge.
        self.buffer = self.u.copy()
        self.first = np.zeros_like(self.u)
        self.second = np.zeros(shape, np.float32)
        self.update_taps = gaussian_taps(settings.smooth_update)
        self.total_taps = gaussian_taps(settings.smooth_total)
        self.radius = settings.window // 2
        self.iteration = 0
        self.share, self.floor = floor, 0.0
        self.still = still_axes(pair)
        self.guided = settings.guide and pair.fixed_labels is not None and pair.moving_labels is not None
        if self.guided:
            self.pull = np.zeros_like(self.u)
        self.pulls = [MapPull(maps, pair.weight, self.spans, shape) for maps in pair.maps]
        self.metric = metric
        if metric == "mind":
            self.fixed_features = _mind(pair.fixed)
            self.moving_features = _mind(pair.moving)
        else:
            self.windows = windows_of(pair, fields.within(self.spans, shape[2]))
            self.fixed_sum = np.empty(shape, np.float32)
            self.fixed_variance = np.empty(shape, np.float32)
            moments = self.fixed_sum, self.fixed_variance
            lncc_kernels.fixed_moments(pair.fixed, self.radius, np.float32(LNCC_EPSILON), self.slabs, *moments)

    def step(self) -> float:
        """One iteration; returns the mean similarity (LNCC, or minus the squared MIND difference)."""
        self.iteration += 1
        similarity = self._image_force()
        if self.guided:
            self._add_label_force()
        if self.pulls:
            image = kernels.mean_square(self.force, self.spans)
            for pull in self.pulls:
                pull.add(self.u, self.force, image, self.buffer)
        self.force[self.still] = 0
        self._smooth(self.force, self.update_taps, self.buffer)
        if self.iteration == 1:
            self.floor = self.share * kernels.longest(self.buffer, self.spans) + 1e-20
        beta1, beta2 = ADAM_BETAS
        largest = kernels.adam(
            self.buffer,
            self.first,
            self.second,
            np.float32(beta1),
            np.float32(beta2),
            np.float32(1 / (1 - beta1**self.iteration)),
            np.float32(1 / (1 - beta2**self.iteration)),
            np.float32(self.floor),
            self.spans,
            self.force,
        )
        if largest > 0:
            scale = np.float32(self.step_length(similarity) / largest)
            spatial_kernels.compose(self.u, self.force, scale, self.spans, self.buffer)
            self._smooth(self.buffer, self.total_taps, self.u)
        return similarity / self.pair.fixed.size

    def step_length(self, similarity: float) -> float:
        """Voxels of the largest step: less than wanted where the images are as good as the same."""
        if self.metric == "mind" or self.guided:
            return self.settings.step
        return self.settings.step * min(max((1 - similarity / self.windows) / (1 - SAME_LNCC), 0.0), 1.0)

    def displacement(self) -> np.ndarray:
        """The displacement so far, (3, k, j, i) float32 voxels."""
        return self.u

    def _image_force(self) -> float:
        pair = self.pair
        if self.metric == "mind":
            return -kernels.channel_force(
                self.fixed_features, self.moving_features, self.u, pair.weight, self.spans, self.force
            )
        return lncc_kernels.lncc_force(
            pair.fixed,
            pair.moving,
            self.u,
            self.fixed_sum,
            self.fixed_variance,
            pair.weight,
            self.radius,
            np.float32(LNCC_EPSILON),
            self.slabs,
            self.spans,
            self.force,
        )

    def _add_label_force(self) -> None:
        """Add the soft-Dice gradient, scaled to `guide_weight` times the root mean square of the image force."""
        pair = self.pair
        overlap = np.zeros(pair.labels, np.float32)
        size = np.zeros(pair.labels, np.float32)
        kernels.label_overlap(pair.fixed_labels, pair.moving_labels, self.u, pair.labels, self.spans, overlap, size)
        kernels.label_force(pair.fixed_labels, pair.moving_labels, self.u, overlap, size, self.spans, self.pull)
        image, labels = _rms(self.force), _rms(self.pull)
        if labels > 0:
            self.force += np.float32(self.settings.guide_weight * (image / labels if image > 0 else 1.0)) * self.pull

    def _smooth(self, source: np.ndarray, taps: np.ndarray, out: np.ndarray) -> None:
        if taps.size == 1:
            np.copyto(out, source, where=fields.within(self.spans, out.shape[3]))
        else:
            spatial_kernels.smooth(source, taps, self.slabs, self.spans, out)


def windows_of(pair: Pair, inside: np.ndarray) -> float:
    """What all windows of a level count together, at least 1: the largest sum of squared LNCC."""
    counted = pair.weight[inside].sum(dtype=np.float64) if pair.weight.size else inside.sum()
    return max(float(counted), 1.0)


def still_axes(pair: Pair) -> list[int]:
    """The axes (k, j, i) along which fewer than `THIN` voxels are compared: nothing is to be pulled along them."""
    lengths = list(pair.fixed.shape)
    if pair.weight.size:
        lengths = [span.stop - span.start for span in fields.box_of(pair.weight > 0.5) or ()]
    return [axis for axis, length in enumerate(lengths) if length < THIN]


def level_spans(pair: Pair) -> np.ndarray:
    """The rows worth working on: around the anatomy at this level, everything when no anatomy is named."""
    if pair.active.size == 0:
        return fields.whole(pair.fixed.shape)
    return fields.spans_of(pair.active, MARGIN)


def _mind(volume: np.ndarray) -> np.ndarray:
    """MIND-SSC descriptors, channels last: (k, j, i, 12)."""
    import torch

    from ..losses.mind import mind_ssc

    return np.ascontiguousarray(mind_ssc(torch.from_numpy(volume)[None, None])[0].permute(1, 2, 3, 0).numpy())


def _rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array), dtype=np.float64)))
