"""Refinement of one level with torch, for GPUs: the same steps as `engine_numba`, as whole-volume operations."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ..losses.boxes import box_sum
from ..losses.mind import mind_ssc
from ..spatial.fields import gaussian_taps
from .refine import ADAM_BETAS, ADAM_FLOOR, LNCC_EPSILON, Pair, total_smoothing
from .settings import Settings


class TorchEngine:
    """Holds a level's tensors, (1, c, k, j, i) float32 on one device."""

    def __init__(self, pair: Pair, start: np.ndarray, settings: Settings, metric: str, device: str = "cpu") -> None:
        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array))[None, None].to(device)

        self.settings, self.metric, self.labels = settings, metric, pair.labels
        self.total_smoothing = total_smoothing(settings, metric)
        self.shape = pair.fixed.shape
        self.u = torch.from_numpy(np.array(start, np.float32))[None].to(device)
        self.first, self.second = torch.zeros_like(self.u), torch.zeros_like(self.u)
        self.weight = put(pair.weight) if pair.weight.size else None
        fixed, moving = put(pair.fixed), put(pair.moving)
        self.fixed, self.moving = (mind_ssc(fixed), mind_ssc(moving)) if metric == "mind" else (fixed, moving)
        axes = [torch.arange(n, device=device, dtype=torch.float32) for n in self.shape]
        self.index = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
        self.guided = settings.guide and pair.fixed_labels is not None and pair.moving_labels is not None
        if self.guided:
            assert pair.fixed_labels is not None and pair.moving_labels is not None
            self.fixed_labels = torch.from_numpy(pair.fixed_labels).long().to(device)
            self.moving_labels = torch.from_numpy(pair.moving_labels).long().to(device)
        self.radius = settings.window // 2
        self.iteration = 0
        self.floor = 0.0
        if metric == "lncc":
            self.fixed_sum = box_sum(self.fixed, self.radius)
            self.count = float((2 * self.radius + 1) ** 3)
            squares = box_sum(self.fixed**2, self.radius)
            self.fixed_variance = (squares - self.fixed_sum**2 / self.count).clamp_min(0)

    @torch.no_grad()
    def step(self) -> float:
        """One iteration; returns the mean similarity (LNCC, or minus the squared MIND difference)."""
        self.iteration += 1
        force, similarity = self._image_force()
        if self.guided:
            labels = self._label_force()
            scale = _rms(force) / _rms(labels) if _rms(force) > 0 else 1.0
            if _rms(labels) > 0:
                force = force + self.settings.guide_weight * scale * labels
        force = smooth(force, self.settings.smooth_update)
        if self.iteration == 1:
            self.floor = ADAM_FLOOR * float(force.abs().max()) + 1e-20
        beta1, beta2 = ADAM_BETAS
        self.first.lerp_(force, 1 - beta1)
        self.second.lerp_(force**2, 1 - beta2)
        root = (self.second / (1 - beta2**self.iteration)).sqrt()
        step = self.first / (1 - beta1**self.iteration) / (root + self.floor)
        largest = float(step.square().sum(1).max().sqrt())
        if largest > 0:
            step *= self.settings.step / largest
            self.u = smooth(step + self._sample(self.u, step), self.total_smoothing)
        return similarity / self.index[0, 0].numel()

    def displacement(self) -> np.ndarray:
        """The displacement so far, (3, k, j, i) float32 voxels."""
        return self.u[0].cpu().numpy()

    def _coordinates(self, u: torch.Tensor) -> torch.Tensor:
        """Sampling positions x + u in grid_sample's order and units."""
        position = self.index + u
        parts = [2 * position[:, axis] / max(n - 1, 1) - 1 for axis, n in enumerate(self.shape)]
        return torch.stack(parts[::-1], -1)

    def _sample(self, image: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(image, self._coordinates(u), padding_mode="border", align_corners=True)

    def _image_force(self) -> tuple[torch.Tensor, float]:
        """Gradient of the similarity with respect to u, and the similarity."""
        with torch.enable_grad():
            u = self.u.detach().requires_grad_()
            warped = self._sample(self.moving, u)
        pull, similarity = (
            self._channel_pull(warped.detach()) if self.metric == "mind" else self._lncc_pull(warped.detach())
        )
        (force,) = torch.autograd.grad(warped, u, pull)
        return force, similarity

    def _channel_pull(self, warped: torch.Tensor) -> tuple[torch.Tensor, float]:
        gap = self.fixed - warped
        weighted = gap if self.weight is None else gap * self.weight
        return weighted, -float((weighted * gap).sum())

    def _lncc_pull(self, warped: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Derivative of the summed squared LNCC by the warped image; see `kernels.lncc_force`."""
        r, n = self.radius, self.count
        total, squares, products = box_sum(torch.cat([warped, warped**2, warped * self.fixed], 1), r).unbind(1)
        mean = total / n
        fixed_sum, fixed_variance = self.fixed_sum[:, 0], self.fixed_variance[:, 0]
        cross = products - fixed_sum * mean
        scale = 1 / (fixed_variance * (squares - mean * total).clamp_min(0) + LNCC_EPSILON)
        ratio = cross * scale if self.weight is None else self.weight[:, 0] * cross * scale
        a = 2 * ratio
        b = a * cross * fixed_variance * scale
        sums = box_sum(torch.stack([a, b, b * mean - a * fixed_sum / n], 1), r)
        pull = self.fixed * sums[:, :1] - warped * sums[:, 1:2] + sums[:, 2:]
        return pull, float((ratio * cross).sum())

    def _label_force(self) -> torch.Tensor:
        """Gradient of the mean soft Dice with respect to u; see `kernels.label_force`."""
        ends = [n - 1 for n in self.shape]
        position = [(self.index[0, axis] + self.u[0, axis]).clamp(0, end) for axis, end in enumerate(ends)]
        low = [p.long() for p in position]
        fraction = [p - b for p, b in zip(position, low, strict=True)]
        corners = []
        for corner in range(8):
            sides = [corner >> axis & 1 for axis in range(3)]
            at = [(b + s).clamp_max(end) for b, s, end in zip(low, sides, ends, strict=True)]
            weights = [f if s else 1 - f for f, s in zip(fraction, sides, strict=True)]
            corners.append((self.moving_labels[at[0], at[1], at[2]], weights, sides))
        overlap = torch.zeros(self.labels, device=self.u.device)
        size = torch.bincount(self.fixed_labels.flatten(), minlength=self.labels).float()
        for label, (a, b, c), _ in corners:
            weight = (a * b * c).flatten()
            size.index_add_(0, label.flatten(), weight)
            overlap.index_add_(0, label.flatten(), weight * (label == self.fixed_labels).flatten())
        gain = torch.where(size > 0, 2 / size, 0)
        loss = -gain * overlap / size.clamp_min(1e-20)
        gain[0] = loss[0] = 0
        force = torch.zeros_like(self.u)
        for label, (a, b, c), sides in corners:
            pull = loss[label] + gain[label] * (label == self.fixed_labels)
            signs = [1.0 if side else -1.0 for side in sides]
            force[0, 0] += pull * signs[0] * b * c
            force[0, 1] += pull * signs[1] * a * c
            force[0, 2] += pull * signs[2] * a * b
        return force


def smooth(field: torch.Tensor, sigma: float) -> torch.Tensor:
    """Separable Gaussian of (1, c, k, j, i) with the taps and borders of `spatial.fields.smooth`."""
    taps = torch.from_numpy(gaussian_taps(sigma)).to(field)
    radius = taps.numel() // 2
    if radius == 0:
        return field
    channels = field.shape[1]
    for axis in range(3):
        size, pad = [1, 1, 1], [0] * 6
        size[axis] = taps.numel()
        pad[2 * (2 - axis)] = pad[2 * (2 - axis) + 1] = radius
        kernel = taps.view(1, 1, *size).expand(channels, 1, *size)
        field = F.conv3d(F.pad(field, pad, mode="replicate"), kernel, groups=channels)
    return field


def _rms(tensor: torch.Tensor) -> float:
    return float(tensor.square().mean().sqrt())
