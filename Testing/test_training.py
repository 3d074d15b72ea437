"""The training loop on made-up shapes and a tiny network: what it resumes, shares out, writes and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("lightning_fabric")
pytest.importorskip("yaml")
import torch
from fixtures.training_runs import TINY, rows_of, silent, tiny

from RegMambaLib.errors import InputError
from RegMambaLib.networks import load_network, read_card
from RegMambaLib.training import checkpoint, config, data, objective, trainer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    trainer.run(tiny(folder), note=silent)
    return folder


def same_curve(one: Path, other: Path) -> bool:
    parts = ("step", "size", "loss", "lncc", "diffusion", "gradient", "learning_rate")
    return [[r[p] for p in parts] for r in rows_of(one)] == [[r[p] for p in parts] for r in rows_of(other)]


def same_weights(one: Path, other: Path) -> bool:
    a, b = (torch.load(folder / checkpoint.CHECKPOINT)["average"] for folder in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_learning_rate_rises_then_falls_or_stays():
    settings = config.Optimiser(warm_up=10, learning_rate=1.0, last_rate=0.1)
    rates = [trainer.learning_rate(settings, k, 100) for k in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] == pytest.approx(0.1, abs=0.01)
    constant = replace(settings, schedule="constant")
    assert [trainer.learning_rate(constant, k, 100) for k in range(10, 100)] == [1.0] * 90


class PowerCut(Exception):
    pass


@pytest.mark.parametrize("killed_at", [1, 3, 4])
def test_a_run_stopped_at_any_step_ends_like_an_uninterrupted_one(tmp_path, whole, killed_at):
    def cut(row):
        if row["step"] == killed_at:
            raise PowerCut

    with pytest.raises(PowerCut):
        trainer.run(tiny(tmp_path), report=cut, note=silent)
    assert len(rows_of(tmp_path)) == killed_at
    trainer.run(tiny(tmp_path), note=silent)
    assert same_curve(whole, tmp_path) and same_weights(whole, tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_killed_process_goes_on_with_the_same_loss_curve(tmp_path, whole):
    script = (
        "import os, signal, sys; sys.path[:0] = sys.argv[3:]\n"
        "from pathlib import Path\n"
        "from fixtures.training_runs import silent, tiny; from RegMambaLib.training import trainer\n"
        "kill = lambda row: row['step'] == 3 and sys.argv[2] == 'kill' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "trainer.run(tiny(Path(sys.argv[1])), report=kill, note=silent)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), "kill", str(ROOT), str(ROOT / "Testing")]
    assert subprocess.run(command, check=False).returncode < 0
    assert [r["step"] for r in rows_of(tmp_path)] == ["1", "2", "3"]
    trainer.run(tiny(tmp_path), note=silent)
    assert same_curve(whole, tmp_path) and same_weights(whole, tmp_path)


def test_another_seed_or_network_does_not_continue_a_run_but_another_rate_does(tmp_path):
    trainer.run(tiny(tmp_path, "steps=2"), note=silent)
    with pytest.raises(InputError, match="seed 0, not 5"):
        trainer.run(tiny(tmp_path, "seed=5"), note=silent)
    with pytest.raises(InputError, match="another network"):
        trainer.run(tiny(tmp_path, "network.options={channels: [4, 8]}"), note=silent)
    notes: list[str] = []
    trainer.run(tiny(tmp_path, "steps=3", "optimiser.learning_rate=0.001"), note=notes.append)
    assert notes[0] == "Going on after step 2 of 3."
    assert "Changed: optimiser.learning_rate: 0.005 -> 0.001." in notes
    assert "after step 2: steps: 2 -> 3" in read_card(tmp_path / trainer.WEIGHTS)["changes"]
    (tmp_path / checkpoint.CHECKPOINT).write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        trainer.run(tiny(tmp_path), note=silent)


def test_blocks_computed_again_and_workers_leave_the_result_alone(tmp_path, whole):
    again = tiny(tmp_path, "hardware.gradient_checkpointing=true", "data.workers=3")
    trainer.run(again, note=silent)
    assert same_curve(whole, tmp_path) and same_weights(whole, tmp_path)


def test_bfloat16_comes_close_to_float32(tmp_path, whole):
    trainer.run(tiny(tmp_path, "hardware.precision=bf16-mixed"), note=silent)
    pairs = [(float(a["loss"]), float(b["loss"])) for a, b in zip(rows_of(whole), rows_of(tmp_path), strict=True)]
    assert all(a == pytest.approx(b, abs=0.02) for a, b in pairs) and any(a != b for a, b in pairs)


def test_a_batch_is_the_mean_of_its_pairs(tmp_path):
    trainer.run(tiny(tmp_path, "steps=1", "batch=2"), note=silent)
    settings = tiny(tmp_path, "steps=1", "batch=2")
    torch.manual_seed(settings.seed)
    both = objective.Objective(trainer.make_network(settings.network).train(), settings.losses, 2)
    losses = []
    for number in range(2):
        torch.manual_seed(number)
        losses.append(both(objective.tensors_of(data.load_pairs(settings).sample(number), torch.device("cpu")))[0])
    mean = torch.stack(losses).mean()
    assert float(rows_of(tmp_path)[0]["loss"]) == pytest.approx(float(mean.detach()), rel=1e-6)
    mean.backward()
    norm = torch.nn.utils.clip_grad_norm_(both.parameters(), settings.optimiser.clip)
    assert float(rows_of(tmp_path)[0]["gradient"]) == pytest.approx(float(norm), rel=1e-4)
    with pytest.raises(InputError, match="2 devices x 1 nodes"):
        os.environ["WORLD_SIZE"] = "3"
        try:
            trainer.make_fabric(replace(settings.hardware, devices=2))
        finally:
            del os.environ["WORLD_SIZE"]


def test_two_processes_give_the_gradient_of_one_with_the_whole_batch(tmp_path):
    """Adam's first moment after the first step is the gradient, times a tenth."""
    wanted = ("steps=1", "batch=2", "hardware.threads=1")
    trainer.run(tiny(tmp_path / "one", *wanted), note=silent)
    assignments = [a for text in (*TINY, *wanted, "hardware.devices=2") for a in ("--set", text)]
    command = [sys.executable, "-m", "RegMambaLib", "train", "smoke", "-o", str(tmp_path / "two"), *assignments]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    one, two = (torch.load(tmp_path / name / checkpoint.CHECKPOINT)["optimiser"]["state"] for name in ("one", "two"))
    assert any(one[k]["exp_avg"].abs().max() > 1e-5 for k in one)
    for k in one:
        torch.testing.assert_close(one[k]["exp_avg"], two[k]["exp_avg"], rtol=1e-4, atol=1e-8)
    assert float(rows_of(tmp_path / "one")[0]["loss"]) == pytest.approx(float(rows_of(tmp_path / "two")[0]["loss"]))


