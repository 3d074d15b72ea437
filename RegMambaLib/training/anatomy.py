"""Label maps -> anatomies in one common frame, ready to be rendered.

Maps of heads are those of SynthSeg (FreeSurfer label numbers; 500 and above lie outside the brain). They are
brought into the frame that linearly pre-aligned brains have: array axes (S, P, L), 1 mm, 160 x 192 x 160,
MNI152 centre. Any other maps are moved to the centre of such a frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage

from RegMambaLib.errors import InputError
from RegMambaLib.io.images import read_labels

FRAME_SHAPE = (160, 192, 160)

# Mean place of each structure in MNI152-aligned brains: (S, P, L) mm from the centre of the frame.
_PLACES: dict[int, tuple[float, float, float]] = {
    7: (-43, 33, 20),
    8: (-46, 44, 27),
    10: (1, 2, 12),
    11: (5, -27, 13),
    12: (-5, -19, 26),
    13: (-7, -15, 20),
    14: (-9, -8, 0),
    15: (-41, 25, 0),
    16: (-42, 11, 0),
    17: (-19, 5, 27),
    18: (-25, -13, 23),
    28: (-17, -3, 10),
    46: (-43, 34, -20),
    47: (-46, 44, -27),
    49: (1, 2, -12),
    50: (5, -27, -13),
    51: (-5, -19, -26),
    52: (-7, -15, -20),
    53: (-19, 5, -27),
    54: (-25, -13, -23),
    60: (-17, -3, -10),
}
# Cerebrum (cortex and white matter): centre and spread (standard deviation) along S, P, L in the same
# brains, mm.
_CEREBRUM = (2, 3, 41, 42)
_CEREBRUM_CENTRE = (11.4, 0.2, 0.0)
_CEREBRUM_SPREAD = (28.1, 42.5, 36.1)

_FIRST_OUTSIDE = 500
_CSF = 24
# FreeSurfer's fornix and corpus callosum; the numbers are taken below, and they are white matter.
_FIRST_MIDLINE, _LAST_MIDLINE, _WHITE = 250, 255, 2
# SynthSeg's CSF label goes on to the skull. It is split into sulcal CSF (closed in by brain) and shells of
# 1, 2 and 4 mm around the brain, so that each synthetic skull-stripping can stop elsewhere; the rest is
# background.
SULCAL_CSF, RIM_NEAR, RIM_MIDDLE, RIM_FAR = 250, 251, 252, 253


# Numbers that no structure of a brain has in `contrast`, for shapes and for maps that are no heads.
FIRST_OTHER, LAST_OTHER = 101, 249


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One anatomy: `labels` uint8 `FRAME_SHAPE`, on the device that its images are made on.

    Of a brain they are FreeSurfer numbers below 250 and the four CSF labels above, else 101 to 249.
    """

    name: str
    labels: torch.Tensor
    brain: bool = True

    def to(self, device: torch.device) -> Anatomy:
        """The anatomy on a device."""
        return Anatomy(self.name, self.labels.to(device), self.brain)


def _to_frame(labels: np.ndarray, name: str) -> np.ndarray:
    """Affine that maps (S, P, L) mm of the frame, from its centre, to voxels of `labels`; (3, 4)."""
    found = ndimage.find_objects(labels.astype(np.int32), max_label=max(_PLACES))
    here, there = [], []
    for label, place in _PLACES.items():
        box = found[label - 1]
        if box is None:
            continue
        inside = np.argwhere(labels[box] == label).mean(axis=0)
        here.append(inside + [s.start for s in box])
        there.append(place)
    cerebrum = np.argwhere(np.isin(labels, _CEREBRUM))
    if len(here) < 6 or len(cerebrum) == 0:
        raise InputError(
            f"The label map {name} has too few known brain structures (FreeSurfer numbers such as 10, 12) "
            "to be placed; use label maps with FreeSurfer numbering."
        )
    # Structure centres give pose and rough size; the spread of the cerebrum then gives the size of the whole
    # brain.
    affine, *_ = np.linalg.lstsq(np.c_[here, np.ones(len(here))], np.array(there), rcond=None)
    placed = cerebrum @ affine[:3] + affine[3]
    gain = np.array(_CEREBRUM_SPREAD) / placed.std(axis=0)
    matrix = affine[:3].T * gain[:, None]
    offset = np.array(_CEREBRUM_CENTRE) - matrix @ cerebrum.mean(axis=0)
    back = np.linalg.inv(matrix)
    return np.c_[back, -back @ offset]


