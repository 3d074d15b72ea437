"""The selective scan: every backend beside other scans, against sequence length, and what memory alone allows.

    python -m benchmarks.scan                                             this machine's CPU, or its GPU
    python -m benchmarks.scan --methods numba --lengths 614400 --directions 6

32 channels, 8 states, float32, time steps through softplus with bias, all directions of a volume in one call. A
method is called before it counts as there. The floor is the time that the bytes of inputs and outputs take through
the machine's memory, whose speed is measured by a copy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from RegMambaLib.allocation import keep_freed_memory
from RegMambaLib.scan import BACKENDS, TRAVERSALS, available_backends, selective_scan
from RegMambaLib.scan.traversals import Shape, Traversal

from .measure import RESULTS, Row, Store, reason

FILE = RESULTS / "scan.json"
KEYS = ("device", "threads", "method", "directions", "length", "step")
CHANNELS, STATES = 32, 8
VOLUMES: dict[int, Shape] = {
    1_000: (10, 10, 10),
    10_000: (20, 25, 20),
    100_000: (40, 50, 50),
    614_400: (80, 96, 80),  # a brain at 2 mm
    1_000_000: (100, 100, 100),
}
FORWARD, BOTH = "forward", "forward and backward"
COPIED = 2**28
"""Bytes copied to measure the memory."""


METHODS = (*BACKENDS[1:], "mamba_ssm, kernel alone", "mambapy", "token by token")


@dataclass(frozen=True)
class Method:
    """A scan: what it is called with, and how many tensors of all states (tokens x channels x states) it holds."""

    run: Callable[..., torch.Tensor]
    states: dict[str, int]
    why_absent: str | None = None


def backend(name: str) -> Callable[..., torch.Tensor]:
    def run(u, delta, A, B, C, D, bias, shape: Shape, visits: tuple[Traversal, ...]) -> torch.Tensor:
        return selective_scan(u, delta, A, B, C, D, None, bias, True, shape=shape, traversals=visits, backend=name)

    return run


def each_direction(one: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A scan of sequences as a scan of volumes: permuted copies in, one call per direction, copies back."""

    def run(u, delta, A, B, C, D, bias, shape: Shape, visits: tuple[Traversal, ...]) -> torch.Tensor:
        outputs = []
        for g, visit in enumerate(visits):
            x, step, b, c = (visit.arrange(tensor[:, g], shape) for tensor in (u, delta, B, C))
            outputs.append(visit.restore(one(x, F.softplus(step + bias[g]), A[g], b, c, D[g]), shape))
        return torch.stack(outputs, 1)

    return run


def mambapy_scan(x, step, A, B, C, D) -> torch.Tensor:
    """mambapy's parallel scan (Blelloch), with the terms around it as its own block computes them."""
    from mambapy.pscan import pscan

    states = pscan(torch.exp(step.unsqueeze(-1) * A), (step * x).unsqueeze(-1) * B.unsqueeze(2))
    return (states @ C.unsqueeze(-1)).squeeze(3) + D * x


def token_by_token(x, step, A, B, C, D) -> torch.Tensor:
    """The recurrence as it is written."""
    state = x.new_zeros(x.shape[0], x.shape[2], A.shape[1])
    outputs = []
    for t in range(x.shape[1]):
        state = torch.exp(step[:, t, :, None] * A) * state + (step[:, t] * x[:, t])[..., None] * B[:, t, None]
        outputs.append((state * C[:, t, None]).sum(-1))
    return torch.stack(outputs, 1) + D * x


