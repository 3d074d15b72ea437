"""The manifest of a prepared data set: what training and evaluation read.

A prepared folder holds `manifest.json`, `images/` and `labels/`. Every volume in it is a NIfTI file whose array
axes (k, j, i) point towards S, P and L: `SimpleITK.GetArrayFromImage` gives the array the networks take. Images
are float32 in 0..1 with background 0; labels are unsigned integers with background 0.

    manifest = load_manifest("prepared/lpba40")
    for fixed, moving in manifest.pairs("train", "inter-subject", limit=100, seed=3):
        network_input = moving.image_array(), fixed.image_array()
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...io.atomic import staged_file

MANIFEST = "manifest.json"
FORMAT = "regmamba data set"
VERSION = 1
SPLITS = ("train", "val", "test", "atlas")
COLUMNS = ("fixed", "moving", "fixed_labels", "moving_labels")
KINDS = ("inter-subject", "atlas", "from-atlas", "intra-subject", "listed")


@dataclass(frozen=True)
class Case:
    """One volume of a data set, with its label map if there is one.

    Attributes:
        id: unique in the set, also the name of its files.
        subject: whom it shows; cases of one subject are never in different splits.
        image, labels: absolute paths; labels is None for a case without a label map.
        split: "train", "val", "test", or "atlas" for an atlas that belongs to none of them.
        modality: "T1", "MR", "CT", ...
    """

    id: str
    subject: str
    image: Path
    labels: Path | None
    split: str
    modality: str

    def image_array(self) -> np.ndarray:
        """The image, read now: (k, j, i) float32 in 0..1, axes towards S, P, L.

        Raises:
            InputError: the file is missing or damaged.
        """
        from ...io.images import read_image

        return _array(read_image(self.image, constant=True))

    def label_array(self) -> np.ndarray:
        """The label map, read now: (k, j, i) unsigned integers, 0 is background.

        Raises:
            InputError: the case has no label map, or the file is missing or damaged.
        """
        from ...io.images import read_labels

        if self.labels is None:
            raise InputError(f"The case {self.id} has no label map; use cases or a data set that have one.")
        return _array(read_labels(self.labels))


Pair = tuple[Case, Case]


@dataclass(frozen=True)
class Manifest:
    """A prepared data set.

    Attributes:
        name: "lpba40", "ixi", ... or the name given to a folder of one's own.
        cases: all of them, in the order of their ids.
        label_names: name of every label value that may occur, without background.
        licence, citation: of the data as their owners ask for.
        shape: (k, j, i) voxels that all cases share; None where they differ.
        spacing: mm along (k, j, i) that all cases share; None where they differ.
        folder: where the manifest lies, absolute.
        kind: the kind of pairs the literature uses on this set, one of `KINDS`.
        atlas: id of the atlas case, or None.
        listed: (fixed id, moving id) that the owners of the set prescribe, per split.
        modalities: (fixed, moving) of the usual pairs; None: any.
    """

    name: str
    cases: tuple[Case, ...]
    label_names: dict[int, str]
    licence: str
    citation: str
    shape: tuple[int, int, int] | None
    spacing: tuple[float, float, float] | None
    folder: Path
    kind: str
    atlas: str | None
    listed: dict[str, tuple[tuple[str, str], ...]]
    modalities: tuple[str, str] | None = None

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of "train", "val", "test" or "atlas"; empty if it has none.

        Raises:
            InputError: there is no split of this name.
        """
        if name not in SPLITS:
            raise InputError(f"There is no split {name!r}; use {', '.join(SPLITS)}.")
        return tuple(case for case in self.cases if case.split == name)

    def case(self, case_id: str) -> Case:
        """The case of this id.

        Raises:
            InputError: there is none.
        """
        for case in self.cases:
            if case.id == case_id:
                return case
        raise InputError(f"The data set {self.name} has no case {case_id!r}; `regmamba data list` shows its cases.")

    def pairs(
        self,
        split: str,
        kind: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        *,
        modalities: tuple[str, str] | None = None,
    ) -> list[Pair]:
        """Pairs (fixed, moving) of a split.

        Args:
            split: "train", "val" or "test".
            kind: "inter-subject": every ordered pair of different subjects; "atlas": every other case
                as moving with the atlas as fixed; "from-atlas": the atlas as moving with every other case as
                fixed; "intra-subject": every ordered pair of different cases of one subject; "listed": those
                the owners of the set prescribe; None: the usual one of this set.
            limit: draw this many at random without repetition, and keep the order drawn; None: all, in the
                order of the ids. The same seed draws the same pairs, whatever the machine.
            seed: of the draw.
            modalities: keep only pairs of these (fixed, moving) modalities; None: the usual ones of this set.

        Raises:
            InputError: an unknown split or kind, or the set has no pair of this kind there.
        """
        kind = kind or self.kind
        modalities = modalities or self.modalities
        cases = self.split(split)
        if kind not in KINDS:
            raise InputError(f"There are no {kind!r} pairs; use {', '.join(KINDS)}.")
        found = [
            (fixed, moving)
            for fixed, moving in self._all_pairs(split, cases, kind)
            if modalities is None or (fixed.modality, moving.modality) == tuple(modalities)
        ]
        if not found:
            of = f" of modalities {modalities[0]} and {modalities[1]}" if modalities else ""
            raise InputError(
                f"The data set {self.name} has no {kind} pairs{of} in its split {split!r} ({len(cases)} cases); "
                "choose another split or kind of pairs."
            )
        if limit is None or limit >= len(found):
            return found
        return [found[n] for n in np.random.default_rng(seed).permutation(len(found))[:limit]]

    def _all_pairs(self, split: str, cases: Sequence[Case], kind: str) -> Iterator[Pair]:
        if kind == "listed":
            yield from ((self.case(fixed), self.case(moving)) for fixed, moving in self.listed.get(split, ()))
        elif kind in ("atlas", "from-atlas"):
            if self.atlas is None:
                raise InputError(f"The data set {self.name} has no atlas; use inter-subject pairs.")
            atlas = self.case(self.atlas)
            others = (case for case in cases if case.id != atlas.id)
            yield from ((atlas, case) if kind == "atlas" else (case, atlas) for case in others)
        else:
            same = kind == "intra-subject"
            yield from ((a, b) for a, b in permutations(cases, 2) if (a.subject == b.subject) == same)


