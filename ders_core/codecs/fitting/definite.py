"""Factors of matrices that are said to be second moments, and may be none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ders_core.compute.triangles import inverse_factor
from ders_core.errors import CodecError
from ders_core.later import torch


@contextmanager
def positive_definite() -> Iterator[None]:
    """Let a block say so that factors damped moments which have no factor."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise CodecError(
            "the calibration's second moments of these inputs cannot be such (they are not "
            "positive definite); run ders calibrate again"
        ) from error


def inverse_factor_of_moments(moments: torch.Tensor) -> None:
    """Damped moments `[n, n]` become their `inverse_factor`. Raises CodecError if they cannot be
    second moments."""
    with positive_definite():
        inverse_factor(moments)
