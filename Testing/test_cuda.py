"""On a CUDA device the whole registration gives what the CPU gives; without one, or with a bad one, the CPU does it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import made_grid, made_head

from RegMambaLib import Settings, register
from RegMambaLib.registration import device, network, pipeline, warmup

HEAD = made_grid((24, 26, 22), (6.0, 6.0, 6.0))
QUICK = {"affine": "none", "weights": "none", "iterations": (2,)}


@pytest.fixture
def broken_card(monkeypatch):
    """A card that torch sees; on machines that have none, computing on it raises."""
    device._cuda_works.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield
    device._cuda_works.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the card here works")
def test_a_card_that_cannot_compute_is_left_alone_with_a_warning(broken_card):
    with pytest.warns(UserWarning, match="graphics card cannot be used"):
        result = register(made_head(HEAD), made_head(HEAD, shifted), settings=Settings(**QUICK))
    assert result.details["device"] == "cpu"


def test_a_card_without_room_leaves_the_work_to_the_cpu(monkeypatch):
    devices, refine = [], pipeline.refine

    def full(*given, device, **more):
        devices.append(device)
        if device != "cpu":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return refine(*given, device=device, **more)

    monkeypatch.setattr(pipeline, "refine", full)
    monkeypatch.setattr(pipeline, "find_device", lambda name: "cuda" if name == "auto" else name)
    images = made_head(HEAD), made_head(HEAD, shifted)
    with pytest.warns(UserWarning, match="not enough memory"):
        result = register(*images, settings=Settings(**QUICK))
    assert devices == ["cuda", "cpu"] and result.details["device"] == "cpu"
    with pytest.raises(torch.cuda.OutOfMemoryError):  # it was asked for
        register(*images, settings=Settings(**QUICK, device="cuda"))


def test_a_card_without_room_is_not_needed_to_load_the_kernels(monkeypatch):
    devices = []

    def full(settings, device):
        devices.append(device)
        if device != "cpu":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(warmup, "_load_kernels", full)
    monkeypatch.setattr(device, "find_device", lambda name: "cuda")
    warmup.load_kernels(Settings())
    assert devices == ["cuda", "cpu"]
    with pytest.raises(torch.cuda.OutOfMemoryError):
        warmup.load_kernels(Settings(device="cuda"))


def shifted(points):
    return np.add(points, (4.0, -3.0, 2.0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("device", [f"cuda:{n}" for n in range(torch.cuda.device_count())])
@pytest.mark.parametrize("metric", ["lncc", "mind"])
def test_a_registration_on_a_card_equals_that_on_the_cpu(device, metric):
    grid = made_grid((48, 52, 44), (3.0, 3.0, 3.0))
    fixed = made_head(grid)
    moving = made_head(grid, lambda points: points + 4 * np.sin(np.roll(points, 1, axis=1) / 25))
    settings = {"affine": "none", "weights": "brain-t1", "metric": metric}
    there = register(fixed, moving, settings=Settings(device=device, **settings))
    here = register(fixed, moving, settings=Settings(device="cpu", **settings))
    assert there.details["network_used"] == here.details["network_used"]
    difference = np.linalg.norm(there.displacement - here.displacement, axis=0)
    assert np.median(difference) < 0.02 and np.quantile(difference, 0.99) < 0.3
    assert there.jacobian.min() > 0


def test_the_network_is_asked_with_cudnn_on_and_without_tf32():
    asked = []

    class Network(torch.nn.Module):
        def predict(self, moving, fixed):
            asked.append((torch.backends.cudnn.enabled, torch.backends.cudnn.allow_tf32))
            return torch.zeros(1, 3, *fixed.shape[2:]), None

    network.predict(Network(), *np.ones((2, 4, 5, 6), np.float32))
    assert asked == [(True, False)]
