"""The selective scan as Triton kernels on canonical tokens; states and sums are float32.

The tokens of a direction, in the order visited, are cut into chunks that run in parallel, in three phases (Blelloch
1990; for state-space models, Gu and Dao 2023 and Dao and Gu 2024): `walk` takes every chunk from a zero state to what
it adds, `carry` runs over the chunks and turns that into the state that enters each, `walk` then goes again from there
and writes the outputs. The gradient is in `triton_gradient`. Every sum has a fixed order: no atomics.

A program is one warp. It walks through several chunks at once: SPREAD lanes share a chunk, and each of them has PART
channels with all their states in registers, so that what a token costs besides its states (its address, its row of B
and C) is paid once for PART channels, and sums over states stay within a lane. The tokens of UNROLL steps are loaded
before the first store, so that their loads overlap.

`carry` runs over spans of SPAN chunks in parallel, and then once over the spans; `enter` puts both together.

Arrays are contiguous: u (b, 1 or G, L, E), z likewise; delta, y and their gradients (b, G, L, E); A (G, N, E); B, C (b,
G, L, N); D, bias (G, E); plans (G, 7) int64 from `Traversal.index_plan`; states by chunk (b, G, chunks, N, E), the time
taken by chunk (b, G, chunks, E). Grids are (groups of chunks, channel blocks, b * G).
"""

# mypy: disable-error-code="assignment, var-annotated"
# Triton unrolls the loops in which tuples grow; to mypy such a tuple changes its type.

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(32)
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
# One compiled kernel for all sizes.
SIZES = ["length", "channels", "groups", "u_groups", "z_groups", "chunk", "chunks"]


@triton.jit
def read_plan(plans, group):
    """The plan of a direction without its slowest size, which is never needed; a volume has below 2^31 tokens."""
    plan = plans + group * 7
    first, n1, n2 = tl.load(plan).to(tl.int32), tl.load(plan + 2).to(tl.int32), tl.load(plan + 3).to(tl.int32)
    s0, s1, s2 = tl.load(plan + 4).to(tl.int32), tl.load(plan + 5).to(tl.int32), tl.load(plan + 6).to(tl.int32)
    return first, n1, n2, s0, s1, s2


@triton.jit
def locate(position, plan):
    """The token at a position in the order visited, and the position's two fastest coordinates."""
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
def advance_if(more, token, i1, i2, plan):
    """`advance` where there is a next token; elsewhere the same one again, so that it can be loaded."""
    token_next, i1_next, i2_next = advance(token, i1, i2, plan)
    return tl.where(more, token_next, token), tl.where(more, i1_next, i1), tl.where(more, i2_next, i2)


@triton.jit
def softplus(x):
    """log(1 + e^x) as max(x, 0) + z p(z) with z = e^-|x|: the GPU's logarithm would lose small steps.

    p is a least-maximum fit of log(1 + z) / z on 0 to 1, with a relative error of 2e-7.
    """
    z = tl.exp2(tl.abs(x) * -LOG2_E)
    p = z * 0.005232623778283596 - 0.029504956677556038
    p = p * z + 0.07822549343109131
    p = p * z - 0.1366320699453354
    p = p * z + 0.1910598874092102
    p = p * z - 0.2484297752380371
    p = p * z + 0.3331909477710724
    p = p * z - 0.4999949336051941
    p = p * z + 0.9999999403953552
    return tl.maximum(x, 0.0) + z * p


@triton.jit
def time_step(raw, inside, SOFTPLUS: tl.constexpr):
    """A token outside the sequence takes no time: it leaves the state as it is."""
    return tl.where(inside, softplus(raw) if SOFTPLUS else raw, 0.0)


@triton.jit
def cell(source, at, e, channels, EVEN: tl.constexpr):
    """source[at + e] as float32, 0 for channels that are not there; EVEN says that all are."""
    value = tl.load(source + at + e) if EVEN else tl.load(source + at + e, mask=e < channels, other=0.0)
    return value.to(tl.float32)


@triton.jit
def put(target, at, e, value, mask, channels, EVEN: tl.constexpr):
    """target[at + e] = value under the mask, but for channels that are not there."""
    tl.store(target + at + e, value, mask=mask if EVEN else mask & (e < channels))


