"""Products with deltas that are nowhere whole, by any number of threads."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.codec_support import context, gauss, inputs, second_moments

from ders_core.codecs import make_codec
from ders_core.codecs.curvature import Curvature
from ders_core.codecs.fitting import (
    delta_products,
    directions,
    entries,
    in_turn,
    once,
    row_rounding,
    thin_products,
)
from ders_core.codecs.fitting.compensated import Compensated
from ders_core.codecs.fitting.delta_products import products_of
from ders_core.codecs.fitting.deltas import Deltas
from ders_core.codecs.fitting.directions import leading
from ders_core.codecs.fitting.metric import DAMPING, Metric, metric_of
from ders_core.codecs.fitting.once import OfTheLast
from ders_core.codecs.fitting.thin_products import ThinProduct
from ders_core.codecs.synthesis import add
from ders_core.compute import krylov, pieces, triangles
from ders_core.compute.magnitude import scale_for
from ders_core.compute.threads import (
    IdleThreads,
    each_piece,
    helped_by,
    one_thread,
    one_thread_each,
    result_of,
    wait_for,
)

CPU = torch.device("cpu")
WAIT = 20.0
"""Seconds after which a test fails in place of waiting for ever."""


def with_helpers(threads: int, work: Callable[[], object]) -> object:
    """What work gives in one of so many threads, of which all others help."""
    with one_thread(), one_thread_each(threads, CPU) as pool:
        idle = IdleThreads(pool, threads - 1)

        def helped() -> object:
            with helped_by(idle if threads > 1 else None), torch.inference_mode():
                return work()

        return pool.submit(helped).result()


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pieces threads were asked to help with, each time but for the largest entry."""
    counts, help_with = list[int](), IdleThreads.help

    def counting(idle: IdleThreads, work: Any, each: Any, most: int | None = None) -> None:
        some, asks = list(each), sys._getframe(2)  # behind `each_piece`
        if asks.f_code is not delta_products._largest.__code__:
            counts.append(len(some))
        help_with(idle, work, some, most)

    monkeypatch.setattr(IdleThreads, "help", counting)
    return counts


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small matrices have many."""
    monkeypatch.setattr(krylov, "ROWS", 8)
    monkeypatch.setattr(krylov, "COLUMNS", 16)
    for module in (in_turn, row_rounding):
        monkeypatch.setattr(module, "ROWS", 8)
    monkeypatch.setattr(triangles, "COLUMNS", 8)
    monkeypatch.setattr(Compensated, "rows", 8)
    monkeypatch.setattr(entries, "SLAB", 100)
    monkeypatch.setattr(thin_products, "TOGETHER", 10 * 72)
    monkeypatch.setattr(pieces, "CHUNK", 8 * 72)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(37, 21), (21, 37), (8, 16), (3, 100), (0, 5), (5, 0)], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-30])
def test_products_are_those_of_the_delta(
    shape: tuple[int, int], dtype: torch.dtype, size: float
) -> None:
    if size < 1 and dtype == torch.float16:
        size = 1e-7  # its least number
    weight, base = (gauss(shape, seed, 1.0).double().mul(size).to(dtype) for seed in (1, 2))
    exact = (weight.float() - base.float()).double()
    for deltas in (Deltas(weight, base), Deltas(exact.float())):
        unit, scale = products_of(deltas)
        assert unit.shape == shape
        there, back = gauss((shape[1], 4), 3, 1.0), gauss((shape[0], 4), 4, 1.0)
        least = 1e-5 * float(exact.abs().max() if exact.numel() else 0)
        near: dict[str, Any] = {"rtol": 1e-5, "atol": 10 * least}
        torch.testing.assert_close(
            unit.times(there).double() * scale, exact @ there.double(), **near
        )
        torch.testing.assert_close(
            unit.back(back).double() * scale, exact.T @ back.double(), **near
        )
        assert not exact.numel() or 1e-9 < float(exact.abs().max() / scale) < 1e9


@pytest.mark.usefixtures("small_tiles")
def test_an_image_keeps_nothing_but_itself() -> None:
    """Krylov spaces keep many."""
    unit, _ = products_of(Deltas(gauss((90, 40)), gauss((90, 40), 1)))
    image = unit.back(gauss((90, 3)))
    assert image.untyped_storage().nbytes() == image.nbytes


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    ("fields", "calibrated"),
    [
        ({"codec": "lowrank", "rank": 3, "svd": "randomized"}, False),
        ({"codec": "lowrank", "rank": 3, "svd": "randomized"}, True),
        ({"codec": "lowrank", "rank": 3, "svd": "randomized", "factor_bits": 4}, True),
        ({"codec": "quantized", "bits": 3, "group_size": 16}, True),
        ({"codec": "quantized", "bits": 2, "gain": "unbiased"}, True),
        ({"codec": "entropy", "bits": 1.0, "rounding": "compensated"}, True),
        ({"codec": "entropy", "bits": 1.0, "rounding": "compensated", "steps": "sensitive"}, True),
    ],
    ids=str,
)
def test_bytes_do_not_depend_on_how_many_help(
    fields: dict[str, Any], calibrated: bool, shares: list[int]
) -> None:
    shape, codec = (200, 72), make_codec(fields)
    base = gauss(shape, 1, 1.0).bfloat16()
    weight = (base.float() + gauss(shape)).bfloat16()
    moments = second_moments(inputs(shape[1])) if calibrated else None
    rows = torch.full((shape[0],), 1 / shape[0])
    known = context(torch.bfloat16, moments=moments)
    if fields["codec"] == "entropy":
        assert moments is not None
        known = known.__class__(
            torch.bfloat16, 5, moments, Curvature(moments.diagonal().clone(), rows)
        )

    def packed_and_back() -> list[torch.Tensor]:
        # moments of which nothing is remembered
        fresh = replace(known, moments=None if moments is None else moments.clone())
        parts = codec.pack(weight, base, fresh)
        back = torch.cat([*codec.unpack_in_pieces(parts, base, known)])
        return [*(parts[name] for name in sorted(parts)), back]

    digests = set()
    for threads in (1, 2, 3, 8):
        shares.clear()
        tensors, found = with_helpers(threads, packed_and_back), hashlib.sha256()
        assert isinstance(tensors, list)
        for tensor in tensors:
            found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        digests.add(found.hexdigest())
        assert max(shares, default=0) > 8 if threads > 1 else not shares
    assert len(digests) == 1


@pytest.mark.usefixtures("small_tiles")
def test_the_factor_of_a_metric_is_shared_out(shares: list[int]) -> None:
    """And is the same whoever helps, and numpy's."""
    moments = second_moments(inputs(72))
    alone, *others = [
        with_helpers(threads, lambda: metric_of(moments.clone())) for threads in (1, 2, 3)
    ]
    assert max(shares) == 72 // triangles.COLUMNS - 1  # blocks above the last one
    assert isinstance(alone, Metric)
    for other in others:
        assert isinstance(other, Metric)
        assert torch.equal(other.factor, alone.factor)
    factor = alone.factor.double() * alone.scale
    damping = DAMPING * float(torch.linalg.eigvalsh(moments.double())[-1])
    wanted = np.linalg.cholesky(moments.double().numpy() + damping * np.eye(72))
    np.testing.assert_allclose(factor.numpy(), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.usefixtures("small_tiles")
def test_pieces_of_what_comes_back_are_made_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that wait for each other; 200 rows are 20 pieces."""
    together = threading.Barrier(2, timeout=WAIT)

    def waiting(*given: torch.Tensor) -> None:
        together.wait()
        add(*given)

    product, base = ThinProduct(gauss((200, 3)), gauss((3, 72), 1)), gauss((200, 72), 2).bfloat16()
    expected = product.added(base)
    monkeypatch.setattr(thin_products, "add", waiting)
    found = with_helpers(2, lambda: torch.cat([*product.added_in_pieces(base)]))
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found.view(base.shape), expected)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("threads", [1, 3])
def test_the_scale_is_that_of_the_largest_entry_wherever_it_is(threads: int) -> None:
    for row in (0, 9, 36):
        weight = torch.ones(37, 21)
        weight[row, 5] = -1e30
        scale = with_helpers(threads, lambda: products_of(Deltas(weight))[1])  # noqa: B023
        assert float(scale) == scale_for(1e30)  # type: ignore[arg-type]


@pytest.mark.usefixtures("small_tiles")
def test_what_is_no_number_is_not_overlooked() -> None:
    """Wherever it is."""
    for row in (0, 9, 36):
        weight = torch.full((37, 21), -1e30)
        weight[row, 5] = torch.nan
        assert float(products_of(Deltas(weight))[1]) == scale_for(torch.nan)


def test_who_waits_for_the_same_helps() -> None:
    """Two pieces that wait for each other, of what is computed once for two threads."""
    together, calls = threading.Barrier(2, timeout=WAIT), list[int]()

    def compute(tensor: torch.Tensor) -> float:
        calls.append(1)
        each_piece(lambda _: together.wait(), range(2))
        return float(tensor.sum())

    remembered, tensor = OfTheLast(compute), torch.ones(3)
    with one_thread_each(2, CPU) as pool:
        idle = IdleThreads(pool, 1)

        def ask() -> float:
            with helped_by(idle):
                return remembered(tensor)

        asked = [pool.submit(ask) for _ in range(2)]
        assert [each.result(WAIT) for each in asked] == [3.0] * 2
    assert calls == [1]


def test_what_fails_once_fails_for_all_who_wait_and_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second_waits, calls = threading.Event(), list[int]()

    def waiting(done: Future[float]) -> float:
        second_waits.set()
        return result_of(done)

    def compute(tensor: torch.Tensor) -> float:
        calls.append(1)
        if len(calls) == 1:
            assert second_waits.wait(WAIT)
            raise ValueError("not the first time")
        return float(tensor.sum())

    monkeypatch.setattr(once, "result_of", waiting)
    remembered, tensor = OfTheLast(compute), torch.ones(3)
    with one_thread_each(2, CPU) as pool:
        asked = [pool.submit(remembered, tensor) for _ in range(2)]
        errors = [each.exception(WAIT) for each in asked]
    assert [type(error) for error in errors] == [ValueError] * 2
    assert len(calls) == 1
    assert remembered(tensor) == 3.0


@pytest.mark.parametrize("fails", [False, True])
def test_of_two_tensors_one_is_computed_with_at_a_time(
    monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """The second thread waits for the first one's, whether that fails or not, and helps it."""
    second_waits, order = threading.Event(), list[str]()

    def waiting(done: Future[float]) -> None:
        second_waits.set()
        wait_for(done)

    def compute(tensor: torch.Tensor) -> float:
        order.append("begins")
        assert second_waits.wait(WAIT)
        together = threading.Barrier(2 if len(order) == 1 else 1, timeout=WAIT)
        each_piece(lambda _: together.wait(), range(2))
        order.append("ends")
        if fails and len(order) == 2:
            raise ValueError("the first one")
        return float(tensor.sum())

    monkeypatch.setattr(once, "wait_for", waiting)
    remembered, tensors = OfTheLast(compute), (torch.ones(2), torch.ones(2))
    with one_thread_each(2, CPU) as pool:
        idle = IdleThreads(pool, 1)

        def ask(tensor: torch.Tensor) -> float:
            with helped_by(idle):
                return remembered(tensor)

        asked = [pool.submit(ask, tensor) for tensor in tensors]
        errors = [each.exception(WAIT) for each in asked]
        assert sum(error is None for error in errors) == 2 - fails
        assert [each.result() for each in asked if each.exception() is None] == [2.0] * (2 - fails)
    assert order == ["begins", "ends"] * 2


def test_it_is_as_near_as_an_svd() -> None:
    """From pieces; against float64, as far as the accuracy is stated."""
    shape, rank = (640, 600), 6
    spectrum = torch.logspace(0, -2, 600, dtype=torch.float64)
    left = torch.linalg.qr(gauss((640, 600), 1, 1.0).double())[0]
    right = torch.linalg.qr(gauss((600, 600), 2, 1.0).double())[0]
    delta = (left * spectrum) @ right.T
    base = gauss(shape, 3, 1.0)
    weight = (base.double() + delta).float()
    unit, scale = products_of(Deltas(weight, base))
    assert isinstance(unit, delta_products.DeltaProducts)
    u, sigma, v = leading(unit, rank, seed=0)
    least = float(spectrum[rank:].square().sum()) ** 0.5
    lost = float((delta - (u * sigma).double() @ v.double() * scale).norm())
    assert lost <= least * (1 + directions.OF_TAIL)
    torch.testing.assert_close(sigma.double() * scale, spectrum[:rank], rtol=1e-2, atol=0)
