"""A plain folder of images, with or without label maps matched by name.

Recognised by themselves, at any depth:

- `images/a.nii.gz` and `labels/a.nii.gz` (or imagesTr, image, img, vol, volumes; labelsTr, label, seg, segs, masks);
- `a.nii.gz` and `a_seg.nii.gz`, or `a_t1.nii.gz` and `a_dkt31cma.nii.gz`: names that share everything but their last
  part; the last part of a label map is one of `LABEL_ENDINGS`, or what `Options.labels` says;
- `a/t1.nii.gz` and `a/seg.nii.gz`: one folder a subject;
- images alone.

Folders named train, val (or validation) and test anywhere above a file give its split; otherwise the splits are drawn
at random.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ...errors import InputError
from .source import Options, RawCase, Source, by_key, draw_splits, images_in, safe_id, stem_of

IMAGE_FOLDERS = {"images", "imagestr", "imagests", "image", "img", "imgs", "vol", "vols", "volumes"}
LABEL_FOLDERS = {"labels", "labelstr", "labelsts", "label", "seg", "segs", "segmentations", "masks"}
LABEL_ENDINGS = (
    *("seg", "segm", "segmentation", "label", "labels", "labelmap", "mask", "dseg", "gt", "parc", "aseg", "aparc"),
    *("oar", "fs", "dlmuse", "dkt31", "dkt31cma", "manual"),
)
IMAGE_ENDINGS = ("img", "image", "vol", "t1", "t1w", "t2", "t2w", "flair", "pd", "mr", "ct", "brain", "norm", "0000")
_SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test"}


def find(folder: Path, options: Options) -> Source:
    """The cases in a folder.

    Raises:
        InputError: it holds no images, label maps without an image, or two files of one name.
    """
    files = images_in(folder)
    maps = by_key((p for p in files if _is_label(p, folder, options)), key_of(folder, options), "the label map of")
    rest = [p for p in files if not _is_label(p, folder, options) and _is_image(p, options)]
    images = by_key(rest, key_of(folder, options), "the image of")
    if not images:
        raise InputError(
            f"{folder} holds no images ({len(files)} image files, {len(maps)} label maps); give a folder with images, "
            "and --labels with the ending of the label maps if theirs is unusual."
        )
    lone = sorted(maps.keys() - images.keys())
    if lone:
        raise InputError(f"{maps[lone[0]]} has no image; the image of {lone[0]} is missing or named otherwise.")
    keys = by_key(map(Path, images), lambda p: safe_id(str(p)), "the case")
    drawn = draw_splits(list(keys), options.shares, options.seed)
    cases = []
    for case_id, key in sorted(keys.items()):
        image = images[str(key)]
        split = _folder_split(image, folder) or drawn[case_id]
        cases.append(RawCase(case_id, case_id, split, options.modality or "MR", image, maps.get(str(key))))
    return Source("plain folder", tuple(cases), "inter-subject", one_size=False)


def key_of(top: Path, options: Options) -> Callable[[Path], str]:
    """What an image and its label map share: the path without its kind (folder, ending of the name) and split."""
    kinds = IMAGE_FOLDERS | LABEL_FOLDERS | _SPLITS.keys()

    def key(path: Path) -> str:
        folders = [part for part in path.relative_to(top).parts[:-1] if part.lower() not in kinds]
        stem = stem_of(path)
        for ending in (options.labels, options.images):
            if ending and stem.lower().endswith(ending.lower()):
                return "_".join([*folders, *_parts(stem[: len(stem) - len(ending)])]) or top.name
        parts = _parts(stem)
        if parts and (_names_labels(parts[-1]) or parts[-1].lower() in IMAGE_ENDINGS):
            parts = parts[:-1]
        return "_".join([*folders, *parts]) or top.name  # a subject alone, in the top folder

    return key


def _parts(stem: str) -> list[str]:
    return [part for part in re.split(r"[_.\s-]+", stem) if part]


def _names_labels(part: str) -> bool:
    """Whether the last part of a name says label map; numbers after it do not matter (oar7)."""
    return part.lower() in LABEL_ENDINGS or part.lower().rstrip("0123456789") in LABEL_ENDINGS


def _is_label(path: Path, top: Path, options: Options) -> bool:
    if options.labels is not None:
        return stem_of(path).lower().endswith(options.labels.lower())
    inside = {part.lower() for part in path.relative_to(top).parts[:-1]}
    parts = _parts(stem_of(path))
    return bool(inside & LABEL_FOLDERS) or (not inside & IMAGE_FOLDERS and bool(parts) and _names_labels(parts[-1]))


def _is_image(path: Path, options: Options) -> bool:
    return options.images is None or stem_of(path).lower().endswith(options.images.lower())


def _folder_split(path: Path, top: Path) -> str | None:
    return next((_SPLITS[p.lower()] for p in path.relative_to(top).parts[:-1] if p.lower() in _SPLITS), None)
