"""The counter-based generator, against its definition in numpy and against golden constants.

What holds over thousands of seeds is counted in numbers of the definition.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from ders_core.codecs.coding import prng
from ders_core.codecs.coding.prng import expert_seed, random_positions

GOLDEN_SEEDS = [4517362792330381269, 676215626983254415]
GOLDEN_SMALL = [351, 999, 651, 284, 739, 874, 4, 96]
GOLDEN_LARGE = [7834078, 5479205, 15533250, 35310014, 41522197, 46881903]
GOLDEN_DIGEST = "408b6781743395d324dd686e168343e9dbc99ae313c47401231c42b91e07e7d9"


def feistel(size: int, count: int, seeds: list[int]) -> Any:
    """The permutations of these seeds in plain numpy, from the definition: `[seeds, count]`."""

    def mix(value: Any) -> Any:
        value = value ^ value >> 16
        value = value * 0x7FEB352D % 2**32
        value = value ^ value >> 15
        value = value * 0x846CA68B % 2**32
        return value ^ value >> 16

    digests = [hashlib.sha256(f"feistel/{seed}".encode()).digest() for seed in seeds]
    keys = np.array([np.frombuffer(digest, "<u4")[:6] for digest in digests], np.uint64)
    bits = max((size - 1).bit_length(), 2)
    low = bits // 2
    high = bits - low

    def permute(value: Any, keys: Any) -> Any:
        left, right = value >> low, value % 2**low
        for number in range(6):
            if number % 2:
                right = right ^ mix(left ^ keys[..., number]) % 2**low
            else:
                left = left ^ mix(right ^ keys[..., number]) % 2**high
        return left * 2**low + right

    numbers = permute(np.tile(np.arange(count, dtype=np.uint64), (len(seeds), 1)), keys[:, None])
    while (outside := np.nonzero(numbers >= size))[0].size:
        numbers[outside] = permute(numbers[outside], keys[outside[0]])
    return numbers


def drawn(size: int, count: int, seeds: list[int]) -> Any:
    """The positions of many seeds: those of `feistel`, which are `random_positions`'."""
    numbers = feistel(size, count, seeds)
    for place in range(0, len(seeds), 100):
        assert random_positions(size, count, seeds[place]).tolist() == numbers[place].tolist()
    return numbers


@settings(max_examples=150, deadline=None)
@given(data=st.data(), size=st.integers(1, 3000), seed=st.integers(0, 2**62 - 1))
def test_equals_the_definition_and_is_distinct(data: st.DataObject, size: int, seed: int) -> None:
    count = data.draw(st.integers(0, size))
    positions = random_positions(size, count, seed)
    assert positions.dtype is torch.int64
    assert positions.tolist() == feistel(size, count, [seed])[0].tolist()
    assert len(set(positions.tolist())) == count


@pytest.mark.parametrize("size", [2**20 + 1, 58_720_256, 2**33 + 7, 2**40])
def test_equals_the_definition_for_large_sizes(size: int) -> None:
    assert random_positions(size, 200, 5).tolist() == feistel(size, 200, [5])[0].tolist()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 64, 1000])
def test_all_of_them_is_a_permutation(size: int) -> None:
    assert sorted(random_positions(size, size, 11).tolist()) == list(range(size))


