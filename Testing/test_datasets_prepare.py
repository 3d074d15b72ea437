"""The path all data sets share: arrays that stay in place, alignment, labels, and runs that stop and go on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import linear, made_grid, made_head, made_labels
from datasets_help import SHAPE, body_image, label_map, own_folder, prepared_folder, write

from RegMambaLib.errors import Cancelled, InputError
from RegMambaLib.evaluation.overlap import dice
from RegMambaLib.spatial.grid import Grid
from RegMambaLib.training.datasets.prepare import prepare_data_set
from RegMambaLib.training.datasets.registry import data_set, find_source
from RegMambaLib.training.datasets.source import Preparation, RawCase, Source
from RegMambaLib.training.datasets.tables import load_table
from RegMambaLib.training.datasets.verify import verify_data_set


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("order", ["LPS", "RAS", "LIA", "SAR"])
def test_every_storage_order_gives_the_same_arrays_in_the_same_place(tmp_path, order):
    how = {"spacing": (1.0, 1.5, 2.0), "origin": (10.0, -20.0, 30.0), "order": order}
    write(tmp_path / "in/a.nii.gz", body_image(), **how)
    write(tmp_path / "in/a_seg.nii.gz", label_map(), **how)
    manifest = prepared_folder(tmp_path / "in", tmp_path / "out")
    case = manifest.cases[0]
    np.testing.assert_array_equal(case.label_array(), label_map())
    assert np.corrcoef(case.image_array().ravel(), body_image().ravel())[0, 1] > 0.98
    assert manifest.shape == SHAPE and manifest.spacing == (2.0, 1.5, 1.0)
    grid = Grid.of(sitk.ReadImage(str(case.image)))
    assert grid.same_as(Grid(SHAPE[::-1], (1.0, 1.5, 2.0), (10.0, -20.0, 30.0)))


def test_cropping_and_padding_keep_voxels_and_their_place_in_the_world(tmp_path):
    write(tmp_path / "in/a.nii.gz", body_image())
    write(tmp_path / "in/a_seg.nii.gz", label_map())
    manifest = prepared_folder(tmp_path / "in", tmp_path / "out", Preparation(shape=(8, 20, 13)))
    expected = np.zeros((8, 20, 13), np.uint8)
    expected[:, 3:17] = label_map()[2:10]
    np.testing.assert_array_equal(manifest.cases[0].label_array(), expected)
    assert Grid.of(sitk.ReadImage(str(manifest.cases[0].image))).origin == (0.0, -3.0, 2.0)


def test_resampling_keeps_sizes_in_mm_and_blurs_before_it_coarsens(tmp_path):
    grid = made_grid((48, 52, 44), (4.0, 4.0, 4.0))
    sitk.WriteImage(made_head(grid), str(tmp_path / "a.nii.gz"))
    sitk.WriteImage(made_labels(grid), str(tmp_path / "a_seg.nii.gz"))
    fine = prepared_folder(tmp_path, tmp_path.with_name("fine")).cases[0]
    coarse = prepared_folder(tmp_path, tmp_path.with_name("coarse"), Preparation(spacing=(8.0, 8.0, 8.0))).cases[0]
    assert coarse.label_array().shape == (22, 26, 24)
    for label in (1, 5):
        volumes = (fine.label_array() == label).sum() * 64, (coarse.label_array() == label).sum() * 512
        assert volumes[1] == pytest.approx(volumes[0], rel=0.1)
    blocks = fine.image_array().reshape(22, 2, 26, 2, 24, 2).mean((1, 3, 5))
    assert np.corrcoef(blocks.ravel(), coarse.image_array().ravel())[0, 1] > 0.99


def test_alignment_brings_heads_onto_the_grid_of_the_atlas(tmp_path):
    grid = made_grid((44, 48, 42), (4.5, 4.5, 4.5))
    moved = linear(turn=(4.0, -6.0, 12.0), shift=(9.0, -7.0, 6.0), scale=1.05)
    for name, to_head in (("a", None), ("b", lambda points: points @ moved[:3, :3].T + moved[:3, 3])):
        sitk.WriteImage(made_head(grid, to_head), str(tmp_path / f"{name}.nii.gz"))
        sitk.WriteImage(made_labels(grid, to_head), str(tmp_path / f"{name}_seg.nii.gz"))
    plain = prepared_folder(tmp_path, tmp_path.with_name("plain"))
    source = replace(
        find_source("folder", tmp_path), atlas="a", preparation=Preparation((40, 40, 40), (4.5,) * 3, "affine")
    )
    aligned = prepare_data_set("mine", data_set("folder"), source, tmp_path.with_name("aligned"))
    before, after = (
        np.mean(list(dice(m.case("a").label_array(), m.case("b").label_array()).values())) for m in (plain, aligned)
    )
    assert before < 0.6 and after > 0.85
    assert aligned.shape == (40, 40, 40)
    grids = [Grid.of(sitk.ReadImage(str(case.image))) for case in aligned.cases]
    assert grids[0] == grids[1]


def test_images_of_one_subject_stay_together_when_it_is_aligned(tmp_path):
    grid = made_grid((32, 34, 30), (6.0, 6.0, 6.0))
    moved = linear(shift=(12.0, -10.0, 8.0))
    cases = []
    for subject, to_head in (("s1", None), ("s2", lambda points: points + moved[:3, 3])):
        head = made_head(grid, to_head)
        for kind, image in (("MR", head), ("CT", 1000 - head)):
            path = tmp_path / f"{subject}_{kind}.nii.gz"
            sitk.WriteImage(image, str(path))
            sitk.WriteImage(made_labels(grid, to_head), str(tmp_path / f"{subject}_{kind}_seg.nii.gz"))
            cases.append(
                RawCase(f"{subject}_{kind}", subject, "train", kind, path, tmp_path / f"{path.name[:-7]}_seg.nii.gz")
            )
    usual = Preparation(linear="rigid")
    source = Source("made", tuple(cases), "intra-subject", usual, "s1_MR", one_size=False, together=True)
    manifest = prepare_data_set("mine", data_set("folder"), source, tmp_path / "out")
    np.testing.assert_array_equal(manifest.case("s2_MR").label_array(), manifest.case("s2_CT").label_array())
    overlap = dice(manifest.case("s1_MR").label_array(), manifest.case("s2_CT").label_array())
    assert np.mean(list(overlap.values())) > 0.85


def test_alignment_without_an_atlas_or_to_no_case_is_refused(tmp_path):
    source = replace(find_source("folder", own_folder(tmp_path / "in")), preparation=Preparation(linear="affine"))
    with pytest.raises(InputError, match="no atlas to align to; name one with --atlas"):
        prepare_data_set("mine", data_set("folder"), source, tmp_path / "out")
    with pytest.raises(InputError, match="atlas 'caseX' is no case"):
        prepare_data_set("mine", data_set("folder"), replace(source, atlas="caseX"), tmp_path / "out")


def test_unknown_labels_are_named_and_others_dropped_or_kept(tmp_path):
    own_folder(tmp_path / "in", 3)
    table = replace(load_table("sr-reg"), names={1: "one", 2: "two", 3: "three"}, evaluated=frozenset({1, 2}))
    manifest = prepared_folder(tmp_path / "in", tmp_path / "out", table=table)
    assert manifest.label_names == {1: "one", 2: "two"}
    assert set(np.unique(manifest.cases[1].label_array())) == {0, 1}
    every = prepared_folder(tmp_path / "in", tmp_path / "all", Preparation(every_label=True), table=table)
    assert every.label_names[3] == "three" and 3 in every.cases[1].label_array()
    with pytest.raises(InputError, match=r"case1_seg\.nii\.gz holds label values without a name \(3\)"):
        prepared_folder(tmp_path / "in", tmp_path / "no", table=replace(table, names={1: "one", 2: "two"}))


def test_without_a_table_labels_are_named_by_their_values(tmp_path):
    manifest = prepared_folder(own_folder(tmp_path / "in"), tmp_path / "out")
    assert manifest.label_names == {1: "label 1", 2: "label 2", 3: "label 3"}


def test_cases_of_different_sizes_have_no_shape_in_common(tmp_path):
    write(tmp_path / "in/a.nii.gz", body_image())
    write(tmp_path / "in/b.nii.gz", body_image(1, (9, 10, 11)))
    manifest = prepared_folder(tmp_path / "in", tmp_path / "out")
    assert manifest.shape is None and manifest.spacing == (1.0, 1.0, 1.0)


def test_a_stopped_run_goes_on_and_keeps_what_is_finished(tmp_path):
    own_folder(tmp_path / "in")

    def stop(stage, share):
        if stage == "prepare" and share > 0.5:
            raise Cancelled

    with pytest.raises(Cancelled):
        prepared_folder(tmp_path / "in", tmp_path / "out", progress=stop)
    done = everything(tmp_path / "out")
    assert "manifest.json" not in done and len([name for name in done if name.startswith("images/")]) == 3
    manifest = prepared_folder(tmp_path / "in", tmp_path / "out")
    assert {name: time for name, time in everything(tmp_path / "out").items() if name in done} == done
    assert len(manifest.cases) == 5 and verify_data_set(tmp_path / "out") == []
    whole = json.loads((tmp_path / "out/manifest.json").read_text())
    prepared_folder(tmp_path / "in", tmp_path / "once")
    assert json.loads((tmp_path / "once/manifest.json").read_text()) == whole


def test_a_case_whose_source_changed_or_whose_result_is_gone_is_made_again(tmp_path):
    own_folder(tmp_path / "in", 3)
    prepared_folder(tmp_path / "in", tmp_path / "out")
    before = everything(tmp_path / "out")
    write(tmp_path / "in/case0_t1.nii.gz", body_image(9), spacing=(1.0, 1.5, 2.0))
    (tmp_path / "out/labels/case1.nii.gz").unlink()
    prepared_folder(tmp_path / "in", tmp_path / "out")
    after = everything(tmp_path / "out")
    assert [after[f"images/case{n}.nii.gz"] != before[f"images/case{n}.nii.gz"] for n in range(3)] == [
        True,
        True,
        False,
    ]
    assert verify_data_set(tmp_path / "out") == []


def test_another_preparation_needs_another_folder_or_overwrite(tmp_path):
    own_folder(tmp_path / "in", 3)
    prepared_folder(tmp_path / "in", tmp_path / "out")
    before = everything(tmp_path / "out")
    with pytest.raises(InputError, match="was prepared in another way"):
        prepared_folder(tmp_path / "in", tmp_path / "out", Preparation(shape=(8, 8, 8)))
    assert everything(tmp_path / "out") == before
    manifest = prepared_folder(tmp_path / "in", tmp_path / "out", Preparation(shape=(8, 8, 8)), overwrite=True)
    assert manifest.shape == (8, 8, 8) and verify_data_set(tmp_path / "out") == []


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    own_folder(tmp_path / "in", 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("all of it")
    with pytest.raises(InputError, match="holds other files"):
        prepared_folder(tmp_path / "in", tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_several_workers_make_what_one_makes(tmp_path):
    own_folder(tmp_path / "in", 4)
    one, two = (prepared_folder(tmp_path / "in", tmp_path / f"out{n}", workers=n) for n in (1, 2))
    for a, b in zip(one.cases, two.cases, strict=True):
        np.testing.assert_array_equal(a.image_array(), b.image_array())
        np.testing.assert_array_equal(a.label_array(), b.label_array())
    (tmp_path / "in/case2_t1.nii.gz").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"case2_t1\.nii\.gz"):
        prepared_folder(tmp_path / "in", tmp_path / "out3", workers=2)
