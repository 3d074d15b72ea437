"""One anatomy -> one deformed image, on the device that its label map lies on.

What is random and small (pose, deformation and bias field on a coarse grid, brightness, blur) is drawn and made on the
CPU with numpy and is the same for every device. Only the white noise is drawn on the device, from a seed of the same
source: it differs between kinds of device, and nothing else does beyond rounding. No step waits for the device, so that
on a GPU a thread can put a pair in the queue behind a training step.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation

from RegMambaLib.training.anatomy import SULCAL_CSF, Anatomy
from RegMambaLib.training.contrast import CSF_LABELS, RIMS, other_contrast
from RegMambaLib.training.separable import along_axes, gaussian, put, smooth_field, stretching
from RegMambaLib.training.synthetic_settings import SyntheticSettings

# Voxels between the values of the coarse grid that deformation and bias field are made on.
_STEP = 4


@dataclass(frozen=True, eq=False)
class Look:
    """What the two images of a pair share.

    Attributes:
        shape: (H, W, D) in voxels.
        spacing: mm.
        pose: rotation matrix and shift in mm of both.
        table: brightness of every label, (256,).
        coarse_bend: largest standard deviation of the coarse deformation, mm.
    """

    shape: tuple[int, int, int]
    spacing: float
    pose: tuple[np.ndarray, np.ndarray]
    table: np.ndarray
    coarse_bend: float


@dataclass(frozen=True, eq=False)
class Rendered:
    """Image float32 in 0..1 with background 0, its labels uint8, and the clean image float32, all (H, W, D)."""

    image: torch.Tensor
    labels: torch.Tensor
    clean: torch.Tensor


def render(anatomy: Anatomy, look: Look, rng: np.random.Generator, settings: SyntheticSettings) -> Rendered:
    """One anatomy deformed on its own, as a scanner shows it, and clean."""
    affine = random_affine(rng, settings)
    coarse, upwards = _coarse_grid(look.shape)
    step = _STEP * look.spacing
    bend = [
        smooth_field(rng, coarse, settings.coarse_knots / step, rng.uniform(0, look.coarse_bend))
        + smooth_field(rng, coarse, settings.fine_knots / step, rng.uniform(0, settings.fine_bend))
        for _ in range(3)
    ]
    log_bias = smooth_field(rng, coarse, settings.bias_knots / step, rng.uniform(*settings.bias))
    positions = _positions(anatomy.labels.shape, look, affine, np.stack(bend))
    own = brightness(rng, settings, look.table) if anatomy.brain else look.table
    shared_contrast = settings.other_contrast == 0
    tables = [own]
    if not shared_contrast:
        tables += [look.table, other_contrast(rng, own) if rng.random() < settings.other_contrast else own]

    box, places = _seen(anatomy.labels.shape, positions)
    device = anatomy.labels.device
    fields = along_axes(put(np.concatenate([places, log_bias[None]]), device), [put(m, device) for m in upwards])
    images, labels = _sampled(anatomy.labels[box], tables, fields[:3])
    image = scanned(images[-1], images[0] > 0.02, fields[3], rng, settings)
    clean = image if shared_contrast else along_axes(images[1], _gaussians(look.shape, (0.5,) * 3, device))
    return Rendered(image, labels, clean)


def random_rotation(rng: np.random.Generator, largest: float) -> np.ndarray:
    """Rotation matrix of up to `largest` degrees about each axis."""
    return Rotation.from_euler("xyz", rng.uniform(-largest, largest, 3), degrees=True).as_matrix()


def random_affine(rng: np.random.Generator, settings: SyntheticSettings) -> tuple[np.ndarray, np.ndarray]:
    """What a linear pre-alignment leaves: matrix and shift in mm."""
    turn = random_rotation(rng, settings.rotation)
    shear = np.eye(3) + np.triu(rng.uniform(-settings.shear, settings.shear, (3, 3)), 1)
    size = np.diag(1 + rng.uniform(-settings.scaling, settings.scaling, 3))
    return turn @ shear @ size, rng.uniform(-settings.shift, settings.shift, 3)


def brightness(rng: np.random.Generator, settings: SyntheticSettings, table: np.ndarray) -> np.ndarray:
    """The table of one image (256,): the pair's T1-like one with its own small differences and shells outside."""
    csf = max(0.0, table[CSF_LABELS[0]] + settings.contrast_spread * rng.standard_normal())
    grey = settings.contrast_spread * rng.standard_normal()
    out = table + grey * (1 - table) + settings.structure_spread * rng.standard_normal(256)
    # The two sides of the brain are told apart by the label numbers, not by the scanner.
    for left, right in ((2, 41), (3, 42), (7, 46), (8, 47)):
        out[right] = out[left] + 0.2 * (out[right] - out[left])
    out[list(CSF_LABELS)] = csf
    out[SULCAL_CSF] = csf if rng.random() < settings.keep_csf else 0.0
    out[list(RIMS)] = csf * np.cumprod(rng.random(3) < settings.keep_rim)
    out[0] = 0.0
    return np.maximum(out, 0)