def write_pairs(pairs: Sequence[Pair], path: str | Path, *, overwrite: bool = False) -> None:
    """Pairs as the CSV that evaluation reads: fixed, moving, fixed_labels, moving_labels, relative to the CSV.

    Raises:
        InputError: a case has no label map, or the file exists or cannot be written.
    """
    path = Path(path)
    rows = []
    for fixed, moving in pairs:
        files = fixed.image, moving.image, fixed.labels, moving.labels
        if None in files:
            unlabelled = fixed if fixed.labels is None else moving
            raise InputError(
                f"{unlabelled.id} has no label map, so the pair cannot be evaluated; choose a split with labels."
            )
        rows.append([Path(os.path.relpath(str(file), path.absolute().parent)).as_posix() for file in files])
    with staged_file(path, overwrite=overwrite) as part, part.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def load_manifest(path: str | Path) -> Manifest:
    """Read a manifest: the `manifest.json` itself or the folder it lies in. No image is opened.

    Raises:
        InputError: there is none, or it is damaged, of another format or of a newer version.
    """
    path = Path(path)
    file = path / MANIFEST if path.is_dir() else path
    return manifest_from_dict(read_manifest_json(file), file.parent)


def read_manifest_json(file: Path) -> dict[str, Any]:
    """The JSON of a manifest, its format checked."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no {file}; make it with `regmamba data prepare`.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no readable manifest; prepare the data set again.") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise InputError(f"{file} is not the manifest of a prepared data set; make one with `regmamba data prepare`.")
    if raw.get("version") != VERSION:
        raise InputError(
            f"{file} has version {raw.get('version')} of the format, and this program reads {VERSION}; "
            "prepare the data set again."
        )
    return raw


def manifest_from_dict(raw: dict[str, Any], folder: Path) -> Manifest:
    """The manifest of a checked JSON; paths in it are relative to `folder`.

    Raises:
        InputError: an entry is missing or of a wrong kind.
    """
    folder = folder.absolute()
    try:
        cases = tuple(
            Case(
                id=str(entry["id"]),
                subject=str(entry["subject"]),
                image=folder / entry["image"],
                labels=folder / entry["labels"] if entry["labels"] else None,
                split=str(entry["split"]),
                modality=str(entry["modality"]),
            )
            for entry in raw["cases"]
        )
        manifest = Manifest(
            name=str(raw["name"]),
            cases=tuple(sorted(cases, key=lambda case: case.id)),
            label_names={int(value): str(name) for value, name in raw["label_names"].items()},
            licence=str(raw["licence"]),
            citation=str(raw["citation"]),
            shape=_three(raw["shape"], int),
            spacing=_three(raw["spacing"], float),
            folder=folder,
            kind=str(raw["kind"]),
            atlas=raw["atlas"],
            listed={split: tuple((a, b) for a, b in pairs) for split, pairs in raw["pairs"].items()},
            modalities=_two(raw["modalities"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / MANIFEST} lacks an entry or holds a wrong one ({error}); prepare the data set again."
        ) from error
    return manifest


def _three(values: Any, kind: Any) -> Any:
    if values is None:
        return None
    a, b, c = (kind(value) for value in values)
    return a, b, c


def _two(values: Any) -> tuple[str, str] | None:
    if values is None:
        return None
    fixed, moving = values
    return str(fixed), str(moving)


def _array(image: Any) -> np.ndarray:
    import SimpleITK as sitk

    return sitk.GetArrayFromImage(image)
