"""The Triton steps of refinement: in Triton's interpreter and, where there is one, on the GPU
(registration_triton_cases.py); their compilation for GPUs, which needs none; and when they are chosen.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from test_scan_triton import Recorder, needs_triton

from RegMambaLib.registration import engine_torch, torch_steps


def run_cases(interpret):
    environment = {**os.environ, "TRITON_INTERPRET": str(int(interpret))}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    cases = Path(__file__).with_name("registration_triton_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@needs_triton
def test_interpreted_kernels_equal_torch_and_numba():
    run_cases(interpret=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_kernels_on_the_gpu_equal_torch_and_numba():
    run_cases(interpret=False)


def record(monkeypatch):
    """Every kernel with the arguments of its launches in one run of every step."""
    from RegMambaLib.registration import triton_fields, triton_forces, triton_invert, triton_labels, triton_steps

    launches = []
    for module, names in (
        (triton_fields, ("smooth_along", "adam", "compose")),
        (triton_forces, ("warp", "sum_products", "sum_along", "coefficients", "lncc_force", "channel_force")),
        (triton_labels, ("sum_labels", "label_force")),
        (triton_invert, ("smallest_determinants", "land", "seed", "invert")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), launches))
    fixed, u = torch.ones(4, 4, 4), torch.ones(3, 4, 4, 4)
    inside, labels = fixed > 0, fixed.int()
    triton_steps.lncc_force(fixed, fixed, u, torch_steps.fixed_moments(fixed, 1), fixed, inside, 1)
    triton_steps.channel_force(u, u, u, fixed)
    triton_steps.label_force(labels, labels, torch.ones(2), u, inside)
    triton_steps.smooth(u, torch.ones(3), inside)
    triton_steps.compose(u, *triton_steps.adam(u, u, u[0], 1, u[0, 0, 0, 0]), 0.7)
    triton_steps.smallest_determinants(u)
    triton_steps.invert(u)
    return launches


TYPES = {int: "i32", float: "fp32", torch.float32: "*fp32", torch.int32: "*i32", torch.bool: "*i1"}


def compiled(kernel, arguments, capability):
    """As Triton would compile the launch on a GPU of that capability."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types, constants = {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            types[parameter.name], constants[(index,)] = "constexpr", value
        else:
            assert parameter.do_not_specialize, parameter.name
            types[parameter.name] = TYPES[value.dtype if isinstance(value, torch.Tensor) else type(value)]
    options = {name: value for name, value in arguments.items() if name not in kernel.arg_names}
    source = ASTSource(kernel, types, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@needs_triton
def test_every_kernel_compiles_to_machine_code_for_an_h100(monkeypatch):
    launches = record(monkeypatch)
    assert [kernel.__name__ for kernel, _ in launches] == [
        *("warp", "sum_products", "sum_along", "coefficients", "sum_along", "sum_along", "lncc_force"),
        *("channel_force", "sum_labels", "label_force"),
        *("smooth_along", "smooth_along", "smooth_along"),
        *("adam", "compose"),
        *("smallest_determinants", "land", "seed", "invert"),
    ]
    different = {(kernel.fn, arguments.get("inside") is None): (kernel, arguments) for kernel, arguments in launches}
    for kernel, arguments in different.values():
        assert compiled(kernel, arguments, 90).asm["cubin"], kernel.__name__


@pytest.fixture
def untried():
    """The choice is made afresh, and forgotten afterwards."""
    engine_torch._triton_works.cache_clear()
    yield
    engine_torch._triton_works.cache_clear()


def test_without_triton_torch_takes_its_place_silently(monkeypatch, untried):
    monkeypatch.setitem(sys.modules, "triton", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine_torch.steps_for(torch.device("cuda")) is torch_steps


@needs_triton
def test_a_broken_triton_is_warned_of_once_and_torch_takes_its_place(monkeypatch, untried):
    from RegMambaLib.registration import triton_steps

    def broken(device):
        raise OSError("no compiler\nfound")

    monkeypatch.setattr(triton_steps, "check", broken)
    with pytest.warns(UserWarning, match=r"OSError: no compiler\); refinement runs with torch") as caught:
        assert [engine_torch.steps_for(torch.device("cuda")) for _ in range(3)] == [torch_steps] * 3
    assert len(caught) == 1


@needs_triton
def test_a_full_card_is_no_broken_triton(monkeypatch, untried):
    from RegMambaLib.registration import triton_steps

    def full(device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(triton_steps, "check", full)
    for _ in range(2):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            engine_torch.steps_for(torch.device("cuda"))
    monkeypatch.setattr(triton_steps, "check", lambda device: None)
    assert engine_torch.steps_for(torch.device("cuda")) is triton_steps


@needs_triton
def test_triton_is_chosen_for_cuda_alone(monkeypatch, untried):
    from RegMambaLib.registration import triton_steps

    monkeypatch.setattr(triton_steps, "check", lambda device: None)
    chosen = [engine_torch.steps_for(torch.device(name)) for name in ("cuda", "cuda:1", "cpu", "mps")]
    assert chosen == [triton_steps, triton_steps, torch_steps, torch_steps]