def test_the_average_of_the_weights_is_what_is_written(tmp_path):
    trainer.run(tiny(tmp_path, "steps=3", "optimiser.average=0.9", "logging.note=made up"), note=silent)
    state = torch.load(tmp_path / checkpoint.CHECKPOINT)
    written = load_network(tmp_path / trainer.WEIGHTS)
    assert written.config.channels == (4, 6)
    for name, value in written.state_dict().items():
        assert torch.equal(value, state["average"][name].half().float())
    assert any(not torch.equal(state["average"][name], state["network"][name]) for name in state["network"])
    card = read_card(tmp_path / trainer.WEIGHTS)
    assert card["steps"] == 3 and card["note"] == "made up" and card["contrast"] == "any"
    assert card["settings"]["output"] == tmp_path.name


def test_training_stops_at_the_first_nan_and_keeps_the_pair(tmp_path, monkeypatch):
    trainer.run(tiny(tmp_path, "steps=2"), note=silent)
    good = (tmp_path / checkpoint.CHECKPOINT).read_bytes()
    settings = tiny(tmp_path)
    clean = data.SyntheticSource.pair
    untouched = data.load_pairs(settings).sample(2).pair

    def broken(self, number):
        made = clean(self, number)
        return replace(made, moving=torch.full_like(made.moving, torch.nan)) if number == 2 else made

    monkeypatch.setattr(data.SyntheticSource, "pair", broken)
    with pytest.raises(trainer.TrainingDivergedError, match="step 3") as caught:
        trainer.run(settings, note=silent)
    kept = np.load(tmp_path / "diverged_step3_process0.npz")
    assert str(tmp_path / "diverged_step3_process0.npz") in str(caught.value)
    assert np.isnan(kept["moving_2"]).all()
    np.testing.assert_allclose(kept["fixed_2"], untouched.fixed.numpy(), atol=1e-5)
    assert (tmp_path / checkpoint.CHECKPOINT).read_bytes() == good


def test_tensorboard_holds_losses_and_pictures(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer.run(tiny(tmp_path, "steps=2", "logging.tensorboard=true", "validation.every=2"), note=silent)
    events = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx([float(r["loss"]) for r in rows_of(tmp_path)])
    assert [event.step for event in events.Images("example")] == [2]
