"""The gradient of the selective scan as a Triton kernel; see `triton_kernels`.

It takes the same three phases backwards: `walk_back` from a zero adjoint of the state to what each chunk adds, `carry`
over the chunks, `walk_back` again from the adjoint that leaves each. The states inside a chunk are computed again,
UNROLL tokens at a time, from those that `walk` has marked.
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
    advance_if,
    cell,
    enter,
    keep,
    locate,
    put,
    read_plan,
    rows,
    scaled,
    share,
    states_at,
    time_step,
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
def hold(source, tokens, ORDER: tl.constexpr, SPREAD: tl.constexpr, COUNT: tl.constexpr):
    """The rows of (L, N) of COUNT tokens, a tuple, shared out over the lanes of a chunk, for `held`.

    Loaded at once, before a store: one by one each row would be waited for.
    """
    found = ()
    for r in tl.static_range((COUNT * ORDER + SPREAD - 1) // SPREAD):
        place = r * SPREAD + tl.arange(0, LANES) % SPREAD
        token = tokens[0]
        for i in tl.static_range(1, COUNT):
            token = tl.where(place // ORDER == i, tokens[i], token)
        at = token.to(tl.int64) * ORDER + place % ORDER
        found += (tl.load(source + at, mask=place < COUNT * ORDER, other=0.0).to(tl.float32),)
    return found


@triton.jit
def held(values, PLACE: tl.constexpr, SPREAD: tl.constexpr):
    """Element PLACE = token * N + state of what `hold` loaded, in every lane of the chunk."""
    first = tl.arange(0, LANES) // SPREAD * SPREAD
    return tl.gather(values[PLACE // SPREAD], first + PLACE % SPREAD, 0)


@triton.jit(do_not_specialize=SIZES)
def walk_back(
    u, delta, A, B, C, D, z, bias, plans,
    marks, leaving, passed, spans, gy, gains, gu, gdelta, gA, gBC, gD, gz, gbias,
    length, channels, groups, u_groups, z_groups, chunk, chunks,
    SOFTPLUS: tl.constexpr, SPAN: tl.constexpr, ORDER: tl.constexpr, PART: tl.constexpr, SPREAD: tl.constexpr,
    UNROLL: tl.constexpr, EVEN: tl.constexpr,
):  # fmt: skip
    """Back through one chunk per SPREAD lanes, from the adjoint of the state that leaves it, or from zero.

    With `gains` it writes there the adjoint of the state that enters the chunk, and nothing else. Otherwise the
    gradients: gu, gdelta, gz (b, G, L, E); gBC, by B and C side by side, by channel block (blocks, b, G, L, 2 N); gA
    (b, G, chunks, N, E), gD and gbias (b, G, chunks, E) by chunk. gD, gz, gbias may be None. marks: from `walk`.
    plans: of the traversals reversed. leaving, passed, spans: as `enter` takes them, spans counted from the last one.
    """
    direction = tl.program_id(2).to(tl.int64)
    image, group = direction // groups, direction % groups
    number, there, count, e = share(chunk, chunks, length, PART, SPREAD)
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
        gBC += (tl.program_id(1) * tl.num_programs(2) + direction) * length * (2 * ORDER)
        if gz is not None:
            gz += direction * length * channels
    rates = scaled(states_at(A, group, e, channels, ORDER, PART, SPREAD, EVEN), LOG2_E, ORDER * PART)
    skips = rows(D, group, e, channels, PART, SPREAD, EVEN)
    offsets = rows(bias, group, e, channels, PART, SPREAD, EVEN)
    place = direction * chunks + number
    span = direction * tl.cdiv(chunks, SPAN) + (chunks - 1 - number) // SPAN
    adjoint = enter(leaving, passed, spans, rates, place, span, e, channels, ORDER, PART, SPREAD, EVEN)
    grates = states_at(None, 0, e, channels, ORDER, PART, SPREAD, EVEN)
    gskips, goffsets = rows(None, 0, e, channels, PART, SPREAD, EVEN), rows(None, 0, e, channels, PART, SPREAD, EVEN)
    plan = read_plan(plans, group)
    token, i1, i2 = locate(tl.minimum(length - number * chunk - count, length - 1), plan)
    SUMS: tl.constexpr = triton.next_power_of_2(2 * ORDER)
    EACH: tl.constexpr = SUMS // SPREAD if SUMS > SPREAD else 1
    ALIKE: tl.constexpr = SPREAD // SUMS if SPREAD > SUMS else 1
    own = tl.arange(0, LANES) % SPREAD * SUMS // SPREAD  # of the sums over channels, the lane's first
    once = tl.arange(0, LANES) % ALIKE == 0
    for k in range(0, chunk, UNROLL):
        start = chunk - UNROLL - k
        # Of the tile's tokens, the last one first.
        tokens, raws, inputs, pulls = (), (), (), ()
        for i in tl.static_range(UNROLL):
            at = token.to(tl.int64) * channels.to(tl.int64)
            for j in tl.static_range(PART):
                raws += (cell(delta, at, e + j * SPREAD, channels, EVEN) + offsets[j],)
                if gains is None:
                    inputs += (cell(u, at, e + j * SPREAD, channels, EVEN),)
                pulls += (cell(gy, at, e + j * SPREAD, channels, EVEN),)
            tokens += (token,)
            last = start + UNROLL - 1 - i
            token, i1, i2 = advance_if((last < count) & (last > 0), token, i1, i2, plan)
        if gains is None:
            tile = direction * tl.cdiv(length, UNROLL) + tl.where(start < count, number * chunk + start, 0) // UNROLL
            state = states_at(marks, tile, e, channels, ORDER, PART, SPREAD, EVEN)
            held_c = hold(C, tokens, ORDER, SPREAD, UNROLL)
            states = ()  # before each token of the tile, the first one first
            for i in tl.static_range(UNROLL):
                states += state
                if i < UNROLL - 1:
                    row, steps = tokens[UNROLL - 1 - i].to(tl.int64) * ORDER, ()
                    for j in tl.static_range(PART):
                        raw = raws[(UNROLL - 1 - i) * PART + j]
                        steps += (time_step(raw, start + i < count, SOFTPLUS),)
                    after = ()
                    for n in tl.static_range(ORDER):
                        b = tl.load(B + row + n).to(tl.float32)
                        for j in tl.static_range(PART):
                            fed = steps[j] * inputs[(UNROLL - 1 - i) * PART + j]
                            after += (tl.exp2(steps[j] * rates[n * PART + j]) * state[n * PART + j] + fed * b,)
                    state = after
        for i in tl.static_range(UNROLL):
            inside = start + UNROLL - 1 - i < count
            at = tokens[i].to(tl.int64) * channels.to(tl.int64)
            row = tokens[i].to(tl.int64) * ORDER
            steps, gouts, gates, opens = (), (), (), ()
            for j in tl.static_range(PART):
                steps += (time_step(raws[i * PART + j], inside, SOFTPLUS),)
                gout = tl.where(inside, pulls[i * PART + j], 0.0)
                if z is not None:
                    gate = cell(z, at, e + j * SPREAD, channels, EVEN)
                    gates += (gate,)
                    opens += (tl.sigmoid(gate),)
                    if gains is not None:
                        gout *= gate * tl.sigmoid(gate)
                gouts += (gout,)
            if gains is None and z is not None:
                gated, values = (), ()
                for j in tl.static_range(PART):
                    values += (skips[j] * inputs[i * PART + j],)
                for n in tl.static_range(ORDER):
                    c, b = held(held_c, i * ORDER + n, SPREAD), tl.load(B + row + n).to(tl.float32)
                    total = ()
                    for j in tl.static_range(PART):
                        kept = (
                            tl.exp2(steps[j] * rates[n * PART + j]) * states[((UNROLL - 1 - i) * ORDER + n) * PART + j]
                        )
                        total += (values[j] + (kept + steps[j] * inputs[i * PART + j] * b) * c,)
                    values = total
                for j in tl.static_range(PART):
                    slope = gouts[j] * values[j] * opens[j] * (1 + gates[j] * (1 - opens[j]))
                    put(gz, at, e + j * SPREAD, slope, inside, channels, EVEN)
                    gated += (gouts[j] * gates[j] * opens[j],)
                gouts = gated
            gdrives = rows(None, 0, e, channels, PART, SPREAD, EVEN)
            gsteps = gdrives
            before, grates_now, by_b, by_c = (), (), (), ()
            for n in tl.static_range(ORDER):
                if gains is None:
                    c, b = held(held_c, i * ORDER + n, SPREAD), tl.load(B + row + n).to(tl.float32)
                else:
                    c = tl.load(C + row + n).to(tl.float32)
                sum_b, sum_c = tl.zeros([LANES], tl.float32), tl.zeros([LANES], tl.float32)
                gdrives_now, gsteps_now = (), ()
                for j in tl.static_range(PART):
                    decay = tl.exp2(steps[j] * rates[n * PART + j])
                    lam = adjoint[n * PART + j] + gouts[j] * c
                    if gains is None:
                        fed = steps[j] * inputs[i * PART + j]
                        kept = decay * states[((UNROLL - 1 - i) * ORDER + n) * PART + j]
                        sum_b += lam * fed
                        sum_c += (kept + fed * b) * gouts[j]
                        kept *= lam
                        gdrives_now += (gdrives[j] + lam * b,)
                        gsteps_now += (gsteps[j] + kept * rates[n * PART + j],)
                        grates_now += (grates[n * PART + j] + kept * steps[j],)
                    before += (decay * lam,)
                if gains is None:
                    gdrives, gsteps = gdrives_now, gsteps_now
                    by_b += (sum_b,)
                    by_c += (sum_c,)
            adjoint = before
            if gains is None:
                sums = by_b + by_c
                for _ in tl.static_range(SUMS - 2 * ORDER):
                    sums += (tl.zeros([LANES], tl.float32),)
                sums = over_lanes(sums, SUMS, SPREAD)
                for r in tl.static_range(EACH):
                    tl.store(gBC + 2 * row + own + r, sums[r], mask=inside & once & (own + r < 2 * ORDER))
                grates = grates_now
                gskips_now, goffsets_now = (), ()
                for j in tl.static_range(PART):
                    x = inputs[i * PART + j]
                    gstep = gsteps[j] * LN_2 + gdrives[j] * x
                    if SOFTPLUS:
                        gstep *= tl.sigmoid(raws[i * PART + j])
                    put(gu, at, e + j * SPREAD, gdrives[j] * steps[j] + skips[j] * gouts[j], inside, channels, EVEN)
                    put(gdelta, at, e + j * SPREAD, gstep, inside, channels, EVEN)
                    gskips_now += (gskips[j] + gouts[j] * x,)
                    goffsets_now += (goffsets[j] + tl.where(inside, gstep, 0.0),)
                gskips, goffsets = gskips_now, goffsets_now
    if gains is not None:
        keep(gains, place, adjoint, there, e, channels, ORDER, PART, SPREAD, EVEN)
    else:
        keep(gA, place, grates, there, e, channels, ORDER, PART, SPREAD, EVEN)
        for j in tl.static_range(PART):
            if gD is not None:
                put(gD, place * channels, e + j * SPREAD, gskips[j], there, channels, EVEN)
            if gbias is not None:
                put(gbias, place * channels, e + j * SPREAD, goffsets[j], there, channels, EVEN)
