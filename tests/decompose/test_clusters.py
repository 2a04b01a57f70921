"""Clusters of experts against brute force over all partitions, and against plain vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.messages import raises_saying

from ders_core.checkpoint import ExpertGroup
from ders_core.decompose.clusters import cluster, delta_gram, energy_of
from ders_core.errors import CheckpointError, RecipeError

MakeGroup = Callable[[torch.Tensor], ExpertGroup]


def partitions(experts: int) -> Iterator[list[int]]:
    """Every way to cluster, each once, numbered by first member."""
    if experts == 1:
        yield [0]
        return
    for shorter in partitions(experts - 1):
        for label in range(max(shorter) + 2):
            yield [*shorter, label]


def plain_energy(vectors: np.ndarray, assignment: list[int] | tuple[int, ...]) -> float:
    """Σ‖W_k − mean of its cluster‖², from the vectors themselves `[K, n]`."""
    labels = np.asarray(assignment)
    return sum(
        float(((vectors[labels == one] - vectors[labels == one].mean(0)) ** 2).sum())
        for one in set(labels)
    )


def gram_of(vectors: np.ndarray) -> np.ndarray:
    centred = vectors - vectors.mean(0)
    gram: np.ndarray = centred @ centred.T
    return gram


def score(energy: float, bases: int, experts: int, bits: int) -> float:
    """The least log2 of the error at equal total bits."""
    return (math.log2(energy) if energy > 0 else -math.inf) + 2 * bits * (bases - 1) / experts


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    experts=st.integers(2, 6),
    starts=st.integers(1, 6),
    noise=st.sampled_from([0.0, 1e-9, 1e-4, 0.01, 0.1, 0.5, 1.0]),
    bits=st.sampled_from([16, 32]),
)
def test_near_the_best_of_all_partitions(
    seed: int, experts: int, starts: int, noise: float, bits: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(starts, 40))[random.integers(0, starts, experts)]
    vectors = vectors + noise * random.normal(size=(experts, 40))
    gram = gram_of(vectors)
    whole = plain_energy(vectors, [0] * experts)
    slack = 1e-11 * whole + 1e-28 * float((vectors**2).sum())
    best = [whole] + [math.inf] * (experts - 1)
    for one in partitions(experts):
        best[max(one)] = min(best[max(one)], plain_energy(vectors, one))
    for count in range(1, experts):
        clusters = cluster(gram, count, bits)
        assert clusters.count == count
        assert clusters.energy == pytest.approx(
            plain_energy(vectors, clusters.assignment), rel=1e-6, abs=slack
        )
        assert best[count - 1] - slack <= clusters.energy
        assert clusters.energy <= 1.15 * best[count - 1] + slack
        assert clusters.candidates[count - 1] == clusters.energy
    chosen = cluster(gram, bits=bits)
    if whole > 1e-9 * float((vectors**2).sum()):
        scores = [
            score(energy if energy > 1e-11 * whole else 0.0, bases, experts, bits)
            for bases, energy in enumerate(best[: max(experts // 2, 1)], 1)
        ]
        chosen_score = score(chosen.energy, chosen.count, experts, bits)
        assert chosen_score <= min(scores) + math.log2(1.15)
    else:
        assert chosen.assignment == (0,) * experts


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    starts=st.integers(2, 6),
    each=st.integers(2, 8),
    noise=st.sampled_from([0.0, 1e-8, 1e-5, 0.003]),
)
def test_planted_clusters_are_found_and_permuted_with_the_experts(
    seed: int, starts: int, each: int, noise: float
) -> None:
    random = np.random.default_rng(seed)
    which = random.permutation(np.repeat(np.arange(starts), each))
    centres = random.normal(size=(starts, 300))
    vectors = centres[which] + noise * random.normal(size=(len(which), 300))
    clusters = cluster(gram_of(vectors))
    first = list(dict.fromkeys(which.tolist()))
    assert clusters.assignment == tuple(first.index(start) for start in which)
    assert clusters.members() == tuple(
        tuple(np.flatnonzero(which == one).tolist()) for one in first
    )
    assert clusters.gain <= 1e-12 + 5 * noise**2
    order = random.permutation(len(which))
    turned = cluster(gram_of(vectors[order]))
    wanted = which[order].tolist()
    again = list(dict.fromkeys(wanted))
    assert turned.assignment == tuple(again.index(start) for start in wanted)
    assert turned.energy == pytest.approx(
        clusters.energy, abs=1e-13 * float((centres**2).sum() * each)
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), experts=st.integers(3, 14), count=st.integers(1, 13))
def test_permuting_experts_permutes_the_clusters(seed: int, experts: int, count: int) -> None:
    random = np.random.default_rng(seed)
    vectors, order = random.normal(size=(experts, 6)), random.permutation(experts)
    count = min(count, experts - 1)
    clusters = cluster(gram_of(vectors), count)
    turned = cluster(gram_of(vectors[order]), count)
    assert {frozenset(order[list(one)].tolist()) for one in turned.members()} == {
        frozenset(one) for one in clusters.members()
    }
    firsts = [members[0] for members in clusters.members()]
    assert firsts == sorted(firsts)


def test_an_expert_moves_where_wards_tree_was_wrong() -> None:
    """No single move lowers the energy any more, and often one did: a tree cannot undo a join."""
    random = np.random.default_rng(0)
    better = 0
    for _ in range(200):
        vectors = random.normal(size=(9, 2))
        clusters = cluster(gram_of(vectors), 3)
        labels = np.asarray(clusters.assignment)
        for expert in range(9):
            for label in range(3):
                moved = labels.copy()
                moved[expert] = label
                if len(set(moved)) == 3:
                    assert clusters.energy <= plain_energy(vectors, moved.tolist()) + 1e-9
        # asked for two, what is told of three is the tree's own
        better += clusters.candidates[2] < cluster(gram_of(vectors), 2).candidates[2] - 1e-9
    assert better > 10


@pytest.mark.parametrize("experts", [1, 2, 3])
@pytest.mark.parametrize("alike", [True, False])
def test_few_experts_have_one_base(experts: int, alike: bool) -> None:
    random = np.random.default_rng(3)
    vectors = random.normal(size=(experts, 20))
    clusters = cluster(gram_of(np.repeat(vectors[:1], experts, 0) if alike else vectors))
    assert clusters.assignment == (0,) * experts
    assert clusters.gain == 1
    assert len(clusters.candidates) == experts
    assert (clusters.energy == 0) == (alike or experts == 1)


def test_equal_experts_of_equal_starts_leave_nothing() -> None:
    random = np.random.default_rng(4)
    vectors = random.normal(size=(3, 50))[[0, 1, 2, 2, 1, 0]]
    clusters = cluster(gram_of(vectors))
    assert clusters.assignment == (0, 1, 2, 2, 1, 0)
    assert clusters.energy == 0
    assert clusters.candidates[2:] == (0, 0, 0, 0)
    assert cluster(np.zeros((6, 6))).assignment == (0,) * 6
    assert cluster(np.zeros((6, 6)), 3).count == 3


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(("surplus", "wanted"), [(1.02, 2), (0.98, 1)])
@pytest.mark.parametrize("experts", [4, 8, 12])
def test_a_second_base_pays_only_beyond_its_bits(
    experts: int, bits: int, surplus: float, wanted: int
) -> None:
    """Orthogonal noise of energy 1 each about two starts, set apart so that E_1/E_2 is known."""
    half = experts // 2
    within = experts - 2  # energy of two clusters of half orthogonal unit vectors: K − 2
    ratio = surplus * 2 ** (2 * bits / experts)
    between = (ratio - 1) * within  # K·gap²
    vectors = np.concatenate(
        [np.eye(experts), np.repeat([[1.0], [-1.0]], half, 0) * math.sqrt(between / experts)], 1
    )
    # the two means of the noise are apart too: take that part out
    noise = vectors[:, :experts]
    noise[:half] -= noise[:half].mean(0)
    noise[half:] -= noise[half:].mean(0)
    clusters = cluster(gram_of(vectors), bits=bits)
    assert clusters.candidates[0] / energy_of(gram_of(vectors), np.repeat([0, 1], half)) == (
        pytest.approx(ratio)
    )
    assert clusters.count == wanted


def test_experts_from_scratch_have_one_base_however_many_they_are() -> None:
    random = np.random.default_rng(5)
    for experts in (8, 60, 256):
        assert cluster(gram_of(random.normal(size=(experts, 400)))).count == 1


@pytest.mark.parametrize("count", [-1, 0, 8, 9])
def test_a_count_that_makes_no_sense_is_refused(count: int) -> None:
    with raises_saying(RecipeError, f"{count} bases", "8 experts", "1 to 7"):
        cluster(np.eye(8), count)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), experts=st.integers(1, 9))
def test_energy_is_that_of_the_vectors_from_any_origin(seed: int, experts: int) -> None:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(experts, 7))
    labels = random.integers(0, 3, experts)
    dense_labels = np.unique(labels, return_inverse=True)[1]
    wanted = plain_energy(vectors, dense_labels.tolist())
    for origin in (vectors.mean(0), vectors[0], random.normal(size=7)):
        apart = vectors - origin
        assert energy_of(apart @ apart.T, dense_labels) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_is_that_of_float64_however_it_is_cut(
    group_of: MakeGroup, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    torch.manual_seed(6)
    starts = torch.randn(2, 37, 20)[[0, 1, 1, 0, 1]]
    weights = (starts + 1e-3 * torch.randn(5, 37, 20)).to(dtype)
    group = group_of(weights)
    flat = weights.double().flatten(1).numpy()
    deltas = flat - flat.mean(0)
    for values in (1 << 18, 5 * 20 * 4, 1):
        monkeypatch.setattr("ders_core.decompose.clusters.CHUNK_VALUES", values)
        np.testing.assert_allclose(delta_gram(group), deltas @ deltas.T, rtol=1e-12, atol=1e-10)
    assert cluster(delta_gram(group), 2).assignment == (0, 1, 1, 0, 1)


def test_gram_refuses_what_is_not_finite(group_of: MakeGroup) -> None:
    weights = torch.ones(3, 4, 4)
    weights[1, 0, 0] = torch.inf
    with raises_saying(CheckpointError, "experts.1.w1", "not finite"):
        delta_gram(group_of(weights))
