"""Directions of many deltas on a device: waited for once, and as near to the best as on the CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from support.codec_support import context, gauss, inputs, second_moments
from support.counted_device import DEVICE, Waits, counted_waits

from ders_core.codecs import LowRank
from ders_core.codecs.fitting.deltas import Deltas
from ders_core.codecs.fitting.directions import OF_KEPT, OF_TAIL
from ders_core.codecs.fitting.metric import EXACT_BELOW, metric_of
from ders_core.codecs.fitting.triples import triples_of, triples_of_each
from ders_core.compute.krylov import Triples

SHAPE, RANK = (240, 200), 9
NUMBERS = torch.arange(SHAPE[1], dtype=torch.float64) + 1.0


def with_spectrum(spectrum: torch.Tensor) -> torch.Tensor:
    """`SHAPE`, with these singular values."""
    left, right = (
        torch.linalg.qr(gauss((side, SHAPE[1]), side, 1.0).double())[0] for side in SHAPE
    )
    return torch.matmul(left * spectrum, right.T).float()


def low_rank(rank: int) -> torch.Tensor:
    return gauss((SHAPE[0], rank), 2, 1.0) @ gauss((rank, SHAPE[1]), 3, 1.0)


def placed(*places: tuple[int, int]) -> torch.Tensor:
    matrix = torch.zeros(SHAPE)
    for number, place in enumerate(places, 1):
        matrix[place] = number
    return matrix


MATRICES: dict[str, Callable[[], torch.Tensor]] = {
    "a few above noise": lambda: gauss(SHAPE, 1, 0.1) + low_rank(5),
    "falling": lambda: with_spectrum(1 / NUMBERS),
    "falling fast": lambda: with_spectrum(0.5**NUMBERS),
    "nearly flat": lambda: with_spectrum(NUMBERS**-0.1),
    "a cliff": lambda: with_spectrum(torch.where(NUMBERS < 20, 1.0, 1e-3)),
    "two clusters": lambda: with_spectrum(torch.where(NUMBERS <= 100, 1.0, 0.5)),
    "all equal": lambda: torch.eye(*SHAPE),
    "rank 1": lambda: low_rank(1),
    "rank 30": lambda: low_rank(30),
    "two entries": lambda: placed((7, 9), (150, 30)),
    "a few rows": lambda: torch.cat((gauss((3, 200), 1, 1.0), torch.zeros(237, 200))),
    "a few columns": lambda: torch.cat((gauss((240, 3), 1, 1.0), torch.zeros(240, 197)), 1),
    "ones": lambda: torch.ones(SHAPE),
    "graded": lambda: gauss(SHAPE, 1, 1.0) * torch.logspace(0, -20, 200),
    "huge": lambda: gauss(SHAPE, 1, 1.0) * 1e36,
    "tiny": lambda: gauss(SHAPE, 1, 1.0) * 1e-36,
    "zeros": lambda: torch.zeros(SHAPE),
}


def waited(counted: Waits) -> dict[str, int]:
    """Until now, by operations."""
    return {name: times for name, times in counted.items() if times}


def there(matrices: list[torch.Tensor], rank: int, seeds: list[int] | None) -> list[Triples]:
    """Of each, found on the device and brought here: solvers are asked once."""
    with torch.inference_mode(), counted_waits() as counted:
        deltas = [(matrix.to(DEVICE), None) for matrix in matrices]
        found = triples_of_each(deltas, rank, seeds)
        assert waited(counted) == {"aten::linalg_eigh": 1}
        return [(left.cpu(), sigma.cpu(), right.cpu()) for left, sigma, right in found]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("is_exact", [False, True])
def test_they_leave_no_more_than_is_stated(turned: bool, is_exact: bool) -> None:
    """Whatever the spectrum, against singular values in float64; of an SVD, the least possible."""
    matrices = [make() for make in MATRICES.values()]
    matrices = [matrix.T.contiguous() if turned else matrix for matrix in matrices]
    found = there(matrices, RANK, None if is_exact else [*range(len(matrices))])
    for name, matrix, (left, sigma, right) in zip(MATRICES, matrices, found, strict=True):
        squares = torch.linalg.svdvals(matrix.double()).square()
        kept, tail = float(squares[:RANK].sum()), float(squares[RANK:].sum())
        product = (left * sigma).double() @ right.double()
        error = float((matrix.double() - product).square().sum())
        more = 0.0 if is_exact else OF_TAIL * tail
        assert product.isfinite().all(), name
        assert error <= tail + more + 1e-6 * kept, name
        assert error - tail <= OF_KEPT * kept + 1e-6 * kept, name


def test_whole_matrices_give_the_triples_of_an_svd() -> None:
    """In the order of the values, each as long as it should be; signs may differ."""
    matrix = with_spectrum(1 / NUMBERS)
    for wide in (matrix, matrix.T.contiguous()):
        ((left, sigma, right),) = there([wide], RANK, None)
        expected = torch.linalg.svd(wide.double(), full_matrices=False)
        torch.testing.assert_close(sigma.double(), expected.S[:RANK], rtol=1e-6, atol=0.0)
        for ours, theirs in ((left.T, expected.U.T[:RANK]), (right, expected.Vh[:RANK])):
            cosines = (ours.double() * theirs).sum(1).abs()
            torch.testing.assert_close(cosines, torch.ones(RANK).double(), rtol=0.0, atol=1e-5)
            assert float((ours.norm(dim=1) - 1).abs().max()) < 1e-5


@pytest.mark.parametrize("fields", [{}, {"factor_bits": 6}, {"svd": "exact"}], ids=str)
@pytest.mark.parametrize("moments", ["none", "all", "diagonal", "each"])
def test_encoded_together_they_lose_what_the_cpu_loses(
    fields: dict[str, object], moments: str
) -> None:
    """To 0.1 % of the error of outputs; and many are waited for as one is."""
    codec = LowRank.model_validate({"rank": RANK, "svd": "randomized", **fields})
    deltas = [gauss(SHAPE, seed, 1.0) + low_rank(5) for seed in (1, 2, 3)]
    of_inputs = [second_moments(inputs(SHAPE[1], seed=seed)) for seed in range(3)]
    if moments != "each":
        of_inputs = [of_inputs[0]] * 3
    known = [
        {"none": None, "diagonal": full.diagonal().contiguous()}.get(moments, full)
        for full in of_inputs
    ]
    totals = []
    for count in (1, 3):
        with torch.inference_mode(), counted_waits() as counted:
            sent = {id(each): each.to(DEVICE) for each in known if each is not None}
            contexts = [
                context(torch.bfloat16, seed, None if each is None else sent[id(each)])
                for seed, each in enumerate(known)
            ]
            parts = codec.encode_each(
                [delta.to(DEVICE) for delta in deltas[:count]], contexts[:count]
            )
            totals.append(waited(counted))
            found = [{name: part.cpu() for name, part in each.items()} for each in parts]
    checks = {"none": 0, "diagonal": 0, "all": 1, "each": 3}[moments]  # made later, in `compress`
    assert totals[0]["aten::linalg_eigh"] == totals[1]["aten::linalg_eigh"] == 1
    assert sum(totals[1].values()) == 1 + checks
    for number, (delta, each) in enumerate(zip(deltas, found, strict=True)):
        here = context(torch.bfloat16, number, known[number])
        errors = [
            codec.decode(coded, SHAPE, here) - delta for coded in (each, codec.encode(delta, here))
        ]
        metric = of_inputs[number] if moments in ("all", "each") else torch.eye(SHAPE[1])
        if moments == "diagonal":
            metric = of_inputs[0].diagonal().diag()
        ours, theirs = (float(((error @ metric) * error).sum()) ** 0.5 for error in errors)
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("width", [40, EXACT_BELOW + 20])
def test_a_metric_is_found_without_a_wait(width: int) -> None:
    """The damping goes by the largest moment, to a percent of it."""
    moments = second_moments(inputs(width)) * 1e-3
    wanted = metric_of(moments)
    with torch.inference_mode(), counted_waits() as counted:
        far = moments.to(DEVICE)
        found = metric_of(far)
        assert waited(counted) == {"aten::is_nonzero": 1}  # the check, outside of `compress`
        factor, scale = found.factor.cpu().double(), found.scale.cpu()
    expected = wanted.factor.double()
    assert float(scale) == float(wanted.scale)
    torch.testing.assert_close(
        factor @ factor.T, expected @ expected.T, rtol=1e-5, atol=1e-6 * float(moments.max())
    )


@pytest.mark.gpu
@pytest.mark.parametrize("svd", ["exact", "randomized"])
def test_a_gpu_is_waited_for_as_often_for_many(svd: Literal["exact", "randomized"]) -> None:
    """By torch's own warnings; and errors are those of the CPU."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    codec = LowRank(rank=RANK, svd=svd)
    deltas = [make() for name, make in MATRICES.items() if name not in ("huge", "tiny")]
    known = [context(torch.float32, seed) for seed in range(len(deltas))]
    there = [delta.cuda() for delta in deltas]
    codec.encode_each(there[:1], known[:1])  # what is made at first
    counts = []
    for count in (1, len(deltas)):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                parts = codec.encode_each(there[:count], known[:count])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        counts.append(sum("synchroniz" in str(each.message) for each in seen))
    assert counts[0] == counts[1]
    for delta, coded, here in zip(deltas, parts, known, strict=True):
        errors = [
            float(torch.dist(codec.decode(each, SHAPE, here).cpu(), delta))
            for each in (coded, codec.encode(delta, here))
        ]
        assert errors[0] <= 1.001 * errors[1] + 1e-5 * float(delta.norm())


def test_one_is_found_as_many_are() -> None:
    """Without a rank, all of them."""
    matrix = gauss(SHAPE, 1, 1.0)
    with torch.inference_mode(), counted_waits():
        left, sigma, right = (
            each.cpu() for each in triples_of(Deltas(matrix.to(DEVICE)), None, None, 0)
        )
    assert len(sigma) == min(SHAPE)
    torch.testing.assert_close((left * sigma) @ right, matrix, rtol=0.0, atol=1e-4)
