"""The strongest singular values of a large matrix, and the density of all, without an SVD.

A block of random vectors and its images under ΔᵀΔ span a Krylov space; the singular values of Δ
there approach its largest ones from below (Musco and Musco 2015), and the start block's weights on
them are a quadrature of the density of all (stochastic Lanczos quadrature: Golub and Meurant 2010,
chapter 5; Ubaru, Chen and Saad 2017).
"""

from __future__ import annotations

import numpy as np
import torch

HEAD = 16
"""So many of the largest singular values are told by the head alone."""

BLOCK, STEPS = 32, 8
"""Of the whole curve: 256 products with Δ and Δᵀ each."""

HEAD_STEPS, SETTLED = 10, 0.005
"""The head is done when no value has grown by more than this share in a step, but after so many
steps at the latest."""


def product_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies it, else float32. Δ's rounding is noise of 2⁻⁹ in each
    entry: it moves a singular value by less than 0.1 %."""
    quick = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if quick else torch.float32


def head(delta: torch.Tensor) -> np.ndarray:
    """The HEAD largest singular values of `[m, n]` in `product_dtype`, descending, float64.

    Within SETTLED or so of each: below 0.1 % where they stand out from the others, about 1 % where
    the spectrum is flat.
    """
    space = _Krylov(delta)
    found = np.zeros(HEAD)
    for step in range(HEAD_STEPS):
        space.grow()
        before, found = found, space.values()[0][:HEAD]
        if step and bool((found - before <= SETTLED * found).all()):
            break
    return found


def curve(delta: torch.Tensor, energy: float) -> np.ndarray:
    """All min(m, n) singular values of `[m, n]` in `product_dtype`, descending, float64, estimated.

    energy: Σσ², which the estimate has exactly. The HEAD largest are found as by `head`; the others
    follow the density: cumulative energy is within 1 % of the whole. The effective rank, which
    hangs on the smallest values, is within 1 % where the spectrum has a floor of noise, as rounded
    weights give it, and up to 12 % too high where it falls steeply.
    """
    space = _Krylov(delta)
    for _ in range(STEPS):
        space.grow()
    sigma, weights = space.values()
    size = min(delta.shape)
    top, rest = sigma[:HEAD] ** 2, sigma[HEAD:] ** 2
    share = weights[HEAD:] / weights[HEAD:].sum()
    middles = np.cumsum(share) - share / 2
    others = np.interp((np.arange(size - HEAD) + 0.5) / (size - HEAD), middles, rest)
    left = max(energy - float(top.sum()), 0.0)
    others *= left / others.sum() if others.sum() else 0.0
    values: np.ndarray = np.sort(np.sqrt(np.concatenate([top, others])))[::-1]
    return values


class _Krylov:
    """An orthonormal basis of the Krylov space of ΔᵀΔ, a block longer after each step."""

    def __init__(self, delta: torch.Tensor) -> None:
        self._delta = delta if delta.shape[0] >= delta.shape[1] else delta.mT
        size = self._delta.shape[1]
        random = torch.Generator().manual_seed(0)
        start = torch.randn(size, BLOCK, generator=random).to(delta.device)
        self._next = torch.linalg.qr(start)[0]
        self._basis = torch.empty(size, 0, device=delta.device)
        self._images: list[torch.Tensor] = []

    def grow(self) -> None:
        """Add a block to the basis."""
        if self._images:
            self._next = self._orthogonal((self._delta.mT @ self._images[-1]).float())
        self._basis = torch.cat((self._basis, self._next), 1)
        self._images.append(self._delta @ self._next.to(self._delta.dtype))

    def _orthogonal(self, block: torch.Tensor) -> torch.Tensor:
        """Twice is enough (Parlett 1998, §6.9); the second time also for what QR made up where the
        block had nothing new."""
        for _ in range(2):
            block = block - self._basis @ (self._basis.mT @ block)
            block = torch.linalg.qr(block)[0]
        return block

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """(singular values of Δ in the space, descending; the share of the density at each)."""
        image = torch.cat(self._images, 1).float()
        gram = (image.mT @ image).double().cpu()
        squares, vectors = torch.linalg.eigh(gram)
        weights = vectors[:BLOCK].square().sum(0) / BLOCK
        return squares.clamp_min(0).sqrt().flip(0).numpy(), weights.flip(0).numpy()
