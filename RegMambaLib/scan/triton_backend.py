"""The Triton kernels as differentiable torch operations: CUDA, any float type, computed in float32.

With TRITON_INTERPRET=1 in the environment before Triton is first imported, Triton interprets the kernels on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from RegMambaLib.scan import reference
from RegMambaLib.scan.traversals import TRAVERSALS, Shape, Traversal
from RegMambaLib.scan.triton_conv import convolve
from RegMambaLib.scan.triton_gradient import walk_back
from RegMambaLib.scan.triton_kernels import LANES, carry, walk

GATED = True  # `selective_scan` takes z
UNROLL, UNROLL_BACK = 2, 4  # tokens that are loaded at once; the gradient keeps a mark at every fourth
CARRY_UNROLL = 16
LONGEST_CHUNK = 256
SPAN = 64  # chunks
WIDEST = 32  # channels of a program
MOST_PART = 4  # channels of a lane
STATES, STATES_BACK = 32, 16  # states of a lane, in registers; the gradient has four such sets
_LAUNCH = {"num_warps": 1, "enable_fp_fusion": True}
CONV_TILE = 2048  # tokens x channels


def interpreted() -> bool:
    """Whether Triton interprets its kernels, so that they run on CPU tensors."""
    return not isinstance(walk, triton.JITFunction)


def check(device: torch.device) -> None:
    """Run the kernels, as the networks do, over several chunks and in two directions.

    Those of the gradient take longest to load; they run where torch keeps gradients.

    Raises whatever keeps them from working, and RuntimeError for results other than the reference's.
    """
    if not interpreted() and not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device")
    shape, visits = (2, 5, 4), (TRAVERSALS["hwd+"], TRAVERSALS["dwh-"])
    # Two states: kernels for more take longer to compile.
    sizes = {"u": (1, 2, 40, 8), "delta": (1, 2, 40, 8), "A": (2, 8, 2), "B": (1, 2, 40, 2), "C": (1, 2, 40, 2)}
    sizes |= {"D": (2, 8), "delta_bias": (2, 8), "weight": (2, 8, 4), "bias": (2, 8)}
    generator, gradients = torch.Generator().manual_seed(0), torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        values = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
        values["A"] = -values["A"].exp()
        found = []
        for place, module in ((torch.device("cpu"), reference), (device, sys.modules[__name__])):
            given = {name: value.to(place, copy=True).requires_grad_() for name, value in values.items()}
            weight, bias = given.pop("weight"), given.pop("bias")
            y = module.selective_scan(*given.values(), True, shape, visits)
            y = y + module.causal_conv1d(given["u"], weight, bias, True, shape, visits)
            leaves = [*given.values(), weight, bias]
            found.append([y.detach(), *(torch.autograd.grad(y.square().sum(), leaves) if gradients else ())])
        for ours, theirs in zip(found[1], found[0], strict=True):
            if not torch.allclose(ours.cpu(), theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())):
                raise RuntimeError("its results differ from those of torch")


def selective_scan(
    u: torch.Tensor,
    delta: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor | None,
    delta_bias: torch.Tensor | None,
    delta_softplus: bool,
    shape: Shape,
    traversals: Sequence[Traversal],
    z: torch.Tensor | None = None,
) -> torch.Tensor:
    """See `RegMambaLib.scan.selective_scan`; returns y (b, G, L, E) in the type of u, float32 for float64."""
    tensors = (_plain(tensor) for tensor in (u, delta, A, B, C, D, z, delta_bias))
    return _Scan.apply(*tensors, delta_softplus, *_both_plans(shape, traversals, u.device))


def causal_conv1d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    silu: bool,
    shape: Shape,
    traversals: Sequence[Traversal],
) -> torch.Tensor:
    """See `RegMambaLib.scan.causal_conv1d`; returns y (b, G, L, E) in the type of x, float32 for float64."""
    return _Conv.apply(_plain(x), _plain(weight), _plain(bias), silu, *_both_plans(shape, traversals, x.device))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        B: torch.Tensor,
        C: torch.Tensor,
        D: torch.Tensor | None,
        z: torch.Tensor | None,
        bias: torch.Tensor | None,
        use_softplus: bool,
        plans: torch.Tensor,
        mirrored: torch.Tensor,
    ) -> torch.Tensor:
        A = A.float().transpose(1, 2).contiguous()
        y = torch.empty_like(delta, dtype=u.dtype)
        work = _Work(u, delta, A, z, use_softplus)
        steps = {"u": u, "delta": delta, "A": A, "B": B, "bias": bias, "plans": plans}
        states, sums = work.by_chunk(A.shape[1], delta.shape[-1]), work.by_chunk(delta.shape[-1])
        work.run(walk, **steps, gains=states, sums=sums)
        passed, spans = work.carry(states, A, sums, backward=False)
        work.run(walk, **steps, C=C, D=D, z=z, y=y, entering=states, passed=passed, spans=spans)
        ctx.save_for_backward(u, delta, A, B, C, D, z, bias, plans, mirrored, sums, states, passed, spans)
        ctx.use_softplus = use_softplus
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        u, delta, A, B, C, D, z, bias, plans, mirrored, sums, states, passed, spans = ctx.saved_tensors
        images, groups, length, channels = delta.shape
        order = A.shape[1]
        work = _Work(u, delta, A, z, ctx.use_softplus)
        back = {"delta": delta, "A": A, "C": C, "z": z, "bias": bias, "plans": mirrored, "gy": gy.contiguous()}
        adjoints = work.by_chunk(order, channels)
        work.run(walk_back, **back, gains=adjoints)
        after = dict(zip(("passed", "spans"), work.carry(adjoints, A, sums, backward=True), strict=True))
        marks = A.new_empty(images, groups, triton.cdiv(length, UNROLL_BACK), order, channels)
        steps = {"u": u, "delta": delta, "A": A, "B": B, "bias": bias, "plans": plans}
        work.run(walk, **steps, entering=states, passed=passed, spans=spans, marks=marks)
        gu, gdelta = _like_shared(u, delta), torch.empty_like(delta)
        gA, gBC = work.by_chunk(order, channels), A.new_empty(work.blocks, *B.shape[:-1], 2 * order)
        gz = None if z is None else _like_shared(z, delta)
        gD, gbias = (None if tensor is None else work.by_chunk(channels) for tensor in (D, bias))
        gradients = {"gu": gu, "gdelta": gdelta, "gA": gA, "gBC": gBC, "gD": gD, "gz": gz, "gbias": gbias}
        work.run(walk_back, u=u, B=B, D=D, marks=marks, leaving=adjoints, **back, **after, **gradients)
        gB, gC = (gBC[0] if work.blocks == 1 else gBC.sum(0)).split(order, -1)
        return (
            _shared(gu, u),
            gdelta,
            gA.sum((0, 2)).transpose(1, 2),
            gB,
            gC,
            None if gD is None else gD.sum((0, 2)),
            None if gz is None else _shared(gz, z),
            None if gbias is None else gbias.sum((0, 2)),
            None,
            None,
            None,
        )


class _Work:
    """How a scan is cut into programs, and the launches."""

    def __init__(
        self, u: torch.Tensor, delta: torch.Tensor, A: torch.Tensor, z: torch.Tensor | None, use_softplus: bool
    ) -> None:
        images, groups, length, channels = delta.shape
        self.order = A.shape[1]
        # A quarter of sqrt(L) tokens: chunks are short where there are few, since a program has several of them.
        chunk = min(LONGEST_CHUNK, max(UNROLL, UNROLL_BACK, triton.next_power_of_2(isqrt(length)) // 4))
        self.width = min(triton.next_power_of_2(channels), WIDEST)
        self.like, self.directions = delta, images * groups
        self.chunks, self.blocks = triton.cdiv(length, chunk), triton.cdiv(channels, self.width)
        self.sizes = {
            "length": length,
            "channels": channels,
            "groups": groups,
            "u_groups": u.shape[1],
            "z_groups": 1 if z is None else z.shape[1],
            "chunk": chunk,
            "chunks": self.chunks,
            "SOFTPLUS": use_softplus,
            "SPAN": SPAN,
            "ORDER": self.order,
            "EVEN": channels % self.width == 0,
        }

    def by_chunk(self, *sizes: int) -> torch.Tensor:
        """Room (b, G, chunks, *sizes)."""
        return self._room(self.chunks, *sizes)

    def run(self, kernel: Any, **tensors: torch.Tensor | None) -> None:
        """Launch `walk` or `walk_back`; tensors that are not named are None."""
        last = "gu" in tensors  # the step that holds most
        most = max(1, (STATES_BACK if last else STATES) // triton.next_power_of_2(self.order))
        part = min(self.width, MOST_PART, most)
        unroll = UNROLL_BACK if last or "marks" in tensors else UNROLL
        shares = {"PART": part, "SPREAD": self.width // part, "UNROLL": unroll}
        arguments = {**dict.fromkeys(kernel.arg_names), **self.sizes, **shares, **tensors}
        at_once = LANES.value // shares["SPREAD"]
        with torch.cuda.device_of(self.like):
            kernel[(triton.cdiv(self.chunks, at_once), self.blocks, self.directions)](**arguments, **_LAUNCH)

    def carry(
        self, states: torch.Tensor, A: torch.Tensor, sums: torch.Tensor, backward: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Launch `carry` over the chunks of each span, and over the spans; `passed` and `spans` of `enter`."""
        count, sizes = triton.cdiv(self.chunks, SPAN), A.shape[1:]
        passed, spans, span_sums = torch.empty_like(sums), self._room(count, *sizes), self._room(count, sizes[1])
        self._carry(states, A, sums, passed, spans, span_sums, span=SPAN, backward=backward)
        # The spans are in the order needed already.
        self._carry(spans, A, span_sums, None, None, None, span=count, backward=False)
        return passed, spans

    def _carry(
        self, states: torch.Tensor, A: torch.Tensor, *tensors: torch.Tensor | None, span: int, backward: bool
    ) -> None:
        chunks, (order, channels) = states.shape[2], A.shape[1:]
        width = min(32, triton.next_power_of_2(channels))
        grid = (triton.cdiv(chunks, span) * triton.cdiv(channels, width), order, self.directions)
        sizes = (chunks, channels, A.shape[0], span, order, width, CARRY_UNROLL, backward)
        with torch.cuda.device_of(self.like):
            carry[grid](states, A, *tensors, *sizes, **_LAUNCH)

    def _room(self, *sizes: int) -> torch.Tensor:
        return self.like.new_empty(*self.like.shape[:2], *sizes, dtype=torch.float32)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        silu: bool,
        plans: torch.Tensor,
        mirrored: torch.Tensor,
    ) -> torch.Tensor:
        taps = weight.transpose(1, 2).contiguous()
        y = x.new_empty(x.shape[0], len(plans), *x.shape[2:])
        _convolve(x, taps, bias, mirrored, None, y, None, None, silu)
        ctx.save_for_backward(x, taps, bias, plans, mirrored)
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        x, taps, bias, plans, mirrored = ctx.saved_tensors
        gy = gy.contiguous()
        images, groups, length, channels = gy.shape
        blocks = triton.cdiv(length, _conv_block(channels)[0])
        gsum = torch.empty_like(gy, dtype=torch.float32)
        gtaps = gsum.new_empty(images, groups, blocks, *taps.shape[1:])
        gbias = None if bias is None else gsum.new_empty(images, groups, blocks, channels)
        _convolve(x, taps, bias, mirrored, gy, gsum, gtaps, gbias, ctx.silu)
        gx = _like_shared(x, gy)
        _convolve(gsum, taps, None, plans, None, gx, None, None, False)
        gweight = gtaps.sum((0, 2)).transpose(1, 2)
        return _shared(gx, x), gweight, None if gbias is None else gbias.sum((0, 2)), None, None, None


