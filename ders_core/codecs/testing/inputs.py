"""What codecs are checked on: dtypes, shapes, values, and what errors cost."""

from __future__ import annotations

import torch

from ders_core.codecs.curvature import Curvature

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SHAPES = (
    *((0, 0), (0, 5), (5, 0), (1, 1), (1, 37), (37, 1)),
    *((13, 29), (29, 13), (16, 128), (8, 131), (130, 2)),
)
"""Empty, thin, even and odd ones."""

SHAPES_IN_EVERY_DTYPE = ((0, 5), (13, 29), (16, 128))


def gaussian(shape: tuple[int, ...], seed: int = 0, scale: float = 1e-2) -> torch.Tensor:
    """float32, the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def second_moments(width: int, tokens: int = 50) -> torch.Tensor:
    """E[x xᵀ] `[in, in]` of inputs with loud and quiet columns; of less than full rank where there
    are fewer tokens than columns."""
    loudness = torch.exp(gaussian((width,), 1, 1.2))
    inputs = gaussian((tokens, width), 2, 1.0) * loudness
    return inputs.T @ inputs / tokens


def curvature(shape: tuple[int, int], size: float = 1e-2) -> Curvature:
    """Of loud and quiet rows and columns; one of each costs nothing. size: Σ C."""
    rows, columns = (torch.exp(gaussian((length,), 3, 1.5)) for length in shape)
    rows[:1] = columns[:1] = 0
    total = rows.sum() * columns.sum()
    if not total > 0:
        return Curvature(0 * columns, 0 * rows)
    return Curvature(size * columns / columns.sum(), size * rows / rows.sum())
