"""Every published layout, from a tiny made copy: what comes out is the body that went in, wherever the axes were."""

from __future__ import annotations

import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
import SimpleITK as sitk
from datasets_help import (
    SHAPE,
    body,
    body_image,
    ixi_pickles,
    learn2reg,
    lpba40_loni,
    lpba40_passed_on,
    oasis_neurite,
    sr_reg,
    volume,
    write,
    write_pickle,
)

from RegMambaLib.errors import InputError
from RegMambaLib.training.datasets.manifest import KINDS, load_manifest
from RegMambaLib.training.datasets.prepare import prepare_data_set
from RegMambaLib.training.datasets.registry import DATA_SETS, data_set, find_source
from RegMambaLib.training.datasets.source import Options
from RegMambaLib.training.datasets.tables import load_table, shipped_tables
from RegMambaLib.training.datasets.verify import verify_data_set
from RegMambaLib.training.datasets.volumes import direction_from_labels, read_pickle


def prepared(name, source, out, **how):
    table = load_table(data_set(name).labels)
    return prepare_data_set(name, data_set(name), find_source(name, source), out, table=table, **how)


def splits(manifest):
    return {split: [case.id for case in manifest.split(split)] for split in ("train", "val", "test", "atlas")}


def assert_is_body(case, table, seed):
    """The prepared arrays are those the copy was made from: same voxels, image in 0..1, evaluated labels only."""
    image, labels = body(table, seed)
    kept = load_table(table).evaluated
    np.testing.assert_array_equal(case.label_array(), np.where(np.isin(labels, list(kept)), labels, 0))
    assert_is_image(case, image)


def assert_is_image(case, image):
    array = case.image_array()
    assert array.dtype == np.float32 and array.min() == 0 and array.max() == 1
    assert np.corrcoef(array.ravel(), image.ravel())[0, 1] > 0.98


def test_lpba40_as_papers_pass_it_on_is_oriented_by_its_regions(tmp_path):
    manifest = prepared("lpba40", lpba40_passed_on(tmp_path / "in"), tmp_path / "out")
    found = splits(manifest)
    assert found["atlas"] == ["S01"]
    assert found["test"] == [f"S{n:02d}" for n in range(2, 11)]
    assert found["train"] == [f"S{n:02d}" for n in range(11, 36)]
    assert found["val"] == [f"S{n:02d}" for n in range(36, 41)]
    assert manifest.shape == SHAPE and len(manifest.label_names) == 54
    for number in (1, 7, 40):
        assert_is_body(manifest.case(f"S{number:02d}"), "lpba40", number)
    pairs = manifest.pairs("test")
    assert [(fixed.id, moving.id) for fixed, moving in pairs] == [("S01", case) for case in found["test"]]
    assert verify_data_set(tmp_path / "out") == []


def test_lpba40_of_loni_is_read_from_analyze_and_aligned_to_the_first_subject(tmp_path):
    source = find_source("lpba40", lpba40_loni(tmp_path / "in"))
    assert source.layout == "LONI delineation space" and source.preparation.linear == "affine"
    assert source.preparation.shape == (160, 192, 160)
    small = source.__class__(**{**source.__dict__, "preparation": source.preparation.__class__()})
    manifest = prepare_data_set("lpba40", data_set("lpba40"), small, tmp_path / "out", table=load_table("lpba40"))
    assert [case.split for case in manifest.cases] == ["atlas"] + ["test"] * 9 + ["train"] * 25 + ["val"] * 5
    assert_is_body(manifest.case("S09"), "lpba40", 9)


def test_a_missing_subject_or_label_map_of_lpba40_is_named(tmp_path):
    lpba40_passed_on(tmp_path / "on")
    (tmp_path / "on/train/S40.delineation.skullstripped.nii.gz").rename(tmp_path / "S40.nii.gz")
    with pytest.raises(InputError, match="image of S40 is missing"):
        find_source("lpba40", tmp_path / "on")
    (tmp_path / "S40.nii.gz").rename(tmp_path / "on/train/S40.nii.gz")
    (tmp_path / "on/label/S07.delineation.structure.label.nii.gz").unlink()
    with pytest.raises(InputError, match="label map of S07 is missing"):
        find_source("lpba40", tmp_path / "on")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is no LPBA40"):
        find_source("lpba40", tmp_path / "empty")


