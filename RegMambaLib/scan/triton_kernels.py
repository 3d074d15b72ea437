"""The selective scan as Triton kernels on canonical tokens; states and sums are float32.

The tokens of a direction, in the order visited, are cut into chunks that run in parallel, in three phases (Blelloch
1990; for state-space models, Gu and Dao 2023 and Dao and Gu 2024): `walk` takes every chunk from a zero state to what
it adds, `carry` runs over the chunks and turns that into the state that enters each, `walk` then goes again from there
and writes the outputs. The gradient is in `triton_gradient`. Every sum has a fixed order: no atomics.

A program is one warp. It walks through several chunks at once: SPREAD lanes share a chunk, and each of them has PART
channels with all their states in registers, so that what a token costs besides its states (its address, its row of B
and C) is paid once for PART channels, and sums over states stay within a lane. Tokens are taken UNROLL at a time; the
next ones are loaded before the work on these, so that it hides the wait.

`carry` runs over spans of SPAN chunks in parallel, and then once over the spans; `enter` puts both together.

Arrays are contiguous: u (b, 1 or G, L, E), z likewise; delta, y and their gradients (b, G, L, E); A (G, N, E); B, C (b,
G, L, N); D, bias (G, E); plans (G, PLAN) int64; states by chunk (b, G, chunks, N, E), the time
taken by chunk (b, G, chunks, E). Grids are (groups of chunks, channel blocks, b * G).
"""

# mypy: disable-error-code="assignment, var-annotated"
# Triton unrolls the loops in which tuples grow; to mypy such a tuple changes its type.

from __future__ import annotations

import triton
import triton.language as tl

LANES = tl.constexpr(32)
PLAN = tl.constexpr(11)  # numbers of a direction: of `Traversal.index_plan` and of its cut
LOG2_E, LN_2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)
# One compiled kernel for all sizes.
SIZES = ["length", "channels", "groups", "u_groups", "z_groups", "tiles", "chunks"]


@triton.jit
def read_plan(plans, group):
    """The plan of a direction without its slowest size, for `locate`; a volume has below 2^31 tokens."""
    plan = plans + group * PLAN
    first, n1, n2 = tl.load(plan).to(tl.int32), tl.load(plan + 2).to(tl.int32), tl.load(plan + 3).to(tl.int32)
    s0, s1, s2 = tl.load(plan + 4).to(tl.int32), tl.load(plan + 5).to(tl.int32), tl.load(plan + 6).to(tl.int32)
    return first, n1, n2, s0, s1, s2


