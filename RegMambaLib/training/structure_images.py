"""Label maps -> T1-like images of brains and what each voxel shows, in batches, to train the recognition of structures.

The kinds of randomness are those of `rendering`, the brightness of structures is that of `contrast`. But whole batches
are made on the device, and an image has half the resolution of the label maps: a voxel is the mean of 2 x 2 x 2 nearest
labels, and what it shows is the share of each structure among these eight. Nothing waits for a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from RegMambaLib.networks.structures import CLASSES, NAMES
from RegMambaLib.training.anatomy import SULCAL_CSF, Anatomy
from RegMambaLib.training.contrast import CSF_LABELS, RIMS, SIDES, t1_table

# Brightness, as in `contrast`, of what SynthSeg's maps hold within the ventricles (136, 163) and their temporal horns
# (137, 164): like grey matter, as choroid plexus is. Pairs for registration are made without it.
_WITHIN_VENTRICLES = dict.fromkeys((136, 163, 137, 164), 0.15)
_MORE_SIDES = ((30, 62), (136, 163), (137, 164))
# Smallest brightness that is brain and no empty space, white matter being 1.
_INSIDE = 0.02
# The coarsest fields are smoothed twice: creases between values far apart show most.
_WIDE_KNOTS = 12.0


@dataclass(frozen=True)
class Ranges:
    """How images differ. A pair is a range; one number is the end of a range that begins at 0 or its negative.

    Attributes:
        rotation, scaling, growth, shear, shift: the affine part: degrees about each axis, relative size of each axis,
            of all together, shear, mm.
        flip: probability that left and right are exchanged.
        bends: distance of the random values of a displacement and its largest standard deviation, mm.
        grey, csf: brightness of cortex and fluid; white matter is 1.
        structure_spread, nucleus_spread, grey_spread, side_spread: standard deviations of the brightness of a structure
            on both sides, of one that is neither cortex nor white matter besides, of all, of a structure on one side.
        keep_csf, keep_rim: probability that sulcal fluid, and each next shell outside, is left by skull-stripping.
        grain, grain_width, patches: standard deviation of fine texture, its sigma in voxels; standard deviation of
            coarse texture (10 mm).
        bias: standard deviation of the logarithm of the bias field.
        blur, thick, thick_share: sigma in voxels, what is added along an axis, and how often.
        noise, noise_width: standard deviation and sigma, voxels.
        top: the brightest half percent becomes 1 over a number of this range.
        gamma: standard deviation of the logarithm of the exponent.
    """

    rotation: float = 12.0
    scaling: float = 0.08
    growth: tuple[float, float] = (-0.05, 0.09)
    shear: float = 0.05
    shift: float = 8.0
    flip: float = 0.5
    bends: tuple[tuple[float, float], ...] = ((40.0, 4.0), (18.0, 2.0), (9.0, 0.7))
    grey: tuple[float, float] = (0.5, 0.8)
    csf: tuple[float, float] = (0.02, 0.35)
    structure_spread: float = 0.05
    nucleus_spread: float = 0.08
    grey_spread: float = 0.05
    side_spread: float = 0.02
    keep_csf: float = 0.9
    keep_rim: float = 0.6
    grain: float = 0.04
    grain_width: tuple[float, float] = (0.6, 1.4)
    patches: float = 0.07
    bias: float = 0.15
    blur: tuple[float, float] = (0.45, 0.85)
    thick: float = 0.3
    thick_share: float = 0.15
    noise: float = 0.03
    noise_width: tuple[float, float] = (0.2, 0.6)
    top: tuple[float, float] = (0.95, 1.1)
    gamma: float = 0.15


class StructureImages:
    """Makes images of anatomies and the structures they show, on one device.

    Attributes:
        shape: (H, W, D) of the images: half the size of the label maps, voxels twice as large.
    """

    def __init__(
        self, anatomies: Sequence[Anatomy], device: torch.device, *, shrink: int = 1, ranges: Ranges | None = None
    ) -> None:
        """shrink: only every so-manieth voxel of the label maps is used, for trial runs."""
        first = shrink // 2
        maps = [anatomy.labels[first::shrink, first::shrink, first::shrink] for anatomy in anatomies]
        self._labels = torch.stack(maps).flatten(1).to(device)
        self._size, self._voxel = tuple(maps[0].shape), float(shrink)
        self.shape = tuple(n // 2 for n in self._size)
        self._ranges, self._device = ranges or Ranges(), device
        self._random = torch.Generator(device)

        classes = torch.zeros(256, dtype=torch.uint8)
        for number, labels in enumerate(CLASSES.values()):
            classes[list(labels)] = number
        whiteness = torch.from_numpy(t1_table(grey=0.0, csf=0.0)).float()
        for label, value in _WITHIN_VENTRICLES.items():
            whiteness[label] = value
        one_side = torch.arange(256)
        for left, right in (*SIDES, *_MORE_SIDES):
            one_side[right] = left
        fluid = torch.zeros(256)
        fluid[list(CSF_LABELS)] = 1.0
        self._classes, self._whiteness = classes.to(device), whiteness.to(device)
        self._one_side, self._fluid = one_side.to(device), fluid.to(device)
        axes = [(torch.arange(n, device=device) - (n - 1) / 2) * shrink for n in self._size]
        self._grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # mm from the centre

    def batch(self, which: Sequence[int], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One image of each anatomy of `which`; the same for an equal seed, on one kind of device.

        Returns:
            Images (B, 1, H, W, D) float32 in [0, 1] with background 0; the share of each of `CLASSES` in each voxel
            (B, 18, H, W, D), float16.
        """
        self._random.manual_seed(seed)
        count = len(which)
        matrices, shifts = self._affine(count)
        bends, tables = self._bends(count), self._tables(count)
        clean, inside, shares = [], [], []
        for number, matrix, shift, bend, table in zip(which, matrices, shifts, bends, tables, strict=True):
            labels = self._deformed(number, matrix, shift, bend)
            bright = table.index_select(0, labels.flatten()).view(1, 1, *labels.shape)
            clean.append(F.avg_pool3d(bright, 2))
            inside.append(F.avg_pool3d((bright > _INSIDE).float(), 2))
            shares.append(self._shares(labels))
        return self._scanned(torch.cat(clean), torch.cat(inside)), torch.stack(shares)

    def _uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(shape, device=self._device, generator=self._random)

    def _normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self._device, generator=self._random)

    def _affine(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Matrices (B, 3, 3) and shifts (B, 3) in mm."""
        ranges = self._ranges
        angles = torch.deg2rad(self._uniform(-1, 1, count, 3) * ranges.rotation)
        cosines, sines = angles.cos(), angles.sin()
        unit = torch.eye(3, device=self._device).expand(count, 3, 3)
        matrix = unit
        for axis, (a, b) in enumerate(((1, 2), (0, 2), (0, 1))):
            turn = unit.clone()
            turn[:, a, a], turn[:, b, b] = cosines[:, axis], cosines[:, axis]
            turn[:, a, b], turn[:, b, a] = -sines[:, axis], sines[:, axis]
            matrix = matrix @ turn
        shear = unit + torch.triu(self._uniform(-ranges.shear, ranges.shear, count, 3, 3), 1)
        size = 1 + self._uniform(-ranges.scaling, ranges.scaling, count, 3) + self._uniform(*ranges.growth, count, 1)
        flip = unit.clone()
        flip[:, 2, 2] = 1 - 2 * (self._uniform(0, 1, count) < ranges.flip).float()
        shift = self._uniform(-ranges.shift, ranges.shift, count, 3)
        return flip @ matrix @ shear @ torch.diag_embed(size), shift

    def _bends(self, count: int) -> torch.Tensor:
        """Displacements (B, 3, h, w, d) in mm on a grid of half the images' resolution."""
        shape = tuple(n // 2 for n in self.shape)
        total = torch.zeros(count, 3, *shape, device=self._device)
        for knots, most in self._ranges.bends:
            total = total + self._field(3, knots, self._uniform(0, most, count, 1, 1, 1, 1), shape)
        return total

    def _field(self, channels: int, knots: float, spread: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """Smooth random fields (B, C, *shape) of random values `knots` mm apart; `spread` (B, 1, 1, 1, 1)."""
        size = [max(2, round(n * self._voxel / knots) + 1) for n in self._size]
        values = self._normal(len(spread), channels, *size)
        coarse = [n // 2 for n in self.shape]
        field = F.interpolate(values, size=coarse, mode="trilinear", align_corners=True)
        for _ in range(2 if knots > _WIDE_KNOTS else 1):
            field = F.avg_pool3d(field, 3, 1, 1, count_include_pad=False)
        field = field * (spread / field.std((2, 3, 4), keepdim=True).clamp_min(1e-6))
        return F.interpolate(field, size=shape, mode="trilinear", align_corners=False)

    def _tables(self, count: int) -> torch.Tensor:
        """Brightness of every label (B, 256)."""
        ranges, whiteness = self._ranges, self._whiteness
        grey, csf = self._uniform(*ranges.grey, count, 1), self._uniform(*ranges.csf, count, 1)
        white = whiteness + ranges.side_spread * self._normal(count, 256)
        own = ranges.structure_spread * self._normal(count, 256) + ranges.grey_spread * self._normal(count, 1)
        own = own[:, self._one_side] + ranges.side_spread / 2 * self._normal(count, 256)
        # How much iron and myelin the deep nuclei hold, and what of it shows, differs between people and sequences.
        between = (whiteness > 0.05) & (whiteness < 0.8)
        white = white + ranges.nucleus_spread * self._normal(count, 256)[:, self._one_side] * between
        tissue = grey + white * (1 - grey) + own
        table = torch.where(self._fluid > 0, csf + ranges.side_spread * self._normal(count, 256), tissue)
        chances = self._uniform(0, 1, count, 1 + len(RIMS))
        table[:, SULCAL_CSF] = csf[:, 0] * (chances[:, 0] < ranges.keep_csf)
        kept = torch.cumprod((chances[:, 1:] < ranges.keep_rim).float(), 1)
        for shell, label in enumerate(RIMS):
            table[:, label] = csf[:, 0] * kept[:, shell]
        table[:, 0] = 0
        return table.clamp_min(0)

    def _deformed(self, number: int, matrix: torch.Tensor, shift: torch.Tensor, bend: torch.Tensor) -> torch.Tensor:
        """The nearest labels of an anatomy (2 H, 2 W, 2 D), int32, 0 outside."""
        fine = F.interpolate(bend[None], size=self._size, mode="trilinear", align_corners=False)[0]
        places = (torch.tensordot(matrix, self._grid, 1) + fine + shift[:, None, None, None]) / self._voxel
        index = torch.zeros(self._size, dtype=torch.int32, device=self._device)
        within = torch.ones(self._size, dtype=torch.bool, device=self._device)
        for place, size in zip(places, self._size, strict=True):
            voxel = (place + (size - 1) / 2 + 0.5).floor().int()
            within &= (voxel >= 0) & (voxel < size)
            index = index * size + voxel.clamp_(0, size - 1)
        labels = self._labels[number].index_select(0, index.flatten()).view(self._size)
        return torch.where(within, labels, 0).int()

    def _shares(self, labels: torch.Tensor) -> torch.Tensor:
        """Share of each class in each image voxel (18, H, W, D), float16, which holds eighths exactly."""
        classes = self._classes.index_select(0, labels.flatten()).view(labels.shape)
        shares = torch.zeros((len(NAMES), *self.shape), dtype=torch.float16, device=self._device)
        eighth = torch.full((1, *self.shape), 0.125, dtype=torch.float16, device=self._device)
        for corner in range(8):
            part = classes[corner >> 2 & 1 :: 2, corner >> 1 & 1 :: 2, corner & 1 :: 2]
            shares.scatter_add_(0, part[None].long(), eighth)
        return shares

    def _scanned(self, image: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
        """Texture, bias field, blur, noise and grey scale, as a scanner and preprocessing give them."""
        ranges, count = self._ranges, len(image)
        each = (count, 1, 1, 1, 1)
        grain = self._rough(image.shape, ranges.grain_width) * self._uniform(0, ranges.grain, *each)
        patches = self._field(1, 10.0, self._uniform(0, ranges.patches, *each), self.shape)
        log_bias = self._field(1, 60.0, self._uniform(0, ranges.bias, *each), self.shape)
        image = image * (1 + grain + patches) * log_bias.exp()
        sigmas = self._uniform(*ranges.blur, count, 1).expand(count, 3)
        sigmas = sigmas + self._uniform(0, ranges.thick, count, 3) * (
            self._uniform(0, 1, count, 3) < ranges.thick_share
        )
        image = _blurred(image, sigmas)
        noise = self._rough(image.shape, ranges.noise_width) * self._uniform(0, ranges.noise, *each)
        image = (image + noise * inside).clamp_min(0)
        # As `preprocess` does with a high percentile; of what is brighter than dark grey, on every eighth voxel.
        sample = image[:, 0, ::2, ::2, ::2].flatten(1).sort(1, descending=True).values
        counted = (sample > 0.35).sum(1, keepdim=True)
        brightest = sample.gather(1, (0.005 * counted).long())
        scale = (brightest * self._uniform(*ranges.top, count, 1)).clamp_min(1e-3)
        return (image / scale.view(each)).clamp_max(1).pow((ranges.gamma * self._normal(*each)).exp())

    def _rough(self, shape: Sequence[int], width: tuple[float, float]) -> torch.Tensor:
        """Smoothed white noise of standard deviation 1 (B, 1, H, W, D); `width` of sigma in voxels."""
        white = self._normal(*shape)
        noise = _blurred(white, self._uniform(*width, len(white), 1).expand(-1, 3))
        return noise / noise.std((2, 3, 4), keepdim=True)


def _blurred(images: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Images (B, 1, H, W, D), each smoothed by its own Gaussian, `sigmas` (B, 3) in voxels, cut off at 3 voxels."""
    count = len(images)
    offsets = torch.arange(-3, 4, device=images.device, dtype=torch.float32)
    images = images.transpose(0, 1)
    for axis in range(3):
        taps = torch.exp(-0.5 * (offsets / sigmas[:, axis, None].clamp_min(0.05)) ** 2)
        shape, padding = [count, 1, 1, 1, 1], [0, 0, 0]
        shape[2 + axis], padding[axis] = 7, 3
        images = F.conv3d(images, (taps / taps.sum(1, keepdim=True)).view(shape), padding=padding, groups=count)
    return images.transpose(0, 1)
