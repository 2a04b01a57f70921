"""Tables of several contexts out of how often symbols come: see `codecs.coding.difference_tables`,
which has the same in numpy.

counts: int64 `[contexts, 2k + 1]`, how often codes come from −k to k − 1, and others in the last
column. A *cell* is a symbol of a frequency above 0; they are counted from one context to the next.
"""

from __future__ import annotations

import numpy as np

from ders_core.compute.kernels.loop import loop, part_apart

LOG_BITS, STEP_BITS, LOGGED_BITS = 24, 12, 40
"""Of `codecs.coding.frequencies`, as are logs, the table of logarithms."""


@part_apart
def logarithm(number: int, logs: np.ndarray) -> int:
    """`codecs.coding.frequencies.logarithms` of one number."""
    octave = 0
    while number >> octave > 1:
        octave += 1
    place, fine_bits = number << LOGGED_BITS - octave, LOGGED_BITS - STEP_BITS
    step, fine = (place >> fine_bits) - (1 << STEP_BITS), place & (1 << fine_bits) - 1
    between = (logs[step + 1] - logs[step]) * fine >> fine_bits
    return int((octave << LOG_BITS) + logs[step] + between)


@part_apart
def code_logs(inside: np.ndarray, far: int, logs: np.ndarray) -> int:
    """`codecs.coding.frequencies.row_logs` of counts, int64 `[symbols]` and one more."""
    total, taken = far, 0
    for count in inside:
        total += count
    if total == 0:
        return 0
    whole = logarithm(total, logs)
    for count in inside:
        if count > 0:
            taken += count * (whole - logarithm(count, logs))
    if far > 0:
        taken += far * (whole - logarithm(far, logs))
    return taken


@part_apart
def halved(first: int, inside: np.ndarray) -> np.ndarray:
    """The counts of codes from `first` on with one low bit more, which begin at first >> 1."""
    begin, end = first >> 1, (first + inside.size + 1) >> 1
    found = np.zeros(max(end - begin, 0), np.int64)
    for place in range(inside.size):
        found[((first + place) >> 1) - begin] += inside[place]
    return found


@part_apart
def coarsened(
    first: int, inside: np.ndarray, far: int, coarser: int, logs: np.ndarray
) -> tuple[int, int]:
    """(how many low bits more make the stream smallest, the `code_logs` of its code then)."""
    entries, chosen, code = far, 0, 0
    for count in inside:
        entries += count
    best = int(np.iinfo(np.int64).max)
    for more in range(coarser + 1):
        used = int(far > 0)
        for count in inside:
            used += int(count > 0)
        taken = code_logs(inside, far, logs)
        whole = (taken + (entries * more << LOG_BITS) >> LOG_BITS + 3) + used + used // 2
        if whole < best:
            chosen, code, best = more, taken, whole
        inside = halved(first, inside)
        first >>= 1
    return chosen, code


@part_apart
def share(counts: np.ndarray, bits: int, frequencies: np.ndarray) -> None:
    """Fill frequencies, int64 `[symbols]`: `codecs.coding.frequencies.frequencies_of`."""
    frequencies[:] = 0
    slots, total = np.int64(1) << np.int64(bits), np.int64(0)
    for count in counts:
        total += count
    fewer = True
    while fewer:
        fewer, slots_left, total_left = False, slots, total
        for place in range(counts.size):
            count = counts[place]
            if count > 0 and frequencies[place] == 0 and count * slots < total:
                frequencies[place] = 1
                slots_left -= 1
                total_left -= count
                fewer = True
        slots, total = slots_left, total_left
    left = slots
    remainders = np.full(counts.size, -1, np.int64)
    for place in range(counts.size):
        if counts[place] > 0 and frequencies[place] == 0:
            scaled = counts[place] * slots
            frequencies[place] = scaled // total
            remainders[place] = scaled - frequencies[place] * total
            left -= frequencies[place]
    # the largest remainders get one more: all above `low`, and the first ones of those equal to it
    low, high = np.int64(-1), total
    while high - low > 1:
        middle = (low + high) // 2
        count = 0
        for remainder in remainders:
            count += remainder >= middle
        if count > left:
            low = middle
        else:
            high = middle
    for remainder in remainders:
        left -= remainder >= high
    for place in range(counts.size):
        if remainders[place] >= high:
            frequencies[place] += 1
        elif remainders[place] == low and left > 0:
            frequencies[place] += 1
            left -= 1


