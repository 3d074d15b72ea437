"""LPBA40: 40 T1 brains with 56 hand-drawn regions (LONI).

Layouts, recognised by themselves:

- LONI's: `S01/S01.delineation.skullstripped.{hdr,img,img.gz}` and `S01/S01.delineation.structure.label.*` to S40,
  at any depth (`LPBA40/delineation_space/S01/`); Analyze, 256 x 124 x 256 voxels of about .86 x 1.5 x .86 mm.
  Each brain is aligned to S01 by an affine map and resampled to 1 mm and 160 x 192 x 160 (S, P, L), as the
  papers describe.
- As registration papers pass it on: `fixed.nii.gz` (S01), `train/`, `test/` and `label/` (also with the images in
  `delineation_l_norm/`), 160 x 192 x 160, aligned already and kept as they are.

S01 is the atlas and fixed, S02 to S10 are the test split, S11 to S40 the training of the papers; of these, S36 to
S40 are our validation split. Left and right cannot be told from Analyze headers: the orientation is found from
the regions.
"""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import InputError
from .source import Preparation, RawCase, Source, by_key, images_in, matching

SUBJECTS = tuple(f"S{number:02d}" for number in range(1, 41))
SHAPE = (160, 192, 160)
_ATLAS, _LAST_TEST, _LAST_TRAINING = "S01", "S10", "S35"


def find(folder: Path) -> Source:
    """The set in a folder.

    Raises:
        InputError: this is no LPBA40, or a subject's image or label map is missing or there twice.
    """
    files = images_in(folder)
    labels = by_key(files, matching(r"(S\d\d)\..*label\..*"), "the label map of")
    images = by_key(files, _image_key, "the image of")
    if not images or not labels:
        raise InputError(
            f"{folder} is no LPBA40: it has no S01.delineation.skullstripped and S01.delineation.structure.label "
            "files; see docs/datasets.md for its layouts."
        )
    for subject in SUBJECTS:
        for found, what in ((images, "skullstripped image"), (labels, "label map")):
            if subject not in found:
                raise InputError(f"The {what} of {subject} is missing in {folder}; LPBA40 has 40 subjects.")
    passed_on = any(path.parent.name in ("train", "test") for path in images.values())
    cases = tuple(
        RawCase(subject, subject, _split(subject, images[subject]), "T1", images[subject], labels[subject])
        for subject in SUBJECTS
    )
    return Source(
        layout="passed on with registration papers" if passed_on else "LONI delineation space",
        cases=cases,
        kind="atlas",
        preparation=Preparation() if passed_on else Preparation(SHAPE, (1.0, 1.0, 1.0), "affine"),
        atlas=_ATLAS,
        one_size=passed_on,
        headers=False,
    )


def _image_key(path: Path) -> str | None:
    name = path.name
    if re.fullmatch(r"fixed\.nii(\.gz)?", name):
        return _ATLAS
    plain = path.parent.name in ("train", "test") and "label" not in name.lower()
    found = re.match(r"(S\d\d)(?=\.)" if plain else r"(S\d\d)(?=\.delineation\.skullstripped\.)", name)
    # The atlas is often given twice, as fixed and among the others.
    return None if found is None or (plain and found.group(1) == _ATLAS) else found.group(1)


def _split(subject: str, image: Path) -> str:
    if subject == _ATLAS:
        return "atlas"
    if image.parent.name == "test" or (subject <= _LAST_TEST and image.parent.name != "train"):
        return "test"
    return "train" if subject <= _LAST_TRAINING else "val"