@triton.jit
def share(chunk, chunks, length, PART: tl.constexpr, SPREAD: tl.constexpr):
    """What the lanes of a program work on.

    Returns the chunk of each, whether there is one (else it is the last chunk), how many tokens it has (0 where there
    is none) and the first channel; the lane's others are SPREAD apart.
    """
    lane = tl.arange(0, LANES)
    number = tl.program_id(0) * (LANES // SPREAD) + lane // SPREAD
    there = number < chunks
    number = tl.minimum(number, chunks - 1)
    count = tl.where(there, tl.minimum(chunk, length - number * chunk), 0)
    return number, there, count, tl.program_id(1) * (PART * SPREAD) + lane % SPREAD


@triton.jit
def rows(source, row, e, channels, PART: tl.constexpr, SPREAD: tl.constexpr, EVEN: tl.constexpr):
    """Of a row of (..., E) the lane's channels, a tuple; zeros for None."""
    found = ()
    for j in tl.static_range(PART):
        if source is not None:
            found += (cell(source, row * channels, e + j * SPREAD, channels, EVEN),)
        else:
            found += (tl.zeros([LANES], tl.float32),)
    return found


@triton.jit
def states_at(
    source, place, e, channels, ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """Of (..., N, E) the states of the lane's channels, a tuple, state by state; zeros for None."""
    found = ()
    for n in tl.static_range(ORDER):
        for j in tl.static_range(PART):
            if source is not None:
                found += (cell(source, (place * ORDER + n) * channels, e + j * SPREAD, channels, EVEN),)
            else:
                found += (tl.zeros([LANES], tl.float32),)
    return found


@triton.jit
def enter(
    entering, passed, spans, rates, place, span, e, channels,
    ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """The state that enters a chunk, a tuple: what `carry` found within its span, and what had entered the span.

    place and span: of the chunk in `entering` (b, G, chunks, N, E) and `passed` (b, G, chunks, E), the time from the
    span's begin, and of the span in `spans` (b, G, spans, N, E). Zero where `entering` is None.
    """
    within = states_at(entering, place, e, channels, ORDER, PART, SPREAD, EVEN)
    if entering is not None:
        before = states_at(spans, span, e, channels, ORDER, PART, SPREAD, EVEN)
        times = rows(passed, place, e, channels, PART, SPREAD, EVEN)
        found = ()
        for n in tl.static_range(ORDER):
            for j in tl.static_range(PART):
                decay = tl.exp2(times[j] * rates[n * PART + j])
                found += (within[n * PART + j] + decay * before[n * PART + j],)
        within = found
    return within


@triton.jit
def scaled(values, factor, COUNT: tl.constexpr):
    """Every value of a tuple times a factor."""
    found = ()
    for k in tl.static_range(COUNT):
        found += (values[k] * factor,)
    return found


@triton.jit
def keep(
    target, place, values, mask, e, channels,
    ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Write the states of the lane's channels, a tuple as of `states_at`, to (..., N, E)."""
    for n in tl.static_range(ORDER):
        for j in tl.static_range(PART):
            at = (place * ORDER + n) * channels
            put(target, at, e + j * SPREAD, values[n * PART + j], mask, channels, EVEN)


@triton.jit(do_not_specialize=SIZES)
def walk(
    u, delta, A, B, C, D, z, bias, plans,
    entering, passed, spans, gains, sums, marks, y,
    length, channels, groups, u_groups, z_groups, chunk, chunks,
    SOFTPLUS: tl.constexpr, SPAN: tl.constexpr, ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr,
    UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Through one chunk per SPREAD lanes, from the state that enters it (see `enter`), or from zero.

    Writes what it is given room for: `gains`, the state at the end, with `sums`, the time taken; `marks` (b, G,
    tiles, N, E), the state before every UNROLL tokens; y. D, z, bias may be None.
    """
    direction = tl.program_id(2).to(tl.int64)
    image, group = direction // groups, direction % groups
    number, there, count, e = share(chunk, chunks, length, PART, SPREAD)
    u += (image * u_groups + group % u_groups) * length * channels
    delta += direction * length * channels
    B += direction * length * ORDER
    if y is not None:
        y += direction * length * channels
        C += direction * length * ORDER
        if z is not None:
            z += (image * z_groups + group % z_groups) * length * channels
    rates = scaled(states_at(A, group, e, channels, ORDER, PART, SPREAD, EVEN), LOG2_E, ORDER * PART)
    skips = rows(D, group, e, channels, PART, SPREAD, EVEN)
    offsets = rows(bias, group, e, channels, PART, SPREAD, EVEN)
    place = direction * chunks + number
    span = direction * tl.cdiv(chunks, SPAN) + number // SPAN
    state = enter(entering, passed, spans, rates, place, span, e, channels, ORDER, PART, SPREAD, EVEN)
    times = rows(None, group, e, channels, PART, SPREAD, EVEN)
    plan = read_plan(plans, group)
    token, i1, i2 = locate(number * chunk, plan)
    for start in range(0, chunk, UNROLL):
        if marks is not None:
            tile = direction * tl.cdiv(length, UNROLL) + (number * chunk + start) // UNROLL
            keep(marks, tile, state, start < count, e, channels, ORDER, PART, SPREAD, EVEN)
        places, steps, inputs, gates, drives, reads = (), (), (), (), (), ()
        for i in tl.static_range(UNROLL):
            at = token.to(tl.int64) * channels.to(tl.int64)
            places += (at,)
            for j in tl.static_range(PART):
                steps += (cell(delta, at, e + j * SPREAD, channels, EVEN),)
                inputs += (cell(u, at, e + j * SPREAD, channels, EVEN),)
                if y is not None and z is not None:
                    gates += (cell(z, at, e + j * SPREAD, channels, EVEN),)
            row = token.to(tl.int64) * ORDER
            for n in tl.static_range(ORDER):
                drives += (tl.load(B + row + n).to(tl.float32),)
                if y is not None:
                    reads += (tl.load(C + row + n).to(tl.float32),)
            token, i1, i2 = advance_if(start + i + 1 < count, token, i1, i2, plan)
        for i in tl.static_range(UNROLL):
            inside = start + i < count
            taken, fed, values, sofar = (), (), (), ()
            for j in tl.static_range(PART):
                step = time_step(steps[i * PART + j] + offsets[j], inside, SOFTPLUS)
                taken += (step,)
                fed += (step * inputs[i * PART + j],)
                values += (skips[j] * inputs[i * PART + j],)
                sofar += (times[j] + step,)
            times = sofar
            after = ()
            for n in tl.static_range(ORDER):
                total = ()
                for j in tl.static_range(PART):
                    now = tl.exp2(taken[j] * rates[n * PART + j]) * state[n * PART + j] + fed[j] * drives[i * ORDER + n]
                    after += (now,)
                    if y is not None:
                        total += (values[j] + now * reads[i * ORDER + n],)
                if y is not None:
                    values = total
            state = after
            if y is not None:
                for j in tl.static_range(PART):
                    out = values[j]
                    if z is not None:
                        out *= gates[i * PART + j] * tl.sigmoid(gates[i * PART + j])
                    put(y, places[i], e + j * SPREAD, out, inside, channels, EVEN)
    if gains is not None:
        keep(gains, place, state, there, e, channels, ORDER, PART, SPREAD, EVEN)
        for j in tl.static_range(PART):
            put(sums, place * channels, e + j * SPREAD, times[j], there, channels, EVEN)


@triton.jit(do_not_specialize=["chunks", "channels", "groups", "span"])
def carry(
    states, A, sums, passed, ends, end_sums, chunks, channels, groups, span,
    ORDER: tl.constexpr, WIDTH: tl.constexpr, UNROLL: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """In place, over the chunks of each span: from what each adds to the state to the state that enters it.

    A span begins with a zero state. Where there is room, `ends` (b, G, spans, N, E) and `end_sums` (b, G, spans, E)
    take what the span adds and its time, and `passed` (b, G, chunks, E) the time from its begin to each chunk. BACKWARD
    counts spans and chunks from the last one, for adjoints. Grid: (spans * channel blocks, N, b * G).
    """
    direction, n = tl.program_id(2).to(tl.int64), tl.program_id(1)
    spans = tl.cdiv(chunks, span)
    own, block = tl.program_id(0) % spans, tl.program_id(0) // spans
    e = block * WIDTH + tl.arange(0, WIDTH)
    e_inside = e < channels
    once = e_inside & (tl.full([WIDTH], n, tl.int32) == 0)
    rate = LOG2_E * tl.load(A + ((direction % groups) * ORDER + n) * channels + e, mask=e_inside, other=0.0)
    state, time = tl.zeros([WIDTH], tl.float32), tl.zeros([WIDTH], tl.float32)
    end = min(own * span + span, chunks)
    for start in range(own * span, end, UNROLL):
        gains, times = (), ()
        for i in tl.static_range(UNROLL):
            place = direction * chunks + (chunks - 1 - start - i if BACKWARD else start + i)
            here = e_inside & (tl.full([WIDTH], start + i, tl.int32) < end)
            gains += (tl.load(states + (place * ORDER + n) * channels + e, mask=here, other=0.0),)
            times += (tl.load(sums + place * channels + e, mask=here, other=0.0),)
        for i in tl.static_range(UNROLL):
            place = direction * chunks + (chunks - 1 - start - i if BACKWARD else start + i)
            here = e_inside & (tl.full([WIDTH], start + i, tl.int32) < end)
            tl.store(states + (place * ORDER + n) * channels + e, state, mask=here)
            if passed is not None:
                tl.store(passed + place * channels + e, time, mask=here & once)
            state = tl.exp2(times[i] * rate) * state + gains[i]
            time += times[i]
    if ends is not None:
        place = direction * spans + own
        tl.store(ends + (place * ORDER + n) * channels + e, state, mask=e_inside)
        tl.store(end_sums + place * channels + e, time, mask=once)
