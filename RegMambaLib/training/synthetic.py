"""Pairs of made-up images from label maps: known anatomy, random contrast, any size and spacing.

Method: SynthSeg (Billot et al., Medical Image Analysis 2023) and SynthMorph (Hoffmann et al., IEEE TMI
2022), with two different subjects in a pair, because cortical folding differs between people and no smooth
random deformation makes that difference. `SyntheticSettings()` makes T1-like pairs of brains; `GENERAL` makes
pairs whose two images differ in contrast, and shapes that are no brains. There each pair also has two clean
images of one contrast, which no network sees: the loss compares those, so that contrast-free training can use
local correlation, which says more about a pair than the overlap of labels does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from RegMambaLib.training.anatomy import Anatomy
from RegMambaLib.training.contrast import t1_table
from RegMambaLib.training.rendering import Look, random_rotation, render
from RegMambaLib.training.separable import put
from RegMambaLib.training.shapes import random_shapes
from RegMambaLib.training.synthetic_settings import SyntheticSettings

CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images float32 (H, W, D) in 0..1 with background 0, and their labels of the same shape, on one device.

    Labels are uint8 where rendered, else of any integer type. The clean images show the same two anatomies, without
    noise and in one contrast, where the contrasts of the images differ; else they are the images themselves.
    """

    fixed: torch.Tensor
    moving: torch.Tensor
    fixed_labels: torch.Tensor
    moving_labels: torch.Tensor
    fixed_clean: torch.Tensor
    moving_clean: torch.Tensor

    def to(self, device: torch.device) -> Pair:
        """The pair on a device; what is one tensor stays one."""
        own = vars(self)
        moved = {id(t): put(t, device) for t in {id(t): t for t in own.values()}.values()}
        return Pair(**{name: moved[id(t)] for name, t in own.items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """Copies of all parts on the CPU, by name."""
        return {name: tensor.cpu().numpy() for name, tensor in vars(self).items()}


def random_pair(
    anatomies: list[Anatomy],
    rng: np.random.Generator,
    *,
    shape: tuple[int, int, int],
    spacing: float,
    settings: SyntheticSettings,
    device: torch.device = CPU,
) -> Pair:
    """Two different subjects, or one set of shapes twice, each deformed on its own.

    Args:
        anatomies: at least two, on `device`; none are needed where `settings.shapes` is 1.
        rng: source of all randomness; an equal state gives an equal pair, but for the white noise on another kind of
            device.
        shape: (H, W, D) of the images in voxels, along S, P, L.
        spacing: of the voxels, mm, the same along all axes. Cut-outs have a shape and spacing of their own.
        device: where the pair is made; it stays there. A GPU is not waited for.
    """
    given = rng.random() >= settings.shapes
    if given:
        first, second = (anatomies[i] for i in rng.choice(len(anatomies), 2, replace=False))
    else:
        first = second = random_shapes(
            rng, int(rng.integers(*settings.shape_count)), settings.shape_knots, bool(rng.random() < 0.5), device
        )
    if first.brain:
        table = t1_table(rng.uniform(*settings.grey), rng.uniform(*settings.csf))
    else:
        table = rng.uniform(0.1, 1.0, 256)
        table[0] = 0.0
    reach = settings.pose_shift
    if given and rng.random() < settings.crops:
        edges = rng.integers(*settings.crop_size, size=3)
        shape = int(edges[0]), int(edges[1]), int(edges[2])
        spacing, reach = rng.uniform(*settings.crop_spacing), settings.crop_shift
    pose = random_rotation(rng, settings.pose_rotation), rng.uniform(-reach, reach, 3)
    bend = settings.coarse_bend if given else settings.shape_bend
    one_look = partial(render, look=Look(shape, spacing, pose, table, bend), rng=rng, settings=settings)
    fixed, moving = one_look(first), one_look(second)
    return Pair(fixed.image, moving.image, fixed.labels, moving.labels, fixed.clean, moving.clean)
