"""Quantized formats that are not read, each refused in one sentence that names it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.quantized_references import fp8_config

from ders_core.checkpoint.quantized import REFUSED, SCHEMES, detect
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.header import read_header
from ders_core.files.tensor import FileTensor


def refusal(config: Mapping[str, Any], tensors: Mapping[str, FileTensor]) -> str:
    """The message with which a checkpoint is refused: one sentence."""
    with pytest.raises(CheckpointError) as caught:
        detect(config, tensors)
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message
    return message


Header = Mapping[str, tuple[Dtype, tuple[int, ...]]]


@pytest.fixture
def headed(forge: Callable[..., Path]) -> Callable[[Header], dict[str, FileTensor]]:
    """A file made by hand from a header alone, with zeros for data."""

    def make(header: Header) -> dict[str, FileTensor]:
        entries, position = {}, 0
        for name, (dtype, shape) in header.items():
            end = position + math.prod(shape) * dtype.itemsize
            entries[name] = {
                "dtype": dtype.name,
                "shape": list(shape),
                "data_offsets": [position, end],
            }
            position = end
        return read_header(forge(json.loads(json.dumps(entries)), bytes(position)))[0]

    return make


F32, F16, BF16 = Dtype.F32, Dtype.F16, Dtype.BF16


I8, I16, I32, I64 = Dtype.I8, Dtype.I16, Dtype.I32, Dtype.I64


U8, U32, E4M3 = Dtype.U8, Dtype.U32, Dtype.F8_E4M3


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
                "weight_scale": (Dtype.F8_E4M3, (32, 4)),
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
                "weight_scale": (Dtype.F8_E4M3, (32, 4)),
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
                "weight": (Dtype.F8_E4M3, (32, 64)),
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
        [{"weight": (I8, (32, 32)), "scale": (Dtype.F8_E8M0, (32, 2))}],
    ),
}


BY_METHOD = [(name, method) for name, (methods, _) in FORMATS.items() for method in methods]


BY_TENSORS = [(name, header) for name, (_, headers) in FORMATS.items() for header in headers]


def test_every_refused_format_is_tried() -> None:
    assert len(FORMATS) == len(REFUSED)
    for entry in REFUSED:
        methods, headers = next(
            value for name, value in FORMATS.items() if entry.name.startswith(name)
        )
        assert bool(methods) == bool(entry.methods)
        assert bool(headers) == bool(entry.signs)


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


@pytest.mark.parametrize(("dtype", "name"), [(I8, "I8"), (U32, "U32"), (Dtype.F8_E5M2, "F8_E5M2")])
def test_unknown_forms_are_refused_by_dtype(dtype: Dtype, name: str, headed: Any) -> None:
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
    message = refusal({}, headed(mixed))
    assert "mixes" in message
    assert "fp8" in message
    assert "mxfp4" in message


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


def test_a_cast_to_fp8_is_told_from_a_missing_shard(headed: Any) -> None:
    cast = {"a.weight": (E4M3, (8, 8)), "b.weight": (E4M3, (8, 8)), "c.weight": (BF16, (8, 8))}
    for config in ({}, fp8_config()):
        message = refusal(config, headed({**ROUTER, **cast}))
        for fact in ("'a.weight'", "F8_E4M3", "cast to fp8 without scales", "bfloat16"):
            assert fact in message
        assert "shard" not in message
    for scales in ("b.weight_scale_inv", "b.scale", "c.weight_scale_inv"):
        message = refusal({}, headed({**ROUTER, **cast, scales: (F32, (1, 1))}))
        assert "shard may be missing" in message
        assert "cast" not in message


@pytest.mark.parametrize("block", [[128], [0, 128], "128", [1.5, 2], [True, 128]])
def test_a_block_that_makes_no_sense(block: Any, headed: Any) -> None:
    tensors = headed({"a.weight": (E4M3, (8, 8)), "a.weight_scale_inv": (F32, (1, 1))})
    assert "weight_block_size" in refusal(fp8_config(weight_block_size=block), tensors)
