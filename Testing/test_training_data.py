"""Pairs from prepared data sets, alone and mixed with rendered ones, and the command that trains on them."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")
pytest.importorskip("yaml")
import SimpleITK as sitk
import torch
from fixtures.head_maps import head, lps
from fixtures.training_runs import TINY, prepared, rows_of, silent, tiny

from RegMambaLib.cli.main import main
from RegMambaLib.errors import InputError
from RegMambaLib.networks import read_card
from RegMambaLib.training import data, logs, trainer


def test_a_mixture_trains_on_the_train_split_and_validates_on_the_other(tmp_path):
    pytest.importorskip("matplotlib")
    folder = prepared(tmp_path / "made")
    settings = tiny(
        tmp_path / "run",
        f"data.prepared=[{{manifest: {folder}, share: 2}}]",
        "losses.dice=0.5",
        f"validation.manifest={folder}",
        "validation.every=2",
        "steps=4",
    )
    pairs = data.load_pairs(settings)
    samples = [pairs.sample(number) for number in range(30)]
    real = [s for s in samples if not np.isin(s.pair.moving_labels, range(101, 250)).any()]
    assert 14 < len(real) < 26 and pairs.examples(4) == 4
    arrays = {k: sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"s{k}.nii.gz"))) for k in range(6)}
    seen = {
        k
        for s in real
        for k, a in arrays.items()
        if (a == s.pair.fixed.numpy()).all() or (a == s.pair.moving.numpy()).all()
    }
    assert seen == {0, 1, 2}
    assert {s.labels for s in real} == {(), (2, 300), (300, 2)}  # the second case has no labels
    trainer.run(settings, note=silent)
    rows = rows_of(tmp_path / "run")
    assert [bool(r["val_dice"]) for r in rows] == [False, True, False, True]
    assert 0.5 < float(rows[-1]["val_dice"]) < 1 and float(rows[-1]["val_folds"]) < 5
    pictures = sorted(p.name for p in (tmp_path / "run" / "examples").iterdir())
    assert pictures == ["step_0000002.png", "step_0000004.png"]
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "run" / "examples" / pictures[1])))
    assert picture.shape[1] > 900 and len(np.unique(picture)) > 50


def test_workers_make_the_same_samples_in_order_and_keep_one_tensor_one(tmp_path):
    pairs = data.load_pairs(tiny(tmp_path, "losses.dice=1"))
    pairs.to(torch.device("cpu"))
    one_by_one, at_once = (list(data.ahead(pairs.sample, range(5), workers)) for workers in (1, 3))
    for one, other in zip(one_by_one, at_once, strict=True):
        assert one.number == other.number and one.labels == other.labels != ()
        theirs = other.pair.arrays()
        assert all((array == theirs[name]).all() for name, array in one.pair.arrays().items())
        # The smoke run shows both images in one contrast.
        assert other.pair.fixed_clean is other.pair.fixed
        moved = other.pair.to(torch.device("meta"))
        assert moved.fixed_clean is moved.fixed and moved.fixed.device.type == "meta"


def test_half_the_resolution_and_unequal_sizes(tmp_path):
    folder = prepared(tmp_path / "made")
    manifest = data.load_manifest(folder)
    image, _, labels, _ = data.read_pair(manifest.case("s0"), manifest.case("s2"), shrink=2)
    full, *_ = data.read_pair(manifest.case("s0"), manifest.case("s2"))
    assert image.shape == labels.shape == (8, 9, 8) and image.dtype == np.float32
    assert image[1, 2, 3] == pytest.approx(full[2:4, 4:6, 6:8].mean(), abs=1e-6)
    assert set(np.unique(labels)) <= {0, 2, 300}
    manifest = data.load_manifest(prepared(tmp_path / "uneven", sizes=(16, 16, 14, 16, 16, 16)))
    with pytest.raises(InputError, match="s0 and s2 differ in size"):
        data.read_pair(manifest.case("s0"), manifest.case("s2"))


def test_the_command_trains_on_label_maps_and_reports_the_loss(tmp_path, capsys):
    for k in range(2):
        sitk.WriteImage(lps(head(k)), str(tmp_path / f"head_{k}.nii.gz"))
    stages = "data.synthetic.stages=[{shape: [12, 14, 12], spacing: 13}]"
    wanted = [*TINY[1:], stages, f"data.synthetic.labels={tmp_path}", "steps=2", "losses.dice=0.1"]
    command = ["train", "brain-t1", "--output", str(tmp_path / "run"), *(x for w in wanted for x in ("--set", w))]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert "Loss 0." in captured.out and "step 2/2" in captured.err
    assert read_card(tmp_path / "run" / trainer.WEIGHTS)["contrast"] == "same"
    assert all(math.isfinite(float(r["dice"])) for r in rows_of(tmp_path / "run"))


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    append = logs.Logs.row

    def stop_at_the_third(self, row):
        append(self, row)
        if row["step"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(logs.Logs, "row", stop_at_the_third)
    wanted = (*TINY, "steps=4", "logging.save_every=2")
    command = ["train", "smoke", "-o", str(tmp_path), *(x for w in wanted for x in ("--set", w))]
    assert main(command) == 130
    assert f"goes on from the last checkpoint in {tmp_path}" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command) == 0
    assert "Going on after step 2 of 4" in capsys.readouterr().err
    assert [r["step"] for r in rows_of(tmp_path)] == ["1", "2", "3", "4"]


def test_a_single_direction_has_no_vote_to_weigh(tmp_path):
    options = "network.options={channels: [4, 6], directions: [hwd+], encoder_directions: [hwd+]}"
    trainer.run(tiny(tmp_path, options, "steps=1", "batch=8", "losses.voting_bound=1"), note=silent)
    (row,) = rows_of(tmp_path)
    assert float(row["voting_kl"]) == 0 and float(row["lncc"]) < float(row["voting_bound"]) < 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["smoke", "--smoke"], "Give a configuration, or --smoke"),
        (["--quiet"], "Give a configuration, or --smoke"),
        (["nothing.yaml"], "one of brain-t1, general, smoke"),
        (["smoke", "--set", "batch=x"], "batch must be a whole number"),
        (["smoke", "--set", "network.options={channel: [4]}"], "no network.options.channel; did you mean channels?"),
        (["smoke", "--set", "network.start=nothing.safetensors", "--set", "network.options={}"], "no weight file"),
        (["brain-t1", "--set", "data.synthetic.labels=nowhere"], "is no folder"),
        (["smoke", "--set", "validation.pairs=nothing.csv"], "no list of validation pairs"),
        (["smoke", "--set", "data.prepared=[{manifest: nowhere}]"], "regmamba data prepare"),
        (["smoke", "--set", "hardware.device=cuda", "--set", "hardware.devices=64"], "64 CUDA devices"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["lightning_fabric", "yaml", "torch.utils.tensorboard", "matplotlib.figure"])
def test_a_missing_package_is_named_with_its_install_line(tmp_path, monkeypatch, capsys, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(tmp_path)
    arguments = [x for w in (*TINY[:3], "steps=1") for x in ("--set", w)]
    assert main(["train", "smoke", *arguments]) == 2
    assert 'pip install "regmamba[train]"' in capsys.readouterr().err
