"""A small network that recognises the structures of a brain in one T1 image.

Registration lets its maps pull besides the images (`registration/structures.py`): where an image shows little, they say
what lies there. A U-Net (Ronneberger et al., MICCAI 2015; Cicek et al., MICCAI 2016) that works at half the resolution
of its input: 2 x 2 x 2 voxels become channels before the first convolution and voxels again after the last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from RegMambaLib.errors import InputError
from RegMambaLib.networks.weights import read_weights, stored

FORMAT = "regmamba-structures-1"
# What is told apart, with FreeSurfer's numbers (those of the left, then of the right side), the last four of SynthSeg's
# maps. Left and right are one class: brains that are aligned cannot be mixed up so.
CLASSES: dict[str, tuple[int, ...]] = {
    "background": (),
    "lateral ventricle": (4, 43, 136, 163),
    "inferior lateral ventricle": (5, 44, 137, 164),
    "cerebellar white matter": (7, 46),
    "thalamus": (10, 49),
    "caudate": (11, 50),
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "hippocampus": (17, 53),
    "amygdala": (18, 54),
    "accumbens": (26, 58),
    "ventral diencephalon": (28, 60),
    "third ventricle": (14,),
    "fourth ventricle": (15,),
    "brainstem": (16,),
    "cerebellar cortex": (8, 47),
    "white matter": (2, 41, 25, 57, 85),
    "cortex": (3, 42),
}
NAMES = tuple(CLASSES)
WIDTHS = (24, 48, 96, 160)


class StructureNet(nn.Module):
    """Images (B, 1, H, W, D) in [0, 1], of about 2 mm, axes (S, P, L) -> logits of `CLASSES` (B, 18, H, W, D).

    Any size; background is 0. widths: channels of the levels, finest first.
    """

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.widths = tuple(widths)
        inputs = (8, *widths[:-1])
        self.down = nn.ModuleList(_Block(given, width) for given, width in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(_Block(fine + coarse, fine) for fine, coarse in pairwise(widths))
        self.head = nn.Linear(widths[0] + 8, 8 * len(NAMES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        size = image.shape[2:]
        multiple = 2 ** len(self.widths)
        padded = [-(-n // multiple) * multiple for n in size]
        if max(padded) == multiple:
            padded[2] *= 2  # one voxel on the coarsest level has no spread to be normalised by
        padding = [side for n, whole in zip(reversed(size), reversed(padded), strict=True) for side in (0, whole - n)]
        first = x = _to_channels(F.pad(image, padding))
        levels = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.avg_pool3d(x, 2))
            levels.append(x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](torch.cat([levels[level], F.interpolate(x, scale_factor=2.0)], 1))
        x = torch.cat([x, first.to(x.dtype)], 1)
        # Convolutions of one voxel are slow on the CPU; a product of matrices is the same.
        weight, bias = self.head.weight.to(x.dtype), self.head.bias.to(x.dtype)
        logits = torch.matmul(weight, x.flatten(2)) + bias[:, None]
        return _to_voxels(logits.unflatten(2, x.shape[2:]))[:, :, : size[0], : size[1], : size[2]]


class _Block(nn.Module):
    """Two convolutions."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(inputs, width, 3, padding=1, bias=False)
        self.first_norm = nn.InstanceNorm3d(width, affine=True)
        self.second = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.InstanceNorm3d(width, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.leaky_relu(self.first_norm(self.first(x)), 0.1, inplace=True)
        return F.leaky_relu(self.second_norm(self.second(x)), 0.1, inplace=True)


def _to_channels(x: torch.Tensor) -> torch.Tensor:
    """(B, C, 2h, 2w, 2d) -> (B, 8 C, h, w, d); the place within 2 x 2 x 2 is the fastest part of the channel."""
    x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _to_voxels(x: torch.Tensor) -> torch.Tensor:
    """Inverse of `_to_channels`."""
    x = x.unflatten(1, (-1, 2, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def save_structures(network: StructureNet, path: str | PathLike[str], card: Mapping[str, Any] | None = None) -> None:
    """Write weights (float16), widths and a card (anything JSON can hold) to a safetensors file."""
    header = {"format": FORMAT, "widths": json.dumps(network.widths), "card": json.dumps(dict(card or {}))}
    save_file(stored(network, torch.float16), str(path), header)


def load_structures(path: str | PathLike[str]) -> StructureNet:
    """The network of a file that `save_structures` wrote, float32, on the CPU, in evaluation mode.

    Raises InputError if it is not one.
    """
    header, tensors = read_weights(Path(path), FORMAT)
    try:
        network = StructureNet(tuple(json.loads(header["widths"])))
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The weights in '{path}' do not fit its own header; the file is damaged.") from error
    return network.eval()
