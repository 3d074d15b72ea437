"""Training the recognition of structures: what the images show, what the loop resumes, writes and refuses."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip("torch")
import SimpleITK as sitk
import torch
import torch.nn.functional as F
from fixtures.head_maps import head, lps
from fixtures.training_runs import silent
from safetensors.torch import load_file

from RegMambaLib.cli.main import main
from RegMambaLib.errors import InputError
from RegMambaLib.networks.structures import CLASSES, FORMAT, NAMES, load_structures
from RegMambaLib.networks.weights import read_weights
from RegMambaLib.training import structures
from RegMambaLib.training.anatomy import SULCAL_CSF
from RegMambaLib.training.contrast import RIMS, t1_table
from RegMambaLib.training.structure_images import Ranges, StructureImages

CPU = torch.device("cpu")
smoke, made_once = structures.smoke, cache(structures.made_up_anatomies)
# Nothing but the mean of the brightness of eight labels.
PLAIN = Ranges(
    **dict.fromkeys(("rotation", "scaling", "shear", "shift", "flip", "grain", "patches", "bias", "thick"), 0.0),
    **dict.fromkeys(("structure_spread", "nucleus_spread", "grey_spread", "side_spread", "noise", "gamma"), 0.0),
    growth=(0.0, 0.0),
    bends=(),
    grey=(0.6, 0.6),
    csf=(0.2, 0.2),
    blur=(0.0, 0.0),
    top=(1.0, 1.0),
)
DEFORMED = replace(
    PLAIN, rotation=12.0, scaling=0.08, growth=(-0.05, 0.09), shear=0.05, shift=8.0, flip=0.5, bends=Ranges().bends
)


@pytest.fixture(scope="module")
def anatomies():
    return made_once(3, 1)


@pytest.fixture(autouse=True)
def no_shape_made_twice(monkeypatch):
    monkeypatch.setattr(structures, "made_up_anatomies", made_once)


@pytest.fixture(scope="module")
def first_map(anatomies):
    """What `StructureImages` sees of the first anatomy with shrink 4, (40, 48, 40)."""
    return anatomies[0].labels[2::4, 2::4, 2::4].long()


def images_of(anatomies, ranges=None):
    return StructureImages(anatomies, CPU, shrink=4, ranges=ranges)


def test_images_lie_between_0_and_1_and_are_0_where_nothing_is(anatomies):
    images, shares = images_of(anatomies).batch([0, 1, 2, 0], seed=3)
    assert images.shape == (4, 1, 20, 24, 20) and images.dtype == torch.float32
    assert shares.shape == (4, len(CLASSES), 20, 24, 20)
    assert float(images.min()) == 0 and (images.amax((1, 2, 3, 4)) > 0.9).all() and float(images.max()) <= 1
    reached = F.max_pool3d((shares[:, :1].float() < 1).float(), 7, 1, 3)  # as far as images are smoothed
    assert 0 < float(reached.mean()) < 1
    assert float(images[reached == 0].max()) == 0


def test_shares_sum_to_one_and_are_those_of_the_map_where_nothing_is_deformed(anatomies, first_map):
    _, shares = images_of(anatomies).batch([0, 1], seed=3)
    assert torch.equal(shares.float().sum(1), torch.ones(2, 20, 24, 20))
    _, shares = images_of(anatomies, PLAIN).batch([0], seed=3)
    for number, labels in enumerate(list(CLASSES.values())[1:], 1):
        there = torch.isin(first_map, torch.tensor(labels)).float()
        assert torch.equal(shares[0, number].float(), F.avg_pool3d(there[None, None], 2)[0, 0])


def test_a_plain_image_has_the_brightness_of_the_table(anatomies, first_map):
    (image,), _ = images_of(anatomies, PLAIN).batch([0], seed=3)
    table = torch.from_numpy(t1_table(0.6, 0.2)).float()
    expected = F.avg_pool3d(table[first_map][None, None], 2)[0]
    seen = image < 1
    scale = float(expected.max())
    assert torch.allclose(image[seen], expected[seen] / scale, atol=0.02) and seen.float().mean() > 0.9


def test_image_and_shares_are_deformed_and_flipped_together(anatomies):
    """All labels of a class in made-up anatomies are one label, so that the shares tell the brightness."""
    table = t1_table(0.6, 0.2)
    brightness = torch.tensor([0.0] + [table[labels[0]] for labels in list(CLASSES.values())[1:]], dtype=torch.float32)
    images, shares = images_of(anatomies, DEFORMED).batch([0, 1, 2] * 2, seed=5)
    for image, share in zip(images[:, 0], shares, strict=True):
        expected = torch.tensordot(brightness, share.float(), 1)
        seen = (image < 1) & (expected > 0)
        ratio = image[seen] / expected[seen]
        assert float(ratio.std()) < 1e-3 and float(ratio.mean()) >= 1 - 1e-3
        assert float(image[expected == 0].max()) < 1e-6
    straight, flipped = (images_of(anatomies, replace(PLAIN, flip=flip)).batch([1], 5) for flip in (0.0, 1.0))
    assert not torch.allclose(straight[0], flipped[0], atol=1e-2)
    assert torch.allclose(straight[0].flip(-1), flipped[0], atol=1e-5)
    assert torch.equal(straight[1].flip(-1), flipped[1])


def test_equal_seeds_give_equal_images_and_others_do_not(anatomies):
    made = images_of(anatomies)
    first, other, again = (made.batch([0, 1], seed) for seed in (7, 8, 7))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])
    assert not torch.equal(first[0][0], first[0][1])


def test_both_sides_are_about_as_bright_and_fluid_outside_comes_and_goes(anatomies):
    made = images_of(anatomies)
    made._random.manual_seed(0)
    tables = made._tables(400)
    for left, right in ((2, 41), (10, 49), (136, 163), (137, 164)):
        apart = (tables[:, left] - tables[:, right]).std()
        assert 0 < float(apart) < 0.04 and float(tables[:, left].std()) > 0.04
    assert (tables[:, 0] == 0).all() and (tables >= 0).all()
    kept = [float((tables[:, label] > 0).float().mean()) for label in (SULCAL_CSF, *RIMS)]
    assert kept == pytest.approx([0.9, 0.6, 0.36, 0.216], abs=0.07)
    assert torch.equal(tables[:, RIMS[2]] > 0, (tables[:, list(RIMS)] > 0).all(1))


def test_the_loss_is_0_for_what_is_right_and_sure(anatomies):
    _, shares = images_of(anatomies, PLAIN).batch([0, 1], 0)
    right = F.one_hot(shares.argmax(1), len(NAMES)).movedim(-1, 1).half()
    assert float(structures.structure_loss(100 * right, right)) == pytest.approx(0, abs=1e-5)
    unsure = float(structures.structure_loss(torch.zeros(right.shape), right))
    assert math.log(len(NAMES)) + 0.5 < unsure < math.log(len(NAMES)) + 1
    assert float(structures.structure_loss(100 * right.roll(1, 1), right)) > 50


def test_dice_leaves_out_what_is_nowhere_and_its_mean_what_is_too_easy():
    truth = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    truth[:, 0], truth[:, 1], truth[:, 2] = 4, 5, NAMES.index("cortex")
    guess = truth.clone()
    guess[:, 0, :2] = 6
    logits = F.one_hot(guess, len(NAMES)).movedim(-1, 1).float()
    dice = structures.structure_dice(lambda image: logits, [(torch.zeros(1, 1, 4, 4, 4), truth)])
    assert dice == pytest.approx({NAMES[4]: 2 / 3, NAMES[5]: 1.0, NAMES[6]: 0.0, "cortex": 1.0})
    assert structures.mean_dice(dice) == pytest.approx(5 / 9)
    assert math.isnan(structures.mean_dice({}))


def tiny(folder: Path, labels: Path | None = None, **given) -> structures.StructureTraining:
    """A smoke run, shorter still: 8 steps of images of 16 mm, a checkpoint at each."""
    small = {"steps": 8, "shrink": 8, "widths": (4, 6), "look_every": 3, "save_seconds": 0.0}
    return smoke(folder, labels, **{**small, **given})


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / structures.LOG).open(newline="") as stream:
        return [{**row, "seconds": ""} for row in csv.DictReader(stream)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    structures.run(tiny(folder), note=silent)
    return folder


def test_a_few_steps_lower_the_loss(tmp_path):
    rows = []
    structures.run(smoke(tmp_path, steps=25), report=rows.append, note=silent)
    losses = [row["loss"] for row in rows]
    assert len(losses) == 25 and sum(losses[-5:]) < 0.95 * sum(losses[:5])


def test_the_log_has_a_row_a_report_and_dice_where_validated(whole):
    rows = rows_of(whole)
    assert [row["step"] for row in rows] == [str(n) for n in range(1, 9)]
    assert [row["step"] for row in rows if row["dice"]] == ["3", "6", "8"]
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in NAMES[1:] if row[name])
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) == pytest.approx(2e-3) and rates[1:] == sorted(rates[1:], reverse=True) and rates[-1] < 2e-4


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 4, 8])
def test_a_run_stopped_at_any_step_ends_like_an_uninterrupted_one(tmp_path, whole, killed_at):
    def cut(row):
        if row["step"] == killed_at:
            raise PowerCut

    with pytest.raises(PowerCut):
        structures.run(tiny(tmp_path), report=cut, note=silent)
    notes: list[str] = []
    structures.run(tiny(tmp_path), note=notes.append)
    assert notes == ([f"Going on after step {killed_at - 1} of 8."] if killed_at > 1 else [])
    assert rows_of(tmp_path) == rows_of(whole)
    ours, theirs = (load_file(folder / structures.WEIGHTS) for folder in (tmp_path, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_rows_are_means_since_the_row_before_and_a_finished_run_gives_its_weights_again(tmp_path, whole):
    sparse = tiny(tmp_path, report_every=4, look_every=100)
    structures.run(sparse, note=silent)
    rows, steps = rows_of(tmp_path), rows_of(whole)
    assert [row["step"] for row in rows] == ["4", "8"]
    mean = sum(float(row["loss"]) for row in steps[:4]) / 4
    assert float(rows[0]["loss"]) == pytest.approx(mean, rel=1e-5)
    (tmp_path / structures.WEIGHTS).unlink()
    dice = structures.run(sparse, note=silent)
    assert dice and dice == structures.run(tiny(whole), note=silent)
    assert load_structures(tmp_path / structures.WEIGHTS).widths == (4, 6)


def test_another_run_is_not_continued(tmp_path):
    structures.run(tiny(tmp_path, steps=1), note=silent)
    for change, words in (
        ({"seed": 5}, "seed 0, not 5"),
        ({"steps": 2}, "steps 1, not 2"),
        ({"widths": (4, 8)}, "other widths"),
    ):
        with pytest.raises(InputError, match=words):
            structures.run(tiny(tmp_path, **{"steps": 1, **change}), note=silent)
    torch.save({"format": "regmamba training 2"}, tmp_path / structures.CHECKPOINT)
    with pytest.raises(InputError, match="no checkpoint of this kind"):
        structures.run(tiny(tmp_path, steps=1), note=silent)
    (tmp_path / structures.CHECKPOINT).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        structures.run(tiny(tmp_path, steps=1), note=silent)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(tmp_path, monkeypatch):
    right, calls = structures.structure_loss, []

    def wrong(logits, shares):
        calls.append(1)
        return right(logits, shares) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(structures, "structure_loss", wrong)
    with pytest.raises(structures.TrainingDivergedError, match="not finite within steps 3 to 3"):
        structures.run(tiny(tmp_path), note=silent)
    assert torch.load(tmp_path / structures.CHECKPOINT)["progress"]["steps"] == 2
    assert load_structures(tmp_path / structures.WEIGHTS).widths == (4, 6)
    assert len(rows_of(tmp_path)) == 2


def test_without_a_held_out_map_nothing_is_validated(tmp_path):
    assert structures.run(tiny(tmp_path, steps=2, held_out=0), note=silent) == {}
    assert not any(row["dice"] for row in rows_of(tmp_path))


def test_held_out_images_are_the_same_whatever_the_seed(tmp_path, anatomies):
    one, other = (structures._Run(tiny(tmp_path, seed=seed, held_out=2), anatomies, CPU) for seed in (0, 1))
    assert len(one.examples) == 2 and one.trained == 1
    for (image, truth), (same_image, same_truth) in zip(one.examples, other.examples, strict=True):
        assert torch.equal(image, same_image) and torch.equal(truth, same_truth)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"held_out": -1}, "held_out is -1"),
        ({"held_out": 3}, "leave at least one"),
        ({"seed": -1}, "seed is -1"),
        ({"device": "mps"}, "use cpu or cuda"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(tmp_path, given, words):
    with pytest.raises(InputError, match=words):
        structures.run(tiny(tmp_path / "run", **given), note=silent)
    assert not (tmp_path / "run").exists()


def test_the_command_trains_on_label_maps_stops_and_goes_on(tmp_path, capsys, monkeypatch):
    maps, folder = tmp_path / "maps", tmp_path / "run"
    maps.mkdir()
    for k in range(2):
        sitk.WriteImage(lps(head(k)), str(maps / f"head_{k}.nii.gz"))
    command = ["train-structures", str(maps), "-o", str(folder), "--smoke", "--steps", "3", "--device", "cpu"]
    monkeypatch.setattr(structures, "smoke", tiny)
    step = structures._Run._step

    def stopped_at_the_third(self, number):
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(structures._Run, "_step", stopped_at_the_third)
        assert main(command) == 130
    assert f"the same command goes on from the last checkpoint in {folder}" in capsys.readouterr().err
    assert main(command) == 0
    said = capsys.readouterr()
    assert "Going on after step 2 of 3." in said.err
    assert "step 3/3" in said.err and "validation Dice" in said.err
    assert "thalamus" in said.out and str(folder / structures.WEIGHTS) in said.out
    load_structures(folder / structures.WEIGHTS)
    card = json.loads(read_weights(folder / structures.WEIGHTS, FORMAT)[0]["card"])
    assert (card["steps"], card["batch"], card["seed"]) == (3, 2, 0)
    assert card["data"] == {"labels": "maps", "trained on": 1, "held out": ["head_1"], "voxel, mm": 16}
    assert set(card["validation Dice"]) <= set(NAMES[1:]) and "thalamus" in card["validation Dice"]


def test_the_smoke_command_needs_no_maps(tmp_path, capsys):
    assert main(["train-structures", "--smoke", "--steps", "4", "-o", str(tmp_path), "--device", "cpu"]) == 0
    assert "Loss " in capsys.readouterr().out
    assert load_structures(tmp_path / structures.WEIGHTS).widths == (8, 12, 16)
    card = json.loads(read_weights(tmp_path / structures.WEIGHTS, FORMAT)[0]["card"])
    assert card["data"]["labels"] == "made-up shapes"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "{}/run"], "--smoke without one"),
        (["{}"], "Give a folder for the run"),
        (["{}", "-o", "{}/run"], "Found 0 NIfTI label maps"),
        (["{}/nothing", "-o", "{}/run"], "Found 0 NIfTI label maps"),
        (["--smoke", "-o", "{}/run", "--held-out", "3"], "leave at least one"),
        (["--smoke", "-o", "{}/run", "--device", "abacus"], "Unknown device"),
        (["--smoke", "-o", "{}/file/run"], "Cannot write"),
    ],
)
def test_bad_arguments_are_one_line(tmp_path, capsys, arguments, words):
    (tmp_path / "file").write_text("")
    assert main(["train-structures", *(a.format(tmp_path) for a in arguments)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