def test_does_not_depend_on_the_chunking(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = random_positions(5000, 3000, 3)
    monkeypatch.setattr(prng, "CHUNK", 17)
    assert torch.equal(random_positions(5000, 3000, 3), whole)
    assert torch.equal(random_positions(5000, 40, 3), whole[:40])


def test_golden_stream() -> None:
    """Packed files hold no positions: if these numbers change, every one of them is lost."""
    assert expert_seed(0, 0, "gate", 0) == GOLDEN_SEEDS[0]
    assert expert_seed(12345, 31, "down", 7) == GOLDEN_SEEDS[1]
    assert random_positions(1000, 8, 0).tolist() == GOLDEN_SMALL
    assert random_positions(58_720_256, 6, 2**62 - 1).tolist() == GOLDEN_LARGE
    digest = hashlib.sha256(random_positions(65_537, 30_000, 42).numpy().tobytes()).hexdigest()
    assert digest == GOLDEN_DIGEST


@pytest.mark.parametrize(("size", "count"), [(50, 10), (97, 48), (256, 25), (1000, 1), (5, 2)])
def test_every_position_is_equally_likely(size: int, count: int) -> None:
    """Chi-square over many seeds; seeds are fixed, so the test is not flaky."""
    draws = 2000 if size < 1000 else 10_000
    seeds = [expert_seed(seed, 0, "gate", 0) for seed in range(draws)]
    seen = np.bincount(drawn(size, count, seeds).ravel(), minlength=size)
    assert len(seen) == size
    share = count / size
    # Without replacement the counts' variance is draws·share·(1 − share), their sum is fixed.
    spread = draws * share * (1 - share) * size / (size - 1)
    statistic = sum((seen[i] - draws * share) ** 2 for i in range(size)) / spread
    assert chi2.ppf(1e-4, size - 1) < statistic < chi2.ppf(1 - 1e-4, size - 1)


@pytest.mark.parametrize(("size", "count"), [(20, 2), (40, 2), (24, 3)])
def test_every_subset_is_equally_likely(size: int, count: int) -> None:
    """All pairs and triples, hence positions are independent but for being distinct."""
    draws = 4000
    seeds = [expert_seed(seed, 1, "up", 2) for seed in range(draws)]
    seen = Counter(tuple(sorted(positions)) for positions in drawn(size, count, seeds).tolist())
    subsets = math.comb(size, count)
    expected = draws / subsets
    statistic = sum((times - expected) ** 2 / expected for times in seen.values())
    statistic += (subsets - len(seen)) * expected  # those that never came
    assert statistic < chi2.ppf(1 - 1e-4, subsets - 1)


def test_neighbouring_positions_are_independent() -> None:
    """One long draw: kept neighbours occur as often as chance has it (no stripes)."""
    size, count = 1 << 18, 1 << 15
    kept = torch.zeros(size, dtype=torch.bool)
    kept[random_positions(size, count, 9)] = True
    share = count / size
    for step in (1, 2, 3, 64, 128, 512, 1024, 4096):
        both = int((kept[step:] & kept[:-step]).sum())
        expected = (size - step) * share**2
        assert abs(both - expected) < 5 * expected**0.5
    by_row = kept.view(512, 512).sum(1).double()
    assert float((by_row - 64).square().sum() / (64 * (1 - share))) < chi2.ppf(1 - 1e-6, 511)
    by_column = kept.view(512, 512).sum(0).double()
    assert float((by_column - 64).square().sum() / (64 * (1 - share))) < chi2.ppf(1 - 1e-6, 511)


def test_different_seeds_overlap_as_chance_has_it() -> None:
    size, count = 100_000, 10_000
    one = set(random_positions(size, count, expert_seed(0, 0, "gate", 0)).tolist())
    for other in (
        expert_seed(0, 0, "gate", 1),
        expert_seed(0, 1, "gate", 0),
        expert_seed(0, 0, "up", 0),
        expert_seed(1, 0, "gate", 0),
    ):
        both = len(one & set(random_positions(size, count, other).tolist()))
        assert abs(both - 1000) < 5 * 1000**0.5


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**63 - 1),
    layer=st.integers(0, 200),
    projection=st.sampled_from(["gate", "up", "down"]),
    expert=st.integers(0, 500),
)
def test_expert_seeds_fit_62_bits(seed: int, layer: int, projection: str, expert: int) -> None:
    assert 0 <= expert_seed(seed, layer, projection, expert) < 2**62


def test_expert_seeds_differ() -> None:
    seeds = {
        expert_seed(seed, layer, projection, expert)
        for seed in range(5)
        for layer in range(12)
        for projection in ("gate", "up", "down")
        for expert in range(12)
    }
    assert len(seeds) == 5 * 12 * 3 * 12


@pytest.mark.gpu
def test_cuda_draws_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for size, count in [(1, 1), (1000, 1000), (58_720_256, 600_000), (2**33 + 7, 1000)]:
        assert torch.equal(
            random_positions(size, count, 77, "cuda").cpu(), random_positions(size, count, 77)
        )
