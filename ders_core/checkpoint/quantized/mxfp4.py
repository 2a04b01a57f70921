"""mxfp4 (OCP Microscaling Formats 1.0): 4-bit numbers (E2M1), 32 of them under a power of two.

GPT-OSS stores `X_blocks` U8 `[E, out, G, 16]`, two codes a byte and the low one first, and
`X_scales` U8 `[E, out, G]`, each the power of two 2^(byte − 127). Blocks run along the input
dimension, so that a matrix is `[out, in = 32·G]`; the bfloat16 parameter `X` of transformers is its
transpose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

from ders_core.checkpoint.quantized.scheme import CHUNK, QuantizedWeight, Scheme
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.numbers import powers_of_two
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import TensorReader
from ders_core.later import np, torch

LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the codes 0 … 7 mean; 8 … 15 are their negatives."""

SIZE = 32
"""Numbers under one scale."""

NO_NUMBER = 255
"""The scale that means NaN."""

BLOCKS = ("_blocks", ".blocks")
SCALES = ("_scales", ".scales")
"""With a dot in GPT-OSS's `original` directory."""


def _borders() -> list[float]:
    """The largest number that is still rounded down, between each level and the next.

    A value halfway goes to the even code: the lower one at 0.25, 1.25, 2.5 and 5, the upper one
    at the rest.
    """
    middles = torch.tensor([(a + b) / 2 for a, b in pairwise(LEVELS)])
    below = torch.nextafter(middles, torch.zeros(()))
    even = torch.arange(len(middles)) % 2 == 0
    return torch.where(even, middles, below).tolist()


