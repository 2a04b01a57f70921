"""fp8: weights of 8 bits (E4M3), with a scale per block, per row or per tensor.

DeepSeek-V3 (arXiv 2412.19437, 3.3) stores `X.weight` F8_E4M3 and `X.weight_scale_inv`, one number
for each 128 × 128 block, by which a code is *multiplied*. Other models differ only in the scales'
name, dtype and blocks: per tensor (a single number), per row, or MXFP8's 1 × 32 powers of two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ders_core.checkpoint.quantized.scheme import CHUNK, QuantizedWeight, Scheme
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.numbers import as_float32, powers_of_two
from ders_core.files.spec import TensorSpec
from ders_core.files.tensor import TensorReader
from ders_core.later import np, torch

CODES = Dtype.F8_E4M3
LARGEST = 448.0
"""The largest finite E4M3 number."""

BLOCK = (128, 128)
MX_BLOCK = (1, 32)
SCALE_DTYPES = (
    Dtype.F32,
    Dtype.BF16,
    Dtype.F16,
    Dtype.F8_E8M0,
    Dtype.U8,  # E8M0 under its older name: the power of two 2^(byte − 127)
)
SURE_SCALES = ("weight_scale_inv", "proj_scale_inv", ".qscale_weight")
"""Ends of names that nothing but a scale of fp8 codes has."""

ACTIVATION_SCALE = re.compile(r"[._](input_scale|activation_scale|qscale_act)$")
CACHE_SCALE = re.compile(r"attn\.([\w.]+\.)?[kv]_scale$")


def dequantize(
    codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], first_row: int = 0
) -> torch.Tensor:
    """Codes times the scale of their block.

    codes: `[rows, in]` float8_e4m3fn, rows of a matrix; the first is row `first_row` of those that
    scales `[≥ ceil((first_row + rows)/bo), ceil(in/bi)]` cover, of any of `SCALE_DTYPES`; block:
    (bo, bi). Returns `[rows, in]` float32, each the product rounded once.
    """
    values = codes.to(torch.float32)
    for cells, scale in _cells(values, _numbers(scales), block, first_row):
        cells.mul_(scale)
    return values


def quantize(
    values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], first_row: int = 0
) -> torch.Tensor:
    """The nearest codes for these scales: of value/scale, ties to even, at most ±448.

    values: `[rows, in]` of any float dtype; the rest as in `dequantize`. Returns `[rows, in]`
    float8_e4m3fn; a value that is not NaN never becomes NaN.

    `quantize(dequantize(c, s), s) == c` bit for bit, -0 included, for all finite codes and scales
    of 2^-139 ≤ |s| ≤ 2^119, and after rounding to bfloat16 for 2^-123 ≤ |s| ≤ 2^119. Smaller ones
    leave too few digits, larger ones overflow. Under a scale of 0 every code means 0 and becomes
    ±0. NaN stays NaN; bfloat16 does not keep its sign.
    """
    numbers = _numbers(scales)
    # v/∞ is ±0: the code for a block in which every code means 0
    numbers = torch.where(numbers == 0, torch.inf, numbers)
    codes = torch.empty(values.shape, dtype=CODES.torch, device=values.device)
    step = max(1, CHUNK // max(values.shape[1], 1))
    for begin in range(0, values.shape[0], step):
        part = values[begin : begin + step].to(torch.float32)
        part = part.nan_to_num(nan=torch.nan)  # a copy, with the largest number for ∞
        for cells, scale in _cells(part, numbers, block, first_row + begin):
            cells.div_(scale)
        # not every version of torch saturates by itself: beyond the range comes NaN
        codes[begin : begin + step] = part.clamp_(-LARGEST, LARGEST).to(CODES.torch)
    return codes


def _numbers(scales: torch.Tensor) -> torch.Tensor:
    if scales.dtype == torch.uint8:
        scales = scales.view(torch.float8_e8m0fnu)
    return scales.to(torch.float32)


def _cells(
    values: torch.Tensor, scales: torch.Tensor, block: tuple[int, int], first_row: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Views of all of `values` with the scales that belong to them, ready to broadcast."""
    rows, width = values.shape
    high, wide = block
    row = torch.arange(first_row, first_row + rows, device=values.device) // high
    by_row = scales.index_select(0, row)  # [rows, ceil(in/bi)]
    full = width // wide
    if full:
        yield values[:, : full * wide].unflatten(1, (full, wide)), by_row[:, :full, None]
    if width % wide:
        yield values[:, full * wide :], by_row[:, full:]


