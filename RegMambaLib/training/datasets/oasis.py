"""OASIS-1: 414 T1 brains, skull-stripped and affinely aligned, with 35 structures (neurite; Learn2Reg 2021 task 3).

Layouts, recognised by themselves; all volumes are 160 x 192 x 224 at 1 mm and are kept on their grid:

- neurite-oasis v1.0: `OASIS_OAS1_0001_MR1/aligned_norm.nii.gz` and `aligned_seg35.nii.gz`, with `subjects.txt`. The
  last 20 subjects are the validation split, paired one after the other, as in Learn2Reg 2021 (438 with 439 to 456
  with 457; `pairs_val.csv` is read where it is there).
- Learn2Reg: `OASIS_dataset.json`, `imagesTr/OASIS_0001_0000.nii.gz`, `labelsTr/`, and `imagesTs/` without labels.
  The cases of `registration_val` are the validation split.

The test labels are not public; figures on OASIS are figures on the validation pairs. Whoever selects a network on
them should hold out training cases for that.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from ...errors import InputError
from .learn2reg import dataset_json, read_dataset, read_pairs_csv
from .source import RawCase, Source, need

_HELD_OUT = 20


def find(folder: Path) -> Source:
    """The set in a folder.

    Raises:
        InputError: this is no OASIS, or a file is missing.
    """
    file = dataset_json(folder, "OASIS")
    if file is not None:
        cases, pairs = read_dataset(file, "T1")
        return Source("Learn2Reg", cases, "listed", pairs={"val": pairs}, headers=False)
    folders = sorted(p for p in folder.rglob("OASIS_OAS1_*_MR*") if p.is_dir())
    if not folders:
        raise InputError(
            f"{folder} is no OASIS: it has neither OASIS_OAS1_0001_MR1 folders nor OASIS_dataset.json; "
            "see docs/datasets.md for its layouts."
        )
    root = folders[0].parent
    listed = root / "subjects.txt"
    if listed.is_file():
        for name in listed.read_text(encoding="utf-8").split():
            need(root / name, "subjects.txt lists it")
    names = [place.name for place in folders]
    held_out = names[-_HELD_OUT:] if len(names) > _HELD_OUT else names[-2:]
    table = next((p for p in (root / "pairs_val.csv", folder / "pairs_val.csv") if p.is_file()), None)
    if table is not None:
        pairs = read_pairs_csv(table, "OASIS_OAS1_{:04d}_MR1")
        held_out = sorted({name for pair in pairs for name in pair})
        for name in held_out:
            need(root / name, "pairs_val.csv lists it")
    else:
        pairs = tuple(pairwise(held_out))
    cases = tuple(
        RawCase(
            place.name,
            place.name,
            "val" if place.name in held_out else "train",
            "T1",
            need(place / "aligned_norm.nii.gz", "every subject has it"),
            need(place / "aligned_seg35.nii.gz", "every subject has it"),
        )
        for place in folders
    )
    return Source("neurite-oasis v1.0", cases, "listed", pairs={"val": pairs}, headers=False)
