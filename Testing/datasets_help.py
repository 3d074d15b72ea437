"""Tiny copies of data sets as their owners distribute them: a few voxels, structures where a body has them."""

from __future__ import annotations

import json
import pickle
import struct
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from RegMambaLib.training.datasets.prepare import prepare_data_set
from RegMambaLib.training.datasets.registry import data_set, find_source
from RegMambaLib.training.datasets.tables import load_table

SHAPE = (12, 14, 13)
"""(k, j, i) towards S, P, L of every made volume."""
PLACES = {"top": (0, 3), "bottom": (0, -3), "back": (1, 4), "front": (1, -4), "left": (2, 3), "right": (2, -3)}


def body(table_name, seed=0):
    """Image and label map (S, P, L) in which every label of a table lies where its landmarks say, one voxel each."""
    return body_image(seed), body_labels(table_name)


@lru_cache
def body_labels(table_name):
    table = load_table(table_name)
    labels = np.zeros(SHAPE, np.uint16)
    spots = np.array(list(np.ndindex(*SHAPE)))
    for value in table.names:
        wanted = (np.array(SHAPE) - 1) / 2
        for place, (axis, shift) in PLACES.items():
            wanted[axis] += shift * (value in table.landmarks.get(place, ()))
        nearest = np.argmin(np.square(spots - wanted).sum(1))
        labels[tuple(spots[nearest])] = value
        spots = np.delete(spots, nearest, axis=0)
    labels.flags.writeable = False
    return labels


def body_image(seed=0, shape=SHAPE):
    """A bright ellipsoid with texture on black, float32."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.9
    return np.where(inside, rng.uniform(50, 200, shape), 0).astype(np.float32)


def volume(array, spacing=(1.0, 1.0, 1.0), order="LPS", origin=(0.0, 0.0, 0.0)):
    """An (S, P, L) array as an image, its voxels stored in another order of axes, as "LIA"; the header tells it."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return sitk.DICOMOrient(image, order)


def write(path: Path, array, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(volume(array, **how), str(path))
    return path


def write_analyze(path: Path, image, spacing):
    """An Analyze 7.5 pair with a fourth axis of one voxel, as LONI writes them; no orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = sitk.GetArrayFromImage(image)
    code, kind = (16, "<f4") if array.dtype.kind == "f" else (4, "<i2")
    header = bytearray(348)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 4, *array.shape[::-1], 1, 0, 0, 0)
    struct.pack_into("<2h", header, 70, code, 32 if code == 16 else 16)
    struct.pack_into("<8f", header, 76, 0, *spacing, 1, 0, 0, 0)
    path.with_name(path.name + ".hdr").write_bytes(header)
    path.with_name(path.name + ".img").write_bytes(array.astype(kind).tobytes())


def write_pickle(path: Path, *arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(arrays))
    return path


def lpba40_loni(folder, subjects=40):
    """LONI's Analyze pairs, axes (R, S, A) as stored."""
    for number in range(1, subjects + 1):
        image, labels = body("lpba40", number)
        name = folder / "LPBA40" / "delineation_space" / f"S{number:02d}" / f"S{number:02d}.delineation"
        for array, kind in ((image, "skullstripped"), (labels, "structure.label")):
            write_analyze(name.with_name(f"{name.name}.{kind}"), volume(array, order="RSA"), (1.0, 1.0, 1.0))
    return folder


def lpba40_passed_on(folder):
    """`fixed.nii.gz`, train/, test/, label/; the headers claim LPS whatever the voxels say."""
    for number in range(1, 41):
        image, labels = (turned(array) for array in body("lpba40", number))
        name = f"S{number:02d}.delineation"
        place = "fixed.nii.gz" if number == 1 else f"{'test' if number < 11 else 'train'}/{name}.skullstripped.nii.gz"
        write(folder / place, image)
        write(folder / "label" / f"{name}.structure.label.nii.gz", labels)
    return folder


def turned(array):
    """The voxels with axes (A, I, R) instead of (S, P, L)."""
    return np.ascontiguousarray(array.transpose(1, 0, 2)[::-1, ::-1, ::-1])


def ixi_pickles(folder):
    """Train, Val, Test and atlas.pkl; array axes (L, I, A)."""
    names = ["atlas.pkl", "Train/subject_0.pkl", "Train/subject_4.pkl", "Val/subject_2.pkl", "Test/subject_1.pkl"]
    for seed, name in enumerate(names):
        write_pickle(folder / name, *(lia(array) for array in body("ixi", seed)))
    return folder


def lia(array):
    """(S, P, L) -> (L, I, A)."""
    return np.ascontiguousarray(array[::-1, ::-1].transpose(2, 0, 1))


def oasis_neurite(folder, subjects=24):
    names = [f"OASIS_OAS1_{number:04d}_MR1" for number in range(1, subjects + 1)]
    for seed, name in enumerate(names):
        image, labels = body("oasis", seed)
        write(folder / name / "aligned_norm.nii.gz", image / 200, order="LIA")
        write(folder / name / "aligned_seg35.nii.gz", labels, order="LIA")
    (folder / "subjects.txt").write_text("\n".join(names))
    return folder


def learn2reg(folder, task, table, spacing=(1.0, 1.0, 1.0), scale=1.0, shift=0.0):
    """imagesTr, labelsTr, imagesTs and the JSON: cases 1 to 4, of which 3 and 4 are a validation pair; 5 is a test."""
    for number in range(1, 6):
        image, labels = body(table, number)
        name = f"{task}_{number:04d}_0000.nii.gz"
        write(folder / ("imagesTr" if number < 5 else "imagesTs") / name, image * scale + shift, spacing=spacing)
        if number < 5:
            write(folder / "labelsTr" / name, labels, spacing=spacing)
    name = f"./imagesTr/{task}_{{:04d}}_0000.nii.gz".format
    raw = {
        "training": [{"image": name(number)} for number in range(1, 5)],
        "test": [f"./imagesTs/{task}_0005_0000.nii.gz"],
        "registration_val": [{"fixed": name(3), "moving": name(4)}],
    }
    (folder / f"{task}_dataset.json").write_text(json.dumps(raw))
    return folder


def sr_reg(folder, subjects=9):
    for number in range(subjects):
        image, labels = body("sr-reg", number)
        write(folder / "volumes" / f"1BA{number:03d}_mr.nii.gz", image)
        write(folder / "volumes" / f"1BA{number:03d}_ct.nii.gz", 300 - image * (image > 0))
        write(folder / "seg" / f"1BA{number:03d}.nii.gz", labels)
    return folder


def label_map(seed=0, shape=SHAPE):
    values = np.zeros(shape, np.uint8)
    values[3:7, 3:8, 3:8] = 1
    values[5:9, 6:10, 6:10] = 2 + seed % 2
    return values


def own_folder(folder, count=5):
    for seed in range(count):
        write(folder / f"case{seed}_t1.nii.gz", body_image(seed), spacing=(1.0, 1.5, 2.0))
        write(folder / f"case{seed}_seg.nii.gz", label_map(seed), spacing=(1.0, 1.5, 2.0))
    return folder


def prepared_folder(source, out, preparation=None, options=None, table=None, **how):
    """A plain folder, prepared as it lies or in another way."""
    found = find_source("folder", source, options)
    if preparation:
        found = replace(found, preparation=preparation)
    return prepare_data_set("mine", data_set("folder"), found, out, table=table, **how)