def _split_csf(labels: np.ndarray) -> np.ndarray:
    tissue = ((labels > 0) & (labels != _CSF)).astype(np.float32)
    csf = labels == _CSF
    out = np.where(csf, 0, labels).astype(np.uint8)
    for label, width in ((RIM_FAR, 9), (RIM_MIDDLE, 5), (RIM_NEAR, 3)):
        out[csf & (ndimage.uniform_filter(tissue, width) > 1e-3)] = label
    out[csf & (ndimage.uniform_filter(tissue, 11) > 0.5)] = SULCAL_CSF
    return out


def place_anatomy(labels: np.ndarray, name: str) -> Anatomy:
    """A whole-head label map, array axes (S, P, L) of any spacing, in the common frame, brain only.

    Raises:
        InputError: too few known structures are there to find the pose, or labels that stand for none.
    """
    labels = np.where((labels >= _FIRST_MIDLINE) & (labels <= _LAST_MIDLINE), _WHITE, labels)
    strange = [int(value) for value in np.unique(labels) if LAST_OTHER < value < _FIRST_OUTSIDE]
    if strange:
        raise InputError(
            f"The label map {name} has labels that FreeSurfer's aseg has not ({', '.join(map(str, strange[:5]))}); use "
            "its numbers, or frame: centred."
        )
    brain = np.where((labels > 0) & (labels < _FIRST_OUTSIDE), labels, 0).astype(np.uint8)
    affine = _to_frame(brain, name)
    centre = (np.array(FRAME_SHAPE) - 1) / 2
    framed = ndimage.affine_transform(
        brain, affine[:, :3], offset=affine[:, 3] - affine[:, :3] @ centre, output_shape=FRAME_SHAPE, order=0
    )
    return Anatomy(name, torch.from_numpy(_split_csf(framed)))


def load_anatomies(folder: Path) -> list[Anatomy]:
    """Every head label map (NIfTI) of a folder, posed in the common frame, in the order of the names.

    Raises:
        InputError: the folder holds fewer than two maps, or one of them is no FreeSurfer-style label map.
    """
    maps = map(_read, _label_files(folder))
    return [place_anatomy(sitk.GetArrayFromImage(image).astype(np.int32), name) for name, image in maps]


def load_centred(folder: Path, voxel: float = 1.0) -> list[Anatomy]:
    """Every label map (NIfTI) of a folder, whatever it shows, in the order of the names.

    The middle of the labelled box of each map comes to the middle of the frame, axes along S, P, L; what does not
    fit is cut off. Label values are numbered anew from 101, alike in all maps.

    Args:
        voxel: mm that one voxel of the frame shows.

    Raises:
        InputError: the folder holds fewer than two maps, one holds no label, or there are more than 149 label values.
    """
    files = _label_files(folder)
    framed = [(name, _centred(image, voxel)) for name, image in map(_read, files)]
    values = np.unique(np.concatenate([np.unique(labels) for _, labels in framed]))
    values = values[values != 0]
    if len(values) > LAST_OTHER - FIRST_OTHER + 1:
        raise InputError(
            f"The label maps in {folder} have {len(values)} label values, and at most "
            f"{LAST_OTHER - FIRST_OTHER + 1} can be told apart; merge some."
        )
    return [
        Anatomy(
            name,
            torch.from_numpy(np.where(labels != 0, np.searchsorted(values, labels) + FIRST_OTHER, 0).astype(np.uint8)),
            brain=False,
        )
        for name, labels in framed
    ]


def _label_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.glob("*.nii*") if p.name.endswith((".nii", ".nii.gz")))
    if len(files) < 2:
        raise InputError(f"Found {len(files)} NIfTI label maps in {folder}; training on pairs needs at least two.")
    return files


def _read(file: Path) -> tuple[str, sitk.Image]:
    """Name and map, array axes (S, P, L), any integer type that its values need."""
    return file.name.split(".")[0], sitk.DICOMOrient(read_labels(file), "LPS")


def _centred(image: sitk.Image, voxel: float) -> np.ndarray:
    labels = sitk.GetArrayFromImage(image)
    box = ndimage.find_objects((labels != 0).astype(np.uint8))[0]
    step = voxel / np.array(image.GetSpacing()[::-1])
    middle = np.array([(s.start + s.stop - 1) / 2 for s in box])
    offset = middle - step * (np.array(FRAME_SHAPE) - 1) / 2
    return ndimage.affine_transform(labels, np.diag(step), offset=offset, output_shape=FRAME_SHAPE, order=0)
