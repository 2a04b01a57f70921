"""The entropy coder against ten lines of Python's integers, and its sizes against the entropy."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ders_core.codecs.coding import level_stream, runs, sections
from ders_core.codecs.coding.arrangement import Arrangement
from ders_core.codecs.coding.frequencies import frequencies_of
from ders_core.codecs.coding.level_tables import Alphabet
from ders_core.codecs.coding.rans import BITS, MOST_BITS, START, Popper, Pusher, Table
from ders_core.codecs.coding.steps import Steps
from ders_core.compute import kernels
from ders_core.errors import CodecError

NO_COMPILER = patch("ders_core.compute.kernels._installed", return_value=False)


def popped(
    states: Sequence[int], words: Sequence[int], sequences: Sequence[tuple[int, np.ndarray]]
) -> tuple[list[list[int]], list[int], list[int]]:
    """What docs/format.md says: (symbols of each sequence, states in the end, words left).
    sequences: how many symbols, and the frequencies of each."""
    x, left, found = list(states), list(words), []
    for count, frequencies in sequences:
        size, symbols = int(frequencies.sum()), []
        slots = [(n, i) for n, f in enumerate(frequencies.tolist()) for i in range(f)]
        for t in range(count if frequencies.max() < size else 0):
            lane = t % len(x)
            symbol, within = slots[x[lane] % size]
            x[lane] = int(frequencies[symbol]) * (x[lane] // size) + within
            if x[lane] < 2**16:
                x[lane] = x[lane] * 2**16 + left.pop(0)
            symbols.append(symbol)
        found.append(symbols or [int(frequencies.argmax())] * count)
    return found, x, left


def drawn(random: np.random.Generator, count: int, symbols: int, power: float) -> np.ndarray:
    """uint16 `[count]`: the larger the power, the more unequal their chances."""
    chances = random.random(symbols) ** power + 1e-12
    return random.choice(symbols, count, p=chances / chances.sum()).astype(np.uint16)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    counts=st.lists(st.integers(0, 300), min_size=1, max_size=4),
    lanes=st.sampled_from((1, 2, 8, 64)),
    symbols=st.sampled_from((1, 2, 5, 300, 4096)),
    power=st.sampled_from((0.0, 3.0, 40.0)),
    bits=st.sampled_from((BITS, MOST_BITS)),
)
def test_what_is_pushed_is_popped(
    seed: int, counts: list[int], lanes: int, symbols: int, power: float, bits: int
) -> None:
    """By loops, by numpy, and by the page; loops and numpy push the same words, also where memory
    for words is too small again and again."""
    random = np.random.default_rng(seed)
    sequences = [drawn(random, count, symbols, power) for count in counts]
    tables = [
        Table(frequencies_of(np.bincount(sequence, minlength=1) + (sequence.size == 0), bits), bits)
        for sequence in sequences
    ]

    def stack(expected: int) -> tuple[np.ndarray, np.ndarray]:
        pusher = Pusher(lanes, expected)
        for sequence, table in reversed(list(zip(sequences, tables, strict=True))):
            pusher.push(sequence, table)
        return pusher.stack()

    def read() -> list[list[int]]:
        popper = Popper(states, words)
        found = [
            popper.pop(len(sequence), table).tolist()
            for sequence, table in zip(sequences, tables, strict=True)
        ]
        popper.done()
        return found

    assert kernels.takes()
    states, words = stack(sum(counts))
    wanted = [sequence.tolist() for sequence in sequences]
    assert read() == wanted
    small_pieces = patch("ders_core.codecs.coding.rans.PIECE", 64)
    with small_pieces:
        others = [stack(0)]
    with NO_COMPILER:
        others.append(stack(sum(counts)))
        assert read() == wanted
        with small_pieces:
            others.append(stack(0))
    for other in others:
        assert np.array_equal(other[0], states)
        assert np.array_equal(other[1], words)
    frequencies = [table.frequencies for table in tables]
    asked = list(zip(counts, frequencies, strict=True))
    assert popped(states.tolist(), words.tolist(), asked) == (wanted, [START] * lanes, [])


@pytest.mark.parametrize("lanes", [0, 1, 8])
def test_loops_may_look_at_a_word_a_lane_behind_the_last(lanes: int) -> None:
    """Without lanes too, where a loop is lent one."""
    popper = Popper(np.full(lanes, START, np.uint32), np.arange(1, 4, dtype=np.uint16))

    def read(states: np.ndarray, words: np.ndarray, at: int, end: int) -> int:
        assert words[at:end].tolist() == [1, 2, 3]
        assert words[end:].tolist() == [0] * len(states)
        return end

    popper.lend(read)
    popper.done()


@settings(max_examples=200, deadline=None)
@given(
    counts=st.lists(st.one_of(st.just(0), st.integers(1, 9), st.integers(1, 2**40)), min_size=1),
    bits=st.sampled_from((BITS, MOST_BITS)),
)
def test_frequencies_are_shares(counts: list[int], bits: int) -> None:
    """Against the definition in exact fractions: within one of the share of what those leave that
    get the least there is."""
    if not any(counts):
        counts[0] = 1
    frequencies = frequencies_of(np.array(counts), bits).tolist()
    assert sum(frequencies) == 1 << bits
    pairs = list(zip(counts, frequencies, strict=True))
    assert all((count > 0) == (frequency > 0) for count, frequency in pairs)
    least = [count for count, frequency in pairs if frequency == 1]
    slots, total = (1 << bits) - len(least), sum(counts) - sum(least)
    for count, frequency in pairs:
        if frequency > 1:
            assert abs(frequency * total - count * slots) < total + max(least, default=0) * (
                1 << bits
            )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("share", [0.3, 0.1, 0.02, 1e-3, 1e-5])
def test_gaps_take_what_independent_entries_do(share: float, dtype: type[np.generic]) -> None:
    """Their table is the geometric distribution, which costs no more than the entropy."""
    random = np.random.default_rng(1)
    entries = 1 << 21
    codes = (random.random(entries) < share).astype(dtype)
    places = np.flatnonzero(codes)
    gaps = np.diff(places, prepend=-1) - 1
    low_bits = runs.low_bits_of(len(places), entries)
    found = runs.Found.of(codes, 0, len(places), low_bits)
    assert found.others.tolist() == [1] * len(places)
    assert found.units == (gaps >> low_bits).sum()
    kind = runs.Gaps.of(found.units, len(places), low_bits)
    table = kind.table()
    most = len(table.frequencies) - 1
    symbols, low = found.high(most), found.low
    with NO_COMPILER:
        plainly = runs.Found.of(codes, 0, len(places), low_bits)
        assert plainly.units == found.units
        for size in (1, 7, most):
            assert np.array_equal(plainly.high(size), runs.Found.high(found, size))
    for size in (1, 7, most):
        assert np.array_equal(plainly.high(size), found.high(size))
    assert np.array_equal(plainly.low, low)
    assert low.dtype == plainly.low.dtype
    filled = np.empty(len(places), np.uint32)
    runs.fill_places(filled, symbols, low, kind, most)
    assert np.array_equal(filled, places)
    taken = float(np.log2(2**BITS / table.frequencies[symbols]).sum()) + kind.low_bits * len(low)
    p = len(places) / entries
    assert taken <= 1.001 * -entries * (p * np.log2(p) + (1 - p) * np.log2(1 - p)) + 16
    assert len(symbols) < 3 * len(places) + 2  # and are quick to read


def test_a_table_of_gaps_has_no_empty_symbol() -> None:
    for goes_on in (16, 17, 300, 2**15, 2**16 - 300, 2**16 - 16, 2**16 - 2, 2**16 - 1):
        frequencies = runs.Gaps(goes_on, 0).table().frequencies
        assert frequencies.min() > 0
        assert 2 <= len(frequencies) <= 256


def classes_of(
    random: np.random.Generator, shape: tuple[int, int], spread: float, steps: Steps | None
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray]:
    """(levels, symbols of each class, their counts, the matrix): Gaussian entries in units of their
    steps, rounded."""
    arrangement = Arrangement.of(shape, steps)
    entries = random.standard_normal(shape)
    if steps is not None:
        entries /= steps.multiply_(torch.ones(shape)).double().numpy() / 8
    rounded = np.rint(entries * spread).astype(np.int64)
    occurring, numbers = np.unique(rounded, return_inverse=True)
    arranged = arrangement.arranged(numbers.reshape(shape).astype(np.uint16))
    symbols = [arranged[part] for part in arrangement.classes]
    counts = np.array([np.bincount(each, minlength=len(occurring)) for each in symbols])
    return occurring.astype(np.float32), symbols, counts, rounded


def some_steps(random: np.random.Generator, shape: tuple[int, int]) -> Steps:
    exponents = (random.normal(12, 4, length).astype(np.int64) for length in shape)
    return Steps(*exponents)


@pytest.mark.parametrize("steps", [False, True], ids=["even", "sensitive"])
@pytest.mark.parametrize("spread", [0.25, 0.35, 0.5, 1.0, 8.0, 60.0])
def test_streams_are_as_small_as_their_entropy(spread: float, steps: bool) -> None:
    """Within 0.2 %, tables and lanes counted; 0.02 to 8 bits an entry. The entropy is that of each
    class's counts, and of the exponents."""
    random, shape = np.random.default_rng(0), (512, 2048)
    known = some_steps(random, shape) if steps else None
    levels, symbols, counts, rounded = classes_of(random, shape, spread, known)
    common = int(counts.sum(0).argmax())
    stream = level_stream.write(known, levels, common, symbols, counts).tensor()
    alphabets = [row[row > 0] for row in counts]
    if known is not None:
        alphabets += [np.bincount(each - each.min()) for each in (known.rows, known.columns)]
    used = [counted[counted > 0].astype(float) for counted in alphabets]
    entropy = sum(float((each * np.log2(each.sum() / each)).sum()) for each in used) / 8
    tables = 4 * counts.any(0).sum() + 2 * sum(len(each) for each in alphabets)
    assert stream.numel() <= 1.002 * entropy + tables + 6 * len(counts) + 20
    entries = level_stream.read(stream, shape)
    wanted = torch.from_numpy(rounded).float()
    assert torch.equal(entries.matrix(), wanted if known is None else known.multiply_(wanted))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("steps", [False, True], ids=["even", "sensitive"])