def _convolve(
    x: torch.Tensor,
    taps: torch.Tensor,
    bias: torch.Tensor | None,
    plans: torch.Tensor,
    gout: torch.Tensor | None,
    y: torch.Tensor,
    gtaps: torch.Tensor | None,
    gbias: torch.Tensor | None,
    silu: bool,
) -> None:
    images, groups, length, channels = y.shape
    rows, width = _conv_block(channels)
    grid = (triton.cdiv(length, rows), triton.cdiv(channels, width), images * groups)
    sizes = (length, channels, groups, x.shape[1], silu, taps.shape[1], rows, width)
    with torch.cuda.device_of(x):
        convolve[grid](x, taps, bias, plans, gout, y, gtaps, gbias, *sizes, enable_fp_fusion=True)


def _conv_block(channels: int) -> tuple[int, int]:
    width = min(32, triton.next_power_of_2(channels))
    return min(128, CONV_TILE // width), width


def _plain(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """As the kernels need it; a no-op for contiguous tensors of up to 32 bits."""
    if tensor is None:
        return None
    return (tensor.float() if tensor.dtype == torch.float64 else tensor).contiguous()


def _like_shared(tensor: torch.Tensor, each: torch.Tensor) -> torch.Tensor:
    """Room for the gradient of each direction (b, G, L, E) by a tensor that the directions may share."""
    dtype = tensor.dtype if tensor.shape[1] == each.shape[1] else torch.float32
    return torch.empty_like(each, dtype=dtype)


def _shared(gradient: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """The gradient by the tensor itself, which one direction or all have seen."""
    return gradient if tensor.shape[1] == gradient.shape[1] else gradient.sum(1, keepdim=True)


def _both_plans(
    shape: Shape, traversals: Sequence[Traversal], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The plans (G, 7) of the traversals and of the same ones reversed."""
    mirrored = tuple(Traversal(traversal.order, not traversal.backward) for traversal in traversals)
    return _plans(shape, tuple(traversals), device), _plans(shape, mirrored, device)


@lru_cache(maxsize=1024)  # training at several sizes needs 16 for each
def _plans(shape: Shape, traversals: tuple[Traversal, ...], device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):  # what is kept must serve calls with gradients too
        plans = torch.tensor([traversal.index_plan(shape) for traversal in traversals], dtype=torch.int64)
        # Pinned, so that the upload does not wait for the work before it.
        return plans.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else plans.to(device)
