"""A BIDS folder: `sub-*/[ses-*/]anat/*_T1w.nii.gz`, with segmentations in `derivatives/`.

- Images: one suffix (T1w unless told otherwise); sessions and runs are cases of their own, of the same subject.
- Labels: `derivatives/**/*_dseg.nii.gz` of the same subject, session and run, in the space of the image (no `space-`
  entity, or `space-T1w`, `space-orig`). Several of them, as `desc-aseg` and `desc-aparcaseg`: say which.
- Name and licence are those of `dataset_description.json`.

The splits are drawn at random over subjects.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ...errors import InputError
from .source import Options, RawCase, Source, draw_splits, images_in, safe_id, stem_of

_OWN_SPACES = (None, "T1w", "orig", "individual")
_SAME = ("sub", "ses", "run")


def find(folder: Path, options: Options) -> Source:
    """The cases in a BIDS folder.

    Raises:
        InputError: it has no such images, or several segmentations fit one image.
    """
    suffix = options.images or "T1w"
    images = [p for p in images_in(folder, f"sub-*_{suffix}.*") if "derivatives" not in p.relative_to(folder).parts]
    images = [p for p in images if p.parent.name == "anat"]
    if not images:
        raise InputError(
            f"{folder} is no BIDS folder with {suffix} images: it has no sub-*/[ses-*/]anat/*_{suffix}.nii.gz; "
            "check the folder, or name another suffix with --images."
        )
    maps = images_in(folder / "derivatives", "sub-*_dseg.*") if (folder / "derivatives").is_dir() else []
    splits = draw_splits([_entities(path)["sub"] for path in images], options.shares, options.seed)
    cases = []
    for path in images:
        subject = _entities(path)["sub"]
        case_id = safe_id(stem_of(path).removesuffix(f"_{suffix}"))
        modality = options.modality or suffix.removesuffix("w")
        cases.append(
            RawCase(case_id, f"sub-{subject}", splits[subject], modality, path, _labels(path, maps, options.labels))
        )
    return Source("BIDS", tuple(cases), "inter-subject", one_size=False)


def description(folder: Path) -> tuple[str, str]:
    """Licence and citation from `dataset_description.json`; what it lacks is said so."""
    try:
        raw = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raw = {}
    licence = str(raw.get("License") or "not stated")
    cite = raw.get("HowToAcknowledge") or raw.get("Name") or "not stated"
    return licence, str(cite)


def _entities(path: Path) -> dict[str, str]:
    return dict(re.findall(r"(?:^|_)([a-zA-Z]+)-([a-zA-Z0-9+]+)", stem_of(path)))


def _labels(image: Path, maps: list[Path], desc: str | None) -> Path | None:
    own = _entities(image)
    fitting = []
    for path in maps:
        other = _entities(path)
        same = all(own.get(key) == other.get(key) for key in _SAME)
        if same and other.get("space") in _OWN_SPACES and (desc is None or other.get("desc") == desc):
            fitting.append(path)
    if len(fitting) > 1:
        listed = ", ".join(str(path) for path in fitting[:4])
        raise InputError(f"{image} has {len(fitting)} segmentations ({listed}); say which desc- with --labels.")
    return fitting[0] if fitting else None