def scanned(
    image: torch.Tensor,
    inside: torch.Tensor,
    log_bias: torch.Tensor,
    rng: np.random.Generator,
    settings: SyntheticSettings,
) -> torch.Tensor:
    """What a scanner makes of true brightness: blur, grain, bias field, noise, grey scale; 0 where not `inside`."""
    device, shape = image.device, tuple(image.shape)
    texture, noise = white_noise(int(rng.integers(2**63)), (2, *shape), device)
    texture = along_axes(texture, _gaussians(shape, (1.5,) * 3, device, truncate=2))
    texture *= rng.uniform(*settings.texture) / texture.std(correction=0).clamp_min(1e-6)
    blur = np.full(3, rng.uniform(*settings.blur))
    blur[rng.integers(3)] += rng.uniform(*settings.thick)
    image = along_axes(image, _gaussians(shape, blur, device)) * (1 + texture) * log_bias.exp()
    image += rng.uniform(*settings.noise) * noise
    # Skull-stripped images are exactly 0 outside, and the pipeline scales them by a high percentile of the
    # inside.
    image = torch.where(inside, image.clamp_min(0), 0)
    image = (image / percentile(image, inside, 99.5).clamp_min(1e-6)).clamp_max(1)
    return image ** float(np.exp(settings.gamma * rng.standard_normal()))


def percentile(image: torch.Tensor, inside: torch.Tensor, percent: float) -> torch.Tensor:
    """That of a non-negative image within a mask, a tensor of one value; the image is 0 outside the mask.

    Only the highest values of the whole image are sorted: how many voxels are inside need not be known beforehand.
    """
    share = 1 - percent / 100
    top = image.flatten().topk(min(image.numel(), int(share * image.numel()) + 2)).values
    rank = share * (inside.sum() - 1).clamp_min(0)
    low = rank.long()
    pair = top.gather(0, torch.stack([low, (low + 1).clamp_max(top.numel() - 1)]))
    return pair[0].lerp(pair[1], rank - low)


def white_noise(seed: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Standard normal values, float32; another kind of device gives others."""
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def _coarse_grid(shape: tuple[int, int, int]) -> tuple[tuple[int, ...], list[np.ndarray]]:
    """Size of the coarse grid, with 64 times fewer values to draw and smooth, and the interpolation to all voxels."""
    coarse = tuple(-(-n // _STEP) + 1 for n in shape)
    return coarse, [stretching(knots, n) for knots, n in zip(coarse, shape, strict=True)]


def _positions(
    frame: tuple[int, ...], look: Look, affine: tuple[np.ndarray, np.ndarray], bend: np.ndarray
) -> np.ndarray:
    """Voxels of the frame that the coarse grid shows, float64 like `bend`.

    The affine part needs no finer grid: it is linear, and so is the interpolation.
    """
    matrix, shift = affine[0] @ look.pose[0] * look.spacing, affine[1] + affine[0] @ look.pose[1]
    axes = [np.linspace(-(n - 1) / 2, (n - 1) / 2, knots) for n, knots in zip(look.shape, bend.shape[1:], strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    centre = (np.array(frame) - 1) / 2 + shift
    return np.tensordot(matrix, grid, 1) + centre[:, None, None, None] + bend


def _seen(frame: tuple[int, ...], positions: np.ndarray) -> tuple[tuple[slice, ...], np.ndarray]:
    """The part of the frame that is seen, and the positions in voxels of it, float32."""
    box = []
    for size, places in zip(frame, positions, strict=True):
        first = int(np.clip(np.floor(places.min()), 0, size - 1))
        box.append(slice(first, int(np.clip(np.ceil(places.max()), first, size - 1)) + 1))
    start = np.array([part.start for part in box])
    return tuple(box), (positions - start[:, None, None, None]).astype(np.float32)


def _sampled(
    labels: torch.Tensor, tables: list[np.ndarray], positions: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Trilinear `table[labels]` of each table (256,), float32, and nearest `labels`, uint8; 0 outside.

    Labels are looked up at the corners around each position, then each table at these. That takes a third of the time
    of `grid_sample` on whole volumes of brightness, which are large and mostly not needed.
    """
    labels = F.pad(labels, (1,) * 6)
    _, width, depth = labels.shape
    flat, shape = labels.flatten(), positions.shape[1:]

    def looked_up(h: torch.Tensor, w: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
        return flat.index_select(0, ((h * width + w) * depth + d).flatten())

    places = [(p + 1).clamp(0, n - 1) for p, n in zip(positions, labels.shape, strict=True)]
    low = [p.int().clamp_max(n - 2) for p, n in zip(places, labels.shape, strict=True)]
    shares = [(p - i).flatten() for p, i in zip(places, low, strict=True)]
    corners = [looked_up(low[0] + a, low[1] + b, low[2] + c).int() for a, b, c in product((0, 1), repeat=3)]
    nearest = looked_up(*[(p + 0.5).int() for p in places])
    images = []
    for table in put(np.stack(tables).astype(np.float32), labels.device):
        values = [table.index_select(0, corner) for corner in corners]
        for share in reversed(shares):
            values = [a.lerp(b, share) for a, b in zip(values[::2], values[1::2], strict=True)]
        images.append(values[0].view(shape))
    return images, nearest.view(shape)


def _gaussians(
    shape: tuple[int, ...], sigmas: tuple[float, ...] | np.ndarray, device: torch.device, *, truncate: float = 4.0
) -> list[torch.Tensor]:
    return [put(gaussian(n, float(s), truncate=truncate), device) for n, s in zip(shape, sigmas, strict=True)]
