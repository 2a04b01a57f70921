"""Factors of matrices that are said to be second moments, and may be none."""

from __future__ import annotations

from ders_core.compute.checks import check
from ders_core.compute.triangles import inverse_factor
from ders_core.errors import CodecError
from ders_core.later import torch


def check_factor(factor: torch.Tensor, is_definite: torch.Tensor) -> None:
    """Raise CodecError unless damped moments had this factor `[n, n]`; on a GPU as
    `ders_core.compute.checks.check` does, and until then it becomes the unit matrix. is_definite:
    bool `[]`."""
    check(
        is_definite,
        CodecError(
            "the calibration's second moments of these inputs cannot be such (they are not "
            "positive definite); run ders calibrate again"
        ),
    )
    if factor.device.type != "cpu":
        factor.masked_fill_(~is_definite, 0.0).diagonal().masked_fill_(~is_definite, 1.0)


def inverse_factor_of_moments(moments: torch.Tensor) -> None:
    """Damped moments `[n, n]` become their `inverse_factor`. Raises CodecError as `check_factor`
    does."""
    check_factor(moments, inverse_factor(moments))
