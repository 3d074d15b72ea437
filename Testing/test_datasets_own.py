"""Images of one's own: plain folders, BIDS, how they are split, and two real folders."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import DATA
from datasets_help import body_image, label_map, own_folder, prepared_folder, write

from RegMambaLib.cli.main import main
from RegMambaLib.errors import InputError
from RegMambaLib.training.datasets.manifest import load_manifest
from RegMambaLib.training.datasets.prepare import prepare_data_set
from RegMambaLib.training.datasets.registry import data_set, find_source
from RegMambaLib.training.datasets.source import Options, draw_splits, images_in
from RegMambaLib.training.datasets.verify import verify_data_set
from RegMambaLib.training.datasets.volumes import read_volume


@pytest.mark.parametrize(
    "names, ids",
    [
        (("a_t1.nii.gz", "a_seg.nii.gz", "b_t1.nii.gz", "b_seg.nii.gz"), ["a", "b"]),
        (("a.nii.gz", "a_labels.nii.gz", "b.nii.gz", "b_labels.nii.gz"), ["a", "b"]),
        (("images/a.nii.gz", "labels/a.nii.gz", "images/b.nrrd", "labels/b.nii.gz"), ["a", "b"]),
        (("imagesTr/x_0001_0000.nii.gz", "labelsTr/x_0001.nii.gz"), ["x_0001"]),
        (("s1/T1.nii.gz", "s1/aseg.nii.gz", "s2/T1.nii.gz", "s2/aseg.nii.gz"), ["s1", "s2"]),
        (("pt_004_ct.nii.gz", "pt_004_oar7.nii.gz"), ["pt_004"]),
        (("img/01.nii", "seg/01.nii"), ["01"]),
    ],
)
def test_labels_find_their_image_by_name(tmp_path, names, ids):
    for name in names:
        write(tmp_path / name, label_map())
    cases = find_source("folder", tmp_path).cases
    assert [case.id for case in cases] == ids
    assert all(case.labels is not None and case.labels != case.image for case in cases)


def test_unusual_endings_are_told_and_folders_named_as_splits_are_splits(tmp_path):
    for split, name in (("train", "a"), ("train", "b"), ("validation", "c"), ("test", "d")):
        write(tmp_path / split / f"{name}_brain.nii.gz", body_image())
        write(tmp_path / split / f"{name}_brain_parcels.nii.gz", label_map())
        write(tmp_path / split / f"{name}_other.nii.gz", body_image())
    cases = find_source("folder", tmp_path, Options(images="_brain", labels="_brain_parcels", modality="T2")).cases
    found = [(case.id, case.split, case.modality, case.labels.name) for case in cases]
    assert found == [
        ("a", "train", "T2", "a_brain_parcels.nii.gz"),
        ("b", "train", "T2", "b_brain_parcels.nii.gz"),
        ("c", "val", "T2", "c_brain_parcels.nii.gz"),
        ("d", "test", "T2", "d_brain_parcels.nii.gz"),
    ]


def test_a_label_map_without_image_two_images_of_one_name_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no images"):
        find_source("folder", tmp_path)
    own_folder(tmp_path, 2)
    write(tmp_path / "case7_seg.nii.gz", label_map())
    with pytest.raises(InputError, match=r"case7_seg\.nii\.gz has no image"):
        find_source("folder", tmp_path)
    (tmp_path / "case7_seg.nii.gz").unlink()
    write(tmp_path / "case1_t2.nii.gz", body_image())
    with pytest.raises(InputError, match=r"case1_t1\.nii\.gz and .*case1_t2\.nii\.gz are both the image of case1"):
        find_source("folder", tmp_path)


def test_ids_that_differ_only_in_case_are_refused(tmp_path):
    own_folder(tmp_path / "in", 2)
    source = find_source("folder", tmp_path / "in")
    doubled = replace(source, cases=(*source.cases, replace(source.cases[0], id="CASE0")))
    with pytest.raises(InputError, match="would both be the case CASE0"):
        prepare_data_set("mine", data_set("folder"), doubled, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bids_takes_sessions_as_cases_of_one_subject_and_segmentations_from_derivatives(tmp_path):
    for place in ("sub-01/ses-a/anat/sub-01_ses-a", "sub-01/ses-b/anat/sub-01_ses-b", "sub-02/anat/sub-02"):
        write(tmp_path / f"{place}_T1w.nii.gz", body_image())
        write(tmp_path / f"{place}_T2w.nii.gz", body_image())
        for entity in ("desc-aseg_dseg", "desc-aparcaseg_dseg", "space-MNI152_desc-aseg_dseg"):
            write(tmp_path / f"derivatives/fmriprep/{place}_{entity}.nii.gz", label_map())
    with pytest.raises(InputError, match="has 2 segmentations"):
        find_source("bids", tmp_path)
    cases = find_source("bids", tmp_path, Options(labels="aseg")).cases
    assert [(case.id, case.subject, case.modality) for case in cases] == [
        ("sub-01_ses-a", "sub-01", "T1"),
        ("sub-01_ses-b", "sub-01", "T1"),
        ("sub-02", "sub-02", "T1"),
    ]
    assert cases[1].labels.name == "sub-01_ses-b_desc-aseg_dseg.nii.gz"
    with pytest.raises(InputError, match="no BIDS folder with FLAIR images"):
        find_source("bids", tmp_path, Options(images="FLAIR"))


def test_bids_gives_its_licence_and_name_to_the_manifest(tmp_path, capsys):
    for subject in ("01", "02", "03"):
        write(tmp_path / f"in/sub-{subject}/anat/sub-{subject}_T1w.nii.gz", body_image())
    (tmp_path / "in/dataset_description.json").write_text(json.dumps({"Name": "Heads", "License": "CC0"}))
    assert main(["data", "prepare", "bids", str(tmp_path / "in"), str(tmp_path / "out"), "-q"]) == 0
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.licence, manifest.citation) == ("CC0", "Heads")
    assert all(case.labels is None for case in manifest.cases)
    with pytest.raises(InputError, match="has no label map"):
        manifest.cases[0].label_array()


def test_splits_are_shares_of_subjects_and_repeat():
    names = [f"s{n}" for n in range(20)]
    drawn = draw_splits(names, (0.7, 0.1, 0.2))
    assert [list(drawn.values()).count(split) for split in ("train", "val", "test")] == [14, 2, 4]
    assert drawn == draw_splits(names[::-1], (0.7, 0.1, 0.2)) != draw_splits(names, (0.7, 0.1, 0.2), seed=1)
    assert set(draw_splits(names[:3], (0.9, 0.05, 0.05)).values()) == {"train", "val", "test"}
    assert set(draw_splits(names[:2], (1, 1, 1)).values()) == {"train"}


def test_of_an_analyze_pair_the_header_is_the_image(tmp_path):
    for name in ("a.hdr", "a.img", "b.img.gz", "c.nii.gz", ".hidden.nii.gz", "d.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == ["a.hdr", "b.img.gz", "c.nii.gz"]


@pytest.mark.skipif(not (DATA / "ixi_2mm").is_dir(), reason="needs the data folder, see conftest")
@pytest.mark.parametrize(
    "name, cases, shape, labels", [("ixi_2mm", 5, (80, 96, 80), 148), ("hippocampus_64", 12, (64, 64, 64), 2)]
)
def test_real_folders_are_prepared_as_they_lie(tmp_path, name, cases, shape, labels):
    manifest = prepared_folder(DATA / name, tmp_path / "out")
    assert len(manifest.cases) == cases and manifest.shape == shape and len(manifest.label_names) == labels
    assert verify_data_set(tmp_path / "out") == []
    case = manifest.cases[0]
    image, values = case.image_array(), case.label_array()
    assert image.shape == values.shape == shape and image.min() == 0 and image.max() == 1
    own = sitk.DICOMOrient(read_volume(next((DATA / name).glob(f"{case.id}_[ti]*"))), "LPS")
    assert np.corrcoef(image.ravel(), sitk.GetArrayViewFromImage(own).ravel())[0, 1] > 0.97
    if name == "ixi_2mm":
        assert image[values > 0].mean() > 5 * image[values == 0].mean()
