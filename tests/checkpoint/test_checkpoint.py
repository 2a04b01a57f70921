"""`Checkpoint` on real checkpoints, and one sentence for each bad one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ders_core.checkpoint import Layout
from ders_core.checkpoint.layouts import Match, known_layouts
from ders_core.errors import CheckpointError
from ders_core.files.store import INDEX, TensorStore
from ders_core.packed.open import open_checkpoint


def refused(path: Path, *words: str) -> str:
    """The sentence with which a directory is refused; it must hold `words`."""
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith("\n")
    for word in words:
        assert word in message, message
    return message


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    return lambda source: Path(shutil.copytree(source, tmp_path / "copy"))


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(
    directory: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors) or tensors, path, {"format": "pt"})


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
    assert checkpoint.dtype is torch.bfloat16
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
    with pytest.raises(CheckpointError, match="no experts at layer 1, up; its MoE layers are 0, 2"):
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
        assert group.dtype == stacked.dtype
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


def test_identity_is_of_the_content(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    before = open_checkpoint(mixtral_dir).identity
    assert open_checkpoint(directory).identity == before
    assert len(bytes.fromhex(before)) == 32
    edit_tensors(directory, lambda t: t | {"model.norm.weight": t["model.norm.weight"] + 1})
    changed = open_checkpoint(directory).identity
    assert changed != before
    edit_config(directory, rms_norm_eps=0.5)
    assert open_checkpoint(directory).identity not in (before, changed)


def test_side_files(mixtral_sharded_dir: Path) -> None:
    names = [file.name for file in open_checkpoint(mixtral_sharded_dir).side_files()]
    assert names == ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]


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


def test_missing_path(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "does not exist")


def test_a_file_instead_of_a_directory(mixtral_dir: Path) -> None:
    refused(mixtral_dir / "model.safetensors", "model.safetensors", "is a file")


def test_directory_without_config(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path.name, "config.json")


@pytest.mark.parametrize("text", ["{", "[1]", "", "[" * 100_000])
def test_config_that_is_no_json_object(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], text: str
) -> None:
    directory = copy_of(mixtral_dir)
    (directory / "config.json").write_text(text)
    refused(directory, "config.json", "JSON")


def test_no_safetensors(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    (directory / "model.safetensors").unlink()
    refused(directory, str(directory), "no safetensors files")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickle_only_is_refused_unopened(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], name: str
) -> None:
    directory = copy_of(mixtral_dir)
    (directory / "model.safetensors").unlink()
    (directory / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    refused(directory, name, "pickle", "save_pretrained")


def test_truncated_shard(mixtral_sharded_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_sharded_dir)
    shard = sorted(directory.glob("model-00003*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(directory, shard.name, "truncated")


def test_missing_shard(mixtral_sharded_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_sharded_dir)
    shard = sorted(directory.glob("model-00002*.safetensors"))[0]
    shard.unlink()
    refused(directory, INDEX, shard.name, "missing")


@pytest.mark.parametrize(
    "name",
    ["../outside.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\nb"],
)
def test_index_that_leaves_the_directory(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], tmp_path: Path, name: str
) -> None:
    directory = copy_of(mixtral_dir)
    shutil.copy(mixtral_dir / "model.safetensors", tmp_path / "outside.safetensors")
    (directory / "sub").mkdir()
    shutil.copy(mixtral_dir / "model.safetensors", directory / "sub" / "model.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(mixtral_dir / "model.safetensors"), name)}
    (directory / INDEX).write_text(json.dumps(index))
    refused(directory, INDEX)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": 3}])
def test_index_without_a_weight_map(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], index: Any
) -> None:
    directory = copy_of(mixtral_dir)
    (directory / INDEX).write_text(json.dumps(index))
    refused(directory, INDEX, "weight_map")


def test_index_of_another_checkpoint(
    mixtral_sharded_dir: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(mixtral_sharded_dir)
    index = json.loads((directory / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    moved = {"model.norm.weight": files[0], "lm_head.weight": files[-1]}
    index["weight_map"] |= moved
    (directory / INDEX).write_text(json.dumps(index))
    refused(directory, INDEX, "different checkpoints")


def test_a_tensor_in_two_files(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    shutil.copy(directory / "model.safetensors", directory / "stale.safetensors")
    refused(directory, "stale.safetensors", "in another file too")


def test_dense_model(dense_parent_dir: Path) -> None:
    refused(dense_parent_dir, str(dense_parent_dir), "no experts", "'mistral'")
    assert TensorStore.open(dense_parent_dir).tensors  # but a parent it can be


GATE = "model.layers.1.block_sparse_moe.experts.{}.w1.weight"


def test_experts_of_unequal_shapes(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(directory, lambda t: t | {GATE.format(2): torch.zeros(112, 63).bfloat16()})
    refused(directory, "layer 1, gate", "expert 2", "[112, 63]", "[112, 64]")


def test_experts_of_unequal_dtypes(mixtral_dir: Path, copy_of: Callable[[Path], Path]) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(directory, lambda t: t | {GATE.format(2): t[GATE.format(2)].half()})
    refused(directory, "layer 1, gate", "expert 2", "F16", "BF16")


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


@pytest.mark.parametrize("declared", [3, 5, 8])
def test_config_that_disagrees(
    mixtral_dir: Path, copy_of: Callable[[Path], Path], declared: int
) -> None:
    directory = copy_of(mixtral_dir)
    edit_config(directory, num_local_experts=declared)
    refused(directory, f"num_local_experts = {declared}", "hold 4 experts")


def test_one_layer_with_fewer_experts_than_the_config_says(
    mixtral_dir: Path, copy_of: Callable[[Path], Path]
) -> None:
    directory = copy_of(mixtral_dir)
    edit_tensors(
        directory,
        lambda t: {k: v for k, v in t.items() if ".layers.1." not in k or ".3.w" not in k},
    )
    refused(directory, "num_local_experts = 4", "layer 1", "hold 3 experts")


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
    refused(directory, "has no ders_manifest.json")


def test_reading_a_tensor_that_is_not_there(mixtral_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="has no tensor 'x'"):
        open_checkpoint(mixtral_dir).read("x")
