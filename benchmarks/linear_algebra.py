"""What low rank, GPTQ and the heads of spectra take beside plain ways, and as a share of the rate
at which this processor multiplies matrices.

One delta of 3584 × 2048 in float32, 16 directions above noise, on one thread. ns: processor time a
weight. products: the products of matrices that the work is made of, as a share of what the
processor multiplies in that time where both matrices are large. plain: how many times longer the
plain way takes. error: over that of the plain way. What experts with the same inputs share is
computed before, and told by itself.
Run: `python benchmarks/linear_algebra.py [word ...]`; words choose the lines that contain one.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from kernels import seconds

import ders_core
from ders_core.analysis import head
from ders_core.codecs import DeltaCodec, EncodeContext, LowRank, Quantized
from ders_core.codecs.fitting import gptq, metric
from ders_core.compute.krylov import Dense
from ders_core.compute.triangles import back_lower, times_lower

OUT, WIDTH, DIRECTIONS = 3584, 2048, 16
WEIGHTS = OUT * WIDTH
REPEATS = 3

Work = Callable[[], torch.Tensor]
Product = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Case:
    """work, plain: two ways to the same; `loss` of a result is smaller the better it is. products:
    floating-point operations in them; None to count those of a Krylov space and of a metric."""

    work: Work
    plain: Work
    loss: Callable[[torch.Tensor], float]
    products: float | None = None


def encoded(codec: DeltaCodec, delta: torch.Tensor, context: EncodeContext) -> torch.Tensor:
    """The delta as it comes back."""
    parts = codec.encode(delta, context)
    return codec.decode(parts, (OUT, WIDTH), context)


def without_loops(work: Work) -> torch.Tensor:
    with patch("ders_core.compute.kernels._installed", return_value=False):
        return work()


def cases(delta: torch.Tensor, moments: torch.Tensor) -> dict[str, Case]:
    def loss(decoded: torch.Tensor) -> float:
        return float((decoded - delta).double().norm())

    def loss_of_outputs(decoded: torch.Tensor) -> float:
        return float(metric.metric_of(moments).weighed(decoded - delta).double().norm())

    plain, known = EncodeContext(torch.bfloat16, 1), EncodeContext(torch.bfloat16, 1, moments)
    rank, exact, bits = LowRank(rank=64), LowRank(rank=64, svd="exact"), Quantized(bits=4)
    return {
        "rank 64; LAPACK's SVD": Case(
            lambda: encoded(rank, delta, plain), lambda: encoded(exact, delta, plain), loss
        ),
        "rank 64, calibrated; the same": Case(
            lambda: encoded(rank, delta, known),
            lambda: encoded(exact, delta, known),
            loss_of_outputs,
        ),
        "4 bits, calibrated; column by column": Case(
            lambda: encoded(bits, delta, known),
            lambda: without_loops(lambda: encoded(bits, delta, known)),
            loss_of_outputs,
            float(WEIGHTS) * WIDTH,
        ),
        "head of a spectrum; svdvals": Case(
            lambda: torch.from_numpy(head.heads([delta])[0]),
            lambda: torch.linalg.svdvals(delta)[:DIRECTIONS],
            lambda values: float(values.double().norm()),
        ),
    }


def counted(work: Work) -> float:
    """Operations of the products with a matrix in memory, and with the triangle of a metric."""
    operations = list[float]()

    def counting(product: Product, of_a_vector: float, axis: int = 1) -> Product:
        def product_of(matrix: Any, block: torch.Tensor, *rest: object) -> torch.Tensor:
            operations.append(of_a_vector * block.shape[axis])
            return product(matrix, block, *rest)

        return product_of

    whole, triangle = 2.0 * WEIGHTS, float(WIDTH * WIDTH)
    with (
        patch.object(Dense, "times", counting(Dense.times, whole)),
        patch.object(Dense, "back", counting(Dense.back, whole)),
        patch.object(head, "with_rows", counting(head.with_rows, whole, 0)),
        patch.object(head, "with_columns", counting(head.with_columns, whole, 0)),
        patch.object(metric, "times_lower", counting(times_lower, triangle)),
        patch.object(metric, "back_lower", counting(back_lower, triangle)),
    ):
        work()
    return sum(operations)


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    random = torch.Generator().manual_seed(0)
    delta = torch.randn(OUT, WIDTH, generator=random) * 5e-4
    left, right = (torch.randn(side, DIRECTIONS, generator=random) for side in (OUT, WIDTH))
    delta += left @ right.T * 1.2e-4
    inputs = torch.randn(2 * WIDTH, WIDTH, generator=random) * torch.logspace(0, -1, WIDTH)
    inputs += 0.3 * torch.randn(2 * WIDTH, 1, generator=random)
    moments = inputs.T @ inputs / len(inputs)
    rate = 2.0 * WEIGHTS * WIDTH / seconds(lambda: delta @ moments, REPEATS)
    print(
        f"ders-studio {ders_core.__version__}, torch {torch.__version__}, {platform.machine()}, "
        f"{torch.backends.cpu.get_cpu_capability()}; {rate / 1e9:.0f} GFlop/s"
    )
    print(f"{'the work; the plain way':40}{'ns':>8}{'products':>10}{'plain':>8}{'error':>9}")
    for name, case in cases(delta, moments).items():
        if words and not any(word in name for word in words):
            continue
        result = case.work()  # and compiles
        products = counted(case.work) if case.products is None else case.products
        fast, slow = seconds(case.work, REPEATS), seconds(case.plain, 1)
        error = case.loss(result) / case.loss(case.plain())
        share = products / fast / rate
        print(f"{name:40}{1e9 * fast / WEIGHTS:8.1f}{share:10.2f}{slow / fast:8.1f}{error:9.4f}")
    shared = {
        "shared: metric of outputs": lambda: metric._compute_metric(moments),
        "shared: factor of GPTQ": lambda: gptq._turns(moments),
    }
    for name, work in shared.items():
        if not words or any(word in name for word in words):
            print(f"{name:40}{1e9 * seconds(work, 1) / WEIGHTS:8.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
