"""The cases of `codec_errors.py`: deltas with their inputs, the baselines, all of our forms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ders_core.calibrate import calibrate
from ders_core.codecs.coding.packing import packed_bytes
from ders_core.decompose.averages import around_mean
from ders_core.packed.open import open_checkpoint

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Group:
    """deltas: `[out, in]` float32 each. seen, fresh: E[x xᵀ] `[in, in]` of the inputs that may be
    calibrated with, and of those that errors are measured on."""

    deltas: tuple[torch.Tensor, ...]
    seen: torch.Tensor
    fresh: torch.Tensor


# what is measured on


def inputs(width: int, tokens: int, seed: int) -> torch.Tensor:
    """Activations `[tokens, in]`: loud columns, and four directions that all columns share."""
    fixed, drawn = (torch.Generator().manual_seed(number) for number in (width, seed))
    loud = torch.exp(1.2 * torch.randn(width, generator=fixed))
    shared = torch.randn(4, width, generator=fixed)
    noise = torch.randn(tokens, width, generator=drawn)
    return (noise + torch.randn(tokens, 4, generator=drawn) @ shared) * loud


def made_group(make: Callable[[torch.Generator], torch.Tensor], count: int) -> Group:
    generator = torch.Generator().manual_seed(2503)
    deltas = tuple(make(generator) for _ in range(count))
    width = deltas[0].shape[1]
    seen, fresh = (inputs(width, 8192, seed) for seed in (1, 2))
    return Group(deltas, seen.T @ seen / len(seen), fresh.T @ fresh / len(fresh))


def gaussian(shape: tuple[int, int]) -> Callable[[torch.Generator], torch.Tensor]:
    return lambda generator: 1e-3 * torch.randn(shape, generator=generator)


def structured(shape: tuple[int, int]) -> Callable[[torch.Generator], torch.Tensor]:
    """Sixteen directions with half of the energy, noise with the tails of Student's t(3)."""

    def make(generator: torch.Generator) -> torch.Tensor:
        left = torch.randn(shape[0], 16, generator=generator)
        right = torch.randn(16, shape[1], generator=generator)
        low = (left * torch.logspace(0, -1, 16)) @ right
        normal = torch.randn(shape, generator=generator)
        first, second, third = (torch.randn(shape, generator=generator) for _ in range(3))
        chi = first.square() + second.square() + third.square()
        heavy = normal / (chi / 3).sqrt()
        mixed: torch.Tensor = low / low.norm() + heavy / heavy.norm()
        return 1e-3 * mixed * math.sqrt(math.prod(shape) / 2)

    return make


def demo_groups(demo: Path, work: Path) -> Iterator[Group]:
    """The true deltas of the first and the last layer, with the moments that `ders calibrate`
    finds in the calibration text and in the held-out one."""
    checkpoint = open_checkpoint(demo / "moe")
    seen, fresh = (
        calibrate(demo / "moe", work / name, text=demo / f"{name}.txt", window=256)
        for name in ("calibration", "heldout")
    )
    layers = {checkpoint.moe_layers[0], checkpoint.moe_layers[-1]}
    for group in checkpoint.groups():
        if group.layer in layers:
            key = group.layer, group.projection
            moments = [calibration.moments(*key) for calibration in (seen, fresh)]
            assert moments[0] is not None
            assert moments[1] is not None
            deltas = around_mean(group).deltas()
            yield Group(tuple(deltas), moments[0], moments[1])


# the baselines


def plain_bits(bits: int, size: int) -> Callable[[torch.Tensor], tuple[torch.Tensor, int]]:
    """DeRS eq. 5: round to nearest between the least and the largest of each `size` neighbours (0:
    of a row), two bfloat16 numbers each."""

    def code(delta: torch.Tensor) -> tuple[torch.Tensor, int]:
        out, width = delta.shape
        block = size or width
        padded = torch.nn.functional.pad(delta, (0, -width % block), mode="replicate")
        grouped = padded.view(out, -1, block)
        low = grouped.amin(-1, keepdim=True).to(DTYPE).float()
        step = (grouped.amax(-1, keepdim=True) - low) / (2**bits - 1)
        step = step.to(DTYPE).float().clamp_min(1e-30)
        codes = ((grouped - low) / step).round().clamp(0, 2**bits - 1)
        decoded = (codes * step + low).view(out, -1)[:, :width]
        return decoded, packed_bytes(delta.numel(), bits) + 4 * grouped.shape[0] * grouped.shape[1]

    return code


