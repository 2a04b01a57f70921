"""Checkpoints that are already quantized: read exactly, put back bit for bit, or refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ders_core.checkpoint.quantized import REFUSED, SCHEMES, Fp8, Mxfp4, Scheme, detect, fp8, mxfp4
from ders_core.checkpoint.quantized.fp8 import Fp8Weight
from ders_core.errors import CheckpointError
from ders_core.files.header import read_header
from ders_core.files.spec import NAMES
from ders_core.files.tensor import FileTensor

E4M3 = torch.float8_e4m3fn
UNHURRIED = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


# --- independent references in Python's own float64 ---------------------------------------------


def e4m3(code: int) -> float:
    """What a code of E4M3 (OCP 8-bit floating point 1.0, "fn") means."""
    sign, exponent, mantissa = code >> 7, (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    size = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return -size if sign else size


def e2m1(code: int) -> float:
    """What a code of E2M1 (OCP Microscaling 1.0, 5.3.3) means."""
    sign, exponent, mantissa = code >> 3, (code >> 1) & 3, code & 1
    size = mantissa * 0.5 if exponent == 0 else (2 + mantissa) * 2.0 ** (exponent - 2)
    return -size if sign else size


def nearest(value: float, meanings: Mapping[int, float]) -> int:
    """The code of the nearest number; of two equally near, the one with an even code."""
    sign = math.copysign(1.0, value)
    own = [code for code, meaning in meanings.items() if math.copysign(1.0, meaning) == sign]
    return min(own, key=lambda code: (abs(meanings[code] - value), code & 1))


FP8_MEANINGS = {code: e4m3(code) for code in range(256) if not math.isnan(e4m3(code))}
FP4_MEANINGS = {code: e2m1(code) for code in range(16)}

ALL_FP8 = torch.tensor(list(FP8_MEANINGS), dtype=torch.uint8).view(E4M3)
"""All 254 finite codes."""


def random_codes(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(ALL_FP8), shape, generator=source)
    return ALL_FP8.view(torch.uint8)[picked].view(E4M3)


def random_scales(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=source) * 1e-3 + 1e-5


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Bit for bit, so that -0 is not 0."""
    return a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


# --- fp8 ----------------------------------------------------------------------------------------


