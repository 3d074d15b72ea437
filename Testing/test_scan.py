"""The selective scan and the causal convolution: every backend is the same operation, in values and
gradients.
"""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from RegMambaLib.errors import InputError, MissingDependencyError
from RegMambaLib.scan import (
    TRAVERSALS,
    available_backends,
    causal_conv1d,
    mamba_ssm_backend,
    reference,
    resolve_traversals,
    selection,
    selective_scan,
    set_backend,
    use_backend,
)


def scan_inputs(batch, traversals, shape, channels, states, shared=False, optional=("D", "z", "delta_bias")):
    torch.manual_seed(1)
    groups, length = len(traversals), int(np.prod(shape))
    tensors = {
        "u": torch.randn(batch, 1 if shared else groups, length, channels),
        "delta": torch.randn(batch, groups, length, channels),
        "A": -3 * torch.rand(groups, channels, states),
        "B": torch.randn(batch, groups, length, states),
        "C": torch.randn(batch, groups, length, states),
        "D": torch.randn(groups, channels),
        "z": torch.randn(batch, 1, length, channels),
        "delta_bias": torch.randn(groups, channels),
    }
    return {name: tensors[name] for name in ("u", "delta", "A", "B", "C", *optional)}


def values_and_gradients(function, tensors, **options):
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    y = function(**leaves, **options)
    weights = torch.linspace(0.2, 1, y.numel(), device=y.device).view(y.shape)
    gradients = torch.autograd.grad((y * weights).sum(), list(leaves.values()))
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_same(first, second, tolerance=2e-5):
    for name, expected in first.items():
        assert torch.isfinite(second[name]).all(), name
        scale = expected.abs().max().item() + 1e-6
        assert (second[name] - expected).abs().max().item() <= tolerance * scale, name


def plain_scan(u, delta, A, B, C, D, z, delta_bias):
    """The textbook loop over one sequence: u, delta, z (L, E), A (E, N), B, C (L, N)."""
    state, outputs = torch.zeros_like(A), []
    for t in range(u.shape[0]):
        step = F.softplus(delta[t] + delta_bias)
        state = torch.exp(step[:, None] * A) * state + (step * u[t])[:, None] * B[t]
        outputs.append((state @ C[t] + D * u[t]) * F.silu(z[t]))
    return torch.stack(outputs)


CASES = {
    "all traversals, shared u, odd sizes": (2, tuple(TRAVERSALS), (5, 3, 7), 5, 3, True),
    "one token": (1, ("hwd-",), (1, 1, 1), 3, 1, False),
    "one state, axis of one voxel": (1, ("whd+", "dhw-"), (9, 1, 13), 17, 1, False),
    "several chunks and channel blocks": (2, ("dwh-",), (6, 5, 7), 40, 8, False),
    "chunks exactly full": (1, ("hdw+", "wdh-"), (4, 8, 4), 16, 4, False),
    "odd states, several chunks, a block not full": (1, ("wdh+", "hwd-"), (5, 7, 5), 21, 5, True),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_numba_scan_equals_the_torch_reference(case):
    batch, traversals, shape, channels, states, shared = case
    tensors = scan_inputs(batch, traversals, shape, channels, states, shared)
    options = {"delta_softplus": True, "shape": shape, "traversals": traversals}
    expected = values_and_gradients(selective_scan, tensors, **options, backend="torch")
    assert_same(expected, values_and_gradients(selective_scan, tensors, **options, backend="numba"))


@pytest.mark.parametrize("name", ["y", "gradient of A"])
@pytest.mark.parametrize("directions", [1, 2])
def test_numba_gives_the_same_bits_again_and_with_any_number_of_threads(name, directions):
    import numba

    names = tuple(TRAVERSALS)[:directions]
    tensors, threads, found = scan_inputs(1, names, (5, 6, 7), 40, 3), numba.get_num_threads(), []
    try:
        for count in (1, numba.config.NUMBA_NUM_THREADS, 1):
            numba.set_num_threads(count)
            result = values_and_gradients(
                selective_scan, tensors, delta_softplus=True, shape=(5, 6, 7), traversals=names, backend="numba"
            )
            found.append(result["A" if name == "gradient of A" else name])
    finally:
        numba.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_token_that_is_not_finite_spoils_its_channel_from_there_on_and_nothing_else(backend, value):
    tensors = scan_inputs(1, ("hwd+",), (1, 1, 150), 20, 3, optional=())
    clean = selective_scan(**tensors, delta_softplus=True, backend=backend)
    tensors["u"][0, 0, 70, 17] = value
    spoiled = selective_scan(**tensors, delta_softplus=True, backend=backend)
    bad = ~torch.isfinite(spoiled[0, 0])
    assert bad[70, 17]
    bad[70:, 17] = False
    assert not bad.any()
    others = torch.arange(20) != 17
    assert torch.equal(spoiled[..., others], clean[..., others])
    assert torch.equal(spoiled[:, :, :70], clean[:, :, :70])


def numba_function(name):
    """A function of `numba_math`, on float32 values one by one and on Lanes."""
    from numba import njit

    from RegMambaLib.scan import numba_lanes, numba_math

    function = getattr(numba_math, name)
    load, store = numba_lanes.load, numba_lanes.store

    @njit(error_model="numpy")
    def on_scalars(x, out):
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                out[i, j] = function(x[i, j])

    @njit(error_model="numpy")
    def on_lanes(x, out):
        for i in range(x.shape[0]):
            store(out, i, function(load(x, i)))

    return on_scalars, on_lanes


@pytest.mark.parametrize(
    ("name", "exact", "beyond"),
    [
        ("exp", np.exp, {-np.inf: 0, -100: 0, 100: np.inf, np.inf: np.inf}),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), {-np.inf: 0, -100: 0, 100: 1, np.inf: 1}),
        ("softplus", lambda x: np.logaddexp(0, x), {-np.inf: 0, -100: 0, 1e30: 1e30, np.inf: np.inf}),
    ],
)
def test_elementary_functions_are_right_to_a_millionth_and_keep_nan(name, exact, beyond):
    x = np.linspace(-87, 87, 16 * 1000, dtype=np.float32).reshape(-1, 16)
    x[:500] /= 87
    special = np.resize(np.array([np.nan, *beyond], np.float32), (1, 16))
    for function in numba_function(name):
        out, edge = np.empty_like(x), np.empty_like(special)
        function(x, out)
        function(special, edge)
        expected = exact(x.astype(np.float64))
        # A machine without fused multiply-add rounds the exponent first.
        assert np.all(np.abs(out - expected) <= 1e-6 * expected * np.maximum(1, np.abs(x) / 10))
        wanted = np.resize(np.array([np.nan, *beyond.values()], np.float32), (1, 16))
        np.testing.assert_array_equal(edge, wanted)


