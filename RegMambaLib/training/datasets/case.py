"""One case of a data set: read, orient, align, resample, scale, write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InputError
from ...io.atomic import staged_file
from ...io.images import write_image
from ...registration.affine import Side, align
from ...registration.preprocess import Prepared
from ...registration.preprocess import prepare as scale
from ...spatial.grid import Grid
from ...spatial.itk import affine_transform
from .source import Preparation, RawCase
from .volumes import Axes, oriented, read_label_volume, read_volume

if TYPE_CHECKING:
    import SimpleITK as sitk

RECORDS = ".cases"
_DIGITS = 6
"""Decimals of a spacing that are kept: float32 headers hold no more."""


@dataclass(frozen=True)
class Job:
    """Everything one case needs, for any process.

    Attributes:
        case: what to prepare.
        preparation: how.
        folder: of the prepared data set.
        axes: of the volumes as stored; None: their headers tell.
        size: (i, j, k) that the image must have; None: any.
        atlas: what the subject is aligned to; None: it is not.
        align_by: the case of the subject that the transform is found on.
        known, kept: label values that may occur, and those that stay; None: any, all.
    """

    case: RawCase
    preparation: Preparation
    folder: Path
    axes: Axes | None
    size: tuple[int, int, int] | None
    atlas: RawCase | None
    align_by: RawCase
    known: frozenset[int] | None
    kept: frozenset[int] | None


def prepare_case(job: Job) -> dict[str, Any]:
    """Write the image, the label map and, last, the record of a case; returns its entry in the manifest.

    Raises:
        InputError: a file is damaged, of a wrong size, constant, or holds unknown label values.
    """
    case = job.case
    stored = read_volume(case.image)
    if job.size is not None and stored.GetSize() != job.size:
        raise InputError(
            f"{case.image} is {by(stored.GetSize())} voxels, and the others are {by(job.size)}; is it a file of this "
            "data set?"
        )
    image = _scaled(oriented(stored, job.axes), case, job.preparation)
    grid, transform = _target(job, Grid.of(image))
    image_name, label_name = f"images/{case.id}.nii.gz", f"labels/{case.id}.nii.gz"
    entry: dict[str, Any] = {"id": case.id, "subject": case.subject, "split": case.split, "modality": case.modality}
    entry |= {"image": image_name, "labels": label_name if case.labels else None}
    entry |= {"shape": list(grid.shape), "spacing": [round(s, _DIGITS) for s in grid.spacing[::-1]]}
    entry["label_values"] = []
    sums = {"image": _write(grid.resample(_smoothed(image, grid), transform), job.folder / image_name)}
    if case.labels is not None:
        labels = grid.resample(_labels(job), transform, labels=True)
        sums["labels"] = _write(labels, job.folder / label_name)
        entry["label_values"] = _values(labels)
    entry["sha256"] = sums
    record = record_of(job.folder, case.id)
    with staged_file(record, overwrite=True) as part:
        part.write_text(json.dumps({"source": fingerprint(case), "entry": entry}), encoding="utf-8")
    return entry


def record_of(folder: Path, case_id: str) -> Path:
    """Where the record of a finished case lies."""
    return folder / RECORDS / f"case-{case_id}.json"


def fingerprint(case: RawCase) -> list[list[int]]:
    """Size and time of change of the files of a case, as distributed."""
    stats = [path.stat() for path in (case.image, case.labels) if path is not None]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def by(size: Sequence[float] | None) -> str:
    """A size for people."""
    return " x ".join(f"{n:g}" for n in size or ())


def _scaled(image: sitk.Image, case: RawCase, preparation: Preparation) -> sitk.Image:
    """Intensities in 0..1 with background 0: a CT by its window, another image by its own foreground."""
    import SimpleITK as sitk

    if preparation.window is not None and case.modality == "CT":
        low, high = preparation.window
        return sitk.Clamp((image - low) / (high - low), sitk.sitkFloat32, 0.0, 1.0)
    return _prepared(image, case).image


def _prepared(image: sitk.Image, case: RawCase) -> Prepared:
    return scale(image, f"{case.modality} {case.image.name}")


def _labels(job: Job) -> sitk.Image:
    assert job.case.labels is not None
    labels = oriented(read_label_volume(job.case.labels), job.axes)
    values = _values(labels)
    unknown = [value for value in values if job.known is not None and value not in job.known]
    if unknown:
        raise InputError(
            f"{job.case.labels} holds label values without a name ({', '.join(map(str, unknown[:8]))}); is it the "
            "label map of this data set?"
        )
    lost = {value: 0 for value in values if job.kept is not None and value not in job.kept}
    if not lost:
        return labels
    import SimpleITK as sitk

    return sitk.ChangeLabel(labels, changeMap=lost)


def _values(labels: sitk.Image) -> list[int]:
    import SimpleITK as sitk

    return [int(value) for value in np.unique(sitk.GetArrayViewFromImage(labels)) if value]


def _target(job: Job, own: Grid) -> tuple[Grid, sitk.Transform | None]:
    """The grid a case goes to, and the transform from there to the case's own space."""
    if job.atlas is None:
        return _fitted(own, job.preparation, (np.asarray(own.size) - 1) / 2), None
    atlas = _side(job.atlas, job.axes)
    grid = Grid.of(atlas.image)
    inside = np.argwhere(atlas.foreground)
    middle = ((inside.min(0) + inside.max(0)) / 2)[::-1] if len(inside) else (np.asarray(grid.size) - 1) / 2
    target = _fitted(grid, job.preparation, middle)
    if job.case.subject == job.atlas.subject:
        return target, None
    found = align(atlas, _side(job.align_by, job.axes), job.preparation.linear)
    return target, affine_transform(found)


@lru_cache(maxsize=2)
def _side(case: RawCase, axes: Axes | None) -> Side:
    """An image as the linear stage takes it; kept, since the atlas serves every case."""
    prepared = _prepared(oriented(read_volume(case.image), axes), case)
    return Side(prepared.image, prepared.foreground())


def _fitted(grid: Grid, preparation: Preparation, middle: np.ndarray) -> Grid:
    """`grid` with the wanted spacing, cropped or padded to the wanted shape about index `middle` (i, j, k)."""
    world = grid.world(middle)
    if preparation.spacing is not None and not np.allclose(preparation.spacing[::-1], grid.spacing, rtol=1e-4):
        k, j, i = preparation.spacing
        grid = grid.with_spacing((i, j, k))
    if preparation.shape is None:
        return grid
    size = preparation.shape[2], preparation.shape[1], preparation.shape[0]
    start = np.rint(grid.index(world) - (np.asarray(size) - 1) / 2 - 1e-6).astype(int)
    return grid.crop((int(start[0]), int(start[1]), int(start[2])), size)


def _smoothed(image: sitk.Image, grid: Grid) -> sitk.Image:
    """`image` with what a coarser grid cannot hold blurred away (Cardoso et al., MICCAI 2015, eq. 3)."""
    import SimpleITK as sitk

    own, other = np.asarray(image.GetSpacing()), np.asarray(grid.spacing)
    variance = np.maximum(other**2 - own**2, 0) / (8 * np.log(2))
    if (variance < 0.1 * own**2).all():
        return image
    return sitk.DiscreteGaussian(image, variance=variance.tolist(), useImageSpacing=True)


def _write(image: sitk.Image, path: Path) -> str:
    with staged_file(path, overwrite=True) as part:
        write_image(image, part)
        return checksum(part)
