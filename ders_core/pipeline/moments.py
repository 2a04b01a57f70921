"""Second moments of inputs: plain, weighted by what an error at an input costs, and of each expert.

An error E of a weight costs ½ E[(g·E x)²], with g the gradient after the weight: what hangs
together in inputs to which no gradient comes back costs nothing, however often it occurs. So where
gradients were measured, codecs go by E[‖g‖² x xᵀ] and not by E[x xᵀ]; and an expert by that of its
own inputs, where these were kept apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ders_core.decompose.distortion import is_finite
from ders_core.errors import CheckpointError
from ders_core.files.tensor import FileTensor
from ders_core.later import torch
from ders_core.pipeline.believed import Inputs

PLAIN, WEIGHTED, EACH = "moments", "weighted", "each"
"""Kinds of tensors in a calibration file. The last has an axis of experts before the others."""

TELLING = 0.5
"""How many inputs of equal weight tell as much as one of unequal weights: a few have most of it.
With half, what is predicted of experts that are coded without a base is near to what other text
loses (`benchmarks/whole.py`)."""

BORROWED = 0.5
"""Inputs of all experts that an expert's own are blended with, for each column of its weight."""


LEAST_TRACE = 1e-30
"""Weighted moments of a smaller trace tell nothing: few bits are left of what float32 holds of
them, and what they are to be multiplied by it may not hold."""


def guiding_moments(inputs: Inputs, weighted: torch.Tensor | None, tokens: int) -> torch.Tensor:
    """What codecs go by, as far as it is believed: weighted moments in the units of the plain ones,
    with as large a trace; or these, where none were measured. `[in, in]`, or diagonals `[in]`.
    weighted: is overwritten. tokens: that were read."""
    if weighted is None or weighted.shape != inputs.believed.shape:
        return inputs.believed
    return _believed(weighted, inputs.believed, TELLING * tokens)


def moments_of_experts(
    each: torch.Tensor, all_together: torch.Tensor, counts: Sequence[int]
) -> tuple[torch.Tensor, ...]:
    """What the codec of each expert goes by. each: its own weighted moments, `[experts, ...]`; are
    overwritten. all_together: `guiding_moments` of its layer. counts: how many inputs each expert
    had; one that had few goes by those of all experts."""
    found = []
    for own, count in zip(each, counts, strict=True):
        share = count / (count + BORROWED * len(own))
        if not count or _trace(own) < LEAST_TRACE:
            found.append(all_together)
            continue
        known = _believed(own, all_together, TELLING * count)
        found.append(known.mul_(share).add_(all_together, alpha=1 - share))
    return tuple(found)


def read_moments(file: Path, info: FileTensor) -> torch.Tensor:
    """E[x xᵀ], or its diagonal; of each expert, where the tensor is of that kind. Raises
    CheckpointError if the values cannot be such matrices."""
    moments = info.read()
    square = moments.dim() == (3 if info.name.endswith(f".{EACH}") else 2)
    diagonals = moments.diagonal(dim1=-2, dim2=-1) if square else moments
    symmetric = not square or torch.equal(moments, moments.mT)
    if not is_finite(moments) or not symmetric or bool((diagonals < 0).any()):
        raise CheckpointError(
            f"{file}: {info.name!r} holds no second moments (they are finite, symmetric, "
            "and not negative); the file is damaged, so run ders calibrate again"
        )
    return moments


def check_shapes(
    file: Path, tensors: Mapping[str, FileTensor], side: str, experts: int, width: int
) -> None:
    """Raise CheckpointError unless moments have the sizes of a layer's inputs, and all are matrices
    or all diagonals. side: what their names begin with."""
    plain = tensors.get(f"{side}.{PLAIN}")
    if plain is None:
        return  # without them the others are not read
    of_all = (width,) * len(plain.shape)
    sizes = {PLAIN: of_all, WEIGHTED: of_all, EACH: (experts, *of_all)}
    for kind, size in sizes.items():
        info = tensors.get(f"{side}.{kind}")
        if info is not None and info.shape != size:
            raise CheckpointError(
                f"{file}: {info.name!r} is of size {' x '.join(map(str, info.shape))}, the "
                f"checkpoint's layer needs {' x '.join(map(str, size))}; the file is damaged, so "
                "run ders calibrate again"
            )


def _believed(moments: torch.Tensor, alike: torch.Tensor, tokens: float) -> torch.Tensor:
    """Moments of so many inputs, as far as they are believed, with as large a trace as those that
    they are to be alike; these, where their own tells nothing. moments: are overwritten."""
    own = _trace(moments)
    if own < LEAST_TRACE:
        return alike
    moments.mul_(_trace(alike) / own)
    return Inputs.of(moments, tokens).believed


def _trace(moments: torch.Tensor) -> float:
    """Of a matrix, or of its diagonal."""
    return float((moments.diagonal() if moments.dim() == 2 else moments).double().sum())