@pytest.mark.parametrize("optional", [(), ("D",), ("z",), ("delta_bias",)])
@pytest.mark.parametrize("softplus", [False, True])
def test_optional_inputs_can_be_left_out(optional, softplus):
    tensors = scan_inputs(1, ("hwd+", "hwd-"), (3, 4, 7), 6, 2, optional=optional)
    for name in {"delta", "delta_bias"} & tensors.keys():
        tensors[name] = tensors[name].abs()  # without softplus a negative step would let the state explode
    options = {"delta_softplus": softplus, "shape": (3, 4, 7), "traversals": ("hwd+", "hwd-")}
    expected = values_and_gradients(selective_scan, tensors, **options, backend="torch")
    assert_same(expected, values_and_gradients(selective_scan, tensors, **options, backend="numba"))


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_grouped_scan_is_the_textbook_loop_along_each_traversal(backend):
    shape, names = (3, 5, 4), tuple(TRAVERSALS)
    tensors = scan_inputs(1, names, shape, 4, 3, shared=True)
    y = selective_scan(**tensors, delta_softplus=True, shape=shape, traversals=names, backend=backend)
    for g, name in enumerate(names):
        order = visiting_order(name, shape)
        u, z = tensors["u"][0, 0][order], tensors["z"][0, 0][order]
        delta, B, C = (tensors[key][0, g][order] for key in ("delta", "B", "C"))
        A, D, bias = (tensors[key][g] for key in ("A", "D", "delta_bias"))
        torch.testing.assert_close(y[0, g][order], plain_scan(u, delta, A, B, C, D, z, bias), rtol=1e-4, atol=1e-5)


def test_the_reference_has_the_gradient_of_its_values():
    names, shape = ("hwd+", "wdh-"), (3, 4, 5)
    tensors = {k: v.double().requires_grad_() for k, v in scan_inputs(1, names, shape, 2, 2, shared=True).items()}

    def scan(*values):
        arguments = dict(zip(tensors, values, strict=True))
        return selective_scan(**arguments, delta_softplus=True, shape=shape, traversals=names)

    assert scan(*tensors.values()).dtype == torch.float64
    assert torch.autograd.gradcheck(scan, tuple(tensors.values()), fast_mode=True)


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_constant_and_huge_inputs_stay_finite(backend, scale):
    tensors = scan_inputs(1, ("hwd+",), (3, 5, 7), 6, 4)
    tensors["u"] = torch.full_like(tensors["u"], scale)
    tensors["delta"] = tensors["delta"] * scale
    tensors["z"] = tensors["z"] * scale
    result = values_and_gradients(selective_scan, tensors, delta_softplus=True, backend=backend)
    assert all(torch.isfinite(value).all() for value in result.values())


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_backends_agree_on_time_steps_that_forget_everything_or_nothing(scale):
    tensors = scan_inputs(1, ("hwd+",), (3, 5, 7), 6, 4, optional=())
    tensors["delta"] = tensors["delta"].sign() * scale
    expected = values_and_gradients(selective_scan, tensors, delta_softplus=True, backend="torch")
    assert_same(expected, values_and_gradients(selective_scan, tensors, delta_softplus=True, backend="numba"))


