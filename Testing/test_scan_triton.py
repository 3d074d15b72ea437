"""The triton backend: its kernels in Triton's interpreter and, where there is one, on the GPU (scan_triton_cases.py);
their compilation for GPUs, which needs none; and when the backend is chosen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_scan import scan_inputs, values_and_gradients

from RegMambaLib.errors import InputError, MissingDependencyError
from RegMambaLib.scan import TRAVERSALS, selection, selective_scan, use_backend

NAMES = ("hwd+", "whd-")
needs_triton = pytest.mark.skipif(
    sys.platform != "linux", reason="Triton has no wheels for this system; the backend is not offered there"
)


def run_cases(interpret):
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    cases = Path(__file__).with_name("scan_triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@needs_triton
def test_interpreted_kernels_equal_the_reference():
    run_cases(interpret=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_kernels_on_the_gpu_equal_the_reference():
    run_cases(interpret=False)


class Recorder:
    """In the place of a kernel: keeps what it is launched with."""

    def __init__(self, kernel, launches):
        self.kernel, self.arg_names, self.launches = kernel, kernel.arg_names, launches

    def __getitem__(self, grid):
        def launch(*given, **named):
            self.launches.append((self.kernel, {**dict(zip(self.arg_names, given, strict=False)), **named}))

        return launch


@pytest.fixture
def launches(monkeypatch):
    """The kernels and arguments of scans without and with gradients, and of a convolution, over several chunks."""
    from RegMambaLib.scan import triton_backend

    found = []
    for name in ("walk", "carry", "walk_back", "gradients", "convolve"):
        monkeypatch.setattr(triton_backend, name, Recorder(getattr(triton_backend, name), found))
    visits = [TRAVERSALS[name] for name in NAMES]

    def record(dtype, states):
        t = scan_inputs(1, NAMES, (6, 5, 10), 32, states, shared=True)
        t.update({name: t[name].to(dtype) for name in ("u", "delta", "B", "C", "z")})

        def scan(u, delta, A, B, C, D, z, delta_bias):
            arguments = (u, delta, A, B, C, D, delta_bias, True, (6, 5, 10), visits, z)
            return triton_backend.selective_scan(*arguments).float()

        def convolution(x, weight, bias):
            return triton_backend.causal_conv1d(x, weight, bias, True, (6, 5, 10), visits).float()

        scan(**t)
        values_and_gradients(scan, t)
        values_and_gradients(convolution, {"x": t["u"], "weight": torch.randn(2, 32, 4), "bias": t["D"]})
        return found

    return record


POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64"}


def compiled(kernel, arguments, capability):
    """As Triton would compile the launch on a GPU of that capability."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants, hints = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[(index,)] = "constexpr", value
            continue
        types[parameter.name] = POINTERS[value.dtype] if isinstance(value, torch.Tensor) else "i32"
        if isinstance(value, torch.Tensor) or (value % 16 == 0 and not parameter.do_not_specialize):
            hints[(index,)] = [["tt.divisibility", 16]]
    options = {name: value for name, value in arguments.items() if name not in kernel.arg_names}
    source = ASTSource(kernel, types, constants, hints)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@needs_triton
@pytest.mark.parametrize(("capability", "dtype", "states"), [(80, torch.bfloat16, 3), (90, torch.float32, 8)])
def test_every_launch_compiles_to_machine_code(launches, capability, dtype, states):
    recorded = launches(dtype, states)
    assert [kernel.__name__ for kernel, _ in recorded] == [
        *("walk", "carry", "carry", "walk") * 2,
        *("walk_back", "carry", "carry", "gradients"),
        *("convolve", "convolve", "convolve"),
    ]
    for kernel, arguments in recorded:
        assert compiled(kernel, arguments, capability).asm["cubin"], kernel.__name__


@needs_triton
def test_only_triton_for_nvidia_is_given_a_limit_of_registers(launches, monkeypatch):
    from RegMambaLib.scan import triton_backend

    def limits():
        found = launches(torch.float32, 1)
        named = {(kernel.__name__, a.get("y") is None, a.get("marks") is None): a.get("maxnreg") for kernel, a in found}
        found.clear()
        return named

    assert limits() == {
        ("walk", True, True): 96,
        ("walk", False, True): None,
        ("walk", False, False): 128,
        ("walk_back", True, True): 96,
        ("gradients", True, False): 168,
        ("carry", True, True): None,
        ("convolve", False, True): None,
    }
    monkeypatch.setattr(triton_backend, "_LIMITED", False)
    assert not any(limits().values())


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a CUDA device the backend works")
def test_without_a_gpu_it_is_refused_by_name_and_not_chosen():
    tensors = scan_inputs(1, ("hwd+",), (1, 1, 4), 2, 1)
    with pytest.raises(MissingDependencyError, match="no CUDA device"):
        selective_scan(**tensors, backend="triton")
    assert selective_scan(**tensors).shape == (1, 1, 4, 2)


def test_a_missing_triton_is_refused_with_its_install_line(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("RegMambaLib.scan.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("REGMAMBA_SCAN", "triton")
    selection._known.clear()
    with pytest.raises(MissingDependencyError, match="pip install triton"):
        selective_scan(**scan_inputs(1, ("hwd+",), (1, 1, 4), 2, 1))
    with pytest.raises(MissingDependencyError, match="pip install triton"), use_backend("triton"):
        pass
    selection._known.clear()


@needs_triton
@pytest.mark.filterwarnings("ignore:The scan runs with torch")
def test_the_fastest_backend_that_works_is_chosen_for_the_device(monkeypatch):
    broken = set()
    monkeypatch.setattr(selection, "_why_unusable", lambda name, device: "broken" if name in broken else None)

    def chosen(device, dtype=torch.float32):
        return selection._for_tensors(torch.device(device), dtype)

    assert (chosen("cuda"), chosen("cpu"), chosen("cuda", torch.bfloat16)) == ("triton", "numba", "triton")
    assert chosen("cuda", torch.float64) == "torch"
    broken.add("triton")
    assert chosen("cuda") == "mamba_ssm"
    broken.add("mamba_ssm")
    assert (chosen("cuda"), chosen("meta")) == ("torch", "torch")
    broken.clear()
    with pytest.raises(InputError, match="CUDA only"):
        selection.backend_module("triton", torch.device("cpu"), torch.float32)


@needs_triton
def test_gradients_are_tried_by_a_call_that_wants_them_and_not_before(monkeypatch):
    from RegMambaLib.scan import triton_backend

    tried = []
    monkeypatch.setattr(selection, "_known", {})
    monkeypatch.setattr(triton_backend, "check", lambda device: tried.append(torch.is_grad_enabled()))
    cuda = torch.device("cuda")
    selection.available_backends()
    with use_backend("triton"), torch.no_grad():
        selection.backend_module("auto", cuda, torch.float32)
    assert tried == [False]
    with use_backend("triton"):
        selection.backend_module("auto", cuda, torch.float32)
        selection.backend_module("auto", cuda, torch.float32)
    assert tried == [False, True]
