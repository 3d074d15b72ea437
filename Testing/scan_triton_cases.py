"""The Triton kernels against the torch reference in float64. test_scan_triton.py runs this file in a process of its
own, since Triton decides at its first import whether it interprets: in the interpreter (TRITON_INTERPRET=1), which is
slow, hence the sizes; and on the GPU where there is one.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from test_scan import CASES, scan_inputs, values_and_gradients

from RegMambaLib.scan import TRAVERSALS, available_backends, causal_conv1d, selection, selective_scan, triton_backend
from RegMambaLib.scan.triton_kernels import locate, read_cut, read_plan, share, upcoming

INTERPRETED = triton_backend.interpreted()
DEVICE = "cpu" if INTERPRETED else "cuda"
SMALL_CASES = {
    "several traversals, shared u": (1, ("whd+", "dwh-", "hdw-"), (2, 3, 2), 3, 2, True),
    "two images, channel blocks, padded states": (2, ("dhw-",), (3, 1, 3), 5, 3, False),
    "one token": (1, ("hwd-",), (1, 1, 1), 3, 1, False),
    "chunks exactly full": (1, ("wdh+",), (2, 2, 4), 4, 4, False),
}


# In the interpreter few tokens must do for several tiles, chunks, spans and channel blocks.
PIECES = {"CARRY_UNROLL": 2, "WIDEST": 4, "SPAN": 2, "UNROLL": 2} if INTERPRETED else {}


@pytest.fixture(autouse=True)
def small_pieces(request, monkeypatch):
    """But for tests marked `as_it_is`."""
    triton_backend._plans.cache_clear()  # chunks depend on the pieces
    if "as_it_is" not in request.keywords:
        for name, size in PIECES.items():
            monkeypatch.setattr(triton_backend, name, size)


@pytest.fixture
def launches(monkeypatch):
    """What `_Work.run` launches from here on: what it writes, and the tensors by name."""
    found, run = [], triton_backend._Work.run

    def record(work, kernel, writes, **tensors):
        found.append((writes, tensors))
        run(work, kernel, writes, **tensors)

    monkeypatch.setattr(selection, "_why_unusable", lambda *given: None)  # which launches too, the first time
    monkeypatch.setattr(triton_backend._Work, "run", record)
    return found


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
    monkeypatch.setattr(triton_backend, "WIDEST", 16)  # lanes with a channel each; sums for one state and two tokens
    tensors = scan_inputs(1, ("whd-",), (2, 3, 3), 16, 1)
    assert_agrees(selective_scan, tensors, delta_softplus=True, shape=(2, 3, 3), traversals=("whd-",))


def test_more_states_than_a_lane_has_several_channels_for_equal_the_reference():
    tensors = scan_inputs(1, ("dwh+",), (1, 3, 2), 2, triton_backend.LANE_ORDER + 1)
    assert_agrees(selective_scan, tensors, delta_softplus=True, shape=(1, 3, 2), traversals=("dwh+",))


@triton.jit
def visit(plans, chunks, length, LONGEST: tl.constexpr, UNROLL: tl.constexpr, visits, chunk_of, step_of, slot_of):
    """By direction and token: how many chunks come to it, the last one's number, its step there, and the chunk's slot.

    Tokens that come again after a chunk's end must be its last one: written there once more.
    """
    group = tl.program_id(2)
    cut, plan = read_cut(plans, group), read_plan(plans, group)
    number, _, begin, count, _ = share(cut, chunks, 1, 1)
    slot, spot = tl.program_id(0) * 32 + tl.arange(0, 32), locate(begin, plan)
    for at in tl.static_range(0, LONGEST, UNROLL):
        tokens, spot = upcoming(spot, at, 0, count - 1, plan, UNROLL)
        for i in tl.static_range(UNROLL):
            here = group * length + tokens[i]
            tl.atomic_add(visits + here, 1, mask=at + i < count)
            tl.store(chunk_of + here, number, mask=count > 0)
            tl.store(slot_of + here, slot, mask=count > 0)
            tl.store(step_of + here, tl.minimum(at + i, count - 1), mask=count > 0)


def visited(shape):
    """What `visit` writes along every traversal, (4, 12, L), and the cuts."""
    visits = tuple(TRAVERSALS.values())
    cuts, length = [triton_backend.Cut.of(shape, traversal) for traversal in visits], int(np.prod(shape))
    plans, _ = triton_backend._both_plans(shape, visits, torch.device(DEVICE))
    found = torch.zeros(4, len(visits), length, dtype=torch.int32, device=DEVICE)
    chunks, longest = max(cut.chunks for cut in cuts), max(cut.chunk for cut in cuts)
    visit[(triton.cdiv(chunks, 32), 1, len(visits))](plans, chunks, length, longest + 3, 3, *found)
    return found.cpu(), cuts


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1, 1, 1), 4),
        ((1, 1, 37), 8),
        ((37, 1, 1), 4),
        ((2, 19, 2), 4),
        ((60, 2, 2), 8),
        ((5, 6, 7), 4),
        ((3, 4, 9), 32),
    ],
)
def test_every_token_lies_in_exactly_one_chunk(monkeypatch, shape, wanted):
    for name in ("UNROLL", "LONGEST_CHUNK"):
        monkeypatch.setattr(triton_backend, name, wanted)
    (visits, chunk_of, step_of, _), cuts = visited(shape)
    assert (visits == 1).all()
    for traversal, cut, chunks, steps in zip(TRAVERSALS.values(), cuts, chunk_of, step_of, strict=True):
        tokens = traversal.arrange(torch.arange(len(steps)).view(1, -1, 1), shape).flatten()
        chunks, steps = chunks[tokens].long(), steps[tokens].long()
        follows = torch.where(chunks[1:] == chunks[:-1], steps[:-1] + 1, 0)
        assert chunks[0] == steps[0] == 0 and torch.equal(steps[1:], follows)
        assert set(chunks.diff().tolist()) <= {0, 1} and chunks[-1] == cut.chunks - 1
        assert steps.max() < cut.chunk <= wanted


def test_lines_that_lie_side_by_side_run_side_by_side(monkeypatch):
    monkeypatch.setattr(triton_backend, "UNROLL", 8)  # no chunk is shorter, so each is one line
    (_, _, steps, slots), cuts = visited((5, 6, 7))
    assert {cut.abreast for cut in cuts} == {True, False}
    for name, step, slot in zip(TRAVERSALS, steps.view(-1, 5, 6, 7), slots.view(-1, 5, 6, 7), strict=True):
        along_memory, slot_changes = step.diff(dim=-1), slot.diff(dim=-1)
        if name[2] == "d":
            assert (slot_changes == 0).all() and (along_memory.abs() == 1).all(), name
        else:
            assert (slot_changes.abs() == 1).all() and (along_memory == 0).all(), name


def test_the_forward_pass_marks_the_state_before_each_tile(monkeypatch, launches):
    cut = triton_backend.Cut(parts=2, part=9, chunk=5, abreast=True)
    monkeypatch.setattr(triton_backend.Cut, "of", lambda *given: cut)
    shape, name, unroll = (2, 3, 3), "whd-", triton_backend.UNROLL
    tensors = scan_inputs(1, (name,), shape, 3, 2)
    leaves = {key: tensor.to(DEVICE).requires_grad_() for key, tensor in tensors.items()}
    selective_scan(**leaves, delta_softplus=True, shape=shape, traversals=(name,), backend="triton")
    writes, given = launches[-1]
    u, delta, B = (TRAVERSALS[name].arrange(tensors[key][:, 0], shape)[0].double() for key in ("u", "delta", "B"))
    steps = torch.nn.functional.softplus(delta + tensors["delta_bias"].double())
    states = [torch.zeros(2, 3, dtype=torch.float64)]
    for x, step, b in zip(u, steps, B, strict=True):
        states.append(torch.exp(step * tensors["A"][0].double().T) * states[-1] + b[:, None] * step * x)
    marks = given["marks"][0, 0].cpu().double().unflatten(0, (cut.chunks, -1))
    assert writes == "y, marks" and marks.shape[1] == triton.cdiv(cut.chunk, unroll)
    for chunk, (begin, end) in enumerate([(0, 5), (5, 9), (9, 14), (14, 18)]):
        for tile, position in enumerate(range(begin, end, unroll)):
            torch.testing.assert_close(marks[chunk, tile], states[position], rtol=1e-4, atol=1e-5)


def test_a_call_without_gradients_leaves_no_marks(launches):
    tensors = {name: value.to(DEVICE) for name, value in scan_inputs(1, ("hwd+",), (1, 1, 5), 2, 1).items()}
    leaves = {**tensors, "A": tensors["A"].clone().requires_grad_()}
    selective_scan(**tensors, backend="triton")
    with torch.no_grad():
        selective_scan(**leaves, backend="triton")
    with torch.inference_mode():
        selective_scan(**leaves, backend="triton")
    assert [writes for writes, _ in launches] == ["gains", "y"] * 3
    assert all(given.get("marks") is None for _, given in launches)


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


def test_all_traversals_run_in_one_launch(launches):
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