def bitdelta(delta: torch.Tensor) -> tuple[torch.Tensor, int]:
    """BitDelta (arXiv 2402.10193) before its distillation: sign(Δ)·mean|Δ|, one scale a matrix."""
    return delta.sign() * delta.abs().mean().to(DTYPE).float(), packed_bytes(delta.numel(), 1) + 2


BASELINES: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, int]]] = {
    **{f"plain {bits}-bit, range a row": plain_bits(bits, 0) for bits in range(1, 9)},
    **{f"plain {bits}-bit, range of 128": plain_bits(bits, 128) for bits in range(1, 8)},
    "BitDelta": bitdelta,
}
PAPER_DROPS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)


# the forms


def forms(quick: bool) -> list[dict[str, Any]]:
    """Every form of ours with its strengths, but `entropy`, which takes any."""
    sparse: list[dict[str, Any]] = [
        {"codec": "sparse", "drop_rate": rate, "method": method, **more}
        for rate in (0.5, 0.75, 0.9, 0.95, 0.99)
        for method, more in (
            ("random", {"rescale": "least_squares"}),
            ("random", {"rescale": "least_squares", "value_bits": 4}),
            ("magnitude", {}),
            ("magnitude", {"value_bits": 4}),
            ("della", {"value_bits": 8}),
        )
    ]
    patterns: list[dict[str, Any]] = [
        {"codec": "sparse", "pattern": pattern, "value_bits": 4}
        for pattern in ("2:4", "1:4", "1:8")
    ]
    quantized: list[dict[str, Any]] = [
        *({"codec": "quantized", "bits": bits} for bits in range(1, 9)),
        {"codec": "quantized", "bits": 1, "group_size": 0},
        {"codec": "quantized", "grid": "ternary"},
        *({"codec": "quantized", "bits": bits, "grid": "affine"} for bits in (2, 4)),
        *(
            {"codec": "quantized", "bits": bits, "grid": "normal", "scale_bits": 8}
            for bits in (2, 3, 4)
        ),
        *({"codec": "quantized", "bits": bits, "grid": "learned"} for bits in (2, 3, 4)),
    ]
    lowrank: list[dict[str, Any]] = [
        *({"codec": "lowrank", "bits": bits} for bits in (0.25, 0.5, 1.0, 2.0, 4.0)),
        *({"codec": "lowrank", "bits": bits, "factor_bits": 4} for bits in (0.1, 0.25, 0.5, 1.0)),
        *(
            {"codec": "lowrank", "bits": bits, "factor_bits": 3, "leading": 4}
            for bits in (0.25, 0.5, 1.0)
        ),
    ]
    chain: list[dict[str, Any]] = [
        {"codec": "chain", "stages": [first, {"codec": "entropy", "bits": bits}]}
        for first, bits in (
            ({"codec": "lowrank", "bits": 0.1, "factor_bits": 6}, 0.149),
            ({"codec": "lowrank", "bits": 0.2, "factor_bits": 6}, 0.299),
            ({"codec": "lowrank", "bits": 0.3, "factor_bits": 6}, 0.699),
            ({"codec": "lowrank", "bits": 0.4, "factor_bits": 8}, 1.599),
            ({"codec": "lowrank", "bits": 0.5, "factor_bits": 8}, 3.499),
        )
    ]
    chain += [
        {
            "codec": "chain",
            "stages": [
                {"codec": "sparse", "drop_rate": 0.99, "method": "magnitude"},
                {"codec": "lowrank", "bits": 0.3, "factor_bits": 6},
                {"codec": "quantized", "bits": 2, "grid": "normal", "scale_bits": 8},
            ],
        }
    ]
    everything = sparse + patterns + quantized + lowrank + chain
    return everything[::5] if quick else everything
