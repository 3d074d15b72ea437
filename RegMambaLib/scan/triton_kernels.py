"""The selective scan and its gradient as Triton kernels on canonical tokens; states and sums are float32.

The tokens of a direction, in the order visited, are cut into chunks that run in parallel, in three phases (Blelloch
1990; for state-space models, Gu and Dao 2023 and Dao and Gu 2024): `walk` takes every chunk from a zero state to what
it adds, `carry` runs over the chunks and turns that into the state that enters each, `walk` then goes again from there
and writes the outputs. The gradient does the same backwards (`walk_back`, `carry`, `walk_back`); the states inside a
chunk are recomputed. Every sum has a fixed order: no atomics.

A program is one warp with a tile of (states, channels), channels along the lanes, so that the sum over states stays
within a thread. It takes its tokens one by one, UNROLL of them without a store in between, so that their loads overlap.

Arrays are contiguous: u (b, 1 or G, L, E), z likewise; delta, y and their gradients (b, G, L, E); A (G, N, E); B, C (b,
G, L, N); D, bias (G, E); plans (G, 7) int64 from `Traversal.index_plan`; states by chunk (b, G, chunks, N, E), sums of
the time steps by chunk (b, G, chunks, E). Grids are (chunks, channel blocks, b * G).
"""

# mypy: disable-error-code="assignment"
# Triton unrolls the loops in which tuples grow; to mypy such a tuple changes its type.

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# One compiled kernel for all sizes. Channels known to be a multiple of 16 would moreover make Triton spread the states
# over the lanes, for wider loads of a state that is loaded once.
SIZES = ["length", "channels", "groups", "u_groups", "z_groups", "chunk"]


@triton.jit
def read_plan(plans, group):
    """The plan of a direction without its slowest size, which is never needed."""
    plan = plans + group * 7
    n1, n2 = tl.load(plan + 2).to(tl.int32), tl.load(plan + 3).to(tl.int32)
    return tl.load(plan), n1, n2, tl.load(plan + 4), tl.load(plan + 5), tl.load(plan + 6)


@triton.jit
def locate(position, plan):
    """The token (int64) at a position in the order visited, and the position's two fastest coordinates."""
    first, n1, n2, s0, s1, s2 = plan
    i0, rest = position // (n1 * n2), position % (n1 * n2)
    i1, i2 = rest // n2, rest % n2
    return first + i0 * s0 + i1 * s1 + i2 * s2, i1, i2


@triton.jit
def advance(token, i1, i2, plan):
    """From `locate` of a position to that of the next, without divisions."""
    _, n1, n2, s0, s1, s2 = plan
    turn2 = i2 + 1 == n2
    turn1 = turn2 & (i1 + 1 == n1)
    token += s2 + tl.where(turn2, s1 - n2 * s2, 0) + tl.where(turn1, s0 - n1 * s1, 0)
    return token, tl.where(turn1, 0, i1 + turn2.to(tl.int32)), tl.where(turn2, 0, i2 + 1)


@triton.jit
def softplus(x):
    """log(1 + e^x) as max(x, 0) + 2 artanh(z / (2 + z)), z = e^-|x|: the GPU's logarithm loses small steps."""
    z = tl.exp(-tl.abs(x))
    s = z / (2 + z)
    q = s * s
    p = q * (1 / 15) + 1 / 13
    p = p * q + 1 / 11
    p = p * q + 1 / 9
    p = p * q + 1 / 7
    p = p * q + 1 / 5
    p = p * q + 1 / 3
    return tl.maximum(x, 0.0) + 2 * s * (p * q + 1)


