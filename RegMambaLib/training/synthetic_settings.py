"""The ranges that rendered pairs are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, fields

from RegMambaLib.errors import InputError

Range = tuple[float, float]
# Probabilities.
_SHARES = ("keep_csf", "keep_rim", "other_contrast", "shapes", "crops")


@dataclass(frozen=True)
class SyntheticSettings:
    """Ranges the pairs are drawn from, uniformly unless stated. Lengths in mm of the common frame.

    Intensities are relative to white matter 1 before normalisation. The kinds of randomness are those of
    SynthSeg and SynthMorph; the ranges are mostly narrower, set by eye until slices and histograms looked like
    linearly aligned, skull-stripped T1 brains.

    Attributes:
        pose_rotation, pose_shift: of both brains together, largest, degrees and mm; the head in the scanner.
        rotation: of each brain about each axis, largest, degrees. What a linear pre-alignment leaves.
        scaling: largest relative change of size along each axis.
        shear: largest shear.
        shift: largest translation along each axis.
        coarse_bend, fine_bend: largest standard deviation of the two smooth random displacements.
        coarse_knots, fine_knots: distance between the random values of these, before smoothing.
        grey: of cortex.
        csf: of cerebrospinal fluid.
        structure_spread: standard deviation of the brightness of each structure.
        contrast_spread: standard deviation of grey and CSF between the two images of a pair.
        blur: sigma of the point spread beyond the voxel, in voxels.
        texture: standard deviation of smooth (1.5 voxels) grain in tissue.
        noise: standard deviation of the white noise.
        bias: standard deviation of the logarithm of the bias field.
        bias_knots: distance between the random values of the bias field.
        gamma: standard deviation of the logarithm of the exponent, normal.
        keep_csf: probability that sulcal CSF stays in the image after skull-stripping.
        keep_rim: probability that the next shell outside the brain stays, given that the last one did.
        other_contrast: probability that an image has any contrast, its own, instead of a T1-like one.
        thick: sigma of the blur along one axis, as thick slices have it, in voxels.
        shapes: probability that a pair shows random shapes instead of given anatomies.
        shape_bend: `coarse_bend` of shapes; both images are deformed from one map.
        shape_count, shape_knots: how many shapes there are (the upper number is not reached), and the distance
            between the random values that they come from.
        crops: probability that a pair of given anatomies is a cut-out of them, as a small field of view gives.
        crop_size: its edge in voxels (the upper number is not reached).
        crop_spacing: its spacing.
        crop_shift: largest distance of its centre from that of the frame, along each axis.
    """

    pose_rotation: float = 10.0
    pose_shift: float = 6.0
    rotation: float = 5.0
    scaling: float = 0.06
    shear: float = 0.03
    shift: float = 4.0
    coarse_bend: float = 3.0
    coarse_knots: float = 40.0
    fine_bend: float = 1.2
    fine_knots: float = 16.0
    grey: Range = (0.5, 0.8)
    csf: Range = (0.02, 0.35)
    structure_spread: float = 0.05
    contrast_spread: float = 0.03
    blur: Range = (0.3, 1.0)
    texture: Range = (0.0, 0.05)
    noise: Range = (0.0, 0.03)
    bias: Range = (0.0, 0.15)
    bias_knots: float = 60.0
    gamma: float = 0.12
    keep_csf: float = 0.9
    keep_rim: float = 0.6
    other_contrast: float = 0.0
    thick: Range = (0.0, 0.0)
    shapes: float = 0.0
    shape_bend: float = 5.0
    shape_count: tuple[int, int] = (8, 20)
    shape_knots: Range = (14.0, 40.0)
    crops: float = 0.0
    crop_size: tuple[int, int] = (56, 72)
    crop_spacing: Range = (1.0, 1.6)
    crop_shift: float = 40.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, (tuple, list)):
                low, high = value
                if low < 0 or high < low or (entry.name in ("shape_count", "crop_size") and high == low):
                    raise InputError(
                        f"Setting {entry.name} must be a range of two numbers from 0, the smaller first, not {value}."
                    )
            elif value < 0 or (entry.name in _SHARES and value > 1):
                upper = " to 1" if entry.name in _SHARES else " or more"
                raise InputError(f"Setting {entry.name} must be 0{upper}, not {value}.")


# Any contrast, noisier and less even images, shapes and cut-outs.
GENERAL = SyntheticSettings(
    other_contrast=1.0,
    structure_spread=0.08,
    texture=(0.0, 0.08),
    noise=(0.0, 0.06),
    bias=(0.0, 0.3),
    gamma=0.2,
    thick=(0.0, 1.5),
    shapes=0.2,
    crops=0.2,
)
