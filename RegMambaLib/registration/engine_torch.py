"""Refinement of one level on a torch device: the same steps as `engine_numba`, by Triton kernels where they work."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch

from ..errors import is_out_of_memory
from ..losses.mind import mind_ssc
from ..spatial import fields
from ..spatial.fields import gaussian_taps
from . import torch_steps
from .engine_numba import level_spans, still_axes, windows_of
from .map_pull import weight_at
from .refine import ADAM_FLOOR, SAME_LNCC, Pair
from .settings import Settings

_TRITON = f"{__package__}.triton_steps"


class TorchEngine:
    """Holds a level's tensors, float32 and (c, k, j, i) or (k, j, i), on one device.

    An iteration only gives the device work and never waits for it.
    """

    def __init__(
        self,
        pair: Pair,
        start: np.ndarray,
        settings: Settings,
        metric: str,
        device: str = "cpu",
        floor: float = ADAM_FLOOR,
    ) -> None:
        def put(array: np.ndarray) -> torch.Tensor:
            # Always a copy: u is not to change the start.
            return torch.from_numpy(np.ascontiguousarray(array)).to(device, copy=True)

        self.settings, self.metric = settings, metric
        self.steps = steps_for(torch.device(device))
        self.u = put(np.asarray(start, np.float32))
        self.first, self.second = torch.zeros_like(self.u), torch.zeros_like(self.u[0])
        inside = fields.within(level_spans(pair), self.u.shape[3])
        self.inside = put(inside)
        self.weight = put(pair.weight) * self.inside if pair.weight.size else self.inside.float()
        self.fixed, self.moving = put(pair.fixed), put(pair.moving)
        self.radius = settings.window // 2
        if metric == "mind":
            self.fixed, self.moving = (mind_ssc(volume[None, None])[0] for volume in (self.fixed, self.moving))
        else:
            self.moments = torch_steps.fixed_moments(self.fixed, self.radius)
            self.windows = windows_of(pair, inside)
        self.guided = settings.guide and pair.fixed_labels is not None and pair.moving_labels is not None
        if self.guided:
            assert pair.fixed_labels is not None and pair.moving_labels is not None
            self.fixed_labels, self.moving_labels = put(pair.fixed_labels), put(pair.moving_labels)
            self.count = put(np.bincount(pair.fixed_labels[inside], minlength=pair.labels).astype(np.float32))
        self.maps = []
        for *sides, strength in pair.maps:
            own_fixed, own_moving = (put(side).movedim(-1, 0).contiguous() for side in sides)
            weight = put(weight_at(pair.weight, own_fixed.shape[1:]))
            weight = weight if weight.numel() else torch.ones_like(own_fixed[0])
            if weight.shape == self.inside.shape:  # as `MapPull`
                weight = weight * self.inside
            self.maps.append((own_fixed, own_moving, weight, strength))
        self.update_taps = put(gaussian_taps(settings.smooth_update))
        self.total_taps = put(gaussian_taps(settings.smooth_total))
        self.no_smoothing = torch.zeros_like(self.total_taps)
        self.no_smoothing[self.total_taps.numel() // 2] = 1
        self.share, self.floor = floor, torch.zeros((), device=device)
        self.still = still_axes(pair)
        self.iteration = 0

    def step(self) -> torch.Tensor:
        """One iteration; returns the mean similarity (LNCC, or minus the squared MIND difference).

        It is a 0-d tensor, which float() turns into a number once the device has got that far.
        """
        self.iteration += 1
        force, similarity = self._image_force()
        if self.guided:
            force = self._with_labels(force)
        if self.maps:
            force = self._with_maps(force)
        for axis in self.still:
            force[axis] = 0
        force = self.steps.smooth(force, self.update_taps, self.inside)
        if self.iteration == 1:
            self.floor = self.share * force.square().sum(0).amax().sqrt() + 1e-20
        direction, largest = self.steps.adam(force, self.first, self.second, self.iteration, self.floor)
        moved = self.steps.compose(self.u, direction, largest / self._shortened(similarity), self.settings.step)
        # When nothing pulls anywhere, u stays as it is.
        taps = torch.where(largest > 0, self.total_taps, self.no_smoothing)
        self.u = self.steps.smooth(moved, taps, self.inside)
        return similarity / self.u[0].numel()

    def displacement(self) -> np.ndarray:
        """The displacement so far, (3, k, j, i) float32 voxels."""
        return self.u.cpu().numpy()

    def _shortened(self, similarity: torch.Tensor) -> torch.Tensor:
        """Factor on the step; see `NumbaEngine.step_length`."""
        if self.metric == "mind" or self.guided:
            return torch.ones_like(similarity)
        return ((1 - similarity / self.windows) / (1 - SAME_LNCC)).clamp(0, 1)

    def _image_force(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradient of the similarity with respect to u, and the similarity."""
        if self.metric == "mind":
            return self.steps.channel_force(self.fixed, self.moving, self.u, self.weight)
        images = self.fixed, self.moving
        return self.steps.lncc_force(*images, self.u, self.moments, self.weight, self.inside, self.radius)

    def _with_labels(self, force: torch.Tensor) -> torch.Tensor:
        """With the soft-Dice gradient, scaled to `guide_weight` times the root mean square of the image force."""
        pull = self.steps.label_force(self.fixed_labels, self.moving_labels, self.count, self.u, self.inside)
        image, labels = torch.linalg.vector_norm(force), torch.linalg.vector_norm(pull)
        scale = torch.where(labels > 0, torch.where(image > 0, image / labels, 1.0), 0.0)
        return torch.addcmul(force, pull, self.settings.guide_weight * scale)

    def _with_maps(self, force: torch.Tensor) -> torch.Tensor:
        """With the pull of the maps; see `map_pull`."""
        image = torch.linalg.vector_norm(force) / self.u[0].numel() ** 0.5
        for fixed, moving, weight, strength in self.maps:
            own = torch_steps.sampled_displacement(self.u, fixed.shape[1:])
            pull, _ = self.steps.channel_force(fixed, moving, own, weight)
            size = torch.linalg.vector_norm(pull) / own[0].numel() ** 0.5
            scale = torch.where(size > 0, strength * image / size, 0.0)
            force = torch.addcmul(force, torch_steps.resized(pull, self.u.shape[1:]), scale * self.inside)
        return force


def steps_for(device: torch.device) -> ModuleType:
    """The module with the steps for tensors on this device: `triton_steps` or `torch_steps`."""
    return triton_for(device) or torch_steps


def triton_for(device: torch.device) -> ModuleType | None:
    """The module `triton_steps` where it works on this device."""
    return import_module(_TRITON) if device.type == "cuda" and _triton_works(device) else None


@cache
def _triton_works(device: torch.device) -> bool:
    """Tried once per device: a broken installation shows only when called. Without Triton there is no warning.

    A lack of memory passes: it is raised, and not remembered.
    """
    try:
        if find_spec("triton") is None:
            return False
        import_module(_TRITON).check(device)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"Triton does not work here ({reason}); refinement runs with torch, slower.", stacklevel=2)
        return False
    return True