@triton.jit
def read_cut(plans, group):
    """How a direction is cut (see `Cut` of the backend): parts, tokens of each, tokens of a chunk, neighbours."""
    cut = plans + group * PLAN + 7
    parts, part, chunk = tl.load(cut).to(tl.int32), tl.load(cut + 1).to(tl.int32), tl.load(cut + 2).to(tl.int32)
    return parts, part, chunk, tl.load(cut + 3).to(tl.int32)


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
def upcoming(spot, at, first, last, plan, UNROLL: tl.constexpr):
    """The tokens of steps at, at + 1, ... from a spot (see `locate`) on, a tuple of UNROLL, and the spot after them.

    Steps from `first` until `last` move on; before and after, the same token comes again, so that it can be loaded.
    """
    tokens = ()
    for i in tl.static_range(UNROLL):
        token, i1, i2 = spot
        tokens += (token,)
        moves = (at + i >= first) & (at + i < last)
        token_next, i1_next, i2_next = advance(token, i1, i2, plan)
        spot = (tl.where(moves, token_next, token), tl.where(moves, i1_next, i1), tl.where(moves, i2_next, i2))
    return tokens, spot


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
def share(cut, chunks, PART: tl.constexpr, SPREAD: tl.constexpr):
    """What the lanes of a program work on.

    Returns the number of each lane's chunk, whether there is one (else it is the last), where it begins, how many
    tokens it has (0 where there is none, and beyond a direction's own chunks) and the lane's first channel; its others
    are SPREAD apart.
    """
    parts, part, chunk, abreast = cut
    lane = tl.arange(0, LANES)
    slot = tl.program_id(0) * (LANES // SPREAD) + lane // SPREAD
    there = slot < chunks
    slot = tl.minimum(slot, chunks - 1)
    each = tl.cdiv(part, chunk)
    own = tl.where(abreast != 0, slot % parts, slot // each)
    piece = tl.where(abreast != 0, slot // parts, slot % each)
    used = there & (slot < parts * each)
    begin = tl.where(used, own * part + piece * chunk, 0)
    count = tl.where(used, tl.minimum(chunk, part - piece * chunk), 0)
    number = tl.where(slot < parts * each, own * each + piece, slot)
    return number, there, begin, count, tl.program_id(1) * (PART * SPREAD) + lane % SPREAD


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
def rows_of(
    source, tokens, e, channels, PART: tl.constexpr, SPREAD: tl.constexpr, UNROLL: tl.constexpr, EVEN: tl.constexpr
):  # fmt: skip
    """Of the rows of (L, E) of UNROLL tokens the lane's channels, a tuple, token by token; an empty one for None."""
    found = ()
    if source is not None:
        for i in tl.static_range(UNROLL):
            found += rows(source, tokens[i].to(tl.int64), e, channels, PART, SPREAD, EVEN)
    return found


@triton.jit
def hold(source, tokens, ORDER: tl.constexpr, SPREAD: tl.constexpr, UNROLL: tl.constexpr):
    """The rows of (L, N) of UNROLL tokens, a tuple, shared out over the lanes of a chunk, for `held`.

    So they take few registers, and few loads; an empty tuple for None.
    """
    found = ()
    if source is not None:
        for r in tl.static_range((UNROLL * ORDER + SPREAD - 1) // SPREAD):
            place = r * SPREAD + tl.arange(0, LANES) % SPREAD
            token = tokens[0]
            for i in tl.static_range(1, UNROLL):
                token = tl.where(place // ORDER == i, tokens[i], token)
            at = token.to(tl.int64) * ORDER + place % ORDER
            found += (tl.load(source + at, mask=place < UNROLL * ORDER, other=0.0).to(tl.float32),)
    return found


@triton.jit
def held(values, PLACE: tl.constexpr, SPREAD: tl.constexpr):
    """Element PLACE = token * N + state of what `hold` loaded, in every lane of the chunk."""
    first = tl.arange(0, LANES) // SPREAD * SPREAD
    return tl.gather(values[PLACE // SPREAD], first + PLACE % SPREAD, 0)


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


@triton.jit
def fetch(
    u, delta, B, C, z, spot, at, count, e, channels, plan,
    ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr, UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Of `upcoming` tokens of a chunk all that `walk` needs, and the spot after them."""
    tokens, spot = upcoming(spot, at, 0, count - 1, plan, UNROLL)
    raws = rows_of(delta, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
    inputs = rows_of(u, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
    gates = rows_of(z, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
    drives, reads = hold(B, tokens, ORDER, SPREAD, UNROLL), hold(C, tokens, ORDER, SPREAD, UNROLL)
    return tokens, raws, inputs, gates, drives, reads, spot


@triton.jit(do_not_specialize=SIZES)
def walk(
    u, delta, A, B, C, D, z, bias, plans,
    entering, passed, spans, gains, sums, marks, y,
    length, channels, groups, u_groups, z_groups, tiles, chunks,
    SOFTPLUS: tl.constexpr, SPAN: tl.constexpr, ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr,
    UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Through one chunk per SPREAD lanes, from the state that enters it (see `enter`), or from zero.

    Writes what it is given room for: `gains`, the state at the end, with `sums`, the time taken; y, which C is for;
    `marks` (b, G, tiles, N, E), the state before every UNROLL tokens of a chunk. D, z, bias may be None.
    """
    direction = tl.program_id(2).to(tl.int64)
    image, group = direction // groups, direction % groups
    cut = read_cut(plans, group)
    number, there, begin, count, e = share(cut, chunks, PART, SPREAD)
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
    _, _, chunk, _ = cut
    tile = direction * tiles + number * tl.cdiv(chunk, UNROLL)
    begun = locate(begin, plan)
    ahead = fetch(u, delta, B, C, z, begun, 0, count, e, channels, plan, ORDER, PART, SPREAD, UNROLL, EVEN)
    for start in range(0, chunk, UNROLL):
        if marks is not None:
            keep(marks, tile + start // UNROLL, state, start < count, e, channels, ORDER, PART, SPREAD, EVEN)
        tokens, raws, inputs, gates, drives, reads, spot = ahead
        # The next ones are on their way while these are worked on.
        ahead = fetch(
            u, delta, B, C, z, spot, start + UNROLL, count, e, channels, plan, ORDER, PART, SPREAD, UNROLL, EVEN
        )
        for i in tl.static_range(UNROLL):
            inside = start + i < count
            steps, fed, values, sofar = (), (), (), ()
            for j in tl.static_range(PART):
                step = time_step(raws[i * PART + j] + offsets[j], inside, SOFTPLUS)
                steps += (step,)
                fed += (step * inputs[i * PART + j],)
                values += (skips[j] * inputs[i * PART + j],)
                sofar += (times[j] + step,)
            times = sofar
            after = ()
            for n in tl.static_range(ORDER):
                total = ()
                b = held(drives, i * ORDER + n, SPREAD)
                if y is not None:
                    c = held(reads, i * ORDER + n, SPREAD)
                for j in tl.static_range(PART):
                    now = tl.exp2(steps[j] * rates[n * PART + j]) * state[n * PART + j] + fed[j] * b
                    after += (now,)
                    if y is not None:
                        total += (values[j] + now * c,)
                if y is not None:
                    values = total
            state = after
            if y is not None:
                at = tokens[i].to(tl.int64) * channels
                for j in tl.static_range(PART):
                    out = values[j]
                    if z is not None:
                        out *= gates[i * PART + j] * tl.sigmoid(gates[i * PART + j])
                    put(y, at, e + j * SPREAD, out, inside, channels, EVEN)
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
