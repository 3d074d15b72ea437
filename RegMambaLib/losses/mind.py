"""MIND-SSC: a description of local self-similarity that does not depend on the scanner's contrast.

Method: Heinrich et al., "Towards realtime multimodal fusion for image-guided interventions using
self-similarities", MICCAI 2013. The mean over channels is clamped to 0.001 to 1,000 times its mean over the
image, as in ConvexAdam.
"""

from __future__ import annotations

from itertools import combinations

import torch

from RegMambaLib.errors import InputError
from RegMambaLib.losses.boxes import box_mean

# The six face neighbours of a voxel, and the twelve pairs of them that are not opposite each other.
_NEIGHBOURS = ((-1, 0, 0), (0, -1, 0), (0, 0, -1), (0, 0, 1), (0, 1, 0), (1, 0, 0))
_PAIRS = tuple(
    (a, b) for a, b in combinations(_NEIGHBOURS, 2) if sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) == 2
)
MIND_CHANNELS = len(_PAIRS)


def _shifted(padded: torch.Tensor, offset: tuple[int, int, int], reach: int) -> torch.Tensor:
    for axis, step in zip((-3, -2, -1), offset, strict=True):
        padded = padded.narrow(axis, reach + step * reach, padded.shape[axis] - 2 * reach)
    return padded


def mind_ssc(image: torch.Tensor, radius: int = 1, dilation: int = 2) -> torch.Tensor:
    """Twelve self-similarity channels of an image.

    Channel: mean squared difference of the patches (``(2 radius + 1)^3``) around two neighbours at distance
    `dilation`, less the smallest channel, over the channels' mean, then ``exp(-x)``. The edge voxel is
    repeated outside the image.

    Args:
        image: (B, 1, H, W, D) float32 or float64, any intensity unit.
        radius: of the patches, in voxels, at least 0.
        dilation: distance of the neighbours in voxels, at least 1.

    Returns: (B, 12, H, W, D), the image's dtype, values in 0..1; a constant image gives 1 everywhere.

    Raises:
        InputError: `image` does not have one channel, `radius` is negative or `dilation` is below 1.
    """
    if image.dim() != 5 or image.shape[1] != 1:
        raise InputError(f"MIND-SSC needs an image (B, 1, H, W, D), not {tuple(image.shape)}; give one channel.")
    if radius < 0 or dilation < 1:
        raise InputError(
            f"MIND-SSC got radius {radius} and dilation {dilation}; choose a radius of 0 or more and a "
            "dilation of 1 or more."
        )
    # Squares of values as large as 1e20 would overflow; the result does not depend on the gain.
    scale = image.detach().abs().amax(dim=(1, 2, 3, 4), keepdim=True)
    scaled = image / torch.where(scale > 0, scale, 1.0)
    padded = torch.nn.functional.pad(scaled, (dilation,) * 6, mode="replicate")
    squares = [(_shifted(padded, a, dilation) - _shifted(padded, b, dilation)) ** 2 for a, b in _PAIRS]
    distance = box_mean(torch.cat(squares, dim=1), radius)
    distance = distance - distance.amin(dim=1, keepdim=True)
    variance = distance.mean(dim=1, keepdim=True)
    overall = variance.detach().mean(dim=(1, 2, 3, 4), keepdim=True)
    tiny = torch.finfo(image.dtype).tiny
    variance = torch.minimum(torch.maximum(variance, overall * 1e-3), overall * 1e3).clamp_min(tiny)
    return torch.exp(-distance / variance)
