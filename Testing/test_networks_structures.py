"""The network that recognises brain structures: sizes, files, and what it refuses."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")
import torch
from safetensors.torch import load_file, save_file

from RegMambaLib.errors import InputError
from RegMambaLib.networks import build_network, save_network
from RegMambaLib.networks.structures import (
    CLASSES,
    FORMAT,
    NAMES,
    StructureNet,
    _to_channels,
    _to_voxels,
    load_structures,
    save_structures,
)
from RegMambaLib.networks.weights import read_weights


@pytest.fixture
def network():
    torch.manual_seed(0)
    return StructureNet((4, 6, 8)).eval()


@pytest.mark.parametrize(
    "size", [(1, 1, 1), (8, 8, 8), (7, 9, 5), (8, 8, 9), (16, 16, 16), (1, 1, 40), (19, 8, 17)], ids=str
)
@torch.no_grad()
def test_a_volume_of_any_size_gives_finite_logits_of_every_class(network, size):
    logits = network(torch.rand(2, 1, *size))
    assert logits.shape == (2, len(CLASSES), *size)
    assert logits.isfinite().all()


@torch.no_grad()
def test_the_shipped_widths_take_any_size_too():
    assert StructureNet().eval()(torch.rand(1, 1, 3, 4, 5)).shape == (1, 18, 3, 4, 5)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(network):
    images = torch.rand(3, 1, 16, 18, 12)
    apart = torch.cat([network(image[None]) for image in images])
    assert torch.allclose(network(images), apart, atol=1e-5)


def test_voxels_become_channels_and_voxels_again():
    volume = torch.rand(2, 3, 4, 6, 8)
    channels = _to_channels(volume)
    assert channels.shape == (2, 24, 2, 3, 4)
    assert torch.equal(channels[:, 8 + 5], volume[:, 1, 1::2, 0::2, 1::2])  # 5 = 1, 0, 1
    assert torch.equal(_to_voxels(channels), volume)


def test_no_label_belongs_to_two_classes():
    labels = [label for group in CLASSES.values() for label in group]
    assert len(labels) == len(set(labels)) and tuple(CLASSES) == NAMES


@torch.no_grad()
def test_a_saved_network_comes_back_in_half_precision(tmp_path, network):
    file = tmp_path / "structures.safetensors"
    save_structures(network, file, {"steps": 7})
    loaded = load_structures(file)
    assert loaded.widths == (4, 6, 8) and not loaded.training
    assert all(weight.dtype == torch.float32 for weight in loaded.state_dict().values())
    for name, weight in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.half().float())
    image = torch.rand(1, 1, 12, 13, 14)
    assert torch.allclose(loaded(image), network(image), atol=0.02)
    assert json.loads(read_weights(file, FORMAT)[0]["card"]) == {"steps": 7}


def test_weights_that_float16_cannot_hold_are_refused(tmp_path, network):
    with torch.no_grad():
        network.head.weight[0, 0] = 1e6
    with pytest.raises(InputError, match="not finite in float16"):
        save_structures(network, tmp_path / "structures.safetensors")
    assert not list(tmp_path.iterdir())


def test_files_of_another_kind_are_refused(tmp_path, network):
    with pytest.raises(InputError, match="no weight file"):
        load_structures(tmp_path / "nothing.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("no weights")
    with pytest.raises(InputError, match="cannot be read"):
        load_structures(text)
    other = tmp_path / "registration.safetensors"
    save_network(build_network("regmamba", channels=(4, 6)), other)
    with pytest.raises(InputError, match="of the kind needed here"):
        load_structures(other)


def test_damaged_files_are_refused(tmp_path, network):
    file, bad = tmp_path / "structures.safetensors", tmp_path / "bad.safetensors"
    save_structures(network, file)
    whole, tensors = file.read_bytes(), load_file(file)
    bad.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_structures(bad)
    header = {"format": FORMAT, "widths": "[4, 6, 8]"}
    fewer = {name: tensor for name, tensor in tensors.items() if name != "head.bias"}
    for given, said in (
        (fewer, header),
        (tensors, {**header, "widths": "[4, 6, 10]"}),
        (tensors, {**header, "widths": "[4, 6"}),
        (tensors, {**header, "widths": "6"}),
        (tensors, {"format": FORMAT}),
    ):
        save_file(given, str(bad), said)
        with pytest.raises(InputError, match="damaged"):
            load_structures(bad)
