"""What a data set's owners distribute, as a list of cases: found, not yet read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...errors import InputError
from .volumes import SUFFIXES

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Preparation:
    """What is done to every case; all triples are in the order of the array axes (k, j, i), towards S, P, L.

    Attributes:
        shape: voxels to crop or pad to; None keeps the volume's own.
        spacing: mm to resample to; None keeps the volume's own.
        linear: "none", or "rigid", "similarity", "affine": align to the atlas and take its grid.
        window: HU that become 0 and 1, for CT; other images are scaled by their own foreground.
        every_label: keep all labels of the table, not only the evaluated ones.
    """

    shape: tuple[int, int, int] | None = None
    spacing: Triple | None = None
    linear: str = "none"
    window: tuple[float, float] | None = None
    every_label: bool = False


@dataclass(frozen=True)
class RawCase:
    """One volume as it was distributed; `image` and `labels` are the same path for a pickle that holds both."""

    id: str
    subject: str
    split: str
    modality: str
    image: Path
    labels: Path | None = None


@dataclass(frozen=True)
class Source:
    """A data set as it was found.

    Attributes:
        layout: which of its known layouts this is, in words.
        cases: all cases.
        kind: the usual kind of pairs, see `manifest.KINDS`.
        preparation: the usual preparation of this layout.
        atlas: id of the atlas case.
        pairs: (fixed id, moving id) that the owners prescribe, per split.
        one_size: all images have the same size as distributed; one that has not is refused.
        headers: the headers tell the orientation; if not, it is found from the label maps.
        together: cases of one subject lie on one another, and move together to the atlas.
        modalities: (fixed, moving) of the usual pairs; None: any.
    """

    layout: str
    cases: tuple[RawCase, ...]
    kind: str
    preparation: Preparation = Preparation()
    atlas: str | None = None
    pairs: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    one_size: bool = True
    headers: bool = True
    together: bool = False
    modalities: tuple[str, str] | None = None


@dataclass(frozen=True)
class Options:
    """What a folder of one's own does not tell; the published sets need none.

    Attributes:
        modality: of the images: "MR", "T1", "CT", ...; None: "MR", or the BIDS suffix.
        images: a BIDS suffix such as "T1w", or the ending that names images beside labels, such as "t1".
        labels: the ending that names label maps, such as "seg"; for BIDS the `desc-` of the segmentation.
        shares: of the subjects, to train, val and test, where the folder has no such subfolders.
        seed: of drawing them.
    """

    modality: str | None = None
    images: str | None = None
    labels: str | None = None
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    seed: int = 0


def images_in(folder: Path, pattern: str = "*") -> list[Path]:
    """Image files below a folder whose names match, sorted; of an Analyze or NIfTI pair only the header."""
    found = [p for p in folder.rglob(pattern) if p.is_file() and _suffix(p) and not p.name.startswith(".")]
    with_header = {stem_of(p) for p in found if p.name.lower().endswith(".hdr")}
    return sorted(p for p in found if not (".img" in p.name.lower() and stem_of(p) in with_header))


def stem_of(path: Path) -> str:
    """The file's name without its image suffix, `.nii.gz` included."""
    return path.name[: len(path.name) - len(_suffix(path))]


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return next((suffix for suffix in (*SUFFIXES, ".pkl") if name.endswith(suffix)), "")


def by_key(paths: Iterable[Path], key: Callable[[Path], str | None], what: str) -> dict[str, Path]:
    """Paths under their keys; files without a key are left out.

    Raises:
        InputError: two files have the same key.
    """
    found: dict[str, Path] = {}
    for path in paths:
        name = key(path)
        if name is None:
            continue
        if name in found:
            raise InputError(f"{found[name]} and {path} are both {what} {name}; keep one of them.")
        found[name] = path
    return found


def matching(pattern: str) -> Callable[[Path], str | None]:
    """A key for `by_key`: the first group of a pattern that the whole name must match."""
    compiled = re.compile(pattern, re.IGNORECASE)

    def key(path: Path) -> str | None:
        found = compiled.fullmatch(path.name)
        return found.group(1) if found else None

    return key


def need(path: Path, what: str) -> Path:
    """`path`, or an `InputError` that names it when it is missing."""
    if not path.exists():
        raise InputError(f"{path} is missing: {what}; download the data set completely.")
    return path


def safe_id(name: str) -> str:
    """A name as an id, which also names files: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "case"


def draw_splits(subjects: Sequence[str], shares: tuple[float, float, float], seed: int = 0) -> dict[str, str]:
    """A split for every subject, drawn at random: shares of train, val and test, each at least one if not 0.

    The same subjects, shares and seed give the same splits. Fewer than three subjects all go to train.
    """
    ordered = sorted(set(subjects))
    if len(ordered) < 3:
        return dict.fromkeys(ordered, "train")
    order = [ordered[n] for n in np.random.default_rng(seed).permutation(len(ordered))]
    total = sum(shares)
    counts = [max(round(len(order) * share / total), 1) if share else 0 for share in shares[1:]]
    test = order[: counts[1]]
    val = order[counts[1] : counts[1] + counts[0]]
    return {subject: "test" if subject in test else "val" if subject in val else "train" for subject in ordered}