@pytest.mark.parametrize("backend", ["torch", "numba"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_keep_their_type_and_a_float32_state(backend, dtype):
    tensors = {name: value.to(dtype) for name, value in scan_inputs(1, ("dhw+",), (3, 5, 7), 6, 4).items()}
    options = {"delta_softplus": True, "shape": (3, 5, 7), "traversals": ("dhw+",), "backend": backend}
    y = selective_scan(**tensors, **options)
    exact = selective_scan(**{name: value.float() for name, value in tensors.items()}, **options)
    assert y.dtype == dtype
    torch.testing.assert_close(y, exact.to(dtype))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("activation", ["silu", None])
def test_numba_convolution_equals_the_torch_reference(case, activation):
    batch, traversals, shape, channels, _, shared = case
    groups = len(traversals)
    torch.manual_seed(2)
    tensors = {
        "x": torch.randn(batch, 1 if shared else groups, int(np.prod(shape)), channels),
        "weight": torch.randn(groups, channels, 4),
        "bias": torch.randn(groups, channels),
    }
    options = {"shape": shape, "traversals": traversals, "activation": activation}
    expected = values_and_gradients(causal_conv1d, tensors, **options, backend="torch")
    assert_same(expected, values_and_gradients(causal_conv1d, tensors, **options, backend="numba"))
    del tensors["bias"]
    without = values_and_gradients(causal_conv1d, tensors, **options, backend="torch")
    assert_same(without, values_and_gradients(causal_conv1d, tensors, **options, backend="numba"))


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_the_convolution_sees_the_tokens_visited_before_and_no_later_one(backend):
    names, shape = tuple(TRAVERSALS), (3, 4, 5)
    x, weight = torch.randn(1, 1, 60, 2), torch.randn(12, 2, 3)
    y = causal_conv1d(x, weight, shape=shape, traversals=names, activation=None, backend=backend)
    for g, name in enumerate(names):
        order = visiting_order(name, shape)
        padded = F.pad(x[0, 0][order], (0, 0, 2, 0))
        expected = sum(weight[g, :, k] * padded[k : k + 60] for k in range(3))
        torch.testing.assert_close(y[0, g][order], expected, rtol=1e-4, atol=1e-5)


def visiting_order(name, shape):
    """Canonical index of every token in the order visited, by numpy's transpose alone."""
    order = np.arange(np.prod(shape)).reshape(shape).transpose(["hwd".index(axis) for axis in name[:3]]).ravel()
    return torch.from_numpy((order[::-1] if name.endswith("-") else order).copy())


@pytest.mark.parametrize("name", TRAVERSALS)
def test_traversals_visit_in_numpys_transposed_order_and_back(name):
    shape = (2, 3, 4)
    traversal, tokens = TRAVERSALS[name], torch.randn(2, 24, 3)
    visited = traversal.arrange(tokens, shape)
    assert torch.equal(visited, tokens[:, visiting_order(name, shape)])
    assert torch.equal(traversal.restore(visited, shape), tokens)
    first, n0, n1, n2, s0, s1, s2 = traversal.index_plan(shape)
    walked = [first + i * s0 + j * s1 + k * s2 for i in range(n0) for j in range(n1) for k in range(n2)]
    assert walked == visiting_order(name, shape).tolist()


def test_traversals_are_selected_by_name_and_group():
    def chosen(names):
        return [traversal.name for traversal in resolve_traversals(names)]

    assert chosen("axial+") == ["hwd+", "hdw+"]
    assert chosen("sagittal") == ["dwh+", "dhw+", "dwh-", "dhw-"]
    assert chosen(["whd", "whd-"]) == ["whd+", "whd-"]
    assert chosen("forward") == ["hwd+", "whd+", "dwh+", "hdw+", "wdh+", "dhw+"]
    assert len(chosen("forward, backward")) == len(chosen("all")) == 12
    for wrong in ("hwx+", "up", "", []):
        with pytest.raises(InputError, match=r"hwd\+.*axial"):
            resolve_traversals(wrong)


def test_wrong_sizes_are_named():
    tensors = scan_inputs(1, ("hwd+", "hwd-"), (2, 3, 4), 5, 2)
    with pytest.raises(InputError, match="B has shape"):
        selective_scan(**{**tensors, "B": tensors["B"][:, :1]})
    with pytest.raises(InputError, match="has 30 tokens, but 24"):
        selective_scan(**tensors, shape=(2, 3, 5))
    with pytest.raises(InputError, match="1 traversals were named for 2"):
        selective_scan(**tensors, traversals=("hwd+",))
    with pytest.raises(InputError, match="not an activation"):
        causal_conv1d(tensors["u"], torch.ones(2, 5, 4), activation="gelu")


@pytest.fixture
def ran(monkeypatch):
    """Names of the backends that ran."""
    names = []

    def recorder(name, original):
        def run(*arguments):
            names.append(name)
            return original(*arguments)

        return run

    from RegMambaLib.scan import numba_backend

    for name, module in (("torch", reference), ("numba", numba_backend)):
        monkeypatch.setattr(module, "selective_scan", recorder(name, module.selective_scan))
    yield names
    set_backend("auto")


def test_the_backend_is_chosen_by_argument_then_context_then_process_then_environment(ran, monkeypatch):
    tensors = scan_inputs(1, ("hwd+",), (1, 1, 4), 2, 1)
    monkeypatch.delenv("REGMAMBA_SCAN", raising=False)
    selective_scan(**tensors)
    selective_scan(**{name: tensor.double() for name, tensor in tensors.items()})
    monkeypatch.setenv("REGMAMBA_SCAN", "torch")
    selective_scan(**tensors)
    set_backend("numba")
    selective_scan(**tensors)
    with use_backend("torch"):
        selective_scan(**tensors)
        selective_scan(**tensors, backend="numba")
    selective_scan(**tensors)
    assert ran == ["numba", "torch", "torch", "numba", "torch", "numba", "numba"]


def test_a_missing_backend_is_refused_with_its_install_line(monkeypatch):
    selection._known.clear()
    monkeypatch.setitem(sys.modules, "mamba_ssm", None)
    monkeypatch.setitem(sys.modules, "causal_conv1d", None)
    tensors = scan_inputs(1, ("hwd+",), (1, 1, 4), 2, 1)
    with pytest.raises(MissingDependencyError, match="pip install mamba-ssm"):
        selective_scan(**tensors, backend="mamba_ssm")
    with pytest.raises(MissingDependencyError):
        set_backend("mamba_ssm")
    with pytest.raises(InputError, match="choose from auto, torch, numba, mamba_ssm"):
        set_backend("cupy")
    backends = available_backends()
    assert backends["torch"] is None and backends["numba"] is None and backends["mamba_ssm"]
    selection._known.clear()


@pytest.fixture
def mamba_double(monkeypatch):
    """Test doubles of the two CUDA packages, with their argument layout, computed by our torch reference."""

    def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False):
        tokens = [tensor.transpose(1, 2)[:, None] for tensor in (u, delta, B, C)]
        assert all(tensor.is_contiguous() for tensor in (u, delta, B, C))
        extra = [None if value is None else value[None] for value in (D, delta_bias)]
        sequence = (1, 1, u.shape[2]), (TRAVERSALS["hwd+"],)
        y = reference.selective_scan(tokens[0], tokens[1], A[None], *tokens[2:], *extra, delta_softplus, *sequence)
        return y[:, 0].transpose(1, 2).to(u.dtype)

    def causal_conv1d_fn(x, weight, bias=None, activation=None):
        y = F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=x.shape[1])
        return F.silu(y) if activation == "silu" else y

    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = selective_scan_fn
    convolution = ModuleType("causal_conv1d")
    convolution.causal_conv1d_fn = causal_conv1d_fn
    for name in ("mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    monkeypatch.setitem(sys.modules, "causal_conv1d", convolution)


@pytest.mark.usefixtures("mamba_double")
def test_the_cuda_backend_lays_tensors_out_for_the_packages_and_back():
    names, shape = ("hwd+", "dwh-", "wdh+"), (3, 4, 5)
    visits = [TRAVERSALS[name] for name in names]
    t = scan_inputs(2, names, shape, 6, 2, shared=True)
    arguments = [t[key] for key in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    expected = reference.selective_scan(*arguments, True, shape, visits)
    torch.testing.assert_close(mamba_ssm_backend.selective_scan(*arguments, True, shape, visits), expected)
    convolution = (t["u"], torch.randn(3, 6, 4), torch.randn(3, 6), True, shape, visits)
    expected = reference.causal_conv1d(*convolution)
    torch.testing.assert_close(mamba_ssm_backend.causal_conv1d(*convolution), expected, rtol=1e-4, atol=1e-5)