def dequantize(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """blocks: `[..., G, 16]` uint8; scales: `[..., G]` uint8. Returns `[..., G·32]` float32.

    The numbers are exact in bfloat16 too. A scale of 255 means NaN; one of 253 or 254 overflows
    under the largest codes.
    """
    signed = torch.tensor([*LEVELS, *(-level for level in LEVELS)], device=blocks.device)
    byte = torch.arange(256, device=blocks.device)
    pairs = torch.stack((signed[byte & 15], signed[byte >> 4]), dim=1)  # [256, 2]
    flat = blocks.reshape(-1, SIZE // 2)
    values = torch.empty(flat.shape[0], SIZE, dtype=torch.float32, device=blocks.device)
    factors = _factors(scales)
    step = CHUNK // SIZE
    for begin in range(0, flat.shape[0], step):
        chosen = slice(begin, begin + step)
        part = pairs.index_select(0, flat[chosen].reshape(-1).int()).view(-1, SIZE)
        values[chosen] = part.mul_(factors[chosen])
    return values.view(*scales.shape[:-1], scales.shape[-1] * SIZE)


def quantize(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The nearest codes for these scales: of value/scale, ties to even, at most ±6.

    values: `[..., G·32]` of any float dtype; scales: `[..., G]` uint8. Returns `[..., G, 16]`
    uint8. `quantize(dequantize(b, s), s) == b` bit for bit, -0 included, for all scales up to 252.

    Raises CheckpointError for a value that is NaN: no code means it.
    """
    flat = values.reshape(-1, SIZE)
    factors = _factors(scales)
    borders = torch.tensor(_borders(), device=values.device)
    blocks = torch.empty(flat.shape[0], SIZE // 2, dtype=torch.uint8, device=values.device)
    step = CHUNK // SIZE
    for begin in range(0, flat.shape[0], step):
        chosen = slice(begin, begin + step)
        part = flat[chosen].to(torch.float32) / factors[chosen]
        if bool(part.isnan().any()):
            raise CheckpointError(
                "a weight is NaN, for which mxfp4 has no code; the checkpoint is damaged, "
                "or what was done to its weights went wrong"
            )
        codes = torch.bucketize(part.abs(), borders, out_int32=True).to(torch.uint8)
        codes |= part.signbit().to(torch.uint8) << 3
        blocks[chosen] = codes[:, 0::2] | (codes[:, 1::2] << 4)
    return blocks.view(*scales.shape, SIZE // 2)


def _factors(scales: torch.Tensor) -> torch.Tensor:
    """`[·, 1]` float32"""
    return scales.reshape(-1, 1).view(torch.float8_e8m0fnu).to(torch.float32)


@dataclass(frozen=True)
class Mxfp4Weight(QuantizedWeight):
    def read(
        self,
        expert: int = 0,
        rows: slice | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        out, width = self.shape[-2:]
        first, last = self.span(rows)
        begin, count = (expert * out + first) * (width // 2), (last - first) * (width // 2)
        blocks = self.codes.elements(begin, count).view(last - first, width // SIZE, SIZE // 2)
        return dequantize(blocks.to(device), self._scales(expert, first, last).to(device))

    def quantize(
        self, values: torch.Tensor, expert: int = 0, rows: slice | None = None
    ) -> torch.Tensor:
        return quantize(values, self._scales(expert, *self.span(rows)).to(values.device))

    def _scales(self, expert: int, first: int, last: int) -> torch.Tensor:
        """`[last - first, G]` uint8"""
        return torch.from_numpy(self._scale_bytes(expert, first, last))

    def numbers(self, expert: int = 0, rows: slice | None = None) -> np.ndarray:
        out, width = self.shape[-2:]
        first, last = self.span(rows)
        place = (expert * out + first) * (width // 2)
        pairs = self.codes.words(place, (last - first, width // 2), (width // 2, 1))
        codes = np.stack((pairs & 15, pairs >> 4), axis=-1)
        codes = codes.reshape(last - first, width // SIZE, SIZE)
        levels = np.array([*LEVELS, *(-level for level in LEVELS)], np.float32)
        factors = powers_of_two(self._scale_bytes(expert, first, last))
        numbers: np.ndarray = levels[codes] * factors[:, :, None]
        return numbers.reshape(last - first, width)

    def _scale_bytes(self, expert: int, first: int, last: int) -> np.ndarray:
        """`[last - first, G]` uint8. Raises CheckpointError for one that means NaN."""
        out, groups = self.shape[-2], self.shape[-1] // SIZE
        place = (expert * out + first) * groups
        scales = self.scales.words(place, (last - first, groups), (groups, 1))
        if bool((scales == NO_NUMBER).any()):
            raise CheckpointError(
                f"{self.scales.file_name}: {self.scales.name!r} holds a scale of {NO_NUMBER}, "
                "which means that they are not numbers; the checkpoint is damaged, so copy it again"
            )
        return scales


@dataclass(frozen=True)
class Mxfp4(Scheme):
    name: ClassVar[str] = "mxfp4"
    methods: ClassVar[tuple[str, ...]] = ("mxfp4",)
    turned: ClassVar[bool] = True

    @classmethod
    def is_in(cls, tensors: Mapping[str, TensorReader]) -> bool:
        bytes_alone = (info for info in tensors.values() if info.dtype is Dtype.U8)
        return any(_is_blocks(info) or _is_scales(info) for info in bytes_alone)

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> Mxfp4:
        return cls()

    @staticmethod
    def codes(shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(Dtype.U8, (*shape[:-1], shape[-1] // SIZE, SIZE // 2))

    def companions(self, tensors: Mapping[str, TensorReader]) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for name, info in tensors.items():
            if _is_blocks(info):
                scales = name.removesuffix("blocks") + "scales"
                if scales not in tensors:
                    raise CheckpointError(
                        f"{info.file_name}: {name!r} holds mxfp4 codes, but their scales "
                        f"{scales!r} are missing; a shard may be missing"
                    )
                pairs[name] = scales
        used = set(pairs.values())
        for name, info in tensors.items():
            if _is_scales(info) and name not in used:
                blocks = name.removesuffix("scales") + "blocks"
                raise CheckpointError(
                    f"{info.file_name}: {name!r} holds scales, but their mxfp4 codes {blocks!r} "
                    "are missing or no U8 [..., rows, groups, 16]; a shard may be missing"
                )
        return pairs

    def weights(self, tensors: Mapping[str, TensorReader]) -> dict[str, QuantizedWeight]:
        weights: dict[str, QuantizedWeight] = {}
        for name, companion in self.companions(tensors).items():
            blocks, scales = tensors[name], tensors[companion]
            if scales.dtype is not Dtype.U8 or scales.shape != blocks.shape[:-1]:
                raise CheckpointError(
                    f"{scales.file_name}: the scales {scales.name!r} are {scales.dtype.name} "
                    f"{list(scales.shape)}, but {name!r} needs U8 {list(blocks.shape[:-1])}; "
                    "the checkpoint is damaged, so copy it again"
                )
            shape = (*blocks.shape[:-2], math.prod(blocks.shape[-2:]) * 2)
            plain = _plain(name)
            weights[plain] = Mxfp4Weight(plain, shape, blocks, scales)
        return weights

    def dequantized_names(self, tensors: Mapping[str, TensorReader]) -> dict[str, str]:
        pairs = self.companions(tensors)
        scales = set(pairs.values())
        return {
            name: _plain(name) if name in pairs else name for name in tensors if name not in scales
        }


def _is_blocks(info: TensorReader) -> bool:
    return (
        info.dtype is Dtype.U8
        and len(info.shape) >= 3
        and info.shape[-1] == SIZE // 2
        and info.name.endswith(BLOCKS)
    )


def _is_scales(info: TensorReader) -> bool:
    return info.dtype is Dtype.U8 and info.name.endswith(SCALES)


def _plain(name: str) -> str:
    """The weight's name behind that of its codes."""
    return name.removesuffix("blocks")[:-1]