def by_element(codes: torch.Tensor, scales: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
    """float64, one element at a time."""
    bits, numbers = codes.view(torch.uint8).tolist(), scales.tolist()
    return torch.tensor(
        [
            [e4m3(code) * numbers[i // block[0]][j // block[1]] for j, code in enumerate(row)]
            for i, row in enumerate(bits)
        ],
        dtype=torch.float64,
    )


@UNHURRIED
@given(
    out=st.integers(1, 9),
    width=st.integers(1, 9),
    high=st.integers(1, 11),
    wide=st.integers(1, 11),
    seed=st.integers(0, 2**31),
)
def test_fp8_of_any_shape_and_block(out: int, width: int, high: int, wide: int, seed: int) -> None:
    block = (high, wide)
    codes = random_codes((out, width), seed)
    scales = random_scales((-(-out // high), -(-width // wide)), seed)
    values = fp8.dequantize(codes, scales, block)
    assert values.dtype == torch.float32
    assert torch.equal(values, by_element(codes, scales, block).float())
    assert same(fp8.quantize(values, scales, block), codes)
    first = seed % out
    rows = slice(first, None)
    top = first // high
    part = fp8.dequantize(codes[rows], scales[top:], block, first - top * high)
    assert torch.equal(part, values[rows])
    assert same(fp8.quantize(part, scales[top:], block, first - top * high), codes[rows])


@UNHURRIED
@given(
    scale=st.floats(2.0**-123, 2.0**119, width=32) | st.floats(-(2.0**119), -(2.0**-123), width=32),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_every_finite_code_survives_every_usable_scale(scale: float, dtype: torch.dtype) -> None:
    scales, block = torch.tensor([[scale]]), (1, len(ALL_FP8))
    values = fp8.dequantize(ALL_FP8[None], scales, block).to(dtype)
    assert same(fp8.quantize(values, scales, block), ALL_FP8[None])


def test_every_finite_code_survives_scales_of_all_magnitudes() -> None:
    mantissas = torch.cat(
        [torch.linspace(1, 2, 257)[:-1], torch.tensor([1 + 2.0**-23, 2 - 2.0**-23])]
    )
    block = (1, len(ALL_FP8))
    codes = ALL_FP8.expand(len(mantissas), -1)
    for least, dtype in ((-139, torch.float32), (-123, torch.bfloat16)):
        for exponent in range(least, 119):
            scales = torch.ldexp(mantissas, torch.tensor(exponent))[:, None]
            values = fp8.dequantize(codes, scales, block).to(dtype)
            assert same(fp8.quantize(values, scales, block), codes), exponent


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e8m0fnu])
def test_scales_of_other_dtypes_mean_what_they_say(dtype: torch.dtype) -> None:
    codes = random_codes((6, 10), 1)
    scales = random_scales((2, 3), 2).clamp_min(1e-4).to(dtype)
    values = fp8.dequantize(codes, scales, (4, 4))
    assert torch.equal(values, by_element(codes, scales.float(), (4, 4)).float())
    assert same(fp8.quantize(values.bfloat16(), scales, (4, 4)), codes)
    if dtype == torch.float8_e8m0fnu:
        assert torch.equal(fp8.dequantize(codes, scales.view(torch.uint8), (4, 4)), values)


@UNHURRIED
@given(
    value=st.floats(width=32, allow_nan=False),
    scale=st.floats(2.0**-100, 2.0**100, width=32),
)
def test_fp8_rounds_to_the_nearest_code(value: float, scale: float) -> None:
    code = fp8.quantize(torch.tensor([[value]]), torch.tensor([[scale]]), (1, 1))
    found = FP8_MEANINGS[int(code.view(torch.uint8))]
    limited = max(-448.0, min(448.0, value / scale))
    best = FP8_MEANINGS[nearest(limited, FP8_MEANINGS)]
    # the quotient is rounded to float32 first: either side of a tie may win within that error
    assert abs(found - limited) <= abs(best - limited) * (1 + 2**-20) + abs(limited) * 2**-22
    assert math.copysign(1, found) == math.copysign(1, value)


def test_fp8_ties_go_to_the_even_code() -> None:
    sizes = [FP8_MEANINGS[code] for code in range(127)]
    middles = [(a + b) / 2 for a, b in pairwise(sizes)]
    signed = torch.tensor([middles, [-middle for middle in middles]])
    codes = fp8.quantize(signed, torch.tensor([[1.0]]), (2, len(middles))).view(torch.uint8)
    even = [code + code % 2 for code in range(126)]
    assert codes.tolist() == [even, [code | 128 for code in even]]


def test_fp8_beyond_the_range_saturates_and_nan_stays_nan() -> None:
    values = torch.tensor([[460.0, 470.0, 1e38, torch.inf, -torch.inf, -500.0, torch.nan]])
    codes = fp8.quantize(values, torch.tensor([[1.0]]), (1, 7)).float()
    assert codes[0, :6].tolist() == [448.0, 448.0, 448.0, 448.0, -448.0, -448.0]
    assert codes[0, 6].isnan()
    nothing = fp8.quantize(values[:, :6], torch.tensor([[0.0]]), (1, 6))
    assert nothing.view(torch.uint8).tolist() == [[0, 0, 0, 0, 128, 128]]


def test_fp8_leaves_its_arguments_alone() -> None:
    values = torch.full((3, 5), 2.0)
    scales = torch.tensor([[0.5]])
    fp8.quantize(values, scales, (8, 8))
    assert torch.equal(values, torch.full((3, 5), 2.0))
    assert scales.tolist() == [[0.5]]


def test_fp8_work_in_chunks_is_the_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scales = random_codes((50, 20), 5), random_scales((8, 3), 6)
    values = fp8.dequantize(codes, scales, (7, 8), 3)
    monkeypatch.setattr(fp8, "CHUNK", 60)
    assert same(fp8.quantize(values, scales, (7, 8), 3), codes)


@pytest.mark.parametrize("block", [(128, 128), (16, 64)])
def test_fp8_agrees_with_transformers(block: tuple[int, int]) -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
    from transformers.utils.quantization_config import FineGrainedFP8Config

    class Quantizer:
        quantization_config = FineGrainedFP8Config(weight_block_size=block)

    original = torch.randn(256, 384, generator=torch.Generator().manual_seed(0)) * 0.02
    stored = Fp8Quantize(Quantizer())._quantize_one("a.weight", original)
    codes, scales = stored["a.weight"], stored["a.weight_scale_inv"]
    theirs = Fp8Dequantize(Quantizer())._dequantize_one(codes, scales)
    ours = fp8.dequantize(codes, scales, block)
    assert torch.equal(ours, theirs)
    half = Fp8Dequantize(Quantizer())._dequantize_one(codes, scales, torch.bfloat16)
    assert torch.equal(ours.bfloat16(), half)
    assert same(fp8.quantize(half, scales, block), codes)


# --- mxfp4 --------------------------------------------------------------------------------------

EVERY_BYTE = torch.arange(256, dtype=torch.uint8).view(16, 16)
"""[G, 16]: every pair of codes"""


def every_scale(scales: range) -> tuple[torch.Tensor, torch.Tensor]:
    """Every byte under every one of the scales: blocks [S, 16, 16], scales [S, 16]"""
    numbers = torch.tensor(list(scales), dtype=torch.uint8)[:, None].expand(-1, 16).contiguous()
    return EVERY_BYTE.expand(len(scales), 16, 16).contiguous(), numbers


def test_mxfp4_every_code_under_every_scale() -> None:
    blocks, scales = every_scale(range(253))
    values = mxfp4.dequantize(blocks, scales)
    assert values.shape == (253, 512)
    for row, scale in enumerate(range(253)):
        wanted = [
            e2m1(code) * 2.0 ** (scale - 127)
            for byte in range(256)
            for code in (byte & 15, byte >> 4)
        ]
        assert values[row].tolist() == wanted
        assert values[row].signbit().tolist() == [math.copysign(1, w) < 0 for w in wanted]
    rounded = values.bfloat16()
    assert torch.equal(rounded.float(), values)
    assert torch.equal(mxfp4.quantize(values, scales), blocks)
    assert torch.equal(mxfp4.quantize(rounded, scales), blocks)


def test_mxfp4_agrees_with_transformers() -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    source = torch.Generator().manual_seed(3)
    blocks = torch.randint(256, (3, 10, 4, 16), dtype=torch.uint8, generator=source)
    scales = torch.randint(90, 140, (3, 10, 4), dtype=torch.uint8, generator=source)
    theirs = convert_moe_packed_tensors(blocks, scales)  # [E, in, out]
    ours = mxfp4.dequantize(blocks, scales)
    assert ours.shape == (3, 10, 128)
    assert torch.equal(ours.bfloat16(), theirs.transpose(1, 2))
    assert torch.equal(mxfp4.quantize(theirs.transpose(1, 2), scales), blocks)
    assert torch.equal(mxfp4.dequantize(blocks[1, 2:5], scales[1, 2:5]), ours[1, 2:5])


@UNHURRIED
@given(value=st.floats(width=32, allow_nan=False), scale=st.integers(0, 254))
def test_mxfp4_rounds_to_the_nearest_code(value: float, scale: int) -> None:
    blocks = mxfp4.quantize(torch.full((32,), value), torch.tensor([scale], dtype=torch.uint8))
    limited = max(-6.0, min(6.0, value / 2.0 ** (scale - 127)))
    code = nearest(limited, FP4_MEANINGS)
    assert blocks.unique().tolist() == [code | code << 4]


def test_mxfp4_ties_go_to_the_even_code() -> None:
    ties = torch.zeros(32)
    ties[:14] = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0]).repeat(2)
    ties[7:14].neg_()
    scale = torch.tensor([127], dtype=torch.uint8)
    found = mxfp4.dequantize(mxfp4.quantize(ties, scale), scale)[:14]
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]
    assert found.tolist() == even + [-number for number in even]


def test_mxfp4_saturates_and_refuses_nan() -> None:
    scale = torch.tensor([127], dtype=torch.uint8)
    values = torch.tensor([100.0, -torch.inf]).repeat(16)
    assert mxfp4.quantize(values, scale).unique().tolist() == [0x7 | 0xF << 4]
    values[3] = torch.nan
    with pytest.raises(CheckpointError, match="NaN"):
        mxfp4.quantize(values, scale)
    assert mxfp4.dequantize(EVERY_BYTE[:1], torch.tensor([255], dtype=torch.uint8)).isnan().all()


def test_mxfp4_work_in_chunks_is_the_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, scales = every_scale(range(100, 110))
    values = mxfp4.dequantize(blocks, scales)
    monkeypatch.setattr(mxfp4, "CHUNK", 7 * 32)
    assert torch.equal(mxfp4.dequantize(blocks, scales), values)
    assert torch.equal(mxfp4.quantize(values, scales), blocks)


# --- files --------------------------------------------------------------------------------------

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, FileTensor]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Save tensors and give back what the header says of them."""

    def save(tensors: Mapping[str, torch.Tensor]) -> dict[str, FileTensor]:
        path = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return read_header(path)[0]

    return save


def fp8_config(**settings: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "fp8", **settings}}


def weight_of(scheme: Scheme | None, tensors: Mapping[str, FileTensor], name: str) -> Any:
    assert scheme is not None
    return scheme.weights(tensors)[name]


ROWS = [None, slice(0, 1), slice(3, 9), slice(5, 6), slice(7, None), slice(4, 4)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("stacked", [False, True])
def test_fp8_from_a_file(store: Store, rows: slice | None, stacked: bool) -> None:
    experts = (3,) if stacked else ()
    codes = random_codes((*experts, 11, 7), 1)
    scales = random_scales((*experts, 3, 2), 2)
    name = "m.experts.down_proj" if stacked else "m.experts.2.down_proj.weight"
    tensors = store({name: codes, f"{name}_scale_inv": scales, "norm.weight": torch.ones(4)})
    scheme = detect(fp8_config(weight_block_size=[4, 4]), tensors)
    assert scheme == Fp8((4, 4))
    weight = weight_of(scheme, tensors, name)
    assert (weight.shape, weight.experts) == ((*experts, 11, 7), 3 if stacked else 1)
    assert weight.nbytes == codes.numel() + 4 * scales.numel()
    for expert in range(weight.experts):
        own = codes.view(-1, 11, 7)[expert]
        whole = by_element(own, scales.view(-1, 3, 2)[expert], (4, 4)).float()
        values = weight.read(expert, rows)
        assert torch.equal(values, whole[rows or slice(None)])
        back = weight.quantize(values.bfloat16(), expert, rows)
        assert same(back, own[rows or slice(None)].contiguous())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dot", ["_", "."])
def test_mxfp4_from_a_file(store: Store, rows: slice | None, dot: str) -> None:
    source = torch.Generator().manual_seed(3)
    blocks = torch.randint(256, (3, 10, 2, 16), dtype=torch.uint8, generator=source)
    scales = torch.randint(90, 140, (3, 10, 2), dtype=torch.uint8, generator=source)
    name = "m.experts.gate_up_proj"
    bias = torch.ones(3, 10, dtype=torch.bfloat16)
    tensors = store(
        {f"{name}{dot}blocks": blocks, f"{name}{dot}scales": scales, f"{name}_bias": bias}
    )
    scheme = detect({}, tensors)
    assert scheme == Mxfp4()
    assert scheme.companions(tensors) == {f"{name}{dot}blocks": f"{name}{dot}scales"}
    assert set(scheme.dequantized_names(tensors).values()) == {name, f"{name}_bias"}
    weight = weight_of(scheme, tensors, name)
    assert weight.shape == (3, 10, 64)
    for expert in range(3):
        values = weight.read(expert, rows, "cpu")
        assert torch.equal(values, mxfp4.dequantize(blocks, scales)[expert][rows or slice(None)])
        back = weight.quantize(values.bfloat16(), expert, rows)
        assert torch.equal(back, blocks[expert][rows or slice(None)])


@pytest.mark.parametrize(
    ("codes", "scales", "dtype", "block", "shared"),
    [
        ((40, 70), (3, 5), torch.float32, (16, 16), False),
        ((40, 70), (), torch.float32, (40, 70), False),
        ((40, 70), (1,), torch.bfloat16, (40, 70), True),
        ((40, 70), (40, 1), torch.float32, (1, 70), False),
        ((40, 70), (40,), torch.float16, (1, 70), False),
        ((40, 70), (40, 3), torch.uint8, (1, 32), False),
        ((40, 70), (40, 3), torch.float8_e8m0fnu, (1, 32), False),
        ((40, 70), (3, 5), torch.float8_e8m0fnu, (16, 16), False),
        ((2, 40, 70), (2,), torch.float32, (40, 70), False),
        ((2, 40, 70), (2, 1, 1), torch.float32, (40, 70), False),
        ((2, 40, 70), (), torch.float32, (40, 70), True),
        ((2, 40, 70), (2, 40, 1), torch.float32, (1, 70), False),
    ],
)
def test_fp8_scales_of_every_shape(
    store: Store,
    codes: tuple[int, ...],
    scales: tuple[int, ...],
    dtype: torch.dtype,
    block: tuple[int, int],
    shared: bool,
) -> None:
    stored = random_codes(codes, 1)
    if dtype == torch.uint8:
        numbers = torch.randint(100, 130, scales, dtype=torch.uint8)
        meant = (numbers.double() - 127).exp2()
    else:
        numbers = (random_scales(scales, 2) + 1e-3).to(dtype)
        meant = numbers.double()
    tensors = store({"a.weight": stored, "a.weight_scale": numbers})
    weight = weight_of(detect(fp8_config(weight_block_size=[16, 16]), tensors), tensors, "a.weight")
    assert isinstance(weight, Fp8Weight)
    assert (weight.block, weight.shared) == (block, shared)
    grid = (-(-codes[-2] // block[0]), -(-codes[-1] // block[1]))
    last = weight.experts - 1
    own = meant.flatten()[: math.prod(grid)] if shared else meant.view(-1, *grid)[last]
    matrix = stored.view(-1, *codes[-2:])[last]
    expected = by_element(matrix, own.view(grid), block).float()
    assert torch.equal(weight.read(last), expected)
    assert torch.equal(weight.read(last, slice(17, 33)), expected[17:33])
    assert same(weight.quantize(expected[17:33], last, slice(17, 33)), matrix[17:33].contiguous())


@pytest.mark.parametrize("ending", ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"])
def test_the_names_of_fp8_scales(store: Store, ending: str) -> None:
    tensors = store(
        {
            "a.weight": random_codes((8, 8), 0),
            f"a.{ending}": torch.ones(1, 1),
            "a.input_scale": torch.tensor(1.0),
            "a.bias": torch.ones(8),
            "b.self_attn.k_scale": torch.tensor(1.0),
            "c.norm.scale": torch.ones(8),
            "c.norm.input_scale": torch.ones(8),
            "c.norm.weight": torch.ones(8),
        }
    )
    scheme = detect({}, tensors)
    assert scheme == Fp8()
    assert scheme.companions(tensors) == {"a.weight": f"a.{ending}"}
    kept = ["a.weight", "a.bias", "c.norm.scale", "c.norm.input_scale", "c.norm.weight"]
    names = scheme.dequantized_names(tensors)
    assert names == {name: name for name in names}
    assert sorted(names) == sorted(kept)


def test_config_sets_the_block(store: Store) -> None:
    tensors = store({"a.weight": random_codes((8, 64), 0), "a.weight_scale_inv": torch.ones(8, 2)})
    nested = {"text_config": fp8_config(weight_block_size=[1, 32])}
    assert detect(nested, tensors) == Fp8((1, 32))
    assert detect({"quantization_config": {"quant_method": "mxfp8"}}, tensors) == Fp8((1, 32))


def test_plain_weights_are_no_scheme(store: Store) -> None:
    tensors = store(
        {
            "model.layers.0.mlp.experts.gate_up_proj": torch.ones(2, 4, 8, dtype=torch.bfloat16),
            "model.visual.blocks": torch.ones(2, 2, 16),
            "model.norm.scale": torch.ones(4),
            "model.norm.weight": torch.ones(4),
            "model.input_scale": torch.ones(1),
            "model.position_ids": torch.arange(8)[None],
            "model.e_score_correction_bias": torch.ones(4),
        }
    )
    for config in ({}, fp8_config(), {"quantization_config": None}, {"quantization_config": {}}):
        assert detect(config, tensors) is None


def test_packed_checkpoints_are_left_to_others(store: Store) -> None:
    tensors = store({"a.weight": torch.zeros(2, 2, dtype=torch.uint8)})
    assert detect({"quantization_config": {"quant_method": "ders"}}, tensors) is None


# --- refusals -----------------------------------------------------------------------------------


def refusal(config: Mapping[str, Any], tensors: Mapping[str, FileTensor]) -> str:
    """The message with which a checkpoint is refused: one sentence."""
    with pytest.raises(CheckpointError) as caught:
        detect(config, tensors)
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    return message


Header = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]


@pytest.fixture
def headed(forge: Callable[..., Path]) -> Callable[[Header], dict[str, FileTensor]]:
    """A file made by hand from a header alone, with zeros for data."""

    def make(header: Header) -> dict[str, FileTensor]:
        entries, position = {}, 0
        for name, (dtype, shape) in header.items():
            end = position + math.prod(shape) * dtype.itemsize
            entries[name] = {
                "dtype": NAMES[dtype],
                "shape": list(shape),
                "data_offsets": [position, end],
            }
            position = end
        return read_header(forge(json.loads(json.dumps(entries)), bytes(position)))[0]

    return make


F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
I8, I16, I32, I64 = torch.int8, torch.int16, torch.int32, torch.int64
U8, U32 = torch.uint8, torch.uint32
ROUTER: Header = {"model.layers.0.mlp.gate.weight": (BF16, (4, 64))}
FORMATS: dict[str, tuple[tuple[str, ...], list[Header]]] = {
    "GGUF": (("gguf",), [{"qweight": (U8, (32, 34)), "qweight_type": (U8, (1,))}]),
    "GPTQ": (
        ("gptq",),
        [
            {
                "qweight": (I32, (8, 32)),
                "qzeros": (I32, (1, 4)),
                "scales": (F16, (1, 32)),
                "g_idx": (I32, (64,)),
            }
        ],
    ),
    "AutoRound": (("auto-round",), []),
    "AWQ": (
        ("awq",),
        [
            {"qweight": (I32, (64, 4)), "qzeros": (I32, (1, 4)), "scales": (F16, (1, 32))},
            {"qweight": (I16, (8, 64)), "qzeros": (F16, (1, 32)), "scales": (F16, (1, 32))},
        ],
    ),
    "compressed-tensors": (
        ("compressed-tensors",),
        [
            {
                "weight_packed": (I32, (32, 8)),
                "weight_scale": (BF16, (32, 1)),
                "weight_shape": (I64, (2,)),
            },
            {
                "weight_packed": (U8, (32, 32)),
                "weight_scale": (torch.float8_e4m3fn, (32, 4)),
                "weight_global_scale": (F32, (1,)),
            },
            {"weight": (I8, (32, 64)), "weight_scale": (BF16, (32, 1))},
            {"bitmask": (U8, (32, 8)), "compressed": (BF16, (99,)), "row_offsets": (I64, (32,))},
        ],
    ),
    "bitsandbytes": (
        ("bitsandbytes",),
        [
            {
                "weight": (U8, (1024, 1)),
                "weight.absmax": (U8, (32,)),
                "weight.quant_map": (F32, (16,)),
                "weight.nested_absmax": (F32, (1,)),
                "weight.nested_quant_map": (F32, (256,)),
                "weight.quant_state.bitsandbytes__nf4": (U8, (99,)),
            },
            {"weight": (I8, (32, 64)), "SCB": (F32, (32,)), "weight_format": (U8, ())},
        ],
    ),
    "SINQ": (("sinq",), [{"W_q": (U8, (16, 64)), "meta": (U8, (99,))}]),
    "HQQ": (
        ("hqq",),
        [{"W_q": (U8, (16, 64)), "zero": (F16, (64, 1)), "scale": (F16, (64, 1))}],
    ),
    "EETQ": (("eetq",), [{"weight": (I8, (64, 32)), "weight_scales": (F16, (32,))}]),
    "quanto": (
        ("quanto",),
        [
            {"weight._data": (I8, (32, 64)), "weight._scale": (BF16, (32, 1))},
            {"weight._data": (U8, (16, 64)), "weight._scale": (BF16, (32, 1))},
        ],
    ),
    "torchao": (
        ("torchao",),
        [{"_weight_qdata": (I8, (32, 64)), "_weight_scale": (BF16, (32, 1))}],
    ),
    "AQLM": (
        ("aqlm",),
        [
            {
                "codes": (I16, (32, 8, 1)),
                "codebooks": (F16, (1, 256, 1, 8)),
                "scales": (F16, (32, 1, 1, 1)),
            }
        ],
    ),
    "VPTQ": (
        ("vptq",),
        [{"indices": (I32, (1, 4, 32)), "centroids.weight": (BF16, (1, 512))}],
    ),
    "NVFP4": (
        ("modelopt", "nvfp4", "modelopt_fp4"),
        [
            {
                "weight": (U8, (32, 32)),
                "weight_scale": (torch.float8_e4m3fn, (32, 4)),
                "weight_scale_2": (F32, ()),
                "input_scale": (F32, ()),
            },
            {"weight": (U8, (32, 32)), "weight_sf": (I32, (32,)), "weight_global_scale": (F32, ())},
        ],
    ),
    "FBGEMM": (
        ("fbgemm_fp8",),
        [
            {
                "weight": (torch.float8_e4m3fn, (32, 64)),
                "weight_scale": (F32, (32, 1)),
                "input_scale_ub": (F32, (1,)),
            }
        ],
    ),
    "Quark": (("quark",), [{"weight": (U8, (32, 32)), "weight_scale": (U8, (32, 2))}]),
    "BitNet": (("bitnet",), [{"weight": (U8, (8, 64)), "weight_scale": (BF16, (1,))}]),
    "SpQR": (("spqr",), [{"dense_weights": (I64, (99,)), "row_offsets": (I32, (33,))}]),
    "HIGGS": (
        ("higgs",),
        [{"weight": (I16, (8, 64)), "tables": (F16, (16,)), "tables2": (F16, (16, 16, 2))}],
    ),
    "FP-Quant": (
        ("fp_quant",),
        [{"qweight": (U8, (32, 32)), "forward_hadamard_matrix": (BF16, (32, 32))}],
    ),
    "Four Over Six": (("fouroversix",), []),
    "MLX": (
        ("mlx",),
        [{"weight": (U32, (32, 8)), "scales": (BF16, (32, 1)), "biases": (BF16, (32, 1))}],
    ),
    "Metal": (
        ("metal",),
        [{"weight": (U32, (32, 8)), "scales": (BF16, (32, 1)), "qbiases": (BF16, (32, 1))}],
    ),
    "Gemma": (
        ("gemma",),
        [{"weight": (U8, (32, 32)), "input_activation_scale": (F32, ())}],
    ),
    "EXL3": (("exl3",), [{"trellis": (I16, (2, 4, 64)), "suh": (F16, (64,))}]),
    "EXL2": (("exl2",), [{"q_weight": (I32, (9, 32)), "q_scale": (I32, (2, 4))}]),
    "QuIP#": (("quip",), [{"Qidxs": (I64, (32, 8)), "SU": (F16, (64,))}]),
    "DeepSeek": (
        (),
        [{"weight": (I8, (32, 32)), "scale": (torch.float8_e8m0fnu, (32, 2))}],
    ),
}
BY_METHOD = [(name, method) for name, (methods, _) in FORMATS.items() for method in methods]
BY_TENSORS = [(name, header) for name, (_, headers) in FORMATS.items() for header in headers]


def test_every_refused_format_is_tried() -> None:
    assert len(FORMATS) == len(REFUSED)
    for entry in REFUSED:
        own = next(value for name, value in FORMATS.items() if entry.name.startswith(name))
        assert bool(own[0]) == bool(entry.methods)
        assert bool(own[1]) == bool(entry.signs)


@pytest.mark.parametrize(("name", "method"), BY_METHOD)
def test_refused_by_the_config(name: str, method: str, headed: Any) -> None:
    message = refusal({"quantization_config": {"quant_method": method}}, headed(ROUTER))
    assert name in message
    assert repr(method) in message
    assert "original" in message


@pytest.mark.parametrize(("name", "header"), BY_TENSORS)
@pytest.mark.parametrize("config", [{}, fp8_config()])
def test_refused_by_the_tensors(
    name: str, header: Header, config: dict[str, Any], headed: Any
) -> None:
    stem = "model.layers.0.mlp.experts.3.down_proj."
    dotless = {stem + ending: entry for ending, entry in header.items()}
    message = refusal(config, headed({**ROUTER, **dotless}))
    assert name in message
    assert stem in message
    assert "original" in message


def test_every_method_of_transformers_is_known() -> None:
    from transformers.utils.quantization_config import QuantizationMethod

    read = {method for scheme in SCHEMES for method in scheme.methods}
    refused = {method for entry in REFUSED for method in entry.methods}
    assert {method.value for method in QuantizationMethod} <= read | refused
    assert not read & refused


def test_old_configs_without_a_method(headed: Any) -> None:
    tensors = headed(ROUTER)
    old = {"quantization_config": {"load_in_4bit": True, "load_in_8bit": False}}
    assert "bitsandbytes" in refusal(old, tensors)
    assert "ModelOpt" in refusal({"quantization_config": {"quant_algo": "NVFP4"}}, tensors)
    older = {"compression_config": {"quant_method": "compressed-tensors"}}
    assert "compressed-tensors" in refusal({"text_config": older}, tensors)


def test_an_unknown_method_is_named(headed: Any) -> None:
    message = refusal({"quantization_config": {"quant_method": "Brand-New"}}, headed(ROUTER))
    assert "'brand-new'" in message
    assert "remove quantization_config" in message


@pytest.mark.parametrize(
    ("dtype", "name"), [(I8, "I8"), (U32, "U32"), (torch.float8_e5m2, "F8_E5M2")]
)
def test_unknown_forms_are_refused_by_dtype(dtype: torch.dtype, name: str, headed: Any) -> None:
    message = refusal({}, headed({**ROUTER, "a.experts.0.w1.weight": (dtype, (8, 8))}))
    assert name in message
    assert "'a.experts.0.w1.weight'" in message


def test_a_mixture_is_refused(headed: Any) -> None:
    mixed = {
        "a.weight": (E4M3, (8, 32)),
        "a.weight_scale_inv": (F32, (1, 1)),
        "b_blocks": (U8, (2, 8, 1, 16)),
        "b_scales": (U8, (2, 8, 1)),
    }
    assert "mixes fp8 and mxfp4" in refusal({}, headed(mixed))


@pytest.mark.parametrize(
    ("header", "blamed", "why"),
    [
        ({"a.weight": (E4M3, (8, 8))}, "a.weight_scale_inv", "missing"),
        ({"a.weight": (BF16, (8, 8)), "a.weight_scale_inv": (F32, (1, 1))}, None, "no F8_E4M3"),
        ({"a.weight": (E4M3, (8, 8)), "a.weight_scale_inv": (F32, (2, 1))}, None, "[2, 1]"),
        ({"a.weight": (E4M3, (8, 8)), "a.weight_scale_inv": (I32, (1, 1))}, None, "I32"),
        ({"a.weight": (E4M3, (8,)), "a.weight_scale_inv": (F32, ())}, "a.weight", "not a matrix"),
        ({"a_blocks": (U8, (2, 8, 1, 16))}, "a_scales", "missing"),
        ({"a_scales": (U8, (2, 8, 1))}, "a_blocks", "missing"),
        ({"a_blocks": (U8, (2, 8, 1, 8)), "a_scales": (U8, (2, 8, 1))}, "a_blocks", "16]"),
        ({"a_blocks": (U8, (2, 8, 1, 16)), "a_scales": (U8, (2, 8, 2))}, "a_scales", "[2, 8, 1]"),
        ({"a_blocks": (U8, (2, 8, 1, 16)), "a_scales": (F32, (2, 8, 1))}, "a_scales", "F32"),
    ],
)
def test_scales_that_do_not_fit(header: Header, blamed: str | None, why: str, headed: Any) -> None:
    message = refusal({}, headed({**ROUTER, **header}))
    assert repr(blamed or "a.weight_scale_inv") in message
    assert why in message
    assert "forged.safetensors" in message


@pytest.mark.parametrize("block", [[128], [0, 128], "128", [1.5, 2], [True, 128]])
def test_a_block_that_makes_no_sense(block: Any, headed: Any) -> None:
    tensors = headed({"a.weight": (E4M3, (8, 8)), "a.weight_scale_inv": (F32, (1, 1))})
    assert "weight_block_size" in refusal(fp8_config(weight_block_size=block), tensors)


def test_scales_that_are_no_numbers(store: Store) -> None:
    scales = torch.ones(3, 2)
    scales[2, 1] = torch.nan
    tensors = store({"a.weight": random_codes((9, 8), 0), "a.weight_scale_inv": scales})
    weight = weight_of(detect(fp8_config(weight_block_size=[4, 4]), tensors), tensors, "a.weight")
    assert weight.read(0, slice(0, 8)).shape == (8, 8)
    with pytest.raises(CheckpointError, match=r"a\.weight_scale_inv.*finite"):
        weight.read()
    four = torch.full((2, 1), 255, dtype=U8)
    tensors = store({"a_blocks": EVERY_BYTE[:2, None], "a_scales": four})
    with pytest.raises(CheckpointError, match=r"a_scales.*255"):
        weight_of(detect({}, tensors), tensors, "a").read()