@triton.jit
def row(source, token, width, column, mask):
    """source[token, column] as float32, 0 where masked."""
    return tl.load(source + token * width + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def where_inside(mask, position, length):
    """The mask where the position is inside the sequence (spread out first: the interpreter cannot spread a truth)."""
    return mask & (tl.full(mask.shape, position, tl.int32) < length)


@triton.jit
def time_step(raw, inside, SOFTPLUS: tl.constexpr):
    """A token outside the sequence takes no time: it leaves the state as it is."""
    return tl.where(inside, softplus(raw) if SOFTPLUS else raw, 0.0)


@triton.jit(do_not_specialize=SIZES)
def walk(
    u, delta, A, B, C, D, z, bias, plans,
    entering, gains, sums, marks, y,
    length, channels, groups, u_groups, z_groups, chunk,
    SOFTPLUS: tl.constexpr, ORDER: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Through one chunk, from the state `entering` it, or from zero without.

    Writes what it is given room for: `gains`, the state at the end, with `sums`, the time taken; `marks` (b, G,
    tiles, N, E), the state before every UNROLL tokens; y. D, z, bias may be None.
    """
    direction = tl.program_id(2).to(tl.int64)
    image, group = direction // groups, direction % groups
    first = tl.program_id(0) * chunk
    place = direction * tl.num_programs(0) + tl.program_id(0)
    e, n = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH), tl.arange(0, triton.next_power_of_2(ORDER))
    e_inside, n_inside = e < channels, n < ORDER
    cells, cells_inside = n[:, None] * channels + e[None, :], n_inside[:, None] & e_inside[None, :]
    plan = read_plan(plans, group)
    u += (image * u_groups + group % u_groups) * length * channels
    delta += direction * length * channels
    B += direction * length * ORDER
    if y is not None:
        y += direction * length * channels
        C += direction * length * ORDER
        if z is not None:
            z += (image * z_groups + group % z_groups) * length * channels
    rate = LOG2_E * row(A, group, ORDER * channels, cells, cells_inside)
    skip = row(D, group, channels, e, e_inside) if D is not None else tl.zeros([WIDTH], tl.float32)
    offset = row(bias, group, channels, e, e_inside) if bias is not None else tl.zeros([WIDTH], tl.float32)
    if entering is not None:
        state = row(entering, place, ORDER * channels, cells, cells_inside)
    else:
        state = tl.zeros([n.shape[0], WIDTH], tl.float32)
    time = tl.zeros([WIDTH], tl.float32)
    for start in range(first, min(first + chunk, length), UNROLL):
        if marks is not None:
            tile = direction * tl.cdiv(length, UNROLL) + start // UNROLL
            tl.store(marks + tile * ORDER * channels + cells, state, mask=cells_inside)
        token, i1, i2 = locate(start, plan)
        tokens, outputs = (), ()
        for i in tl.static_range(UNROLL):
            inside = start + i < length
            here, n_here = where_inside(e_inside, start + i, length), where_inside(n_inside, start + i, length)
            step = time_step(row(delta, token, channels, e, here) + offset, inside, SOFTPLUS)
            x = row(u, token, channels, e, here)
            b = row(B, token, ORDER, n, n_here)
            state = tl.exp2(step[None, :] * rate) * state + (step * x)[None, :] * b[:, None]
            time += step
            if y is not None:
                c = row(C, token, ORDER, n, n_here)
                value = tl.sum(state * c[:, None], 0) + skip * x
                if z is not None:
                    gate = row(z, token, channels, e, here)
                    value *= gate * tl.sigmoid(gate)
                tokens += (token,)
                outputs += (value,)
            token, i1, i2 = advance(token, i1, i2, plan)
        if y is not None:
            for i in tl.static_range(UNROLL):
                tl.store(y + tokens[i] * channels + e, outputs[i], mask=where_inside(e_inside, start + i, length))
    if gains is not None:
        tl.store(gains + place * ORDER * channels + cells, state, mask=cells_inside)
        tl.store(sums + place * channels + e, time, mask=e_inside)


@triton.jit(do_not_specialize=["chunks", "channels", "groups"])
def carry(
    states, A, sums, chunks, channels, groups,
    ORDER: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """In place, over the chunks of a direction: from what each adds to the state to the state that enters it.

    BACKWARD runs from the last chunk to the first, for adjoints. Grid: (channel blocks, N, b * G).
    """
    direction = tl.program_id(2).to(tl.int64)
    e, n = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH), tl.program_id(1)
    e_inside = e < channels
    rate = LOG2_E * row(A, (direction % groups) * ORDER + n, channels, e, e_inside)
    state = tl.zeros([WIDTH], tl.float32)
    for start in range(0, chunks, UNROLL):
        gains, times = (), ()
        for i in tl.static_range(UNROLL):
            place = direction * chunks + (chunks - 1 - start - i if BACKWARD else start + i)
            here = where_inside(e_inside, start + i, chunks)
            gains += (row(states, place * ORDER + n, channels, e, here),)
            times += (row(sums, place, channels, e, here),)
        for i in tl.static_range(UNROLL):
            place = direction * chunks + (chunks - 1 - start - i if BACKWARD else start + i)
            here = where_inside(e_inside, start + i, chunks)
            tl.store(states + (place * ORDER + n) * channels + e, state, mask=here)
            state = tl.exp2(times[i] * rate) * state + gains[i]


@triton.jit(do_not_specialize=SIZES)
def walk_back(
    u, delta, A, B, C, D, z, bias, plans,
    marks, leaving, gy, gains, gu, gdelta, gA, gB, gC, gD, gz, gbias,
    length, channels, groups, u_groups, z_groups, chunk,
    SOFTPLUS: tl.constexpr, ORDER: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """Back through one chunk, from the adjoint of the state `leaving` it, or from zero without.

    With `gains` it writes there the adjoint of the state that enters the chunk, and nothing else. Otherwise the
    gradients: gu, gdelta, gz (b, G, L, E); gB, gC by channel block (blocks, b, G, L, N); gA (b, G, chunks, N, E), gD
    and gbias (b, G, chunks, E) by chunk. gD, gz, gbias may be None. marks: from `walk`.
    """
    direction = tl.program_id(2).to(tl.int64)
    image, group = direction // groups, direction % groups
    first = tl.program_id(0) * chunk
    place = direction * tl.num_programs(0) + tl.program_id(0)
    e, n = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH), tl.arange(0, triton.next_power_of_2(ORDER))
    e_inside, n_inside = e < channels, n < ORDER
    cells, cells_inside = n[:, None] * channels + e[None, :], n_inside[:, None] & e_inside[None, :]
    plan = read_plan(plans, group)
    delta += direction * length * channels
    C += direction * length * ORDER
    gy += direction * length * channels
    if z is not None:
        z += (image * z_groups + group % z_groups) * length * channels
    if gains is None:
        u += (image * u_groups + group % u_groups) * length * channels
        B += direction * length * ORDER
        gu += direction * length * channels
        gdelta += direction * length * channels
        block = (tl.program_id(1) * tl.num_programs(2) + direction) * length * ORDER
        gB += block
        gC += block
        if gz is not None:
            gz += direction * length * channels
    rate = row(A, group, ORDER * channels, cells, cells_inside)
    skip = row(D, group, channels, e, e_inside) if D is not None else tl.zeros([WIDTH], tl.float32)
    offset = row(bias, group, channels, e, e_inside) if bias is not None else tl.zeros([WIDTH], tl.float32)
    if leaving is not None:
        adjoint = row(leaving, place, ORDER * channels, cells, cells_inside)
    else:
        adjoint = tl.zeros([n.shape[0], WIDTH], tl.float32)
    grate = tl.zeros([n.shape[0], WIDTH], tl.float32)
    gskip, goffset = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    tiles = tl.cdiv(min(chunk, length - first), UNROLL)
    for k in range(tiles):
        start = first + (tiles - 1 - k) * UNROLL
        if gains is None:
            tile = direction * tl.cdiv(length, UNROLL) + start // UNROLL
            state = row(marks, tile, ORDER * channels, cells, cells_inside)
        token, i1, i2 = locate(start, plan)
        tokens, raws, inputs, states = (), (), (), ()
        for i in tl.static_range(UNROLL):
            inside = start + i < length
            here, n_here = where_inside(e_inside, start + i, length), where_inside(n_inside, start + i, length)
            raw = row(delta, token, channels, e, here) + offset
            tokens += (token,)
            raws += (raw,)
            if gains is None:
                x = row(u, token, channels, e, here)
                inputs += (x,)
                states += (state,)
                if i < UNROLL - 1:
                    step = time_step(raw, inside, SOFTPLUS)
                    b = row(B, token, ORDER, n, n_here)
                    state = tl.exp2(step[None, :] * (LOG2_E * rate)) * state + (step * x)[None, :] * b[:, None]
            token, i1, i2 = advance(token, i1, i2, plan)
        for i in tl.static_range(UNROLL - 1, -1, -1):
            inside = start + i < length
            here, n_here = where_inside(e_inside, start + i, length), where_inside(n_inside, start + i, length)
            token, raw = tokens[i], raws[i]
            step = time_step(raw, inside, SOFTPLUS)
            decay = tl.exp2(step[None, :] * (LOG2_E * rate))
            c = row(C, token, ORDER, n, n_here)
            gout = row(gy, token, channels, e, here)
            if z is not None:
                gate = row(z, token, channels, e, here)
                share = tl.sigmoid(gate)
            if gains is None:
                x = inputs[i]
                b = row(B, token, ORDER, n, n_here)
                kept = decay * states[i]
                state = kept + (step * x)[None, :] * b[:, None]
                if z is not None:
                    value = tl.sum(state * c[:, None], 0) + skip * x
                    slope = gout * value * share * (1 + gate * (1 - share))
                    tl.store(gz + token * channels + e, slope, mask=here)
                    gout *= gate * share
                lam = adjoint + gout[None, :] * c[:, None]
                tl.store(gB + token * ORDER + n, tl.sum(lam * (step * x)[None, :], 1), mask=n_here)
                tl.store(gC + token * ORDER + n, tl.sum(state * gout[None, :], 1), mask=n_here)
                gdrive = tl.sum(lam * b[:, None], 0)
                kept *= lam
                gstep = tl.sum(kept * rate, 0) + gdrive * x
                grate += kept * step[None, :]
                if SOFTPLUS:
                    gstep *= tl.sigmoid(raw)
                tl.store(gu + token * channels + e, gdrive * step + skip * gout, mask=here)
                tl.store(gdelta + token * channels + e, gstep, mask=here)
                gskip += gout * x
                goffset += tl.where(inside, gstep, 0.0)
            else:
                if z is not None:
                    gout *= gate * share
                lam = adjoint + gout[None, :] * c[:, None]
            adjoint = decay * lam
    if gains is not None:
        tl.store(gains + place * ORDER * channels + cells, adjoint, mask=cells_inside)
    else:
        tl.store(gA + place * ORDER * channels + cells, grate, mask=cells_inside)
        if gD is not None:
            tl.store(gD + place * channels + e, gskip, mask=e_inside)
        if gbias is not None:
            tl.store(gbias + place * channels + e, goffset, mask=e_inside)
