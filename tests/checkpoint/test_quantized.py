"""Quantized checkpoints: the scheme that a file holds, and its weights read and put back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.messages import raises_saying
from support.quantized_references import (
    EVERY_BYTE,
    by_element,
    fp8_config,
    random_codes,
    random_scales,
    same,
)

from ders_core.checkpoint.quantized import Fp8, Mxfp4, Scheme, detect, mxfp4
from ders_core.checkpoint.quantized.fp8 import Fp8Weight
from ders_core.errors import CheckpointError
from ders_core.files.header import read_header
from ders_core.files.tensor import FileTensor

Store = Callable[[Mapping[str, torch.Tensor]], dict[str, FileTensor]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Save tensors and give back what the header says of them."""

    def save(tensors: Mapping[str, torch.Tensor]) -> dict[str, FileTensor]:
        path = tmp_path / "model.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return read_header(path)[0]

    return save


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
        expert_codes = codes.view(-1, 11, 7)[expert]
        whole = by_element(expert_codes, scales.view(-1, 3, 2)[expert], (4, 4)).float()
        values = weight.read(expert, rows)
        assert torch.equal(values, whole[rows or slice(None)])
        assert np.array_equal(weight.numbers(expert, rows), values.numpy())
        back = weight.quantize(values.bfloat16(), expert, rows)
        assert same(back, expert_codes[rows or slice(None)].contiguous())


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
        assert np.array_equal(weight.numbers(expert, rows), values.numpy())
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
    grid_scales = meant.flatten()[: math.prod(grid)] if shared else meant.view(-1, *grid)[last]
    matrix = stored.view(-1, *codes[-2:])[last]
    expected = by_element(matrix, grid_scales.view(grid), block).float()
    assert torch.equal(weight.read(last), expected)
    assert torch.equal(weight.read(last, slice(17, 33)), expected[17:33])
    assert np.array_equal(weight.numbers(last, slice(17, 33)), expected[17:33].numpy())
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
    unset: list[dict[str, Any]] = [{"quantization_config": None}, {"quantization_config": {}}]
    for config in ({}, fp8_config(), *unset):
        assert detect(config, tensors) is None


def test_packed_checkpoints_are_left_to_others(store: Store) -> None:
    tensors = store({"a.weight": torch.zeros(2, 2, dtype=torch.uint8)})
    assert detect({"quantization_config": {"quant_method": "ders"}}, tensors) is None


def test_scales_that_are_no_numbers(store: Store) -> None:
    scales = torch.ones(3, 2)
    scales[2, 1] = torch.nan
    tensors = store({"a.weight": random_codes((9, 8), 0), "a.weight_scale_inv": scales})
    weight = weight_of(detect(fp8_config(weight_block_size=[4, 4]), tensors), tensors, "a.weight")
    assert weight.read(0, slice(0, 8)).shape == (8, 8)
    for read in (weight.read, weight.numbers):
        with raises_saying(CheckpointError, "a.weight_scale_inv", "finite"):
            read()
    four = torch.full((2, 1), 255, dtype=torch.uint8)
    tensors = store({"a_blocks": EVERY_BYTE[:2, None], "a_scales": four})
    with raises_saying(CheckpointError, "a_scales", "255"):
        weight_of(detect({}, tensors), tensors, "a").numbers()