def kernel_alone(u, delta, A, B, C, D, bias, shape: Shape, visits: tuple[Traversal, ...]) -> torch.Tensor:
    """mamba_ssm's `selective_scan_fn`, directions as groups of one call, without any permutation."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    tokens = [tensor.movedim(2, -1).flatten(1, 2).contiguous() for tensor in (u, delta)]
    groups = [tensor.movedim(2, -1).contiguous() for tensor in (B, C)]
    weights = A.flatten(0, 1), *groups, D.flatten()
    return selective_scan_fn(*tokens, *weights, delta_bias=bias.flatten(), delta_softplus=True)


def methods() -> dict[str, Method]:
    """Everything that is compared; what cannot run here says why."""
    there = available_backends()
    none = {FORWARD: 0, BOTH: 0}
    found = {name: Method(backend(name), none, why) for name, why in there.items()}
    found["mamba_ssm, kernel alone"] = Method(kernel_alone, none, there["mamba_ssm"])
    found["mambapy"] = Method(each_direction(mambapy_scan), {FORWARD: 6, BOTH: 10}, _why_no_mambapy())
    found["token by token"] = Method(each_direction(token_by_token), {FORWARD: 0, BOTH: 4})
    return found


def _why_no_mambapy() -> str | None:
    one = torch.zeros(1, 4, 2)
    try:
        mambapy_scan(one, one, torch.zeros(2, 2), one, one, torch.zeros(2))
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def inputs(length: int, directions: int, device: str) -> tuple[torch.Tensor, ...]:
    """u, delta, A, B, C, D, bias as a Mamba block makes them."""
    make = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=make, device=device)

    u, delta = random(1, directions, length, CHANNELS), random(1, directions, length, CHANNELS)
    B, C = random(1, directions, length, STATES), random(1, directions, length, STATES)
    A = -torch.arange(1.0, STATES + 1, device=device).expand(directions, CHANNELS, STATES).contiguous()
    return u, delta, A, B, C, random(directions, CHANNELS), random(directions, CHANNELS) - 4


def moved_bytes(length: int, directions: int, step: str) -> int:
    """What must at least go through memory, in float32.

    Forward reads u, delta, B, C and writes y; backward reads them and the gradient of y, and writes four gradients.
    """
    tokens = directions * length * 4
    forward = tokens * (3 * CHANNELS + 2 * STATES)
    return forward if step == FORWARD else forward + tokens * (5 * CHANNELS + 4 * STATES)


def needed_bytes(method: Method, length: int, directions: int, step: str) -> int:
    """About the memory of a call. Only backward keeps the states of all directions at once."""
    kept = directions if step == BOTH else 1
    padded = 2 ** (length - 1).bit_length()
    return 5 * moved_bytes(length, directions, step) // 4 + method.states[step] * kept * padded * CHANNELS * STATES * 4


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: str, repeat: int) -> list[float]:
    """Seconds of `repeat` calls after one that does not count; of one, where it takes more than ten seconds."""
    found = []
    for n in range(repeat + 1):
        wait(device)
        began = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - began)
        if n and found[-1] > 10:
            break
    return found[1:]


def bandwidth(device: str) -> float:
    """Bytes per second of a copy, read and written; the best of ten."""
    copied = COPIED * (8 if device == "cuda" else 1)  # long enough that a launch does not count
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    return 2 * copied / min(seconds_of(lambda: target.copy_(source), device, 10))


def free_bytes(device: str) -> int:
    import psutil

    if device == "cuda":
        torch.cuda.empty_cache()  # what torch keeps for itself is free too
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def one(method: Method, length: int, directions: int, step: str, device: str, repeat: int) -> list[float]:
    """Seconds of the calls."""
    given = inputs(length, directions, device)
    visits = tuple(TRAVERSALS.values())[:directions]
    if step == FORWARD:
        with torch.inference_mode():
            return seconds_of(lambda: method.run(*given, VOLUMES[length], visits), device, repeat)
    given = tuple(tensor.requires_grad_() for tensor in given)

    def work() -> None:
        y = method.run(*given, VOLUMES[length], visits)
        torch.autograd.grad(y, given, torch.ones_like(y))

    return seconds_of(work, device, repeat)


def measured(
    method: Method, length: int, directions: int, step: str, device: str, repeat: int, expected: float, limit: float
) -> Row:
    """A cell's figures; {"absent": why} or {"failed": why} where there are none."""
    if method.why_absent:
        return {"absent": method.why_absent}
    if expected > limit:
        return {"failed": f"would take about {expected:.2g} s"}
    if (needed := needed_bytes(method, length, directions, step)) > 0.8 * free_bytes(device):
        return {"failed": f"would need about {needed / 2**30:.0f} GiB"}
    try:
        found = one(method, length, directions, step, device, repeat)
    except (RuntimeError, MemoryError) as error:
        return {"failed": str(error).splitlines()[0][:120]}
    return {"seconds": sorted(found)[len(found) // 2], "all_seconds": found}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--lengths", nargs="+", type=int, choices=VOLUMES, default=list(VOLUMES))
    parser.add_argument("--directions", nargs="+", type=int, default=[1, 6, 12])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of a call beyond which it is not made")
    parser.add_argument("--json", type=Path, default=FILE, metavar="FILE", help="where the numbers are kept")
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    keep_freed_memory()  # as the program does
    device = arguments.device
    torch.set_num_threads(arguments.threads)
    if not (found := available_backends())["numba"]:
        import numba

        numba.set_num_threads(min(arguments.threads, numba.config.NUMBA_NUM_THREADS))
    store = Store(arguments.json, KEYS, ("regmamba", "torch", "numba", "mambapy", "mamba-ssm", "triton"))
    speed = bandwidth(device)
    store.head.setdefault("bandwidth_gb_s", {})[device] = round(speed / 1e9, 1)
    print(f"{device}: {speed / 1e9:.1f} GB/s through memory; backends: {found}")
    everything = methods()
    for name in arguments.methods or METHODS:
        if everything[name].why_absent:
            print(f"{name:<24}absent: {everything[name].why_absent}")
        for directions in arguments.directions:
            for step in (FORWARD, BOTH):
                per_token = 0.0
                for length in sorted(arguments.lengths):
                    cell = (everything[name], length, directions, step, device, arguments.repeat)
                    row = measured(*cell, per_token * length, arguments.limit)
                    per_token = max(row.get("seconds", 0.0) / length, per_token if "failed" in row else 0.0)
                    floor = moved_bytes(length, directions, step) / speed
                    keys = dict(zip(KEYS, (device, arguments.threads, name, directions, length, step), strict=True))
                    store.put({**keys, **row, "floor_seconds": floor})
                    if "absent" in row:
                        continue
                    shown = reason(row) or f"{1000 * row['seconds']:.4g} ms, {row['seconds'] / floor:.1f} x the floor"
                    print(f"{name:<24}{directions:>3} {length:>9} {step:<22}{shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
