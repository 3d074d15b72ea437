"""The gradient of the selective scan as Triton kernels; see `triton_kernels`.

It takes the same three phases backwards: `walk_back` from a zero adjoint of the state to what each chunk adds, `carry`
over the chunks, `gradients` from the adjoint that leaves each. The states inside a chunk are computed again, a tile of
UNROLL tokens at a time, from those that `walk` has marked. All of a tile's tuples have its last token first.
"""

# mypy: disable-error-code="assignment, var-annotated"
# Triton unrolls the loops in which tuples grow; to mypy such a tuple changes its type.

from __future__ import annotations

import triton
import triton.language as tl

from RegMambaLib.scan.triton_kernels import (
    LANES,
    LN_2,
    LOG2_E,
    SIZES,
    enter,
    held,
    hold,
    keep,
    locate,
    put,
    read_cut,
    read_plan,
    rows,
    rows_of,
    scaled,
    share,
    states_at,
    time_step,
    upcoming,
)


@triton.jit
def folded(values, COUNT: tl.constexpr, DISTANCE: tl.constexpr):
    """Half as many sums of two lanes each: lanes DISTANCE apart share the first and the second half of the values."""
    lane = tl.arange(0, LANES)
    upper, found = lane // DISTANCE % 2 == 1, ()
    for k in tl.static_range(COUNT // 2):
        mine = tl.where(upper, values[k + COUNT // 2], values[k])
        theirs = tl.where(upper, values[k], values[k + COUNT // 2])
        found += (mine + tl.gather(theirs, lane ^ DISTANCE, 0),)
    return found


@triton.jit
def over_lanes(values, COUNT: tl.constexpr, SPREAD: tl.constexpr):
    """Sums of values, a tuple of COUNT (a power of two), over the SPREAD lanes of a chunk, shared out over them.

    A lane gets max(1, COUNT / SPREAD) of them, the first lane the first ones; where there are fewer than lanes, every
    SPREAD / COUNT lanes get the same one. Half the values change lanes at each step, instead of all at each.
    """
    for k in tl.static_range(5):  # up to 32 lanes; Triton before 3.6 knows no recursion
        if SPREAD >> k > 1:
            if COUNT >> k > 1:
                values = folded(values, COUNT >> k, SPREAD >> k + 1)
            else:
                values = (values[0] + tl.gather(values[0], tl.arange(0, LANES) ^ (SPREAD >> k + 1), 0),)
    return values


@triton.jit
def write_sums(
    target, sums, tokens, at, first, ORDER: tl.constexpr, SPREAD: tl.constexpr, UNROLL: tl.constexpr
):  # fmt: skip
    """Rows of (L, N) of UNROLL tokens, those of steps before `first` left out: sums over the lanes of a chunk.

    sums: each lane's part, a tuple, token by token. As many tokens are summed together as there are lanes for.
    """
    PADDED: tl.constexpr = triton.next_power_of_2(ORDER)
    FIT: tl.constexpr = SPREAD // PADDED if SPREAD > PADDED else 1
    TOGETHER: tl.constexpr = FIT if FIT < UNROLL else UNROLL
    SUMS: tl.constexpr = TOGETHER * PADDED
    EACH: tl.constexpr = SUMS // SPREAD if SUMS > SPREAD else 1
    ALIKE: tl.constexpr = SPREAD // SUMS if SPREAD > SUMS else 1
    own = tl.arange(0, LANES) % SPREAD * SUMS // SPREAD  # the lane's first sum
    once = tl.arange(0, LANES) % ALIKE == 0
    for t in tl.static_range(0, UNROLL, TOGETHER):
        some = ()
        for r in tl.static_range(TOGETHER * ORDER):
            some += (sums[t * ORDER + r],)
        for _ in tl.static_range(SUMS - TOGETHER * ORDER):
            some += (tl.zeros([LANES], tl.float32),)
        some = over_lanes(some, SUMS, SPREAD)
        for r in tl.static_range(EACH):
            which, token = (own + r) // ORDER, tokens[t]
            for i in tl.static_range(1, TOGETHER):
                token = tl.where(which == i, tokens[t + i], token)
            here = once & (own + r < TOGETHER * ORDER) & (at + t + which >= first)
            tl.store(target + token.to(tl.int64) * ORDER + (own + r) % ORDER, some[r], mask=here)


@triton.jit
def from_behind(cut, begin, count, length, plan, UNROLL: tl.constexpr):
    """How to go back through a chunk: in how many steps, the first that has a token, and the spot of the last token.

    Steps are a multiple of UNROLL, so that tiles are those of the way forward; plan: of the traversal reversed.
    """
    _, _, chunk, _ = cut
    chunk = tl.cdiv(chunk, UNROLL) * UNROLL
    return chunk, chunk - count, locate(tl.minimum(length - begin - count, length - 1), plan)


@triton.jit
def fetch_back(
    delta, C, z, gy, spot, at, first, last, e, channels, plan,
    ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr, UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Of `upcoming` tokens of a chunk all that `walk_back` needs, and the spot after them."""
    tokens, spot = upcoming(spot, at, first, last, plan, UNROLL)
    raws = rows_of(delta, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
    pulls = rows_of(gy, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
    gates = rows_of(z, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
    return raws, pulls, gates, hold(C, tokens, ORDER, SPREAD, UNROLL), spot


@triton.jit
def by_sums(
    raws, pulls, gates, offsets, at, first,
    SOFTPLUS: tl.constexpr, PART: tl.constexpr, UNROLL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Of UNROLL tokens the time steps, and the gradients by <C, h> + D u, which the gate has let through; tuples."""
    steps, gouts = (), ()
    for i in tl.static_range(UNROLL):
        inside = at + i >= first
        for j in tl.static_range(PART):
            steps += (time_step(raws[i * PART + j] + offsets[j], inside, SOFTPLUS),)
            gout = tl.where(inside, pulls[i * PART + j], 0.0)
            if GATED:
                gout *= gates[i * PART + j] * tl.sigmoid(gates[i * PART + j])
            gouts += (gout,)
    return steps, gouts


@triton.jit(do_not_specialize=SIZES)
def walk_back(
    delta, A, C, z, bias, plans, gy, gains,
    length, channels, groups, u_groups, z_groups, tiles, chunks,
    SOFTPLUS: tl.constexpr, SPAN: tl.constexpr, ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr,
    UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Back through one chunk per SPREAD lanes, from a zero adjoint of the state that leaves it.

    Writes `gains`, the adjoint of the state that enters. plans: of the traversals reversed. z, bias may be None.
    """
    direction = tl.program_id(2).to(tl.int64)
    image, group = direction // groups, direction % groups
    cut = read_cut(plans, group)
    number, there, begin, count, e = share(cut, chunks, PART, SPREAD)
    delta += direction * length * channels
    C += direction * length * ORDER
    gy += direction * length * channels
    if z is not None:
        z += (image * z_groups + group % z_groups) * length * channels
    rates = scaled(states_at(A, group, e, channels, ORDER, PART, SPREAD, EVEN), LOG2_E, ORDER * PART)
    offsets = rows(bias, group, e, channels, PART, SPREAD, EVEN)
    adjoint = states_at(None, group, e, channels, ORDER, PART, SPREAD, EVEN)
    plan = read_plan(plans, group)
    chunk, first, last = from_behind(cut, begin, count, length, plan, UNROLL)
    ahead = fetch_back(delta, C, z, gy, last, 0, first, chunk - 1, e, channels, plan, ORDER, PART, SPREAD, UNROLL, EVEN)
    for at in range(0, chunk, UNROLL):
        raws, pulls, gates, reads, spot = ahead
        # The next ones are on their way while these are worked on.
        ahead = fetch_back(
            delta, C, z, gy, spot, at + UNROLL, first, chunk - 1, e, channels, plan, ORDER, PART, SPREAD, UNROLL, EVEN
        )
        steps, gouts = by_sums(raws, pulls, gates, offsets, at, first, SOFTPLUS, PART, UNROLL, z is not None)
        for i in tl.static_range(UNROLL):
            before = ()
            for n in tl.static_range(ORDER):
                c = held(reads, i * ORDER + n, SPREAD)
                for j in tl.static_range(PART):
                    lam = adjoint[n * PART + j] + gouts[i * PART + j] * c
                    before += (tl.exp2(steps[i * PART + j] * rates[n * PART + j]) * lam,)
            adjoint = before
    place = direction * chunks + number
    keep(gains, place, adjoint, there, e, channels, ORDER, PART, SPREAD, EVEN)


@triton.jit
def again(
    state, steps, inputs, gouts, drives, reads, rates, skips,
    ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr, UNROLL: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """Forward through a tile, whose tokens come last one first, from the state before it.

    Returns tuples, last token first: the decays of the states and what they left of them, state by state; the lane's
    part of C's gradient; if GATED, <C, h> + D u, otherwise nothing.
    """
    decays, kepts, by_c, outs = (), (), (), ()
    for i in tl.static_range(UNROLL - 1, -1, -1):
        values, after, decays_now, kepts_now, by_c_now = (), (), (), (), ()
        for j in tl.static_range(PART):
            values += (skips[j] * inputs[i * PART + j],)
        for n in tl.static_range(ORDER):
            b = held(drives, i * ORDER + n, SPREAD)
            if GATED:
                c = held(reads, i * ORDER + n, SPREAD)
            sum_c, total = tl.zeros([LANES], tl.float32), ()
            for j in tl.static_range(PART):
                decay = tl.exp2(steps[i * PART + j] * rates[n * PART + j])
                kept = decay * state[n * PART + j]
                now = kept + steps[i * PART + j] * inputs[i * PART + j] * b
                sum_c += now * gouts[i * PART + j]
                after += (now,)
                decays_now += (decay,)
                kepts_now += (kept,)
                if GATED:
                    total += (values[j] + now * c,)
            if GATED:
                values = total
            by_c_now += (sum_c,)
        state = after
        decays, kepts, by_c = decays_now + decays, kepts_now + kepts, by_c_now + by_c
        if GATED:
            outs = values + outs
    return decays, kepts, by_c, outs


@triton.jit(do_not_specialize=SIZES)
def gradients(
    u, delta, A, B, C, D, z, bias, plans,
    marks, leaving, passed, spans, gy, gu, gdelta, gA, gB, gC, gD, gz, gbias,
    length, channels, groups, u_groups, z_groups, tiles, chunks,
    SOFTPLUS: tl.constexpr, SPAN: tl.constexpr, ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr,
    UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Back through one chunk per SPREAD lanes, from the adjoint of the state that leaves it, tile by tile.

    Writes gu, gdelta, gz (b, G, L, E); gB and gC by channel block (blocks, b, G, L, N); gA (b, G, chunks, N, E), gD and
    gbias (b, G, chunks, E) by chunk; gD, gz, gbias may be None. marks: from `walk`. plans: of the traversals reversed.
    leaving, passed, spans: as `enter` takes them, spans counted from the last one.
    """
    direction = tl.program_id(2).to(tl.int64)
    image, group = direction // groups, direction % groups
    cut = read_cut(plans, group)
    number, there, begin, count, e = share(cut, chunks, PART, SPREAD)
    u += (image * u_groups + group % u_groups) * length * channels
    delta += direction * length * channels
    B += direction * length * ORDER
    C += direction * length * ORDER
    gy += direction * length * channels
    gu += direction * length * channels
    gdelta += direction * length * channels
    gB += (tl.program_id(1) * tl.num_programs(2) + direction) * length * ORDER
    gC += (tl.program_id(1) * tl.num_programs(2) + direction) * length * ORDER
    if z is not None:
        z += (image * z_groups + group % z_groups) * length * channels
        gz += direction * length * channels
    rates = scaled(states_at(A, group, e, channels, ORDER, PART, SPREAD, EVEN), LOG2_E, ORDER * PART)
    skips = rows(D, group, e, channels, PART, SPREAD, EVEN)
    offsets = rows(bias, group, e, channels, PART, SPREAD, EVEN)
    place = direction * chunks + number
    span = direction * tl.cdiv(chunks, SPAN) + (chunks - 1 - number) // SPAN
    adjoint = enter(leaving, passed, spans, rates, place, span, e, channels, ORDER, PART, SPREAD, EVEN)
    grates = states_at(None, group, e, channels, ORDER, PART, SPREAD, EVEN)
    gskips = rows(None, group, e, channels, PART, SPREAD, EVEN)
    goffsets = gskips
    plan = read_plan(plans, group)
    chunk, first, spot = from_behind(cut, begin, count, length, plan, UNROLL)
    for at in range(0, chunk, UNROLL):
        tokens, spot = upcoming(spot, at, first, chunk - 1, plan, UNROLL)
        raws = rows_of(delta, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
        inputs = rows_of(u, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
        pulls = rows_of(gy, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
        gates = rows_of(z, tokens, e, channels, PART, SPREAD, UNROLL, EVEN)
        before = chunk - UNROLL - at  # tokens of the chunk before the tile
        tile = direction * tiles + tl.where(before < count, number * (chunk // UNROLL) + before // UNROLL, 0)
        state = states_at(marks, tile, e, channels, ORDER, PART, SPREAD, EVEN)
        drives, reads = hold(B, tokens, ORDER, SPREAD, UNROLL), hold(C, tokens, ORDER, SPREAD, UNROLL)
        steps, gouts = by_sums(raws, pulls, gates, offsets, at, first, SOFTPLUS, PART, UNROLL, z is not None)
        decays, kepts, by_c, outs = again(
            state, steps, inputs, gouts, drives, reads, rates, skips, ORDER, PART, SPREAD, UNROLL, z is not None
        )
        write_sums(gC, by_c, tokens, at, first, ORDER, SPREAD, UNROLL)
        by_b = ()
        for i in tl.static_range(UNROLL):
            inside = at + i >= first
            cells = tokens[i].to(tl.int64) * channels
            gdrives = rows(None, group, e, channels, PART, SPREAD, EVEN)
            gsteps = gdrives
            entering, grates_now = (), ()
            for n in tl.static_range(ORDER):
                b, c = held(drives, i * ORDER + n, SPREAD), held(reads, i * ORDER + n, SPREAD)
                sum_b = tl.zeros([LANES], tl.float32)
                gdrives_now, gsteps_now = (), ()
                for j in tl.static_range(PART):
                    step = steps[i * PART + j]
                    lam = adjoint[n * PART + j] + gouts[i * PART + j] * c
                    sum_b += lam * (step * inputs[i * PART + j])
                    pull = kepts[(i * ORDER + n) * PART + j] * lam
                    gdrives_now += (gdrives[j] + lam * b,)
                    gsteps_now += (gsteps[j] + pull * rates[n * PART + j],)
                    grates_now += (grates[n * PART + j] + pull * step,)
                    entering += (decays[(i * ORDER + n) * PART + j] * lam,)
                gdrives, gsteps = gdrives_now, gsteps_now
                by_b += (sum_b,)
            adjoint, grates = entering, grates_now
            gskips_now, goffsets_now = (), ()
            for j in tl.static_range(PART):
                x, gout = inputs[i * PART + j], gouts[i * PART + j]
                gx, gstep = gdrives[j] * steps[i * PART + j] + skips[j] * gout, gsteps[j] * LN_2 + gdrives[j] * x
                if SOFTPLUS:
                    gstep *= tl.sigmoid(raws[i * PART + j] + offsets[j])
                put(gu, cells, e + j * SPREAD, gx, inside, channels, EVEN)
                put(gdelta, cells, e + j * SPREAD, gstep, inside, channels, EVEN)
                if z is not None:
                    gate = gates[i * PART + j]
                    opened = tl.sigmoid(gate)
                    slope = pulls[i * PART + j] * outs[i * PART + j] * opened * (1 + gate * (1 - opened))
                    put(gz, cells, e + j * SPREAD, slope, inside, channels, EVEN)
                gskips_now += (gskips[j] + gout * x,)
                goffsets_now += (goffsets[j] + tl.where(inside, gstep, 0.0),)
            gskips, goffsets = gskips_now, goffsets_now
        write_sums(gB, by_b, tokens, at, first, ORDER, SPREAD, UNROLL)
    keep(gA, place, grates, there, e, channels, ORDER, PART, SPREAD, EVEN)
    for j in tl.static_range(PART):
        if gD is not None:
            put(gD, place * channels, e + j * SPREAD, gskips[j], there, channels, EVEN)
        if gbias is not None:
            put(gbias, place * channels, e + j * SPREAD, goffsets[j], there, channels, EVEN)
