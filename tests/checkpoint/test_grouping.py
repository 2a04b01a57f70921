"""Experts gathered into groups, numbered and checked."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from support.damaged_copies import edit_tensors
from support.messages import raises_saying
from support.written_experts import D, H, K, experts, same, write

from ders_core.checkpoint.grouping import CodedTensors, gather
from ders_core.checkpoint.layouts import Layout
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.header import read_header
from ders_core.packed.open import open_checkpoint


def refused(path: Path, *facts: str) -> None:
    """A directory is refused in one line that states the facts."""
    with raises_saying(CheckpointError, *facts):
        open_checkpoint(path)


GATE = "model.layers.1.block_sparse_moe.experts.{}.w1.weight"


def test_experts_of_unequal_shapes(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(directory, lambda t: t | {GATE.format(2): torch.zeros(112, 63).bfloat16()})
    refused(directory, "layer 1, gate", "expert 2", "[112, 63]", "[112, 64]")


def test_experts_of_unequal_dtypes(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(directory, lambda t: t | {GATE.format(2): t[GATE.format(2)].half()})
    refused(directory, "layer 1, gate", "expert 2", "F16", "BF16", "one dtype", "convert")
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(directory)
    assert "damaged" not in str(caught.value)


def test_experts_in_float64(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(directory, lambda t: t | {n: t[n].double() for n in map(GATE.format, range(4))})
    refused(directory, "layer 1, gate", "stored as F64, which is not supported", "float32")


@pytest.mark.parametrize("shape", [(64,), (1, 112, 64), (0, 64)])
def test_experts_that_are_no_matrices(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], shape: tuple[int, ...]
) -> None:
    directory = copy_of(mixtral_dir)
    zeros = {GATE.format(i): torch.zeros(shape).bfloat16() for i in range(4)}
    edit_tensors(directory, lambda t: t | zeros)
    refused(directory, "layer 1, gate", "not a matrix", str(list(shape)))


@pytest.mark.parametrize("expert", [0, 1, 3])
def test_missing_expert(mixtral_dir: Path, copy_of: Callable[[Path], Path], expert: int) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(directory, lambda t: {k: v for k, v in t.items() if k != GATE.format(expert)})
    refused(directory, "layer 1, gate", f"expert {expert} is missing")


def test_missing_projection(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    gone = {GATE.format(i) for i in range(4)}
    edit_tensors(directory, lambda t: {k: v for k, v in t.items() if k not in gone})
    refused(directory, "layer 1, gate", "missing")


def test_an_absurd_expert_number_is_refused_at_once(
    mixtral_dir: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(directory, lambda t: t | {GATE.format(10**12): t[GATE.format(0)].clone()})
    refused(directory, "layer 1, gate", "expert 4 is missing")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8])
def test_quantized_experts(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], dtype: torch.dtype
) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(
        directory, lambda t: {k: v.to(dtype) if ".experts." in k else v for k, v in t.items()}
    )
    names = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.uint8: "U8"}
    refused(directory, "block_sparse_moe.experts.", names[dtype])


def test_one_layer_with_fewer_experts_than_the_config_says(
    mixtral_dir: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(
        directory,
        lambda t: {k: v for k, v in t.items() if ".layers.1." not in k or ".3.w" not in k},
    )
    refused(directory, "num_local_experts = 4", "layer 1", "hold 3 experts")


def test_encoder_and_decoder_are_counted_one_after_the_other(tmp_path: Path) -> None:
    weights = {
        ("encoder", 1, 1): experts(5, gate=False),
        ("decoder", 1, 2): experts(6, gate=False),
        ("decoder", 3, 2): experts(7, gate=False),
    }
    tensors = {"encoder.block.3.layer.1.mlp.wi.weight": torch.randn(H, D)}
    for (stack, layer, sub), matrices in weights.items():
        block = f"{stack}.block.{layer}.layer.{sub}.mlp"
        tensors[f"{block}.router.classifier.weight"] = torch.randn(K, D)
        for expert in range(K):
            tensors[f"{block}.experts.expert_{expert}.wi.weight"] = matrices["up"][expert]
            tensors[f"{block}.experts.expert_{expert}.wo.weight"] = matrices["down"][expert]
    path = write(tmp_path / "m", tensors, model_type="switch_transformers")
    checkpoint = open_checkpoint(path)
    # the decoder's experts take more bytes, so it is counted first
    assert checkpoint.moe_layers == [1, 3, 5]
    assert [block.name.split(".")[0] for block in checkpoint.blocks] == ["decoder"] * 2 + [
        "encoder"
    ]
    same(checkpoint, 1, weights["decoder", 1, 2])
    same(checkpoint, 3, weights["decoder", 3, 2])
    same(checkpoint, 5, weights["encoder", 1, 1])


def test_equal_encoder_comes_before_decoder(tmp_path: Path) -> None:
    tensors = {}
    for stack in ("decoder", "encoder"):
        for expert in range(K):
            for name, weight in (("wi", "up"), ("wo", "down")):
                tensors[f"{stack}.block.0.layer.1.mlp.experts.expert_{expert}.{name}.weight"] = (
                    experts(8)[weight][expert]
                )
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, model_type="switch_transformers"))
    assert [block.name[:7] for block in checkpoint.blocks] == ["encoder", "decoder"]


def test_unlike_experts_in_one_block_are_two_groups(tmp_path: Path) -> None:
    """As Ernie 4.5 VL: text experts, then smaller ones for vision, under one index."""
    big, small = experts(9), {p: w[:2, : H - 2, : H - 2] for p, w in experts(10).items()}
    small = {"gate": small["gate"][:, :4], "up": small["up"][:, :4], "down": small["down"][..., :4]}
    block = "model.layers.1.mlp"
    tensors = {f"{block}.gate.weight": torch.randn(K, D), "model.layers.2.x": torch.ones(1)}
    for offset, matrices in ((0, big), (K, small)):
        for projection, weights in matrices.items():
            for expert, weight in enumerate(weights):
                tensors[f"{block}.experts.{offset + expert}.{projection}_proj.weight"] = weight
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, model_type="ernie4_5_vl_moe"))
    assert [group.shape for group in checkpoint.groups()] == [
        (4, H, D),
        (4, H, D),
        (4, D, H),
        (2, 4, D),
        (2, 4, D),
        (2, D, 4),
    ]
    assert len({group.prefix for group in checkpoint.groups()}) == 6
    first, second = checkpoint.moe_layers
    same(checkpoint, first, big)
    for projection, weights in small.items():
        assert torch.equal(checkpoint.group(second, projection).read(), weights)


# Any layout of a few blocks


SIDE_BY_SIDE = {
    "experts.{expert}.g": {"holds": "gate"},
    "experts.{expert}.u": {"holds": "up"},
    "experts.{expert}.d": {"holds": "down"},
}
STACKED = {
    "experts.gu": {"holds": ["gate", "up"], "axes": "expert in (out part)"},
    "experts.d": {"holds": "down", "axes": "expert in out"},
}


def stored(form: dict[str, Any], block: str, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """The tensors of one block, as numpy lays them out. weights: `[K, out, in]` by projection."""
    if form is SIDE_BY_SIDE:
        letters = {"gate": "g", "up": "u", "down": "d"}
        return {
            f"{block}.experts.{expert}.{letters[projection]}": weight
            for projection, stack in weights.items()
            for expert, weight in enumerate(stack)
        }
    both = np.stack([weights["gate"], weights["up"]], axis=2)  # [K, out, part, in]
    both = both.reshape(both.shape[0], -1, both.shape[-1])
    return {
        f"{block}.experts.gu": np.ascontiguousarray(both.transpose(0, 2, 1)),
        f"{block}.experts.d": np.ascontiguousarray(weights["down"].transpose(0, 2, 1)),
    }


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    form=st.sampled_from([SIDE_BY_SIDE, STACKED]),
    layers=st.sets(st.integers(0, 11), min_size=1, max_size=3),
    sizes=st.tuples(st.integers(1, 12), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 2**31),
)
def test_every_expert_is_found_in_any_order_of_names(
    tmp_path: Path,
    form: dict[str, Any],
    layers: set[int],
    sizes: tuple[int, int, int],
    seed: int,
) -> None:
    """Numbers are sorted as numbers (10 after 9), whatever order the file lists its names in."""
    count, inner, hidden = sizes
    values = np.random.default_rng(seed)
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    weights = {
        layer: {
            name: values.standard_normal((count, *shape)).astype(np.float32)
            for name, shape in shapes.items()
        }
        for layer in layers
    }
    tensors: dict[str, Any] = {}
    for layer in layers:
        tensors |= stored(form, f"model.layers.{layer}.moe", weights[layer])
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    readers = list(read_header(path)[0].items())
    random.Random(seed).shuffle(readers)
    layout = Layout.model_validate(
        {"family": "toy", "block": "{stack}.{layer}.moe", "experts": form}
    )
    groups = gather(layout, dict(readers), None, CodedTensors({}, Dtype.BF16))
    assert [group.key for group in groups] == [
        (layer, projection) for layer in sorted(layers) for projection in shapes
    ]
    for group in groups:
        assert np.array_equal(group.read().numpy(), weights[group.layer][group.projection])


def test_a_shell_of_surplus_experts_is_left_out(tmp_path: Path) -> None:
    """LongCat's zero experts may keep one projection; the config says how many compute."""
    tensors = {}
    for projection, letter in (("up", "u"), ("down", "d")):
        for expert in range(5 if projection == "up" else 3):
            weight = np.full((2, 2), expert, np.float32)
            tensors[f"model.layers.0.moe.experts.{expert}.{letter}"] = weight
    save_file(tensors, tmp_path / "model.safetensors")
    readers = read_header(tmp_path / "model.safetensors")[0]
    form = {name: held for name, held in SIDE_BY_SIDE.items() if held["holds"] != "gate"}
    layout = Layout.model_validate(
        {"family": "toy", "block": "{stack}.{layer}.moe", "experts": form}
    )
    plain = CodedTensors({}, Dtype.BF16)
    assert [group.shape[0] for group in gather(layout, readers, 3, plain)] == [3, 3]
    with raises_saying(CheckpointError, "layer 0, down", "expert 3", "missing"):
        gather(layout, readers, 5, plain)
