"""How well a network does on real pairs with labels: Dice of the warped labels and folding, nothing else."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from RegMambaLib.errors import InputError
from RegMambaLib.evaluation.folding import folding_percent
from RegMambaLib.evaluation.overlap import dice
from RegMambaLib.spatial.fields import warp
from RegMambaLib.spatial.jacobian import jacobian_determinant

COLUMNS = ("fixed", "moving", "fixed_labels", "moving_labels")


@dataclass(frozen=True, eq=False)
class ValidationPair:
    """Two pre-aligned brains on one grid: images float32 (H, W, D) in 0..1, integer labels like them."""

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    fixed_labels: np.ndarray
    moving_labels: np.ndarray


def _array(path: Path) -> np.ndarray:
    if not path.exists():
        raise InputError(f"The validation file {path} is not there; correct its path in the list of pairs.")
    return sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS"))


def _scaled(image: np.ndarray) -> np.ndarray:
    inside = image[image > 0]
    top = float(np.percentile(inside, 99.5)) if inside.size else 1.0
    return np.clip(image.astype(np.float32) / top, 0, 1)


def load_validation_pairs(table: Path) -> list[ValidationPair]:
    """Read pairs from a CSV with the columns of `COLUMNS`; paths are relative to the CSV.

    Raises:
        InputError: a column or file is missing, or the four volumes of a pair are not on one grid.
    """
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    pairs = []
    for row in rows:
        if any(not row.get(column) for column in COLUMNS):
            raise InputError(f"{table} needs the columns {', '.join(COLUMNS)}, all filled; correct the table.")
        volumes = [_array(table.parent / row[column]) for column in COLUMNS]
        if len({v.shape for v in volumes}) > 1:
            raise InputError(f"The volumes of {row['fixed']} <- {row['moving']} differ in size; resample them first.")
        name = f"{row['fixed']}<-{row['moving']}"
        pairs.append(ValidationPair(name, _scaled(volumes[0]), _scaled(volumes[1]), volumes[2], volumes[3]))
    return pairs


def validate(network: torch.nn.Module, pairs: Sequence[ValidationPair]) -> list[tuple[float, float]]:
    """Dice and folding (percent of voxels with Jacobian <= 0) of every pair; labels are warped as labels."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    results = []
    with torch.no_grad():
        for pair in pairs:
            moving, fixed = (torch.from_numpy(x)[None, None].to(device) for x in (pair.moving, pair.fixed))
            displacement = network(moving, fixed)[0].float().cpu().numpy()
            overlap = dice(pair.fixed_labels, warp(pair.moving_labels, displacement, nearest=True))
            folds = folding_percent(jacobian_determinant(displacement))
            results.append((float(np.mean(list(overlap.values()))), folds))
    network.train(training)
    return results
