"""Lists of pairs: what a list may hold, what is measured, what is kept, and what a failing pair does."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import made_grid, made_head, made_labels
from test_evaluation_report import Reader, stands_alone

from RegMambaLib.cli.main import main
from RegMambaLib.errors import InputError
from RegMambaLib.evaluation.pairs import PairFiles, read_pairs
from RegMambaLib.evaluation.results import ALL, read_results
from RegMambaLib.registration.settings import Settings

SHIFT = (4.5, -6.0, 0.0)


@pytest.fixture
def cohort(tmp_path):
    """A head, the same head shifted by `SHIFT` (whole voxels), their labels and landmarks, and the true transform."""
    grid = made_grid()
    folder = tmp_path / "data"
    folder.mkdir()
    for name, image in {
        "fixed": made_head(grid),
        "moving": made_head(grid, lambda p: p - SHIFT),
        "fixed_labels": made_labels(grid),
        "moving_labels": made_labels(grid, lambda p: p - SHIFT),
        "mask": grid.image(np.pad(np.ones((8, 8, 8), np.uint8), [(10, n - 18) for n in grid.shape])),
    }.items():
        sitk.WriteImage(image, str(folder / f"{name}.nii.gz"))
    there = sitk.TranslationTransform(3, SHIFT)
    sitk.WriteTransform(there, str(folder / "there.tfm"))
    sitk.WriteTransform(there.GetInverse(), str(folder / "back.tfm"))
    sitk.WriteTransform(sitk.TranslationTransform(3, (SHIFT[0], 0.0, 0.0)), str(folder / "half.tfm"))
    sitk.WriteTransform(sitk.TranslationTransform(3, (0.0, SHIFT[1], 0.0)), str(folder / "rest.tfm"))
    points = np.array([[0.0, 1, 2], [10, -20, 30]])
    for name, at in (("fixed", points), ("moving", points + SHIFT)):
        lines = ["x,y,z", *(",".join(map(str, p)) for p in at)]
        (folder / f"{name}_points.csv").write_text("\n".join(lines))
    (folder / "names.json").write_text('{"1": "thalamus", "3": "putamen", "99": "nowhere"}')

    def write(rows, header="pair,method,fixed,moving,fixed_labels,moving_labels,transform"):
        (folder / "pairs.csv").write_text("\n".join([header, *rows]) + "\n")
        return str(folder / "pairs.csv")

    return SimpleNamespace(folder=folder, write=write, out=tmp_path / "out")


IMAGES = "fixed.nii.gz,moving.nii.gz,fixed_labels.nii.gz,moving_labels.nii.gz"


def test_given_transforms_are_measured_as_they_are(cohort):
    header = (
        "pair,fixed,moving,fixed_labels,moving_labels,transform,inverse,fixed_landmarks,moving_landmarks,seconds,age"
    )
    points = "fixed_points.csv,moving_points.csv"
    rows = [
        f"true,{IMAGES},there.tfm,back.tfm,{points},12.5,40",
        f"chain,{IMAGES},half.tfm; rest.tfm,,{points},,41",
        f"half,{IMAGES},half.tfm,back.tfm,{points},,42",
    ]
    arguments = ["evaluate", "--pairs", cohort.write(rows, header), "-o", str(cohort.out), "--no-report", "--quiet"]
    assert main([*arguments, "--label-names", str(cohort.folder / "names.json")]) == 0
    found = read_results(cohort.out / "results.csv")
    assert {row["name"] for row in found if row["label"] != ALL} == {"thalamus", "putamen"}
    whole = {row["pair"]: row for row in found if row["label"] == ALL}
    for name in ("true", "chain"):
        row = whole[name]
        assert row["dice"] == row["volume_similarity"] == 1 and row["hd95_mm"] == row["surface_mm"] == 0
        assert row["dice_before"] < 0.95
        assert row["tre_mm"] == pytest.approx(0, abs=1e-6)
        assert row["tre_before_mm"] == pytest.approx(np.linalg.norm(SHIFT))
        assert row["folding_percent"] == row["nondiffeomorphic_percent"] == 0
        assert row["sd_log_jacobian"] == pytest.approx(0, abs=1e-5)
    assert whole["true"]["inverse_error_mm"] == pytest.approx(0, abs=1e-9)
    assert whole["true"]["seconds"] == 12.5 and whole["true"]["memory_mb"] is None
    assert whole["chain"]["inverse_error_mm"] is None
    assert whole["half"]["inverse_error_mm"] == pytest.approx(abs(SHIFT[1]))
    assert whole["half"]["tre_mm"] == pytest.approx(abs(SHIFT[1])) and whole["half"]["dice"] < 1
    assert sorted(path.name for path in cohort.out.iterdir()) == ["pairs", "results.csv", "results.json", "results.md"]
    kept = json.loads((cohort.out / "pairs" / "regmamba" / "true" / "result.json").read_text())
    assert kept["unmatched_labels"] == [] and kept["landmarks"] == 2


def test_folds_are_counted_on_the_grid_or_in_the_mask(cohort):
    grid = made_grid()
    u = np.zeros((*grid.shape, 3))
    u[4, 4, 4] = grid.axes @ (1.5, 0, 0)  # one voxel, past its neighbour; outside of the mask
    sitk.WriteTransform(sitk.DisplacementFieldTransform(grid.image(u)), str(cohort.folder / "fold.h5"))
    rows = ["whole,fixed.nii.gz,moving.nii.gz,fold.h5,", "inside,fixed.nii.gz,moving.nii.gz,fold.h5,mask.nii.gz"]
    path = cohort.write(rows, "pair,fixed,moving,transform,mask")
    assert main(["evaluate", "--pairs", path, "-o", str(cohort.out), "--no-report", "--quiet"]) == 0
    whole, inside = read_results(cohort.out / "results.csv")
    cells = math.prod(n - 1 for n in grid.shape)
    assert whole["nondiffeomorphic_percent"] == pytest.approx(100 * 0.5 * 2 / 3 / cells, rel=1e-4)
    assert whole["dice"] is None
    assert inside["nondiffeomorphic_percent"] == inside["folding_percent"] == inside["sd_log_jacobian"] == 0


def test_pairs_without_a_transform_are_registered_and_reported(cohort, capsys):
    pytest.importorskip("matplotlib")
    rows = [f"a b/c,ours,{IMAGES},", f"a b/c,theirs,{IMAGES},half.tfm", f"gone,ours,{IMAGES},none.tfm"]
    arguments = ["evaluate", "--pairs", cohort.write(rows), "-o", str(cohort.out), "--weights", "none"]
    arguments += ["--set", "iterations=10", "--json", "--quiet", "--label-names", str(cohort.folder / "names.json")]
    assert main(arguments) == 1
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "gone (ours)" in said.err and "none.tfm does not exist" in said.err
    report = json.loads(said.out)
    assert list(report["failed"]) == ["gone (ours)"]
    ours = report["summary"]["ours"]["overall"]
    assert ours["dice"]["mean"] > max(0.9, ours["dice_before"]["mean"])
    assert ours["seconds"]["mean"] > 0 and ours["memory_mb"]["mean"] > 10
    assert ours["inverse_error_mm"]["mean"] < 0.5
    assert report["comparisons"][0]["first"] == "ours" and report["settings"]["weights"] == "none"

    names = ["dice.png", "hd95_mm.png", "pairs", "report.html", "results.csv", "results.json", "results.md"]
    assert sorted(path.name for path in cohort.out.iterdir()) == [*names, "volume_similarity.png"]
    own = cohort.out / "pairs" / "ours" / "a_b_c"
    assert sorted(path.name for path in own.iterdir()) == ["overlay.jpg", "report.html", "result.json"]
    for path in (cohort.out / "report.html", own / "report.html"):
        text = path.read_text(encoding="utf-8")
        stands_alone(text)
        reader = Reader(text)
        assert "thalamus" in reader.text
    text = (cohort.out / "report.html").read_text(encoding="utf-8")
    assert len(Reader(text).all("img")) == 3 + 2  # box plots and two pairs
    links = [attributes["href"] for attributes in Reader(text).all("a")]
    assert links == ["pairs/ours/a_b_c/report.html", "pairs/theirs/a_b_c/report.html"]
    assert "gone (ours)" in (cohort.out / "results.md").read_text(encoding="utf-8")

    # The second time nothing but the pair that failed is done, unless a file or a setting is another.
    before = (own / "result.json").stat().st_mtime_ns
    (cohort.folder / "none.tfm").write_bytes((cohort.folder / "there.tfm").read_bytes())
    assert main(arguments) == 0
    assert (own / "result.json").stat().st_mtime_ns == before
    again = json.loads(capsys.readouterr().out)
    assert again["failed"] == {} and again["summary"]["ours"]["pairs"] == 2
    assert main([*arguments, "--metric", "mind"]) == 2
    assert "other files, settings or weights" in capsys.readouterr().err
    (cohort.folder / "half.tfm").write_bytes((cohort.folder / "there.tfm").read_bytes())
    assert main(arguments) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_a_result_is_not_kept_when_its_weights_or_the_program_changed(cohort, monkeypatch):
    from RegMambaLib.evaluation import cohort as module

    weights = cohort.folder / "run.safetensors"
    weights.write_bytes(b"first")
    files = {name: cohort.folder / f"{name}.nii.gz" for name in ("fixed", "moving")}
    pair = PairFiles("a", "ours", files, (), (), {})
    made = module.Cohort(cohort.out, Settings(weights=str(weights)))
    first = module._source(pair, made)
    assert module._source(pair, made) == first
    weights.write_bytes(b"trained anew")
    second = module._source(pair, made)
    assert second != first
    monkeypatch.setattr(module, "__version__", "99")
    assert module._source(pair, made) != second


@pytest.mark.parametrize(
    ("header", "row", "words"),
    [
        ("fixed,fixed_labels", "a,b", ["lacks the column moving"]),
        ("", "", ["lacks the column fixed and moving"]),
        ("fixed,moving", None, ["lists no pair"]),
        ("fixed,moving", "a.nii.gz,", ["line 2", "names no moving"]),
        ("fixed,moving", "a.nii.gz,b.nii.gz,c", ["line 2", "more cells"]),
        ("fixed,moving,transfrom", "a.nii.gz,b.nii.gz,c.h5", ["transfrom", "call it transform"]),
        ("fixed,moving,fixed_labels,moving_labels", "a,b,c,", ["only one of fixed_labels and moving_labels"]),
        ("fixed,moving,fixed_landmarks,moving_landmarks", "a,b,,d", ["only one of fixed_landmarks"]),
        ("fixed,moving,inverse", "a,b,c.h5", ["inverse without a transform"]),
        ("fixed,moving,seconds", "a,b,fast", ["line 2", "seconds is no number"]),
        ("pair,fixed,moving", "x/y,a,b\nx y,c,d", ["two pairs called x y"]),
    ],
)
def test_a_list_with_a_mistake_is_refused_in_one_sentence(tmp_path, capsys, header, row, words):
    path = tmp_path / "pairs.csv"
    path.write_text(header + "\n" + ("" if row is None else row + "\n"))
    assert main(["evaluate", "--pairs", str(path), "-o", str(tmp_path / "out"), "--no-report"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    for word in words:
        assert word in said.err
    assert not (tmp_path / "out").exists()


def test_paths_are_relative_to_the_list_and_names_come_from_the_files(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("fixed, moving ,transform\nsub/a.nii.gz,/far/b.mha,w.nii.gz;l.mat\n", encoding="utf-8-sig")
    (pair,) = read_pairs(path)
    assert pair.name == "a__b" and pair.method == "regmamba" and pair.folder == "pairs/regmamba/a__b"
    assert pair.files["fixed"] == tmp_path / "sub" / "a.nii.gz" and str(pair.files["moving"]) == "/far/b.mha"
    assert pair.transform == (tmp_path / "w.nii.gz", tmp_path / "l.mat") and pair.inverse == ()
    with pytest.raises(InputError, match="does not exist"):
        read_pairs(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["a.nii.gz"], "takes two"),
        (["a.nii.gz", "b.nii.gz", "--pairs", "c.csv"], "either two label maps"),
        (["--quiet"], "either two label maps"),
        (["--pairs", "c.csv"], "-o DIR"),
        (["--pairs", "c.csv", "-o", "out", "--set", "guide=true"], "leave guide off"),
        (["--pairs", "c.csv", "-o", "out", "-t", "t.h5"], "in the list"),
        (["a.nii.gz", "b.nii.gz", "-o", "out"], "goes with --pairs or --compare"),
        (["a.nii.gz", "b.nii.gz", "--metric", "mind"], "nothing is registered"),
    ],
)
def test_what_evaluate_needs_is_said(capsys, arguments, word):
    assert main(["evaluate", *arguments]) == 2
    assert word in capsys.readouterr().err


def test_a_pair_that_cannot_be_measured_says_why(cohort, capsys):
    rows = [
        f"grids,m,{IMAGES.replace('moving_labels', 'other')},there.tfm",
        f"labels,m,{IMAGES.replace('moving_labels', 'empty')},there.tfm",
        f"good,m,{IMAGES},there.tfm",
    ]
    sitk.WriteImage(made_labels(made_grid((20, 20, 20))), str(cohort.folder / "other.nii.gz"))
    empty = made_grid().image(np.zeros(made_grid().shape, np.uint8))
    sitk.WriteImage(empty, str(cohort.folder / "empty.nii.gz"))
    assert main(["evaluate", "--pairs", cohort.write(rows), "-o", str(cohort.out), "--no-report"]) == 1
    said = capsys.readouterr()
    assert "grids (m): failed" in said.err and "another grid" in said.err
    assert "labels (m): failed" in said.err and "holds no label" in said.err
    assert "good (m): done" in said.err and "Dice" in said.out


def test_files_of_ones_own_in_the_output_folder_are_safe(cohort, capsys):
    (cohort.out / "pairs").mkdir(parents=True)
    (cohort.out / "report.html").write_text("mine")
    rows = [f"a,theirs,{IMAGES},half.tfm"]
    assert main(["evaluate", "--pairs", cohort.write(rows), "-o", str(cohort.out), "--no-report", "--quiet"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert (cohort.out / "report.html").read_text() == "mine"
