"""SR-Reg: 180 brains in MR and CT with 18 structures (MambaMorph, from SynthRAD2023 task 1).

Layouts, recognised by themselves:

- SR-Reg's: `<subject>_mr.nii.gz` and `<subject>_ct.nii.gz` in one folder and the label map `<subject>.nii.gz` of
  both in another, below any folder; skull-stripped, of one size, on one another. Kept on their grid.
- SynthRAD2023's: `1BA001/mr.nii.gz` and `ct.nii.gz`: whole heads without labels, on one another. Aligned to the
  first subject by an affine map (one for MR and CT) and resampled to 1 mm and 224 x 240 x 192 (S, P, L).

MR and CT are scaled by their own foreground; give --window for CT in HU. The authors have not published which
subjects they test on (lists `train_subj_v2.pkl`, `val_...`, `test_...` are read where they lie in the folder):
without them the splits are ours, 150 : 10 : 20 in the order of the names. MR moves to the CT of another subject.
The label values are FreeSurfer's of the left side for both sides.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import InputError
from .source import Preparation, RawCase, Source, by_key, images_in, matching, stem_of
from .volumes import read_pickle

_SHARES = (150, 10, 20)
_KINDS = ("mr", "ct")


def find(folder: Path) -> Source:
    """The set in a folder.

    Raises:
        InputError: this is no SR-Reg or SynthRAD2023 brain set, or a subject lacks MR, CT or labels.
    """
    files = images_in(folder)
    files = [path for path in files if not path.parent.name.startswith("1P")]  # SynthRAD's pelves
    raw = any(path.name == "mr.nii.gz" for path in files)
    images = {kind: by_key(files, _image_key(kind, raw), f"the {kind.upper()} of") for kind in _KINDS}
    subjects = sorted(images["mr"].keys() | images["ct"].keys())
    if not subjects:
        raise InputError(
            f"{folder} is no SR-Reg: it has neither <subject>_mr.nii.gz and <subject>_ct.nii.gz nor "
            "<subject>/mr.nii.gz; see docs/datasets.md for its layouts."
        )
    maps = {} if raw else by_key((p for p in files if stem_of(p) in subjects), stem_of, "the label map of")
    for subject in subjects:
        for kind in _KINDS:
            if subject not in images[kind]:
                raise InputError(
                    f"The {kind.upper()} of {subject} is missing in {folder}; download the set completely."
                )
        if not raw and subject not in maps:
            raise InputError(f"The label map {subject}.nii.gz is missing in {folder}; download the set completely.")
    splits = _splits(folder, subjects)
    cases = tuple(
        RawCase(f"{subject}_{kind}", subject, splits[subject], kind.upper(), images[kind][subject], maps.get(subject))
        for subject in subjects
        for kind in _KINDS
    )
    if raw:
        usual = Preparation((224, 240, 192), (1.0, 1.0, 1.0), "affine")
        return Source(
            "SynthRAD2023",
            cases,
            "intra-subject",
            usual,
            f"{subjects[0]}_mr",
            one_size=False,
            together=True,
            modalities=("CT", "MR"),
        )
    return Source("SR-Reg", cases, "inter-subject", together=True, modalities=("CT", "MR"))


def _image_key(kind: str, raw: bool) -> Callable[[Path], str | None]:
    if raw:
        return lambda path: path.parent.name if path.name == f"{kind}.nii.gz" else None
    return matching(rf"(.+)_{kind}\.nii(?:\.gz)?")


def _splits(folder: Path, subjects: list[str]) -> dict[str, str]:
    lists = {name: path for name in ("train", "val", "test") for path in sorted(folder.rglob(f"{name}_subj*.pkl"))}
    if len(lists) == 3:
        splits = {str(subject): name for name, path in lists.items() for subject in read_pickle(path)}
        lost = sorted(set(subjects) - splits.keys())
        if lost:
            raise InputError(f"The lists {', '.join(p.name for p in lists.values())} lack {lost[0]}; complete them.")
        return {subject: splits[subject] for subject in subjects}
    counts = [round(len(subjects) * share / sum(_SHARES)) for share in _SHARES]
    ends = counts[0], counts[0] + counts[1]
    return {subject: "train" if n < ends[0] else "val" if n < ends[1] else "test" for n, subject in enumerate(subjects)}