@part_apart
def put_small(number: int, head: np.ndarray, at: int) -> int:
    """`codecs.coding.stream.Writer.put_small`; returns where the next number goes."""
    while number > 127:
        head[at] = np.uint8(number & 127 | 128)
        number >>= 7
        at += 1
    head[at] = np.uint8(number)
    return at + 1


@part_apart
def put_table(
    first: int,
    usual: np.ndarray,
    rare: np.ndarray,
    is_rare: np.ndarray,
    head: np.ndarray,
    at: int,
) -> int:
    """What comes after the low bits of a context with levels: how many, the code of the first one,
    and the frequencies."""
    levels = is_rare.size
    begin, end = levels, 0
    for level in range(levels):
        if usual[level] > 0 or is_rare[level]:
            begin, end = min(begin, level), level + 1
    at = put_small(levels, head, at)
    at = put_small(first << 1 ^ first >> 63, head, at)
    at = put_small(begin, head, at)
    at = put_small(end - begin, head, at)
    for level in range(begin, end):
        number = 2 * rare[level] + 1 if is_rare[level] else 2 * usual[level]
        at = put_small(number, head, at)
    return at


@part_apart
def put_cells(
    frequencies: np.ndarray,
    bits: int,
    info: np.ndarray,
    inverse: np.ndarray,
    begin: int,
    cells: np.ndarray,
) -> int:
    """Fill info and inverse, as of `rans.push`, from the begin on, and cells, int32 `[symbols]`,
    with the number of each symbol that has one; returns how many have."""
    number, first, top = begin, np.int64(0), np.int64(1) << np.int64(32 + bits)
    for symbol in range(frequencies.size):
        frequency = frequencies[symbol]
        if frequency > 0:
            info[number] = np.uint32(frequency | first << 16)
            inverse[number] = np.uint64((top + frequency - 1) // frequency)
            cells[symbol] = number
            number += 1
            first += frequency
    return number - begin


@part_apart
def rare_levels(counted: np.ndarray, rare_share: int) -> np.ndarray:
    """Which levels fewer than one entry in so many has: bool `[levels]`; none if it were one."""
    entries, several, found = counted.sum(), 0, np.zeros(counted.size, np.bool_)
    for level in range(counted.size):
        found[level] = counted[level] > 0 and counted[level] * rare_share < entries
        several += found[level]
    if several < 2:
        found[:] = False
    return found


@part_apart
def code_eighths(
    counts: np.ndarray, frequencies: np.ndarray, bits: int, eighths: np.ndarray
) -> int:
    """Eighths of bits that symbols of these counts take, and no less."""
    taken = 0
    for symbol in range(counts.size):
        taken += counts[symbol] * (8 * bits - np.int64(eighths[frequencies[symbol]]))
    return taken


@loop
def windows(
    counts: np.ndarray,
    coarser: int,
    logs: np.ndarray,
    lows: np.ndarray,
    firsts: np.ndarray,
    spans: np.ndarray,
    code: np.ndarray,
) -> np.ndarray:
    """How often each level comes: int64 `[contexts, levels]`, the last one of a context for what is
    far. Fills firsts and spans, as of `float_counts.split`, and code, int64 `[contexts]`, the
    `code_logs` of each; adds up to `coarser` to lows, which says how many low bits are noise;
    counts are overwritten."""
    middle = counts.shape[1] // 2
    for number in range(counts.shape[0]):
        row, begin, end = counts[number], 0, 0
        for place in range(2 * middle):
            if row[place] > 0:
                begin = begin if end > 0 else place
                end = place + 1
        first, inside = begin - middle, row[begin:end].copy()
        more, code[number] = coarsened(first, inside, row[2 * middle], coarser, logs)
        for _ in range(more):
            inside = halved(first, inside)
            first >>= 1
        lows[number] += more
        firsts[number], spans[number] = first, inside.size
        row[: inside.size] = inside
        row[inside.size] = row[2 * middle]
    counted = np.zeros((counts.shape[0], spans.max() + 1), np.int64)
    for number in range(counts.shape[0]):
        levels = spans[number] + 1
        counted[number, :levels] = counts[number, :levels]
    return counted


@loop
def lay_out(
    counted: np.ndarray,
    rare_share: int,
    bits: int,
    rare_bits: int,
    eighths: np.ndarray,
    lows: np.ndarray,
    firsts: np.ndarray,
    spans: np.ndarray,
    info: np.ndarray,
    inverse: np.ndarray,
    rare_info: np.ndarray,
    rare_inverse: np.ndarray,
    usual_cells: np.ndarray,
    rare_cells: np.ndarray,
    escapes: np.ndarray,
    head: np.ndarray,
    totals: np.ndarray,
) -> None:
    """Fill info, inverse, usual_cells, rare_cells, int32 `[contexts, levels + 1]`, escapes, as of
    `float_counts.split`, and head, uint8; all of enough room.

    counted, lows, firsts, spans: as of `windows`. rare_share: a level that fewer than one entry in
    so many has is rare. eighths: uint8, ⌊8 · log2⌋ of frequencies. totals: int64 `[8]`, gets the
    bytes of the head, how many bits are noise, entries are rare, and are far, eighths of bits of
    the code, usual and rare cells, and how many contexts take bits."""
    totals[:] = 0
    at, usual_count, rare_count = 0, 0, 0
    usual_cells[:], rare_cells[:] = -1, -1
    for number in range(counted.shape[0]):
        levels = spans[number] + 1
        of_usual = np.zeros(levels + 1, np.int64)
        of_usual[:levels] = counted[number, :levels]
        entries = of_usual.sum()
        usual, rare = np.zeros(levels + 1, np.int64), np.zeros(levels + 1, np.int64)
        at = put_small(lows[number], head, at)
        if entries == 0:
            at = put_small(0, head, at)
            usual[0], rare[0] = 1 << bits, 1 << rare_bits
        else:
            is_rare = rare_levels(of_usual[:levels], rare_share)
            of_rare = np.zeros(levels + 1, np.int64)
            for level in range(levels):
                if is_rare[level]:
                    of_rare[level] = of_usual[level]
                    of_usual[levels] += of_usual[level]
                    of_usual[level] = 0
            share(of_usual, bits, usual)
            rare[0] = 1 << rare_bits
            if of_usual[levels] > 0:
                share(of_rare, rare_bits, rare)
            at = put_table(firsts[number], usual, rare, is_rare, head, at)
            totals[1] += entries * lows[number]
            totals[2] += of_usual[levels]
            totals[3] += counted[number, levels - 1]
            totals[4] += code_eighths(of_usual, usual, bits, eighths)
            totals[4] += code_eighths(of_rare, rare, rare_bits, eighths)
        cells, more_cells = usual_cells[number], rare_cells[number]
        made = put_cells(usual, bits, info, inverse, usual_count, cells)
        more_made = put_cells(rare, rare_bits, rare_info, rare_inverse, rare_count, more_cells)
        escapes[number] = cells[levels]
        totals[7] += made > 1 or more_made > 1
        usual_count += made
        rare_count += more_made
    totals[0], totals[5], totals[6] = at, usual_count, rare_count