@dataclass(frozen=True)
class Fp8Weight(QuantizedWeight):
    """block: (bo, bi); grid: the scales of one expert, (ceil(out/bo), ceil(in/bi)); shared: whether
    one grid serves all experts."""

    block: tuple[int, int]
    grid: tuple[int, int]
    shared: bool

    def read(
        self,
        expert: int = 0,
        rows: slice | None = None,
        device: torch.device | str | None = None,
    ) -> torch.Tensor:
        out, width = self.shape[-2:]
        first, last = self.span(rows)
        codes = self.codes.elements((expert * out + first) * width, (last - first) * width)
        scales, offset = self._scales(expert, first, last)
        return dequantize(
            codes.view(last - first, width).to(device), scales.to(device), self.block, offset
        )

    def quantize(
        self, values: torch.Tensor, expert: int = 0, rows: slice | None = None
    ) -> torch.Tensor:
        scales, offset = self._scales(expert, *self.span(rows))
        return quantize(values, scales.to(values.device), self.block, offset)

    def _scales(self, expert: int, first: int, last: int) -> tuple[torch.Tensor, int]:
        """The scales `[·, ceil(in/bi)]` float32 of rows first … last, and which of the rows that
        they cover is `first`."""
        begin, count, offset = self._cells_of(expert, first, last)
        scales = _numbers(self.scales.elements(begin, count))
        self._check(bool(scales.isfinite().all()))
        return scales.view(-1, self.grid[1]), offset

    def numbers(self, expert: int = 0, rows: slice | None = None) -> np.ndarray:
        out, width = self.shape[-2:]
        first, last = self.span(rows)
        begin, count, offset = self._cells_of(expert, first, last)
        words = self.scales.words(begin, (1, count), (count, 1))
        is_byte = self.scales.dtype is Dtype.U8
        scales = powers_of_two(words) if is_byte else as_float32(words, self.scales.dtype)
        self._check(bool(np.isfinite(scales).all()))
        place = (expert * out + first) * width
        codes = self.codes.words(place, (last - first, width), (width, 1))
        high, wide = self.block
        cell_rows = (np.arange(last - first) + offset) // high
        cells = scales.reshape(-1, self.grid[1])[cell_rows][:, np.arange(width) // wide]
        numbers: np.ndarray = as_float32(codes, self.codes.dtype) * cells
        return numbers

    def _cells_of(self, expert: int, first: int, last: int) -> tuple[int, int, int]:
        """Of the scales of rows first … last: the first one's place, how many they are, and which
        of the rows that they cover is `first`."""
        high, columns = self.block[0], self.grid[1]
        top, bottom = first // high, -(-last // high)
        begin = 0 if self.shared else expert * self.grid[0]
        return (begin + top) * columns, max(bottom - top, 0) * columns, first - top * high

    def _check(self, is_finite: bool) -> None:
        """Raise CheckpointError for a scale that is no finite number."""
        if not is_finite:
            raise CheckpointError(
                f"{self.scales.file_name}: {self.scales.name!r} holds a scale that is not a finite "
                "number; the checkpoint is damaged, so copy it again"
            )


@dataclass(frozen=True)
class Fp8(Scheme):
    """block: (rows, columns) that share a scale where a tensor's scales are stored by blocks."""

    name: ClassVar[str] = "fp8"
    methods: ClassVar[tuple[str, ...]] = ("fp8", "mxfp8")

    block: tuple[int, int] = BLOCK

    @classmethod
    def is_in(cls, tensors: Mapping[str, TensorReader]) -> bool:
        return any(
            (info.dtype is CODES and len(info.shape) > 1) or name.endswith(SURE_SCALES)
            for name, info in tensors.items()
        )

    @classmethod
    def of(cls, quantization: Mapping[str, Any]) -> Fp8:
        block = quantization.get("weight_block_size")
        if block is None:
            return cls(MX_BLOCK if quantization.get("quant_method") == "mxfp8" else BLOCK)
        sizes = list(block) if isinstance(block, list | tuple) else []
        if len(sizes) != 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise CheckpointError(
                f"config.json: quantization_config.weight_block_size is {block!r}, not two "
                "positive whole numbers (rows and columns of a block)"
            )
        return cls((sizes[0], sizes[1]))

    @staticmethod
    def codes(shape: tuple[int, ...]) -> TensorSpec:
        return TensorSpec(CODES, shape)

    def companions(self, tensors: Mapping[str, TensorReader]) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for name, info in tensors.items():
            if info.dtype == CODES:
                scales = next((other for other in _scale_names(name) if other in tensors), None)
                if scales is None and len(info.shape) < 2:
                    continue  # no weight: bytes that are carried over
                if scales is None:
                    raise CheckpointError(
                        f"{info.file_name}: {name!r} is stored as F8_E4M3, but its scales "
                        f"{name + '_scale_inv'!r} are missing; {_why(tensors)}"
                    )
                pairs[name] = scales
        used = set(pairs.values())
        lonely = next((n for n in tensors if n.endswith(SURE_SCALES) and n not in used), None)
        if lonely is not None:
            raise CheckpointError(
                f"{tensors[lonely].file_name}: {lonely!r} holds scales, but there is no F8_E4M3 "
                "weight that they belong to; the checkpoint is incomplete or was converted in part"
            )
        return pairs

    def weights(self, tensors: Mapping[str, TensorReader]) -> dict[str, QuantizedWeight]:
        return {
            name: self._weight(tensors[name], tensors[scales])
            for name, scales in self.companions(tensors).items()
        }

    def dequantized_names(self, tensors: Mapping[str, TensorReader]) -> dict[str, str]:
        pairs = self.companions(tensors)
        scales = set(pairs.values())
        return {
            name: name
            for name in tensors
            if name not in scales and not _of_activations(name, pairs)
        }

    def _weight(self, codes: TensorReader, scales: TensorReader) -> Fp8Weight:
        if len(codes.shape) < 2:
            raise CheckpointError(
                f"{codes.file_name}: {codes.name!r} is F8_E4M3 {list(codes.shape)}, not a matrix; "
                "the file is damaged, or its scales follow a rule that is not known here"
            )
        if scales.dtype not in SCALE_DTYPES:
            raise CheckpointError(
                f"{scales.file_name}: the scales {scales.name!r} are {scales.dtype.name}, but "
                f"those of fp8 weights are {', '.join(dtype.name for dtype in SCALE_DTYPES)}; "
                "the checkpoint is damaged or follows a rule that is not known here"
            )
        for shape, block, shared in self._shapes(codes.shape, scales.dtype):
            if scales.shape == shape:
                grid = _grid(codes.shape, block)
                return Fp8Weight(codes.name, codes.shape, codes, scales, block, grid, shared)
        raise CheckpointError(
            f"{scales.file_name}: the scales {scales.name!r} have shape {list(scales.shape)}, "
            f"which does not fit {codes.name!r} {list(codes.shape)} in blocks of {self.block[0]} × "
            f"{self.block[1]}; give config.json the right quantization_config.weight_block_size, "
            "or copy the checkpoint again"
        )

    def _shapes(
        self, codes: tuple[int, ...], dtype: Dtype
    ) -> Iterator[tuple[tuple[int, ...], tuple[int, int], bool]]:
        """The shapes that scales may have, with their block and whether all experts share them."""
        *experts, out, width = codes
        yield (*experts, *_grid(codes, self.block)), self.block, False
        if dtype in (Dtype.F8_E8M0, Dtype.U8):
            yield (*experts, *_grid(codes, MX_BLOCK)), MX_BLOCK, False
        for row in ((out, 1), (out,)):
            yield (*experts, *row), (1, width), False
        for one in ((1, 1), ()):
            yield (*experts, *one), (out, width), False
        for number in ((1, 1), (1,), ()):
            yield number, (out, width), True


def _grid(codes: tuple[int, ...], block: tuple[int, int]) -> tuple[int, int]:
    return -(-codes[-2] // block[0]), -(-codes[-1] // block[1])


def _scale_names(name: str) -> Iterator[str]:
    """What the scales of the codes `name` may be called, the usual name first."""
    yield f"{name}_scale_inv"
    yield f"{name}_scale"
    if name.endswith(".weight"):
        stem = name.removesuffix("weight")
        yield f"{stem}scale"  # DeepSeek-V4
        yield f"{stem}qscale_weight"  # Mistral


def _why(tensors: Mapping[str, TensorReader]) -> str:
    """Why scales are missing, and what to do: of a few weights, or of all."""
    codes = [name for name, info in tensors.items() if info.dtype == CODES]
    found = any(name.endswith(SURE_SCALES) for name in tensors)
    if found or any(scales in tensors for name in codes for scales in _scale_names(name)):
        return "a shard may be missing"
    return (
        "no weight of the checkpoint has any, so they were cast to fp8 without scales, which is "
        "not read: give the bfloat16, float16 or float32 original, or cast them back to bfloat16"
    )


def _of_activations(name: str, weights: Mapping[str, str]) -> bool:
    """Whether `name` is a scale for what flows through one of the quantized `weights`."""
    if CACHE_SCALE.search(name):
        return True
    ending = ACTIVATION_SCALE.search(name)
    stem = name[: ending.start()] if ending else ""
    return bool(ending) and (stem in weights or f"{stem}.weight" in weights)
