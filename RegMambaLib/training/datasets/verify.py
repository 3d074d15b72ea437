"""Whether a prepared data set is whole and unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...io.images import read_grid, read_labels
from ...spatial.grid import Grid
from .case import by, checksum
from .manifest import MANIFEST, SPLITS, Case, Manifest, manifest_from_dict, read_manifest_json


def verify_data_set(path: Path, progress: Callable[[float], None] | None = None) -> list[str]:
    """What is wrong with a prepared data set, one sentence each; nothing if it is as its manifest says.

    Looked at: ids, splits, pairs and atlas; of every volume that it exists, its shape, spacing and checksum, that its
    labels have names and lie on the grid of the image.

    Args:
        path: the folder or its manifest.json.
        progress: called with the share done.

    Raises:
        InputError: there is no readable manifest.
    """
    file = path / MANIFEST if path.is_dir() else path
    raw = read_manifest_json(file)
    manifest = manifest_from_dict(raw, file.parent)
    wrong = _wrong_entries(manifest)
    entries = {entry["id"]: entry for entry in raw["cases"]}
    for n, case in enumerate(manifest.cases):
        wrong += _wrong_files(case, entries[case.id], manifest)
        if progress is not None:
            progress((n + 1) / len(manifest.cases))
    return wrong


def _wrong_entries(manifest: Manifest) -> list[str]:
    ids = {case.id for case in manifest.cases}
    wrong = [f"The id {i} is there {n} times." for i, n in Counter(c.id for c in manifest.cases).items() if n > 1]
    wrong += [
        f"{case.id} is in the unknown split {case.split!r}." for case in manifest.cases if case.split not in SPLITS
    ]
    splits: dict[str, set[str]] = {}
    for case in manifest.cases:
        splits.setdefault(case.subject, set()).add(case.split)
    wrong += [f"The subject {s} is in several splits: {', '.join(sorted(v))}." for s, v in splits.items() if len(v) > 1]
    if manifest.atlas is not None and manifest.atlas not in ids:
        wrong.append(f"The atlas {manifest.atlas} is no case.")
    listed = {case_id for pairs in manifest.listed.values() for pair in pairs for case_id in pair}
    return wrong + [f"The pairs name {case_id}, which is no case." for case_id in sorted(listed - ids)]


def _wrong_files(case: Case, entry: dict[str, Any], manifest: Manifest) -> list[str]:
    wrong = []
    unnamed = [str(value) for value in entry.get("label_values", []) if value not in manifest.label_names]
    if unnamed:
        wrong.append(f"{case.id} has label values without a name in the manifest: {', '.join(unnamed[:8])}.")
    grids = {}
    for part, path in (("image", case.image), ("labels", case.labels)):
        if path is not None:
            try:
                grids[part] = read_grid(path)
                wrong += _wrong_file(path, grids[part], entry, part, manifest)
            except InputError as error:
                wrong.append(str(error))
    if len(grids) == 2 and not grids["image"].same_as(grids["labels"]):
        wrong.append(f"{case.labels} does not lie on the grid of {case.image}.")
    return wrong


def _wrong_file(path: Path, grid: Grid, entry: dict[str, Any], part: str, manifest: Manifest) -> list[str]:
    shape, spacing = tuple(entry["shape"]), tuple(entry["spacing"])
    wrong = []
    if grid.shape != shape:
        wrong.append(f"{path} is {by(grid.shape)} voxels; the manifest says {by(shape)}.")
    if not np.allclose(grid.spacing[::-1], spacing, rtol=1e-4):
        wrong.append(f"{path} has voxels of {by(grid.spacing[::-1])} mm; the manifest says {by(spacing)}.")
    if checksum(path) != entry.get("sha256", {}).get(part):
        wrong.append(f"{path} has changed since it was prepared (checksum); prepare the data set again.")
        if part == "labels":
            wrong += _unnamed(path, manifest)
    return wrong


def _unnamed(path: Path, manifest: Manifest) -> list[str]:
    import SimpleITK as sitk

    labels = read_labels(path)  # named, since a view does not keep its image alive
    values = np.unique(sitk.GetArrayViewFromImage(labels))
    unnamed = [str(value) for value in values if value and int(value) not in manifest.label_names]
    return [f"{path} holds label values without a name: {', '.join(unnamed[:8])}."] if unnamed else []
