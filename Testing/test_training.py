"""Synthetic pairs, validation and the training loop on tiny made-up brains and a tiny network."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import SimpleITK as sitk  # noqa: E402

from RegMambaLib.errors import InputError  # noqa: E402
from RegMambaLib.evaluation import overlap as overlap_of  # noqa: E402
from RegMambaLib.training import anatomy, synthetic, trainer, validation  # noqa: E402

# Boxes (S, P, L) in a map of 4 mm voxels: a cerebrum with structures inside, CSF around it, skin outside.
BOXES = {
    516: ((2, 38), (2, 46), (2, 38)),
    24: ((4, 36), (4, 44), (4, 36)),
    3: ((12, 34), (6, 42), (20, 34)),
    42: ((12, 34), (6, 42), (6, 20)),
    2: ((14, 32), (8, 40), (20, 32)),
    41: ((14, 32), (8, 40), (8, 20)),
    10: ((19, 22), (23, 27), (21, 25)),
    49: ((19, 22), (23, 27), (15, 19)),
    12: ((17, 20), (17, 21), (25, 28)),
    51: ((17, 20), (17, 21), (12, 15)),
    11: ((21, 24), (15, 19), (22, 25)),
    50: ((21, 24), (15, 19), (15, 18)),
    17: ((14, 16), (23, 28), (25, 28)),
    53: ((14, 16), (23, 28), (12, 15)),
    8: ((6, 11), (30, 40), (20, 28)),
    47: ((6, 11), (30, 40), (12, 20)),
    16: ((5, 13), (25, 29), (18, 22)),
}


def head(shift: int = 0) -> np.ndarray:
    labels = np.zeros((40, 48, 40), np.int32)
    for label, box in BOXES.items():
        moved = [(lo + shift * (label in (12, 51, 2)), hi) for lo, hi in box]
        labels[tuple(slice(lo, hi) for lo, hi in moved)] = label
    return labels


@pytest.fixture(scope="module")
def brains() -> list[anatomy.Anatomy]:
    return [anatomy.place_anatomy(head(k), f"made_up_{k}") for k in range(2)]


SETTINGS = trainer.TrainingSettings(
    steps=6,
    warm_up=1,
    learning_rate=2e-2,
    average=0.0,
    smoothness=0.1,
    stages=(trainer.Stage(0.5, (16, 20, 16), 10.0), trainer.Stage(1.0, (20, 24, 20), 8.0)),
    validate_every=3,
    save_every=2,
)


class TinyNetwork(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv3d(2, 8, 3, padding=1)
        self.last = torch.nn.Conv3d(8, 3, 3, padding=1)

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(torch.cat([moving, fixed], dim=1))))


def test_brain_lands_in_the_common_frame_without_skin(brains):
    labels = brains[0].labels
    assert labels.shape == anatomy.FRAME_SHAPE and labels.dtype == np.uint8
    kept = {int(v) for v in np.unique(labels)}
    outside_csf = {anatomy.SULCAL_CSF, anatomy.RIM_NEAR, anatomy.RIM_MIDDLE, anatomy.RIM_FAR}
    assert kept - outside_csf == set(BOXES) - {24, 516} | {0}
    cerebrum = np.argwhere(np.isin(labels, (2, 3, 41, 42)))
    centre = cerebrum.mean(axis=0) - (np.array(anatomy.FRAME_SHAPE) - 1) / 2
    np.testing.assert_allclose(centre, (11.4, 0.2, 0.0), atol=1.5)
    np.testing.assert_allclose(cerebrum.std(axis=0), (28.1, 42.5, 36.1), atol=1.5)


def test_pose_and_size_of_the_head_do_not_matter(brains):
    turned = np.zeros((70, 70, 70), np.int32)
    turned[10:50, 5:53, 20:60] = head()
    again = anatomy.place_anatomy(turned, "shifted").labels
    assert (again == brains[0].labels).mean() > 0.99


def test_map_without_known_structures_is_refused():
    with pytest.raises(InputError, match="FreeSurfer"):
        anatomy.place_anatomy(np.ones((8, 8, 8), np.int32), "ones")


def test_label_maps_are_read_in_any_orientation(tmp_path, brains):
    for k in range(2):
        image = sitk.DICOMOrient(lps(head(k)), "RAI" if k else "ASL")
        sitk.WriteImage(image, str(tmp_path / f"head_{k}.nii.gz"))
    read = anatomy.load_anatomies(tmp_path)
    assert [a.name for a in read] == ["head_0", "head_1"]
    assert all((a.labels == b.labels).all() for a, b in zip(read, brains, strict=True))
    (tmp_path / "head_1.nii.gz").unlink()
    with pytest.raises(InputError, match="at least two"):
        anatomy.load_anatomies(tmp_path)


def lps(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((4.0, 4.0, 4.0))
    # Array axes (S, P, L): ITK's x runs to the left, y to the back, z up.
    return image


def pair(brains, seed: int = 0, **changes) -> synthetic.Pair:
    settings = replace(synthetic.SyntheticSettings(), **changes)
    return synthetic.random_pair(
        brains, np.random.default_rng(seed), shape=(20, 24, 22), spacing=8.0, settings=settings
    )


def test_pairs_depend_on_the_seed_alone(brains):
    one, same, other = pair(brains), pair(brains), pair(brains, seed=1)
    assert (one.fixed == same.fixed).all() and (one.moving == same.moving).all()
    assert (one.fixed_labels == same.fixed_labels).all()
    assert (one.fixed != other.fixed).any()


def test_images_look_like_stripped_t1(brains):
    one = pair(brains, grey=(0.6, 0.6), csf=(0.1, 0.1), noise=(0, 0), gamma=0.0)
    for image, labels in ((one.fixed, one.fixed_labels), (one.moving, one.moving_labels)):
        assert image.shape == labels.shape == (20, 24, 22)
        assert image.dtype == np.float32 and labels.dtype == np.uint8
        assert image.min() == 0 and image.max() == 1 and np.isfinite(image).all()
        white, grey = image[np.isin(labels, (2, 41))].mean(), image[np.isin(labels, (3, 42))].mean()
        assert white > grey + 0.1 > 0.3
        assert image[labels == 0].mean() < 0.05


def test_without_randomness_the_brain_is_shown_as_it_is(brains):
    still = dict.fromkeys(
        (
            "pose_rotation",
            "pose_shift",
            "rotation",
            "scaling",
            "shear",
            "shift",
            "coarse_bend",
            "fine_bend",
            "structure_spread",
            "gamma",
        ),
        0.0,
    )
    one = pair(brains, **still)
    # 8 mm voxels of the centred grid fall on the voxels 79.5 + 8 k of the frame, half way between two.
    candidates = [brains[k].labels[4:160:8, 4:192:8, 0:160:8] for k in range(2)]
    inside = one.fixed_labels[:, :, 1:21]
    assert max((inside == c).mean() for c in candidates) > 0.9


def test_learning_rate_rises_then_falls():
    settings = trainer.TrainingSettings(steps=100, warm_up=10, learning_rate=1.0, last_rate=0.1)
    rates = [trainer.learning_rate(settings, k) for k in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.1, abs=0.01)


def test_loss_falls_on_one_pair(brains):
    network = TinyNetwork()
    one = trainer.pair_at(brains, 0, SETTINGS, synthetic.SyntheticSettings())
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-2)
    losses = []
    for _ in range(25):
        loss, parts = trainer.pair_loss(network, one, replace(SETTINGS, dice=0.5), 0, torch.device("cpu"))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.02
    assert 0 < parts["dice"] < 1


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_resumed_run_ends_like_an_uninterrupted_one(tmp_path, brains):
    whole, parts = TinyNetwork(), TinyNetwork()
    trainer.train(whole, brains, tmp_path / "whole", SETTINGS)

    class PowerCut(Exception):
        pass

    def cut(_network, done):
        if done == 4:
            raise PowerCut

    with pytest.raises(PowerCut):
        trainer.train(parts, brains, tmp_path / "parts", SETTINGS, on_save=cut)
    restarted = TinyNetwork()
    trainer.train(restarted, brains, tmp_path / "parts", SETTINGS)
    for a, b in zip(whole.parameters(), restarted.parameters(), strict=True):
        assert torch.equal(a, b)
    assert [r["loss"] for r in rows_of(tmp_path / "whole")] == [r["loss"] for r in rows_of(tmp_path / "parts")]
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(InputError, match="seed"):
        trainer.train(TinyNetwork(), brains, tmp_path / "parts", replace(SETTINGS, seed=5))


def test_average_of_the_weights_is_what_is_handed_out(tmp_path, brains):
    network, seen = TinyNetwork(), []
    before = network.last.weight.detach().clone()
    settings = replace(SETTINGS, average=0.9, steps=2)
    trainer.train(network, brains, tmp_path, settings, on_save=lambda n, _: seen.append(n.last.weight.detach().clone()))
    assert torch.equal(seen[-1], network.last.weight) and not torch.equal(before, network.last.weight)


def test_training_stops_at_the_first_nan(tmp_path, brains):
    network = TinyNetwork()
    with torch.no_grad():
        network.last.bias.fill_(float("nan"))
    with pytest.raises(trainer.TrainingDivergedError, match="step 0"):
        trainer.train(network, brains, tmp_path, SETTINGS)
    assert not (tmp_path / "checkpoint.pt").exists()


class Still(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 3, *moving.shape[2:]) + self.weight


def test_validation_reads_pairs_and_scores_the_warped_labels(tmp_path):
    labels = head() % 500
    for name, k in (("a", 0), ("b", 1)):
        sitk.WriteImage(lps(np.roll(labels, k, 0).astype(np.uint8)), str(tmp_path / f"{name}_labels.nii.gz"))
        sitk.WriteImage(lps(np.roll(labels, k, 0).astype(np.float32)), str(tmp_path / f"{name}.nii.gz"))
    table = tmp_path / "pairs.csv"
    table.write_text("fixed,moving,fixed_labels,moving_labels\na.nii.gz,b.nii.gz,a_labels.nii.gz,b_labels.nii.gz\n")
    pairs = validation.load_validation_pairs(table)
    overlap = overlap_of.dice(labels, np.roll(labels, 1, 0))
    ((dice, folds),) = validation.validate(Still(), pairs)
    assert dice == pytest.approx(np.mean(list(overlap.values()))) and folds == 0
    table.write_text("fixed,moving,fixed_labels,moving_labels\na.nii.gz,c.nii.gz,a_labels.nii.gz,b_labels.nii.gz\n")
    with pytest.raises(InputError, match="not there"):
        validation.load_validation_pairs(table)
    table.write_text("fixed,moving\na.nii.gz,b.nii.gz\n")
    with pytest.raises(InputError, match="columns"):
        validation.load_validation_pairs(table)


def test_command_trains_and_writes_weights_that_load(tmp_path):
    typer_testing = pytest.importorskip("typer.testing")
    import typer

    from RegMambaLib.networks import load_network, read_card
    from RegMambaLib.training.pretrain import pretrain

    for k in range(2):
        sitk.WriteImage(lps(head(k)), str(tmp_path / f"head_{k}.nii.gz"))
    app = typer.Typer()
    app.command()(pretrain)
    places = [
        "--labels",
        str(tmp_path),
        "--out",
        str(tmp_path / "w.safetensors"),
        "--work",
        str(tmp_path / "run"),
    ]
    options = ["--steps", "1", "--network-options", '{"channels": [2, 2]}', "--note", "made up"]
    result = typer_testing.CliRunner().invoke(app, places + options, catch_exceptions=False)
    assert result.exit_code == 0
    assert load_network(tmp_path / "w.safetensors").config.channels == (2, 2)
    card = read_card(tmp_path / "w.safetensors")
    assert card["steps"] == 1 and card["note"] == "made up"
    with pytest.raises(InputError, match="JSON"):
        typer_testing.CliRunner().invoke(app, [*places, "--network-options", "channels"], catch_exceptions=False)
