"""IXI: T1 brains of healthy people from three London hospitals.

Layouts, recognised by themselves:

- TransMorph's: `Train/subject_*.pkl` (403), `Val/` (58), `Test/` (115) and `atlas.pkl` (from CycleMorph); each a
  pickled pair of arrays (image, FreeSurfer labels), 160 x 192 x 224, skull-stripped, affinely aligned. 30 structures
  are evaluated; the atlas moves to every subject. The pickles have no header; the orientation is found from the
  labels. Only arrays are unpacked from them, so that a foreign pickle cannot run code.
- IXI's own: `IXI002-Guys-0828-T1.nii.gz` ... from the unpacked IXI-T1.tar: whole heads without labels in scanner
  space. They are aligned to the first subject by an affine map and resampled to 1 mm and 224 x 240 x 192 (S, P, L);
  the splits are ours, drawn at random, 7 : 1 : 2. Skulls are not removed.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .source import Preparation, RawCase, Source, by_key, draw_splits, images_in, matching

_SPLITS = {"Train": "train", "Val": "val", "Test": "test"}
_RAW = matching(r"(IXI\d{3})-\w+-\d+-T1\.nii(?:\.gz)?")


def find(folder: Path) -> Source:
    """The set in a folder.

    Raises:
        InputError: this is no IXI, the atlas or a split is missing, or a subject is there twice.
    """
    if any((folder / name).is_dir() for name in _SPLITS):
        return _pickled(folder)
    images = by_key(images_in(folder, "IXI*"), _RAW, "the T1 image of")
    if not images:
        raise InputError(
            f"{folder} is no IXI: it has neither Train, Val, Test and atlas.pkl nor IXI002-Guys-0828-T1.nii.gz; "
            "see docs/datasets.md for its layouts."
        )
    splits = draw_splits(list(images), (0.7, 0.1, 0.2))
    cases = tuple(RawCase(subject, subject, splits[subject], "T1", images[subject]) for subject in sorted(images))
    return Source(
        layout="IXI-T1 as distributed",
        cases=cases,
        kind="inter-subject",
        preparation=Preparation((224, 240, 192), (1.0, 1.0, 1.0), "affine"),
        atlas=cases[0].id,
        one_size=False,
    )


def _pickled(folder: Path) -> Source:
    # The name on the download page is misspelt.
    atlas = next((folder / name for name in ("atlas.pkl", "altas.pkl") if (folder / name).is_file()), None)
    if atlas is None:
        raise InputError(f"{folder / 'atlas.pkl'} is missing; download the preprocessed IXI completely.")
    files = [path for name in _SPLITS for path in sorted((folder / name).glob("*.pkl"))]
    for name in _SPLITS:
        if not any(path.parent.name == name for path in files):
            raise InputError(f"{folder / name} holds no .pkl files; download the preprocessed IXI completely.")
    found = by_key(files, matching(r"(.*)\.pkl"), "the subject")
    cases = [
        RawCase(subject, subject, _SPLITS[path.parent.name], "T1", path, path)
        for subject, path in sorted(found.items())
    ]
    return Source(
        layout="TransMorph pickles",
        cases=(RawCase("atlas", "atlas", "atlas", "T1", atlas, atlas), *cases),
        kind="from-atlas",
        atlas="atlas",
        headers=False,
    )
