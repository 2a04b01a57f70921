"""`Checkpoint` on real checkpoints, and one sentence for each bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.damaged_copies import edit_config
from support.messages import raises_saying

from ders_core.checkpoint import Layout
from ders_core.checkpoint.layouts import Match, known_layouts
from ders_core.errors import CheckpointError
from ders_core.files.dtype import Dtype
from ders_core.files.store import TensorStore
from ders_core.packed.open import open_checkpoint


def refused(path: Path, *facts: str) -> None:
    """A directory is refused in one line that states the facts."""
    with raises_saying(CheckpointError, *facts):
        open_checkpoint(path)


def weight_bytes(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


@pytest.fixture(params=["mixtral_dir", "mixtral_sharded_dir"])
def any_mixtral(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


@pytest.fixture(params=["qwen2_moe_dir", "qwen2_moe_sharded_dir"])
def any_qwen(request: pytest.FixtureRequest) -> Path:
    return Path(request.getfixturevalue(request.param))


def test_mixtral(any_mixtral: Path) -> None:
    checkpoint = open_checkpoint(any_mixtral)
    assert checkpoint.family == "mixtral"
    assert checkpoint.num_layers == 2
    assert checkpoint.moe_layers == [0, 1]
    assert checkpoint.num_experts == 4
    assert checkpoint.top_k == 2
    assert checkpoint.dtype is Dtype.BF16
    assert checkpoint.bytes_total == weight_bytes(any_mixtral)
    assert checkpoint.bytes_experts == 2 * 3 * 4 * 112 * 64 * 2
    assert checkpoint.expert_share == checkpoint.bytes_experts / weight_bytes(any_mixtral)
    assert [group.key for group in checkpoint.groups()] == [
        (layer, projection) for layer in (0, 1) for projection in ("gate", "up", "down")
    ]
    assert checkpoint.group(1, "gate").shape == (4, 112, 64)
    assert checkpoint.group(1, "down").shape == (4, 64, 112)
    assert checkpoint.group(0, "up").router == "model.layers.0.block_sparse_moe.gate.weight"
    assert checkpoint.shared_expert(0) == []


def test_qwen2_moe_with_a_dense_layer_and_a_shared_expert(any_qwen: Path) -> None:
    checkpoint = open_checkpoint(any_qwen)
    assert checkpoint.family == "qwen2_moe"
    assert checkpoint.num_layers == 3
    assert checkpoint.moe_layers == [0, 2]
    assert checkpoint.num_experts == 6
    assert checkpoint.top_k == 2
    assert checkpoint.bytes_total == weight_bytes(any_qwen)
    assert checkpoint.bytes_experts == 2 * 3 * 6 * 40 * 64 * 2
    assert checkpoint.group(2, "down").shape == (6, 64, 40)
    assert checkpoint.group(0, "gate").router == "model.layers.0.mlp.gate.weight"
    shared = {info.name.removeprefix("model.layers.0.mlp.") for info in checkpoint.shared_expert(0)}
    assert shared == {f"shared_expert.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert checkpoint.shared_expert(1) == []
    with raises_saying(CheckpointError, "no experts", "layer 1, up", "0, 2"):
        checkpoint.group(1, "up")


@pytest.mark.parametrize("name", ["mixtral_sharded_dir", "qwen2_moe_sharded_dir"])
def test_every_tensor_is_what_safetensors_reads(name: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(name)
    expected: dict[str, torch.Tensor] = {}
    for file in directory.glob("*.safetensors"):
        expected |= load_file(file)
    checkpoint = open_checkpoint(directory)
    assert checkpoint.tensors.keys() == expected.keys()
    for tensor_name, tensor in expected.items():
        assert torch.equal(checkpoint.read(tensor_name), tensor)
    experts: set[str] = set()
    for group in checkpoint.groups():
        stacked = torch.stack([expected[source] for source in group.sources])
        assert torch.equal(group.read(), stacked)
        assert torch.equal(group.read(rows=slice(3, 17)), stacked[:, 3:17])
        assert torch.equal(group.read(2, slice(5, 6)), stacked[2, 5:6])
        assert torch.equal(group.read(1), stacked[1])
        assert group.nbytes == stacked.nbytes
        assert group.dtype.torch == stacked.dtype
        assert all(f".experts.{i}." in source for i, source in enumerate(group.sources))
        experts |= set(group.sources)
    others = [info.name for info in checkpoint.other_tensors()]
    assert sorted(others) == sorted(expected.keys() - experts)


def test_projections_are_the_modules_weights(mixtral_dir: Path, models: dict[str, Any]) -> None:
    """w1 is gate, w3 up, w2 down: against the module that transformers computes with."""
    checkpoint = open_checkpoint(mixtral_dir)
    for layer, module in enumerate(models["mixtral"].model.layers):
        gate, up = module.mlp.experts.gate_up_proj.detach().chunk(2, dim=1)
        for projection, weight in (
            ("gate", gate),
            ("up", up),
            ("down", module.mlp.experts.down_proj.detach()),
        ):
            assert torch.equal(checkpoint.group(layer, projection).read(), weight.bfloat16())


def test_opening_reads_headers_only(mixtral_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ders_core.files.tensor.FileTensor.read", lambda *_: pytest.fail("read a tensor")
    )
    checkpoint = open_checkpoint(mixtral_dir)
    assert checkpoint.groups()
    assert checkpoint.expert_share > 0
    assert checkpoint.identity


@pytest.mark.parametrize("layout", known_layouts(), ids=lambda layout: layout.family)
def test_layouts_match_only_experts(layout: Layout) -> None:
    block = layout.block.format(stack="model.layers", layer=12, n=1, any="moe")
    for pattern, weights in layout.experts.items():
        name = f"{block}.{pattern.format(expert=31)}"
        expert = 31 if "{expert}" in pattern else None
        stack = layout.block.format(stack="model.layers", layer="*", n=1, any="moe")
        assert layout.match(name) == Match(block, stack, "model.layers.", 12, expert, weights)
        assert layout.match(f"{name}_scale_inv") is None
        assert layout.match(name.replace(".12.", ".x.")) is None
        assert layout.match(name.replace("12.", "12x")) is None
    for router in layout.router:
        assert layout.match(f"{block}.{router}") is None
    for pattern in layout.shared:
        assert layout.match(f"{block}.{pattern}") is None


# The bad inputs, one by one.


def test_dense_model(dense_parent_dir: Path) -> None:
    refused(dense_parent_dir, str(dense_parent_dir), "no experts", "'mistral'")
    assert TensorStore.open(dense_parent_dir).tensors  # but a parent it can be


@pytest.mark.parametrize("declared", [3, 5, 8])
def test_config_that_disagrees(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], declared: int
) -> None:
    directory = copy_of(mixtral_dir)
    edit_config(directory, num_local_experts=declared)
    refused(directory, f"num_local_experts = {declared}", "hold 4 experts")


def test_odd_values_in_the_config_do_no_harm(
    mixtral_dir: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(mixtral_dir)
    edit_config(
        directory,
        num_local_experts=None,
        num_hidden_layers="two",
        num_experts_per_tok=None,
        quantization_config=None,
        model_type=7,
    )
    checkpoint = open_checkpoint(directory)
    assert (checkpoint.num_layers, checkpoint.num_experts, checkpoint.top_k) == (2, 4, None)


def test_a_packed_checkpoint_needs_its_manifest(
    mixtral_dir: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(mixtral_dir)
    edit_config(directory, quantization_config={"quant_method": "ders"})
    refused(directory, "ders_manifest.json")


def test_reading_a_tensor_that_is_not_there(mixtral_dir: Path) -> None:
    with raises_saying(CheckpointError, "no tensor 'x'"):
        open_checkpoint(mixtral_dir).read("x")
