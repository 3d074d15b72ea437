"""Prediction in half types: as in float32 to a fraction of a voxel, and always finite."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import DATA, linear, made_grid, made_head

from RegMambaLib.errors import InputError
from RegMambaLib.networks import build_network
from RegMambaLib.registration.network import NETWORK_SPACING, load_weights

HALF = ("bfloat16", "float16")


def brightness(image):
    """(1, 1, k, j, i), axes as the weights know them, 0 to 1."""
    values = sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")).astype(np.float32)
    return torch.from_numpy(np.clip(values / np.percentile(values[values > 0], 99.5), 0, 1))[None, None]


def made_pair():
    grid = made_grid((40, 48, 40), (NETWORK_SPACING * 2,) * 3)
    turned = linear(turn=(4, 3, -5), shift=(3, -4, 2), shear=0.04)
    moved = made_head(grid, lambda points: points @ turned[:3, :3].T + turned[:3, 3])
    return brightness(moved), brightness(made_head(grid))


def brain_pair():
    paths = [DATA / "ixi_2mm" / f"IXI{number}_t1.nii.gz" for number in ("014", "034")]
    if not all(path.is_file() for path in paths):
        pytest.skip("the IXI brains are not in REGMAMBA_TEST_DATA")
    return [brightness(sitk.ReadImage(str(path))) for path in paths]


# torch's float16 convolutions are slow on the CPU: brains in bfloat16 only, which is the coarser of the two.
@pytest.mark.parametrize(("pair", "dtype"), [(made_pair, "bfloat16"), (made_pair, "float16"), (brain_pair, "bfloat16")])
def test_the_shipped_network_in_half_types_stays_within_a_twentieth_of_a_millimetre(pair, dtype):
    network, images = load_weights("brain-t1"), pair()
    exact, _ = network.predict(*images)
    found, _ = network.predict(*images, dtype=dtype)
    assert found.dtype == torch.float32 and exact.abs().max() > 1
    difference = NETWORK_SPACING * (found - exact).norm(dim=1)
    assert 0 < difference.mean() <= 0.05


@pytest.mark.parametrize("dtype", ("float32", *HALF))
def test_constant_and_huge_images_give_finite_displacements(dtype):
    noise = torch.rand(1, 1, 16, 15, 14, generator=torch.Generator().manual_seed(1))
    flat = torch.ones_like(noise)
    pairs = [(0 * flat, 0 * flat), (flat, flat), (noise, flat), (1e30 * flat, 1e-30 * noise)]
    pairs += [(scale * noise, scale * noise.flip(2)) for scale in (1e-30, 1e6, 1e30)]
    moving, fixed = (torch.cat(side) for side in zip(*pairs, strict=True))
    assert torch.isfinite(load_weights("brain-t1").predict(moving, fixed, dtype=dtype)[0]).all()


@pytest.mark.parametrize("dtype", HALF)
def test_uncertainty_in_half_types_is_that_of_float32(dtype):
    torch.manual_seed(0)
    network = build_network(channels=(4, 6, 8))
    for head in network.heads:
        torch.nn.init.normal_(head.weight, std=0.05)
    images = torch.rand(2, 1, 1, 8, 8, 8)
    exact, found = (network.predict(*images, samples=3, seed=2, dtype=name)[1] for name in ("float32", dtype))
    assert found.dtype == torch.float32
    assert 0 < (found - exact).abs().mean() <= 0.1 * exact.mean()


def test_an_unknown_type_is_refused():
    images = torch.rand(2, 1, 1, 8, 8, 8)
    with pytest.raises(InputError, match="choose from float32, bfloat16, float16"):
        build_network(channels=(4, 6)).predict(*images, dtype="int8")
