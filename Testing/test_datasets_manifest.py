"""The manifest, its pairs, what verify finds, and the command line."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import SimpleITK as sitk
from datasets_help import own_folder, prepared_folder

from RegMambaLib.cli.main import main
from RegMambaLib.errors import InputError
from RegMambaLib.training.datasets.manifest import load_manifest, write_pairs
from RegMambaLib.training.datasets.source import Options
from RegMambaLib.training.datasets.verify import verify_data_set


def test_pairs_of_every_kind_are_fixed_and_moving(tmp_path):
    manifest = prepared_folder(own_folder(tmp_path / "in"), tmp_path / "out", options=Options(shares=(1, 0, 0)))
    pairs = manifest.pairs("train")
    assert len(pairs) == 20 and len(set(pairs)) == 20 and all(a.subject != b.subject for a, b in pairs)
    few = manifest.pairs("train", "inter-subject", 7, seed=4)
    assert len(set(few)) == 7 and few == manifest.pairs("train", "inter-subject", 7, seed=4)
    assert few != manifest.pairs("train", "inter-subject", 7, seed=5) and set(few) <= set(pairs)
    with pytest.raises(InputError, match="has no atlas"):
        manifest.pairs("train", "atlas")
    with pytest.raises(InputError, match="no intra-subject pairs"):
        manifest.pairs("train", "intra-subject")
    with pytest.raises(InputError, match="no inter-subject pairs in its split 'test'"):
        manifest.pairs("test")
    with pytest.raises(InputError, match="no split 'dev'"):
        manifest.pairs("dev")
    with pytest.raises(InputError, match="no 'both' pairs"):
        manifest.pairs("train", "both")
    with pytest.raises(InputError, match="of modalities CT and MR"):
        manifest.pairs("train", modalities=("CT", "MR"))


def test_pairs_are_written_relative_to_their_table(tmp_path):
    manifest = prepared_folder(own_folder(tmp_path / "in"), tmp_path / "out", options=Options(shares=(1, 0, 0)))
    table = tmp_path / "tables/pairs.csv"
    write_pairs(manifest.pairs("train", limit=3), table)
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 and list(rows[0]) == ["fixed", "moving", "fixed_labels", "moving_labels"]
    for row in rows:
        assert row["fixed"].startswith("../out/images/") and row["moving_labels"].startswith("../out/labels/")
        assert all((table.parent / path).is_file() for path in row.values())
    with pytest.raises(InputError, match="exists already"):
        write_pairs(manifest.pairs("train"), table)
    lone = replace(manifest.cases[0], labels=None)
    with pytest.raises(InputError, match="case0 has no label map"):
        write_pairs([(manifest.cases[1], lone)], tmp_path / "no.csv")
    assert not (tmp_path / "no.csv").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "no readable manifest"),
        ("[]", "is not the manifest"),
        ('{"format": "regmamba data set", "version": 2}', "has version 2"),
        ('{"format": "regmamba data set", "version": 1}', "lacks an entry"),
    ],
)
def test_a_damaged_or_foreign_manifest_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match="make it with `regmamba data prepare`"):
        load_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_manifest(tmp_path)


def test_verify_names_what_is_missing_changed_or_of_another_shape(tmp_path):
    manifest = prepared_folder(own_folder(tmp_path / "in"), tmp_path / "out")
    assert verify_data_set(tmp_path / "out") == []
    a, b, c, d, e = manifest.cases
    a.image.unlink()
    sitk.WriteImage(sitk.ReadImage(str(b.image)) * 0.5, str(b.image))
    sitk.WriteImage(sitk.ReadImage(str(c.labels))[:, :, 1:], str(c.labels))
    spaced = sitk.ReadImage(str(d.image))
    spaced.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(spaced, str(d.image))
    sitk.WriteImage(sitk.ReadImage(str(e.labels)) * 20, str(e.labels))
    text = "\n".join(verify_data_set(tmp_path / "out"))
    assert "case0.nii.gz does not exist" in text
    assert "images/case1.nii.gz has changed" in text
    assert "labels/case2.nii.gz is 11 x 14 x 13 voxels; the manifest says 12 x 14 x 13" in text
    assert "images/case3.nii.gz has voxels of 2 x 1 x 1 mm; the manifest says 2 x 1.5 x 1" in text
    assert "labels/case4.nii.gz holds label values without a name: 20, 40" in text
    assert text.count("case3") >= 2 and "does not lie on the grid" in text


def test_verify_finds_faults_in_the_manifest_itself(tmp_path):
    prepared_folder(own_folder(tmp_path / "in", 3), tmp_path / "out")
    file = tmp_path / "out/manifest.json"
    raw = json.loads(file.read_text())
    first = raw["cases"][0]
    raw["cases"] += [first | {"split": "dev"}]
    raw["atlas"] = "none such"
    raw["pairs"] = {"val": [["case0", "case9"]]}
    del raw["label_names"]["2"]
    file.write_text(json.dumps(raw))
    text = "\n".join(verify_data_set(file))
    assert "The id case0 is there 2 times." in text
    assert "unknown split 'dev'" in text and "The subject case0 is in several splits" in text
    assert "The atlas none such is no case." in text and "The pairs name case9" in text
    assert "case0 has label values without a name in the manifest: 2." in text


def test_the_command_line_prepares_verifies_lists_and_pairs(tmp_path, capsys):
    source, out = own_folder(tmp_path / "heads"), tmp_path / "out"
    table = tmp_path / "names.json"
    table.write_text(json.dumps({"1": "head", "2": "hand", "3": "foot"}))
    options = ["--shape", "12,12,12", "--spacing", "1.5", "--modality", "CT", "--window", "0,200"]
    options += ["--split", "3,1,1", "--label-table", str(table), "--workers", "1"]
    assert main(["data", "prepare", "folder", str(source), str(out), *options]) == 0
    assert "Prepared heads (plain folder): 3 train, 1 val, 1 test, 0 atlas" in capsys.readouterr().out
    manifest = load_manifest(out)
    assert manifest.shape == (12, 12, 12) and manifest.spacing == (1.5, 1.5, 1.5)
    assert manifest.label_names == {1: "head", 2: "hand", 3: "foot"} and manifest.cases[0].modality == "CT"
    assert main(["data", "verify", str(out)]) == 0
    assert main(["data", "list", str(out), "--json"]) == 0
    listed = capsys.readouterr().out
    assert json.loads(listed[listed.index("[") :])[0]["id"] == "case0"
    assert main(["data", "list"]) == 0
    assert "lpba40" in capsys.readouterr().out
    assert main(["data", "pairs", str(out), "--split", "train", "--limit", "2", "-o", str(out / "pairs.csv")]) == 0
    assert len((out / "pairs.csv").read_text().splitlines()) == 3
    (out / "images/case3.nii.gz").unlink()
    assert main(["data", "verify", str(out), "-q"]) == 2
    said = capsys.readouterr()
    assert "case3.nii.gz does not exist" in said.out and "has 1 faults" in said.err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["folders"], "no data set 'folders'"),
        (["folder", "--shape", "8,8"], "--shape takes 3 numbers"),
        (["folder", "--shape", "8,0,8"], "must be greater than 0"),
        (["folder", "--spacing", "wide"], "--spacing takes 3 numbers"),
        (["folder", "--window", "5,1"], "--window 5,1 is empty"),
        (["folder", "--linear", "bspline"], "--linear cannot be 'bspline'"),
        (["folder", "--split", "0,0,0"], "cannot be shares"),
        (["folder", "--label-table", "mine"], "no label table 'mine'"),
        (["ixi", "--label-table", "dkt31"], "ixi has its own label names"),
        (["ixi", "--modality", "T2"], "ixi has its own names"),
        (["ixi"], "is no IXI"),
    ],
)
def test_bad_options_are_one_sentence_and_nothing_is_written(tmp_path, capsys, arguments, message):
    own_folder(tmp_path / "in", 2)
    name, *options = arguments
    assert main(["data", "prepare", name, str(tmp_path / "in"), str(tmp_path / "out"), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_prepared_data_may_not_lie_among_their_source(tmp_path, capsys):
    own_folder(tmp_path / "in", 2)
    for out in (tmp_path / "in/prepared", tmp_path / "in"):
        assert main(["data", "prepare", "folder", str(tmp_path / "in"), str(out)]) == 2
        assert "choose a folder outside" in capsys.readouterr().err
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted(f"in/case{n}_{kind}.nii.gz" for n in (0, 1) for kind in ("t1", "seg"))
