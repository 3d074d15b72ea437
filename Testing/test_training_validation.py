"""Validation on real pairs: what is read, how it is scored, and what may not be looked at."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import SimpleITK as sitk
import torch
from fixtures.head_maps import head, lps
from fixtures.training_runs import prepared

from RegMambaLib.errors import InputError
from RegMambaLib.evaluation.overlap import dice as overlap_of
from RegMambaLib.training import validation
from RegMambaLib.training.config import Data, Prepared, Validation


class Still(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 3, *moving.shape[2:]) + self.weight


def write_table(folder: Path, *rows: tuple[str, ...], columns: tuple[str, ...] = validation.COLUMNS) -> Path:
    table = folder / "pairs.csv"
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows([columns, *rows])
    return table


def test_pairs_are_read_and_the_warped_labels_scored(tmp_path):
    labels = head() % 500
    for name, k in (("a", 0), ("b", 1)):
        rolled = np.roll(labels, k, 0)
        sitk.WriteImage(lps(rolled.astype(np.uint8)), str(tmp_path / f"{name}_labels.nii.gz"))
        sitk.WriteImage(lps(rolled.astype(np.float32)), str(tmp_path / f"{name}.nii.gz"))
    row = ("a.nii.gz", "b.nii.gz", "a_labels.nii.gz", "b_labels.nii.gz")
    pairs = validation.load_validation_pairs(write_table(tmp_path, row))
    overlap = overlap_of(labels, np.roll(labels, 1, 0))
    ((dice, folds),) = validation.validate(Still(), pairs)
    assert dice == pytest.approx(np.mean(list(overlap.values()))) and folds == 0
    (half,) = validation.load_validation_pairs(tmp_path / "pairs.csv", shrink=2)
    assert half.fixed.shape == half.fixed_labels.shape == (20, 24, 20)
    with pytest.raises(InputError, match="not there"):
        validation.load_validation_pairs(write_table(tmp_path, ("a.nii.gz", "c.nii.gz", *row[2:])))
    with pytest.raises(InputError, match="columns"):
        validation.load_validation_pairs(write_table(tmp_path, row[:2], columns=validation.COLUMNS[:2]))


def test_only_held_out_subjects_of_a_data_set_are_looked_at(tmp_path):
    folder = prepared(tmp_path / "made")
    pairs = validation.load_validation(Validation(manifest=folder, limit=0), Data(None, (Prepared(folder),)), 0)
    assert sorted(pair.name for pair in pairs) == ["s3<-s4", "s4<-s3"]


@pytest.mark.parametrize(("subject", "split"), [("s2", "train"), ("s5", "test")])
def test_images_that_are_trained_on_or_kept_for_the_test_are_refused(tmp_path, subject, split):
    folder = prepared(tmp_path / "made")
    names = ("s3", subject)
    row = (*(f"made/{n}.nii.gz" for n in names), *(f"made/{n}_labels.nii.gz" for n in names))
    settings = Validation(pairs=write_table(tmp_path, row))
    with pytest.raises(InputError, match=f"belongs to the split '{split}'"):
        validation.load_validation(settings, Data(None, (Prepared(folder),)), 0)


def test_a_pair_without_common_labels_is_refused(tmp_path):
    folder = prepared(tmp_path / "made")
    other = sitk.ReadImage(str(folder / "s4_labels.nii.gz")) * 0 + 7
    sitk.WriteImage(other, str(folder / "s4_labels.nii.gz"))
    with pytest.raises(InputError, match="no label in common"):
        validation.load_validation(Validation(manifest=folder), Data(None, (Prepared(folder),)), 0)