def test_ixi_pickles_keep_30_structures_and_the_atlas_moves(tmp_path):
    manifest = prepared("ixi", ixi_pickles(tmp_path / "in"), tmp_path / "out")
    assert splits(manifest) == {
        "train": ["subject_0", "subject_4"],
        "val": ["subject_2"],
        "test": ["subject_1"],
        "atlas": ["atlas"],
    }
    assert len(manifest.label_names) == 30 and manifest.label_names[17] == "Left-Hippocampus"
    assert_is_body(manifest.case("atlas"), "ixi", 0)
    assert_is_body(manifest.case("subject_1"), "ixi", 4)
    assert [(fixed.id, moving.id) for fixed, moving in manifest.pairs("test")] == [("subject_1", "atlas")]
    assert manifest.pairs("test", "atlas") == [manifest.pairs("test")[0][::-1]]


def test_a_pickle_that_would_run_code_or_is_damaged_or_of_another_size_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(InputError, match=r"evil\.pkl is no pickle of arrays"):
        read_pickle(evil)
    ixi_pickles(tmp_path / "in")
    image, labels = body("ixi")
    write_pickle(tmp_path / "in/Val/subject_2.pkl", image[:-1], labels[:-1])
    with pytest.raises(InputError, match=r"subject_2\.pkl is 11 x 14 x 13 voxels, and the others are 13 x 12 x 14"):
        prepared("ixi", tmp_path / "in", tmp_path / "out")
    (tmp_path / "in/Val/subject_2.pkl").write_bytes(b"\x80\x04 cut")
    with pytest.raises(InputError, match=r"subject_2\.pkl is no pickle of arrays, or damaged"):
        prepared("ixi", tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
    (tmp_path / "in/atlas.pkl").unlink()
    with pytest.raises(InputError, match=r"atlas\.pkl is missing"):
        find_source("ixi", tmp_path / "in")


def test_ixi_as_distributed_is_split_at_random_and_repeatably(tmp_path):
    for number in range(10):
        write(tmp_path / f"IXI{number:03d}-Guys-0{number}28-T1.nii.gz", body_image(number))
    source = find_source("ixi", tmp_path)
    counts = [sum(case.split == split for case in source.cases) for split in ("train", "val", "test")]
    assert counts == [7, 1, 2] and source.cases[3].subject == "IXI003" and source.cases[3].labels is None
    assert source == find_source("ixi", tmp_path)
    write(tmp_path / "twice/IXI003-HH-1000-T1.nii.gz", body_image())
    with pytest.raises(InputError, match=r"both the T1 image of IXI003"):
        find_source("ixi", tmp_path)


def test_neurite_oasis_pairs_its_last_twenty_subjects_in_a_row(tmp_path):
    manifest = prepared("oasis", oasis_neurite(tmp_path / "in"), tmp_path / "out")
    ids = [case.id for case in manifest.cases]
    assert splits(manifest) == {"train": ids[:4], "val": ids[4:], "test": [], "atlas": []}
    assert [(a.id, b.id) for a, b in manifest.pairs("val")] == list(pairwise(ids[4:]))
    assert len(manifest.label_names) == 35 and manifest.label_names[30] == "Right-Hippocampus"
    assert_is_body(manifest.cases[2], "oasis", 2)
    (tmp_path / "in" / ids[3] / "aligned_seg35.nii.gz").unlink()
    with pytest.raises(InputError, match=rf"{ids[3]}/aligned_seg35\.nii\.gz is missing"):
        find_source("oasis", tmp_path / "in")


def test_neurite_oasis_takes_the_pairs_of_the_challenge_where_they_are(tmp_path):
    oasis_neurite(tmp_path, 6)
    (tmp_path / "pairs_val.csv").write_text("fixed,moving\n2,5\n")
    source = find_source("oasis", tmp_path)
    assert source.pairs == {"val": (("OASIS_OAS1_0002_MR1", "OASIS_OAS1_0005_MR1"),)}
    assert [case.id[-8:-4] for case in source.cases if case.split == "val"] == ["0002", "0005"]
    (tmp_path / "subjects.txt").write_text("OASIS_OAS1_0007_MR1")
    with pytest.raises(InputError, match=r"0007_MR1 is missing: subjects\.txt lists it"):
        find_source("oasis", tmp_path)


@pytest.mark.parametrize(
    "task, name, table", [("OASIS", "oasis", "oasis"), ("AbdomenCTCT", "abdomen-ct", "abdomen-ct")]
)
def test_learn2reg_splits_and_pairs_come_from_its_json(tmp_path, task, name, table):
    manifest = prepared(name, learn2reg(tmp_path / "in", task, table), tmp_path / "out")
    ids = [f"{task}_{number:04d}_0000" for number in range(1, 6)]
    assert splits(manifest) == {"train": ids[:2], "val": ids[2:4], "test": ids[4:], "atlas": []}
    assert [(a.id, b.id) for a, b in manifest.pairs("val")] == [(ids[2], ids[3])]
    assert manifest.case(ids[4]).labels is None
    np.testing.assert_array_equal(manifest.case(ids[1]).label_array(), body(table, 2)[1])


def test_learn2reg_files_that_are_missing_or_of_another_size_are_named(tmp_path):
    learn2reg(tmp_path, "AbdomenCTCT", "abdomen-ct")
    write(tmp_path / "labelsTr/AbdomenCTCT_0002_0000.nii.gz", body("abdomen-ct")[1][1:])
    with pytest.raises(InputError, match=r"0002_0000\.nii\.gz is 13 x 14 x 11 voxels and its image .* 13 x 14 x 12"):
        prepared("abdomen-ct", tmp_path, tmp_path / "out")
    write(tmp_path / "imagesTr/AbdomenCTCT_0002_0000.nii.gz", body_image(0)[1:])
    with pytest.raises(InputError, match=r"0002_0000\.nii\.gz is 13 x 14 x 11 voxels, and the others are 13 x 14 x 12"):
        prepared("abdomen-ct", tmp_path, tmp_path / "out")
    (tmp_path / "labelsTr/AbdomenCTCT_0003_0000.nii.gz").unlink()
    with pytest.raises(InputError, match=r"labelsTr/AbdomenCTCT_0003_0000\.nii\.gz is missing"):
        find_source("abdomen-ct", tmp_path)
    (tmp_path / "AbdomenCTCT_dataset.json").write_text("{}")
    with pytest.raises(InputError, match="damaged or no Learn2Reg table"):
        find_source("abdomen-ct", tmp_path)


def test_abdominal_ct_is_scaled_by_its_window(tmp_path):
    hounsfield = np.full(SHAPE, -1000, np.float32)
    hounsfield[3:9, 3:9, 3:9] = 150
    hounsfield[5, 5, 5] = 1200
    learn2reg(tmp_path / "in", "AbdomenCTCT", "abdomen-ct", spacing=(2.0, 2.0, 2.0))
    write(tmp_path / "in/imagesTr/AbdomenCTCT_0001_0000.nii.gz", hounsfield, spacing=(2.0, 2.0, 2.0))
    manifest = prepared("abdomen-ct", tmp_path / "in", tmp_path / "out")
    array = manifest.cases[0].image_array()
    assert array[0, 0, 0] == 0 and array[5, 5, 5] == 1 and array[4, 4, 4] == pytest.approx(0.5)
    assert manifest.spacing == (2.0, 2.0, 2.0)


def test_learn2reg_2020_names_its_cases_img_and_label(tmp_path):
    for number in range(1, 5):
        image, labels = body("abdomen-ct", number)
        write(tmp_path / f"Training/img/img{number:04d}.nii.gz", image)
        write(tmp_path / f"Training/label/label{number:04d}.nii.gz", labels)
    write(tmp_path / "Test/img/img0061.nii.gz", body_image())
    (tmp_path / "pairs_val.csv").write_text("fixed,moving\n3,4\n4,3\n")
    source = find_source("abdomen-ct", tmp_path)
    assert [(case.id, case.split) for case in source.cases] == [
        ("img0001", "train"),
        ("img0002", "train"),
        ("img0003", "val"),
        ("img0004", "val"),
        ("img0061", "test"),
    ]
    assert source.pairs["val"] == (("img0003", "img0004"), ("img0004", "img0003"))


def test_sr_reg_pairs_the_mr_of_one_with_the_ct_of_another(tmp_path):
    manifest = prepared("sr-reg", sr_reg(tmp_path / "in", 18), tmp_path / "out")
    assert [len(manifest.split(split)) for split in ("train", "val", "test")] == [30, 2, 4]
    pairs = manifest.pairs("test")
    assert [(a.id, b.id) for a, b in pairs] == [("1BA016_ct", "1BA017_mr"), ("1BA017_ct", "1BA016_mr")]
    own = manifest.pairs("val", "intra-subject")
    assert [(a.id, b.id) for a, b in own] == [("1BA015_ct", "1BA015_mr")]
    assert len(manifest.label_names) == 16
    assert_is_body(manifest.case("1BA003_mr"), "sr-reg", 3)
    np.testing.assert_array_equal(manifest.case("1BA003_mr").label_array(), manifest.case("1BA003_ct").label_array())


def test_sr_reg_takes_the_authors_lists_and_names_what_is_missing(tmp_path):
    sr_reg(tmp_path, 3)
    for name, subject in (("train", "1BA002"), ("val", "1BA000"), ("test", "1BA001")):
        (tmp_path / f"{name}_subj_v2.pkl").write_bytes(pickle.dumps([subject]))
    found = {case.subject: case.split for case in find_source("sr-reg", tmp_path).cases}
    assert found == {"1BA002": "train", "1BA000": "val", "1BA001": "test"}
    (tmp_path / "volumes/1BA001_ct.nii.gz").unlink()
    with pytest.raises(InputError, match="CT of 1BA001 is missing"):
        find_source("sr-reg", tmp_path)


def test_synthrad_as_distributed_is_recognised_without_its_pelves(tmp_path):
    for place in ("brain/1BA001", "brain/1BA005", "pelvis/1PA001"):
        for kind in ("mr", "ct", "mask"):
            write(tmp_path / place / f"{kind}.nii.gz", body_image())
    source = find_source("sr-reg", tmp_path)
    assert [case.id for case in source.cases] == ["1BA001_mr", "1BA001_ct", "1BA005_mr", "1BA005_ct"]
    assert source.layout == "SynthRAD2023" and source.atlas == "1BA001_mr" and source.together


def test_every_set_has_a_licence_a_citation_and_names_for_its_labels():
    for name, known in DATA_SETS.items():
        assert known.title and known.licence and known.citation
        assert known.own == (name in ("folder", "bids")) == (known.labels is None)
    counts = {name: (len(load_table(name).names), len(load_table(name).evaluated)) for name in shipped_tables()}
    assert counts == {
        "abdomen-ct": (13, 13),
        "dkt31": (143, 62),
        "freesurfer": (143, 143),
        "ixi": (143, 30),
        "lpba40": (56, 54),
        "oasis": (35, 35),
        "sr-reg": (18, 16),
    }
    assert set(KINDS) >= {"listed", "atlas"}


def test_names_of_structures_that_are_easily_mixed_up():
    assert load_table("lpba40").names[166] == "R hippocampus" and load_table("lpba40").names[161] == "L caudate"
    free = load_table("freesurfer").names
    assert (free[10], free[49], free[2035], free[1031]) == (
        "Left-Thalamus",
        "Right-Thalamus",
        "ctx-rh-insula",
        "ctx-lh-supramarginal",
    )
    assert load_table("oasis").names[20] == "Right-Cerebral-White-Matter"
    assert load_table("abdomen-ct").names[6] == "liver"
    dkt = load_table("dkt31").evaluated
    assert 1032 not in dkt and 1001 not in dkt and 1033 not in dkt and {1002, 2035} <= dkt


@pytest.mark.parametrize("order", ["LPS", "LIA", "SRP", "ASL"])
def test_orientation_is_found_from_the_structures_whatever_the_header_says(order):
    table = load_table("freesurfer")
    image = volume(body("freesurfer")[1], order=order)
    direction = image.GetDirection()
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
    assert direction_from_labels(image, table.landmarks, "map") == direction


def test_a_label_map_without_the_structures_has_no_orientation(tmp_path):
    table = load_table("freesurfer")
    with pytest.raises(InputError, match="map lacks the structures"):
        direction_from_labels(sitk.GetImageFromArray(np.ones(SHAPE, np.uint8)), table.landmarks, "map")


def test_a_wrong_name_an_archive_or_options_of_own_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="no data set 'lpba'"):
        find_source("lpba", tmp_path)
    (tmp_path / "IXI-T1.tar").write_bytes(b"tar")
    with pytest.raises(InputError, match="unpack it"):
        find_source("ixi", tmp_path / "IXI-T1.tar")
    with pytest.raises(InputError, match="does not exist"):
        find_source("ixi", tmp_path / "nowhere")
    with pytest.raises(InputError, match="ixi has its own names"):
        find_source("ixi", tmp_path, Options(modality="T2"))


def test_a_label_table_of_ones_own_is_read_or_refused(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"1": "head", "2": "body"}))
    assert load_table(file).names == {1: "head", 2: "body"} and load_table(file).evaluated == {1, 2}
    for bad in ("[]", '{"0": "background"}', '{"one": "head"}', '{"names": {"1": "head"}, "evaluated": [2]}'):
        file.write_text(bad)
        with pytest.raises(InputError, match=r"mine\.json is no label table"):
            load_table(file)
    with pytest.raises(InputError, match="no label table 'dkt40'"):
        load_table("dkt40")


def test_the_manifest_keeps_what_the_set_says(tmp_path):
    prepared("ixi", ixi_pickles(tmp_path / "in"), tmp_path / "out")
    raw = json.loads((tmp_path / "out/manifest.json").read_text())
    assert (
        raw["licence"] == "CC BY-SA 3.0" and "TransMorph" in raw["citation"] and "30 structures" in raw["label_source"]
    )
    assert raw["preparation"]["layout"] == "TransMorph pickles"
    assert load_manifest(tmp_path / "out") == load_manifest(tmp_path / "out/manifest.json")
