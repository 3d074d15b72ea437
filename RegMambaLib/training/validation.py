"""How well a network does on real pairs with labels: Dice of the warped labels and folding, nothing else.

The pairs are of subjects that are not trained on, and never those of a test split.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from RegMambaLib.errors import InputError
from RegMambaLib.evaluation.folding import folding_percent
from RegMambaLib.evaluation.overlap import common_labels, dice
from RegMambaLib.io.images import read_image, read_labels
from RegMambaLib.spatial.fields import warp
from RegMambaLib.spatial.jacobian import jacobian_determinant
from RegMambaLib.training.config import Data, Validation
from RegMambaLib.training.data import read_pair, shrunk, shrunk_labels, trained_files
from RegMambaLib.training.datasets.manifest import load_manifest

COLUMNS = ("fixed", "moving", "fixed_labels", "moving_labels")


@dataclass(frozen=True, eq=False)
class ValidationPair:
    """Two pre-aligned brains on one grid: images float32 (H, W, D) in 0..1, integer labels like them."""

    name: str
    fixed: np.ndarray
    moving: np.ndarray
    fixed_labels: np.ndarray
    moving_labels: np.ndarray


def _array(path: Path, read: Callable[[Path], sitk.Image]) -> np.ndarray:
    if not path.exists():
        raise InputError(f"The validation file {path} is not there; correct its path in the list of pairs.")
    return sitk.GetArrayFromImage(sitk.DICOMOrient(read(path), "LPS"))


def _scaled(image: np.ndarray) -> np.ndarray:
    inside = image[image > 0]
    top = float(np.percentile(inside, 99.5)) if inside.size else 1.0
    return np.clip(image.astype(np.float32) / top, 0, 1)


def load_validation(settings: Validation, data: Data, seed: int) -> list[ValidationPair]:
    """All pairs that a configuration names, those of the CSV first.

    Raises:
        InputError: a file cannot be used, or a pair shows a subject that is trained on or belongs to a test split.
    """
    pairs = []
    if settings.pairs is not None:
        pairs += load_validation_pairs(settings.pairs, settings.shrink, trained_files(data.prepared))
    if settings.manifest is not None:
        manifest = load_manifest(settings.manifest)
        for fixed, moving in manifest.pairs(settings.split, settings.kind, settings.limit or None, seed):
            pairs.append(ValidationPair(f"{fixed.id}<-{moving.id}", *read_pair(fixed, moving, settings.shrink)))
    for pair in pairs:
        if not common_labels(pair.fixed_labels, pair.moving_labels):
            raise InputError(f"The validation pair {pair.name} has no label in common; choose pairs with labels.")
    return pairs


def load_validation_pairs(
    table: Path, shrink: int = 1, forbidden: Mapping[Path, str] | None = None
) -> list[ValidationPair]:
    """Read pairs from a CSV with the columns of `COLUMNS`; paths are relative to the CSV.

    Args:
        shrink: edge of the blocks of voxels that are averaged into one.
        forbidden: images that must not be shown, and the split each belongs to.

    Raises:
        InputError: a column or file is missing, an image is a forbidden one, or the four volumes of a pair are not
            on one grid.
    """
    if not table.is_file():
        raise InputError(f"There is no list of validation pairs {table}; correct validation.pairs.")
    with table.open(newline="", encoding="utf-8-sig") as stream:  # Excel begins its files with a mark
        rows = list(csv.DictReader(stream))
    pairs = []
    for row in rows:
        if any(not row.get(column) for column in COLUMNS):
            raise InputError(f"{table} needs the columns {', '.join(COLUMNS)}, all filled; correct the table.")
        for column in COLUMNS[:2]:
            split = (forbidden or {}).get((table.parent / row[column]).resolve())
            if split:
                raise InputError(
                    f"{row[column]} in {table} belongs to the split {split!r}; validate on other subjects."
                )
        readers = (read_image, read_image, read_labels, read_labels)
        volumes = [_array(table.parent / row[name], read) for name, read in zip(COLUMNS, readers, strict=True)]
        if len({v.shape for v in volumes}) > 1:
            raise InputError(f"The volumes of {row['fixed']} <- {row['moving']} differ in size; resample them first.")
        name = f"{row['fixed']}<-{row['moving']}"
        fixed, moving = (shrunk(_scaled(v), shrink) for v in volumes[:2])
        fixed_labels, moving_labels = (shrunk_labels(v, shrink) for v in volumes[2:])
        pairs.append(ValidationPair(name, fixed, moving, fixed_labels, moving_labels))
    return pairs


def displacement_of(network: torch.nn.Module, fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The displacement (3, h, w, d) voxels, float32, of a network in evaluation mode."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    with torch.no_grad():
        images = (torch.from_numpy(x)[None, None].to(device) for x in (moving, fixed))
        displacement = network(*images)[0].float().cpu().numpy()
    network.train(training)
    return displacement


def validate(network: torch.nn.Module, pairs: Sequence[ValidationPair]) -> list[tuple[float, float]]:
    """Dice and folding (percent of voxels with Jacobian <= 0) of every pair; labels are warped as labels."""
    results = []
    for pair in pairs:
        displacement = displacement_of(network, pair.fixed, pair.moving)
        overlap = dice(pair.fixed_labels, warp(pair.moving_labels, displacement, nearest=True))
        folds = folding_percent(jacobian_determinant(displacement))
        results.append((float(np.mean(list(overlap.values()))), folds))
    return results