@pytest.mark.parametrize("level", [0.0, -0.0, 0.37])
def test_weights_are_the_same_without_a_compiler(
    dtype: torch.dtype, steps: bool, level: float
) -> None:
    """Bit by bit, −0 among them, whatever the common level is."""
    random, shape = np.random.default_rng(3), (37, 210)
    known = some_steps(random, shape) if steps else None
    levels, symbols, counts, _ = classes_of(random, shape, 0.4, known)
    common = int(counts.sum(0).argmax())
    levels[common] = level
    stream = level_stream.write(known, levels, common, symbols, counts).tensor()
    base = torch.from_numpy(random.standard_normal(shape)).to(dtype)
    base[::3, ::2] = -0.0
    entries = level_stream.read(stream, shape)
    delta, weight = entries.matrix(), entries.onto(base)
    with NO_COMPILER:
        assert torch.equal(
            level_stream.write(known, levels, common, symbols, counts).tensor(), stream
        )
        plainly = level_stream.read(stream, shape)
        for one, other in ((plainly.matrix(), delta), (plainly.onto(base), weight)):
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_every_form_of_a_class_is_written() -> None:
    """The test above reaches gaps with and without low parts, symbols each, and rare levels."""
    random, shape = np.random.default_rng(0), (512, 2048)
    forms = set()
    for spread in (0.15, 0.25, 0.5, 60.0):
        _, symbols, counts, _ = classes_of(random, shape, spread, None)
        common = int(counts.sum(0).argmax())
        for each, row in zip(symbols, counts, strict=True):
            section = sections.section_of(each, row, common, Alphabet(np.arange(len(row))))
            low_bits = section.numbers[0] if section.form == 2 else 0
            rare = section.tables is not None and section.tables.rare is not None
            forms.add((section.form, low_bits > 0, rare))
    assert {(1, False, False), (1, False, True), (2, False, False), (2, True, False)} <= forms


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), steps=st.booleans(), spread=st.sampled_from((0.3, 2.0, 60.0)))
def test_damaged_streams_are_refused_or_read_as_others(
    seed: int, steps: bool, spread: float
) -> None:
    """By loops and by numpy alike: the same weights, or a refusal of both."""
    random, shape = np.random.default_rng(seed), (12, 60)
    known = some_steps(random, shape) if steps else None
    levels, symbols, counts, _ = classes_of(random, shape, spread, known)
    stream = level_stream.write(known, levels, 0, symbols, counts).tensor()
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(len(stream)) ** random.choice([1, 0.5]))
        stream[place] = int(random.integers(256))
    if random.random() < 0.3:
        stream = stream[: int(random.integers(2, len(stream)))]
    outcomes, refusals = [], set()
    for compiled in (True, False):
        with patch("ders_core.compute.kernels._installed", return_value=compiled):
            try:
                outcomes.append(level_stream.read(stream, shape).matrix())
            except CodecError as error:
                outcomes.append(torch.zeros(0))
                refusals.add(str(error))
    assert all("damaged" in refusal for refusal in refusals)
    assert torch.equal(*(outcome.contiguous().view(torch.uint8) for outcome in outcomes))
    assert bool(torch.isfinite(outcomes[0]).all())
