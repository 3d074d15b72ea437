"""The Triton kernels as differentiable torch operations: CUDA, any float type, computed in float32.

With TRITON_INTERPRET=1 in the environment before Triton is first imported, Triton interprets the kernels on the CPU.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from math import isqrt
from typing import Any

import torch
import triton
from torch.autograd.function import once_differentiable

from RegMambaLib.scan import reference
from RegMambaLib.scan.traversals import TRAVERSALS, Shape, Traversal
from RegMambaLib.scan.triton_conv import convolve
from RegMambaLib.scan.triton_gradient import gradients, walk_back
from RegMambaLib.scan.triton_kernels import LANES, carry, walk

GATED = True  # `selective_scan` takes z
UNROLL = 4  # tokens that are loaded at once; for the gradient there is a mark at every fourth
CARRY_UNROLL = 16
LONGEST_CHUNK = 128
SPAN = 64  # chunks
WIDEST = 32  # channels of a program
# By what a launch writes: the channels of a lane, with all their states in registers, and the registers it may take
# (None: as many as it asks for). So they were fastest on an H100 for 8 states; where there are more, a lane has one
# channel and no limit.
LANE = {"gains": (2, 96), "y": (1, None), "y, marks": (2, 128), "gradients": (1, 168)}
LANE_ORDER = 8
_LAUNCH = {"num_warps": 1, "enable_fp_fusion": True}
_LIMITED = torch.version.hip is None  # Triton for AMD knows no limit of registers
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
    generator, wanted = torch.Generator().manual_seed(0), torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        values = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
        values["A"] = -values["A"].exp()
        found = []
        for place, module in ((torch.device("cpu"), reference), (device, sys.modules[__name__])):
            given = {name: value.to(place, copy=True).requires_grad_(wanted) for name, value in values.items()}
            weight, bias = given.pop("weight"), given.pop("bias")
            y = module.selective_scan(*given.values(), True, shape, visits)
            y = y + module.causal_conv1d(given["u"], weight, bias, True, shape, visits)
            leaves = [*given.values(), weight, bias]
            found.append([y.detach(), *(torch.autograd.grad(y.square().sum(), leaves) if wanted else ())])
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
    tensors = [_plain(tensor) for tensor in (u, delta, A, B, C, D, z, delta_bias)]
    plans, cuts = _both_plans(shape, traversals, u.device), tuple(Cut.of(shape, traversal) for traversal in traversals)
    # Asked here: within `forward` torch never keeps gradients.
    marked = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return _Scan.apply(*tensors, delta_softplus, *plans, cuts, marked)


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
        cuts: tuple[Cut, ...],
        marked: bool,
    ) -> torch.Tensor:
        A = A.float().transpose(1, 2).contiguous()
        order, channels = A.shape[1:]
        y = torch.empty_like(delta, dtype=u.dtype)
        work = _Work(u, delta, A, z, use_softplus, cuts)
        steps = {"u": u, "delta": delta, "A": A, "B": B, "bias": bias, "plans": plans}
        states, sums = work.by_chunk(order, channels), work.by_chunk(channels)
        work.run(walk, "gains", **steps, gains=states, sums=sums)
        passed, spans = work.carry(states, A, sums, backward=False)
        marks = work.by_tile(order, channels) if marked else None
        results = {"y": y, "marks": marks}
        writes = "y, marks" if marked else "y"
        work.run(walk, writes, **steps, C=C, D=D, z=z, entering=states, passed=passed, spans=spans, **results)
        ctx.save_for_backward(u, delta, A, B, C, D, z, bias, mirrored, sums, marks)
        ctx.use_softplus, ctx.cuts = use_softplus, cuts
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        u, delta, A, B, C, D, z, bias, mirrored, sums, marks = ctx.saved_tensors
        order, channels = A.shape[1:]
        work = _Work(u, delta, A, z, ctx.use_softplus, ctx.cuts)
        steps = {"delta": delta, "A": A, "C": C, "z": z, "bias": bias, "plans": mirrored, "gy": gy.contiguous()}
        adjoints = work.by_chunk(order, channels)
        work.run(walk_back, "gains", **steps, gains=adjoints)
        passed, spans = work.carry(adjoints, A, sums, backward=True)
        steps |= {"u": u, "B": B, "D": D, "marks": marks, "leaving": adjoints, "passed": passed, "spans": spans}
        gu, gdelta, gA = _like_shared(u, delta), torch.empty_like(delta), work.by_chunk(order, channels)
        gB, gC = (A.new_empty(work.blocks, *B.shape) for _ in range(2))
        gz = None if z is None else _like_shared(z, delta)
        gD, gbias = (None if tensor is None else work.by_chunk(channels) for tensor in (D, bias))
        results = {"gu": gu, "gdelta": gdelta, "gA": gA, "gB": gB, "gC": gC, "gD": gD, "gz": gz, "gbias": gbias}
        work.run(gradients, "gradients", **steps, **results)
        return (
            _shared(gu, u),
            gdelta,
            gA.sum((0, 2)).transpose(1, 2),
            gB.sum(0) if work.blocks > 1 else gB[0],
            gC.sum(0) if work.blocks > 1 else gC[0],
            None if gD is None else gD.sum((0, 2)),
            None if gz is None else _shared(gz, z),
            None if gbias is None else gbias.sum((0, 2)),
            *(None,) * 5,
        )


class _Work:
    """How a scan is cut into programs, and the launches."""

    def __init__(
        self,
        u: torch.Tensor,
        delta: torch.Tensor,
        A: torch.Tensor,
        z: torch.Tensor | None,
        use_softplus: bool,
        cuts: tuple[Cut, ...],
    ) -> None:
        images, groups, length, channels = delta.shape
        self.order = A.shape[1]
        self.width = min(triton.next_power_of_2(channels), WIDEST)
        self.like, self.directions = delta, images * groups
        self.chunks, self.blocks = max(cut.chunks for cut in cuts), triton.cdiv(channels, self.width)
        self.tiles = max(cut.chunks * triton.cdiv(cut.chunk, UNROLL) for cut in cuts)
        self.sizes = {
            "length": length,
            "channels": channels,
            "groups": groups,
            "u_groups": u.shape[1],
            "z_groups": 1 if z is None else z.shape[1],
            "tiles": self.tiles,
            "chunks": self.chunks,
            "SOFTPLUS": use_softplus,
            "SPAN": SPAN,
            "ORDER": self.order,
            "UNROLL": UNROLL,
            "EVEN": channels % self.width == 0,
        }

    def by_chunk(self, *sizes: int) -> torch.Tensor:
        """Room (b, G, chunks, *sizes)."""
        return self._room(self.chunks, *sizes)

    def by_tile(self, *sizes: int) -> torch.Tensor:
        """Room (b, G, tiles, *sizes); a tile is UNROLL tokens of a chunk."""
        return self._room(self.tiles, *sizes)

    def run(self, kernel: Any, writes: str, **tensors: torch.Tensor | None) -> None:
        """Launch a kernel, given what it writes (see `LANE`); tensors that are not named are None."""
        part, registers = LANE[writes] if self.order <= LANE_ORDER else (1, None)
        part = min(part, self.width)
        shares = {"PART": part, "SPREAD": self.width // part}
        arguments = {**dict.fromkeys(kernel.arg_names), **self.sizes, **shares, **tensors}
        options = {"maxnreg": registers} if _LIMITED and registers else {}
        at_once = LANES.value // shares["SPREAD"]
        with torch.cuda.device_of(self.like):
            kernel[(triton.cdiv(self.chunks, at_once), self.blocks, self.directions)](**arguments, **_LAUNCH, **options)

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
    """The plans (G, PLAN) of the traversals and of the same ones reversed."""
    mirrored = tuple(Traversal(traversal.order, not traversal.backward) for traversal in traversals)
    return _plans(shape, tuple(traversals), device), _plans(shape, mirrored, device)


@dataclass(frozen=True)
class Cut:
    """How a direction's tokens, in the order visited, are cut into chunks: `parts` of `part` tokens, each on its own.

    A chunk is a line along the fastest axis (several, or a piece of one, where lines are short or long), so that those
    of lines that lie side by side in memory run side by side, token by token: then what they load together lies
    together too, whichever way the direction goes. `abreast`: the slowest axis is the one along which tokens are
    neighbours in memory, so the same chunks of all parts run together.
    """

    parts: int
    part: int
    chunk: int
    abreast: bool

    @classmethod
    def of(cls, shape: Shape, traversal: Traversal) -> Cut:
        _, slowest, middle, fastest, stride, *_ = traversal.index_plan(shape)
        length = slowest * middle * fastest
        # A quarter of sqrt(L) tokens: chunks are short where there are few, since a program has several of them.
        wanted = min(LONGEST_CHUNK, max(UNROLL, triton.next_power_of_2(isqrt(length)) // 4))
        parts = slowest if middle * fastest >= wanted else 1
        pieces = triton.cdiv(fastest, wanted)
        chunk = triton.cdiv(fastest, pieces) if pieces > 1 else fastest * (wanted // fastest)
        return cls(parts, length // parts, chunk, parts > 1 and abs(stride) == 1)

    @property
    def chunks(self) -> int:
        return self.parts * triton.cdiv(self.part, self.chunk)


@lru_cache(maxsize=1024)  # training at several sizes needs 16 for each
def _plans(shape: Shape, traversals: tuple[Traversal, ...], device: torch.device) -> torch.Tensor:
    plans = [(*t.index_plan(shape), *astuple(Cut.of(shape, t))) for t in traversals]
    with torch.inference_mode(False):  # what is kept must serve calls with gradients too
        numbers = torch.tensor(plans, dtype=torch.int64)
        # Pinned, so that the upload does not wait for the work before it.
        return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers.to(device)
