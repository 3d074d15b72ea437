"""The Triton kernels against the torch reference in float64. test_scan_triton.py runs this file in a process of its
own, since Triton decides at its first import whether it interprets: in the interpreter (TRITON_INTERPRET=1), which is
slow, hence the sizes; and on the GPU where there is one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_scan import CASES, scan_inputs, values_and_gradients

from RegMambaLib.scan import TRAVERSALS, available_backends, causal_conv1d, selective_scan, triton_backend

INTERPRETED = triton_backend.interpreted()
DEVICE = "cpu" if INTERPRETED else "cuda"
SMALL_CASES = {
    "several traversals, shared u": (1, ("whd+", "dwh-", "hdw-"), (2, 3, 2), 3, 2, True),
    "two images, channel blocks, padded states": (2, ("dhw-",), (3, 1, 3), 5, 3, False),
    "one token": (1, ("hwd-",), (1, 1, 1), 3, 1, False),
    "chunks exactly full": (1, ("wdh+",), (2, 2, 4), 4, 4, False),
}


# In the interpreter few tokens must do for several tiles, chunks, spans and channel blocks; on the GPU fewer states a
# lane compile faster.
PIECES = {"STATES": 8, "STATES_BACK": 4}
if INTERPRETED:
    PIECES |= {"CARRY_UNROLL": 2, "WIDEST": 4, "SPAN": 2, "UNROLL_BACK": 2}


@pytest.fixture(autouse=True)
def small_pieces(request, monkeypatch):
    """But for tests marked `as_it_is`."""
    if "as_it_is" not in request.keywords:
        for name, size in PIECES.items():
            monkeypatch.setattr(triton_backend, name, size)


def assert_agrees(function, tensors, tolerance=1e-5 if INTERPRETED else 1e-4, **options):
    """Value and gradients within `tolerance` of the largest element of those of torch in float64 (on the GPU, whose
    exponential is approximate, ten times that of the interpreter)."""
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    expected = values_and_gradients(function, exact, **options, backend="torch")
    found = values_and_gradients(
        function, {name: tensor.to(DEVICE) for name, tensor in tensors.items()}, **options, backend="triton"
    )
    for name, value in expected.items():
        error = (found[name].cpu().double() - value).abs().max()
        assert error <= tolerance * value.abs().max() + 1e-7, (name, error.item())


@pytest.mark.parametrize("case", (SMALL_CASES if INTERPRETED else CASES).values(), ids=str)
def test_the_scan_equals_the_reference(case):
    batch, traversals, shape, channels, states, shared = case
    tensors = scan_inputs(batch, traversals, shape, channels, states, shared)
    assert_agrees(selective_scan, tensors, delta_softplus=True, shape=shape, traversals=traversals)


@pytest.mark.as_it_is
@pytest.mark.skipif(INTERPRETED, reason="slow in the interpreter")
def test_a_scan_as_the_networks_run_it_equals_the_reference():
    traversals, shape = ("hwd+", "whd-", "dhw-"), (12, 14, 10)
    tensors = scan_inputs(1, traversals, shape, 32, 8, optional=("D", "delta_bias"))
    assert_agrees(selective_scan, tensors, delta_softplus=True, shape=shape, traversals=traversals)


def test_sums_over_more_lanes_than_there_are_sums_equal_the_reference(monkeypatch):
    for name, size in {"WIDEST": 32, "STATES_BACK": 1}.items():  # 16 lanes with a channel each
        monkeypatch.setattr(triton_backend, name, size)
    tensors = scan_inputs(1, ("whd-",), (2, 3, 3), 16, 1)
    assert_agrees(selective_scan, tensors, delta_softplus=True, shape=(2, 3, 3), traversals=("whd-",))


@pytest.mark.parametrize("optional", [(), ("D",), ("z",), ("delta_bias",)])
def test_optional_inputs_can_be_left_out(optional):
    tensors = scan_inputs(1, ("hwd+",), (1, 1, 5), 2, 1, optional=optional)
    for name in {"delta", "delta_bias"} & tensors.keys():
        tensors[name] = tensors[name].abs()  # without softplus a negative step would let the state explode
    assert_agrees(selective_scan, tensors)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e4])
def test_constant_and_huge_inputs_agree_and_stay_finite(scale):
    tensors = scan_inputs(1, ("hwd+",), (1, 1, 5), 2, 2)
    tensors["u"] = torch.full_like(tensors["u"], scale)
    tensors["delta"] = tensors["delta"] * scale
    tensors["z"] = tensors["z"] * scale
    assert_agrees(selective_scan, tensors, delta_softplus=True)


def test_steps_that_softplus_makes_tiny_keep_their_digits():
    tensors = scan_inputs(1, ("hwd+",), (1, 1, 5), 2, 2, optional=())
    tensors["delta"] -= 15  # 3e-7, of which log(1 + e^x) in float32 keeps no digit
    assert_agrees(selective_scan, tensors, delta_softplus=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_their_type_and_a_float32_state(dtype):
    tensors = {name: value.to(dtype) for name, value in scan_inputs(1, ("hwd-",), (1, 2, 3), 2, 2).items()}
    for name in ("A", "D", "delta_bias"):
        tensors[name] = tensors[name].float()  # as under autocast, where parameters stay as they are
    options = {"delta_softplus": True, "shape": (1, 2, 3), "traversals": ("hwd-",)}
    exact = values_and_gradients(
        selective_scan, {name: value.double() for name, value in tensors.items()}, **options, backend="torch"
    )
    found = values_and_gradients(
        selective_scan, {name: value.to(DEVICE) for name, value in tensors.items()}, **options, backend="triton"
    )
    assert found["y"].dtype == dtype
    for name, value in exact.items():
        rounded = 2 * torch.finfo(dtype).eps  # of the result, and of the gradient that comes in
        assert found[name].dtype == (tensors[name].dtype if name in tensors else dtype)
        assert (found[name].cpu().double() - value).abs().max() <= rounded * value.abs().max(), name


@pytest.mark.parametrize("case", CASES.values(), ids=str)
def test_the_convolution_equals_the_reference(case):
    batch, traversals, shape, channels, states, shared = case
    groups = len(traversals)
    torch.manual_seed(2)
    tensors = {
        "x": torch.randn(batch, 1 if shared else groups, int(np.prod(shape)), channels),
        "weight": torch.randn(groups, channels, 4),
        "bias": torch.randn(groups, channels),
    }
    options = {"shape": shape, "traversals": traversals}
    assert_agrees(causal_conv1d, tensors, **options)
    del tensors["bias"]
    if states == 1:
        assert_agrees(causal_conv1d, tensors, **options, activation=None)


def test_a_convolution_over_several_blocks_of_tokens_equals_the_reference(monkeypatch):
    monkeypatch.setattr(triton_backend, "CONV_TILE", 16)
    tensors = {"x": torch.randn(1, 2, 30, 3), "weight": torch.randn(2, 3, 2), "bias": torch.randn(2, 3)}
    assert_agrees(causal_conv1d, tensors, shape=(2, 5, 3), traversals=("whd-", "hdw+"))


def test_gradients_repeat_to_the_last_bit():
    tensors = {name: value.to(DEVICE) for name, value in scan_inputs(1, ("dwh-",), (2, 1, 3), 5, 2).items()}
    options = {"delta_softplus": True, "shape": (2, 1, 3), "traversals": ("dwh-",), "backend": "triton"}
    first, second = (values_and_gradients(selective_scan, tensors, **options) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gradients_are_right_where_the_result_is_used_transposed():
    weights, found = torch.linspace(-1, 1, 2 * 30 * 3).view(1, 30, 2, 3), {}
    for backend, device in (("torch", "cpu"), ("triton", DEVICE)):
        torch.manual_seed(3)
        x, weight = torch.randn(1, 2, 30, 3), torch.randn(2, 3, 4)
        x, weight = x.to(device).requires_grad_(), weight.to(device).requires_grad_()
        y = causal_conv1d(x, weight, shape=(2, 5, 3), traversals=("whd-", "hdw+"), backend=backend)
        (y.transpose(1, 2) * weights.to(device)).sum().backward()
        found[backend] = x.grad.cpu(), weight.grad.cpu()
    for ours, theirs in zip(found["triton"], found["torch"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_call_in_inference_mode_leaves_gradients_possible():
    tensors = {name: value.to(DEVICE) for name, value in scan_inputs(1, ("hdw-",), (1, 2, 3), 2, 2).items()}
    options = {"shape": (1, 2, 3), "traversals": ("hdw-",), "backend": "triton"}
    with torch.inference_mode():
        selective_scan(**tensors, **options)
    values_and_gradients(selective_scan, tensors, **options)


def test_the_check_notices_wrong_numbers(monkeypatch):
    triton_backend.check(torch.device(DEVICE))
    monkeypatch.setattr(triton_backend, "causal_conv1d", lambda x, weight, *rest: 0 * x)
    with pytest.raises(RuntimeError, match="differ"):
        triton_backend.check(torch.device(DEVICE))


def test_all_traversals_run_in_one_launch(monkeypatch):
    launches = []
    run = triton_backend._Work.run
    monkeypatch.setattr(triton_backend._Work, "run", lambda *given, **named: launches.append(run(*given, **named)))
    names = tuple(TRAVERSALS)
    tensors = {name: value.to(DEVICE) for name, value in scan_inputs(1, names, (1, 1, 2), 1, 1).items()}
    selective_scan(**tensors, shape=(1, 1, 2), traversals=names, backend="triton")
    assert len(launches) == 2  # to the states that enter the chunks, and through


def test_the_backend_is_offered():
    assert available_backends()["triton"] is None


@pytest.mark.skipif(not INTERPRETED, reason="the GPU takes the Triton kernels of its own accord")
def test_interpreted_kernels_are_never_chosen_unasked(monkeypatch):
    monkeypatch.delattr(triton_backend, "selective_scan")
    tensors = scan_inputs(1, ("hwd+",), (1, 1, 4), 2, 1)
    assert selective_scan(**tensors).shape == (1, 1, 4, 2)
