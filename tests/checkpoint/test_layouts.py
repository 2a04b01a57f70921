"""Every form in which experts lie on disk, written by hand and read back as `[K, out, in]`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ders_core.checkpoint import Checkpoint, dense_ffns
from ders_core.checkpoint.axes import Axes
from ders_core.checkpoint.layouts import LAYOUT_FILE, USER_LAYOUTS, read_layouts
from ders_core.checkpoint.matrix import Matrix, Slot
from ders_core.errors import CheckpointError
from ders_core.files.header import read_header
from ders_core.packed.open import open_checkpoint

K, D, H = 4, 6, 10  # experts, hidden size, inner size
Tensors = dict[str, torch.Tensor]


def experts(seed: int, gate: bool = True) -> Tensors:
    """gate, up `[K, H, D]`, down `[K, D, H]`."""
    torch.manual_seed(seed)
    shapes = {"gate": (H, D), "up": (H, D), "down": (D, H)}
    return {
        name: torch.randn(K, *shape) for name, shape in shapes.items() if gate or name != "gate"
    }


def write(directory: Path, tensors: Tensors, **config: Any) -> Path:
    directory.mkdir()
    whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def same(checkpoint: Checkpoint, layer: int, wanted: Tensors) -> None:
    """The groups of a layer are `wanted`, whole and by expert and by rows."""
    assert {g.projection for g in checkpoint.groups() if g.layer == layer} == set(wanted)
    for projection, weights in wanted.items():
        group = checkpoint.group(layer, projection)
        assert torch.equal(group.read(), weights)
        for expert in range(K):
            assert torch.equal(group.read(expert), weights[expert])
            assert torch.equal(group.read(expert, slice(1, 4)), weights[expert, 1:4])
        assert torch.equal(group.read(rows=slice(2, 99)), weights[:, 2:])


# Axes


@given(
    order=st.permutations(["expert", "part", "out", "in"]),
    cuts=st.lists(st.booleans(), min_size=3, max_size=3),
    sizes=st.tuples(*[st.integers(1, 5)] * 4),
    data=st.data(),
)
def test_a_slot_is_where_numpy_puts_the_matrix(
    order: list[str], cuts: list[bool], sizes: tuple[int, ...], data: st.DataObject
) -> None:
    size = dict(zip(("expert", "part", "out", "in"), sizes, strict=True))
    pattern = order[0]
    for axis, cut in zip(order[1:], cuts, strict=True):
        pattern += f" {axis}" if cut else f"+{axis}"
    pattern = " ".join(
        f"({word.replace('+', ' ')})" if "+" in word else word for word in pattern.split()
    )
    if any({"out", "in"} <= set(part.split()) for part in re.findall(r"\(([a-z ]+)\)", pattern)):
        with pytest.raises(ValueError, match="not 'out' with 'in'"):
            Axes.parse(pattern)
        return
    axes = Axes.parse(pattern)
    assert str(axes) == pattern
    plain = np.arange(np.prod(sizes)).reshape([size[axis] for axis in order])
    disk = plain.reshape(axes.shape(size))
    assert axes.sizes(disk.shape, {"part": size["part"], "expert": size["expert"]}) == size
    expert = data.draw(st.integers(0, size["expert"] - 1))
    part = data.draw(st.integers(0, size["part"] - 1))
    wanted = plain.transpose([order.index(a) for a in ("expert", "part", "out", "in")])
    slot = Slot(axes, size, expert, part)
    got = slot.view(torch.from_numpy(disk.copy()).flatten())
    assert np.array_equal(got.numpy(), wanted[expert, part])


@pytest.mark.parametrize("pattern", ["", "in", "out out in", "out on", "out (in", "expert part in"])
def test_axes_that_are_none(pattern: str) -> None:
    with pytest.raises(ValueError, match="axes"):
        Axes.parse(pattern)


@pytest.mark.parametrize("pattern", ["in out", "out in", "expert (out part) in", "(expert in) out"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.uint8])
def test_a_matrix_reads_any_rows(tmp_path: Path, pattern: str, dtype: torch.dtype) -> None:
    axes = Axes.parse(pattern)
    size = {"expert": 3, "part": 2, "out": 5, "in": 7}
    size = {axis: size[axis] for axis in axes.order}
    shape = axes.shape(size)
    torch.manual_seed(0)
    tensor = torch.randint(0, 200, shape).to(dtype)
    save_file({"before": torch.ones(3), "x": tensor}, tmp_path / "a.safetensors")
    info = read_header(tmp_path / "a.safetensors")[0]["x"]
    slot = Slot(axes, size, size.get("expert", 1) - 1, size.get("part", 1) - 1)
    wanted = slot.view(tensor.flatten())
    for rows in (None, slice(0, 2), slice(3, None), slice(4, 9), slice(2, 2)):
        assert torch.equal(Matrix(info, slot).read(rows), wanted[rows or slice(None)])


# Families that transformers cannot build, and forms that differ in how they lie


def fused(weights: Tensors, layer: str) -> Tensors:
    pair = torch.stack([weights["gate"], weights["up"]])  # [2, K, H, D]
    interleaved = pair.permute(1, 3, 2, 0).reshape(K, D, 2 * H)
    return {
        f"{layer}.experts.gate_up_proj": interleaved,
        f"{layer}.experts.down_proj": weights["down"].mT,
    }


def test_gpt_oss_with_biases(tmp_path: Path) -> None:
    weights = experts(0)
    biases = {"gate": torch.randn(K, H), "up": torch.randn(K, H), "down": torch.randn(K, D)}
    pair = torch.stack([biases["gate"], biases["up"]], -1).reshape(K, 2 * H)
    tensors = fused(weights, "model.layers.0.mlp") | {
        "model.layers.0.mlp.experts.gate_up_proj_bias": pair,
        "model.layers.0.mlp.experts.down_proj_bias": biases["down"],
        "model.layers.0.mlp.router.weight": torch.randn(K, D),
        "model.layers.0.mlp.router.bias": torch.randn(K),
    }
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, model_type="gpt_oss"))
    assert checkpoint.family == "gpt_oss"
    assert checkpoint.recognition.sure == 1
    same(checkpoint, 0, weights)
    for projection, bias in biases.items():
        assert torch.equal(checkpoint.group(0, projection).read_biases(), bias)
    assert [info.name for info in checkpoint.other_tensors()] == [
        "model.layers.0.mlp.router.bias",
        "model.layers.0.mlp.router.weight",
    ]
    assert checkpoint.bytes_experts == 4 * K * (3 * H * D + 2 * H + D)


def test_llama4_lies_in_halves_and_has_a_shared_expert(tmp_path: Path) -> None:
    weights, shared = experts(1), experts(2)
    block = "language_model.model.layers.1.feed_forward"
    tensors = {
        f"{block}.experts.gate_up_proj": torch.cat([weights["gate"], weights["up"]], 1).mT,
        f"{block}.experts.down_proj": weights["down"].mT,
        f"{block}.router.weight": torch.randn(K, D),
    } | {f"{block}.shared_expert.{p}_proj.weight": w[0] for p, w in shared.items()}
    tensors["vision_model.model.layers.0.mlp.fc1.weight"] = torch.randn(12, 3)
    config = {"model_type": "llama4", "text_config": {"num_local_experts": K}}
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, **config))
    same(checkpoint, 1, weights)
    assert len(checkpoint.shared_expert(1)) == 3
    assert len(checkpoint.other_tensors()) == 5
    extended = checkpoint.group(1, "up", extended=True)
    assert extended.shape == (K + 1, H, D)
    assert torch.equal(extended.read(K), shared["up"][0])


def test_dbrx_stacks_experts_along_rows(tmp_path: Path) -> None:
    weights = experts(3)
    block = "transformer.blocks.5.ffn"
    tensors = {
        f"{block}.experts.mlp.w1": weights["gate"].reshape(K * H, D),
        f"{block}.experts.mlp.v1": weights["up"].reshape(K * H, D),
        f"{block}.experts.mlp.w2": weights["down"].mT.reshape(K * H, D),
        f"{block}.router.layer.weight": torch.randn(K, D),
    }
    config = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": K, "moe_top_k": 2}}
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, **config))
    same(checkpoint, 5, weights)
    assert checkpoint.top_k == 2
    assert checkpoint.group(5, "down").expert_name(2) == f"{block}.experts.mlp.w2 (expert 2)"


def test_dbrx_without_a_number_of_experts_is_refused(tmp_path: Path) -> None:
    weights = experts(3)
    block = "transformer.blocks.0.ffn.experts.mlp"
    tensors = {f"{block}.w1": weights["gate"].flatten(0, 1), f"{block}.w2": torch.randn(K * H, D)}
    tensors[f"{block}.v1"] = weights["up"].flatten(0, 1)
    with pytest.raises(CheckpointError, match="how many they are"):
        open_checkpoint(write(tmp_path / "m", tensors, model_type="dbrx"))


@pytest.mark.parametrize("form", ["phi", "stablelm", "qwen"])
def test_moe_llava(tmp_path: Path, form: str) -> None:
    """Every other layer is MoE; Phi's experts have biases and no gate."""
    weights = experts(4, gate=form != "phi")
    names = {
        "phi": {"up": "fc1", "down": "fc2"},
        "stablelm": {p: f"{p}_proj" for p in weights},
        "qwen": {"gate": "w2", "up": "w1", "down": "c_proj"},
    }[form]
    block = "model.layers.2.mlp.deepspeed_moe"
    tensors = {
        f"{block}.experts.deepspeed_experts.{expert}.{names[p]}.weight": weights[p][expert]
        for p in weights
        for expert in range(K)
    } | {f"{block}.gate.wg.weight": torch.randn(K, D)}
    biases = {p: torch.randn(K, weights[p].shape[1]) for p in weights} if form == "phi" else {}
    tensors |= {
        f"{block}.experts.deepspeed_experts.{expert}.{names[p]}.bias": biases[p][expert]
        for p in biases
        for expert in range(K)
    }
    if form != "qwen":  # and a universal FFN, as Med-MoE has it
        tensors |= {f"model.layers.2.mlp.mlp.{names[p]}.weight": weights[p][0] for p in weights}
        tensors |= {f"model.layers.2.mlp.mlp.{names[p]}.bias": biases[p][0] for p in biases}
        tensors["model.layers.2.mlp.coefficient.weight"] = torch.randn(2, D)
    tensors |= {f"model.layers.{i}.mlp.fc1.weight": torch.randn(H, D) for i in (0, 1, 3)}
    tensors["model.mm_projector.image_spatial_proj.0.weight"] = torch.randn(D, 3)
    config = {
        "model_type": f"moe_llava_{form}",
        "num_hidden_layers": 4,
        "moe": {"num_experts": [K], "top_k_experts": 2},
    }
    checkpoint = open_checkpoint(write(tmp_path / "m", tensors, **config))
    assert (checkpoint.moe_layers, checkpoint.num_layers) == ([2], 4)
    assert checkpoint.group(2, "up").router == f"{block}.gate.wg.weight"
    assert checkpoint.top_k == 2
    same(checkpoint, 2, weights)
    for projection, bias in biases.items():
        assert torch.equal(checkpoint.group(2, projection).read_biases(), bias)
    extended = checkpoint.group(2, "up", extended=True)
    if form != "qwen":
        assert torch.equal(extended.read(), torch.cat([weights["up"], weights["up"][:1]]))
        if biases:
            assert torch.equal(extended.read_biases()[K], biases["up"][0])
    assert extended.shape[0] == K + (form != "qwen")


def test_encoder_and_decoder_are_counted_one_after_the_other(tmp_path: Path) -> None:
    weights = {
        ("encoder", 1, 1): experts(5, gate=False),
        ("decoder", 1, 2): experts(6, gate=False),
        ("decoder", 3, 2): experts(7, gate=False),
    }
    tensors = {"encoder.block.3.layer.1.mlp.wi.weight": torch.randn(H, D)}
    for (stack, layer, sub), own in weights.items():
        block = f"{stack}.block.{layer}.layer.{sub}.mlp"
        tensors[f"{block}.router.classifier.weight"] = torch.randn(K, D)
        for expert in range(K):
            tensors[f"{block}.experts.expert_{expert}.wi.weight"] = own["up"][expert]
            tensors[f"{block}.experts.expert_{expert}.wo.weight"] = own["down"][expert]
    path = write(tmp_path / "m", tensors, model_type="switch_transformers")
    checkpoint = open_checkpoint(
        path
    )  # the decoder's experts take more bytes, so it is counted first
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
    for offset, own in ((0, big), (K, small)):
        for projection, weights in own.items():
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


# By structure


@pytest.mark.parametrize("form", ["siblings", "stacked", "stacked and fused", "turned"])
@pytest.mark.parametrize("gate", [True, False])
def test_experts_are_found_by_structure(tmp_path: Path, form: str, gate: bool) -> None:
    if form == "stacked and fused" and not gate:
        pytest.skip("nothing to fuse")
    tensors: Tensors = {"wte.weight": torch.randn(50, D)}
    wanted = {layer: experts(20 + layer, gate) for layer in (0, 2)}
    for layer, own in wanted.items():
        block = f"backbone.h.{layer}.ff"
        tensors[f"{block}.switch.weight"] = torch.randn(K, D)
        tensors[f"backbone.h.{layer}.attn.q.weight"] = torch.randn(D, D)
        if form == "siblings":
            names = {"gate": "wg", "up": "wu", "down": "wd_down"}
            for projection, weights in own.items():
                for expert in range(K):
                    name = f"{block}.branches.{expert}.{names[projection]}.weight"
                    tensors[name] = weights[expert]
        elif form == "stacked and fused":
            tensors[f"{block}.bank.first"] = torch.cat([own["gate"], own["up"]], 1)
            tensors[f"{block}.bank.output"] = own["down"]
        else:
            names = {"gate": "a_gate", "up": "b", "down": "c_out_proj"}
            for projection, weights in own.items():
                lies = weights.mT if form == "turned" else weights
                tensors[f"{block}.bank.{names[projection]}"] = lies
    checkpoint = open_checkpoint(
        write(tmp_path / "m", tensors, model_type="never_seen", num_experts=K)
    )
    assert checkpoint.family == "never_seen"
    assert checkpoint.layout.family == "generic"
    assert 0.6 <= checkpoint.recognition.sure < 1
    assert "switch.weight" in checkpoint.recognition.because
    for layer, own in wanted.items():
        same(checkpoint, layer, own)
    assert all(group.router for group in checkpoint.groups())


def test_siblings_that_are_no_experts_are_not_taken(tmp_path: Path) -> None:
    tensors = {
        f"decoder.layers.{layer}.heads.{head}.{name}.weight": torch.randn(*shape)
        for layer in range(2)
        for head in range(3)
        for name, shape in (("in", (H, D)), ("out", (D, H)))
    }
    with pytest.raises(CheckpointError, match=r"no experts that can be recognised.*ders_layout"):
        open_checkpoint(write(tmp_path / "m", tensors, model_type="codebooks"))


def test_a_dense_model_holds_no_experts(dense_parent_dir: Path) -> None:
    with pytest.raises(CheckpointError, match="no experts that can be recognised"):
        open_checkpoint(dense_parent_dir)


# A user's own entry

ENTRY = """\
family: mine
block: "{stack}.{layer}.odd"
experts:
  "w{expert}a.kernel": {holds: up, axes: in out}
  "w{expert}b.kernel": {holds: down, axes: in out}
router: chooser.kernel
"""


def odd_model(directory: Path) -> tuple[Path, Tensors]:
    weights = experts(30, gate=False)
    tensors = {
        f"net.0.odd.w{expert}{letter}.kernel": weights[projection][expert].mT
        for letter, projection in (("a", "up"), ("b", "down"))
        for expert in range(K)
    }
    return write(directory, tensors, model_type="odd"), weights


@pytest.mark.parametrize("place", ["beside", "folder"])
def test_a_users_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    path, weights = odd_model(tmp_path / "m")
    with pytest.raises(CheckpointError, match="no experts"):
        open_checkpoint(path)
    if place == "beside":
        (path / LAYOUT_FILE).write_text(ENTRY)
    else:
        monkeypatch.setenv(USER_LAYOUTS, str(tmp_path / "own"))
        (tmp_path / "own").mkdir()
        (tmp_path / "own" / "odd.yaml").write_text(f"- {ENTRY.replace(chr(10), chr(10) + '  ')}")
    checkpoint = open_checkpoint(path)
    assert checkpoint.family == "mine"
    same(checkpoint, 0, weights)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("{layer}", "layer"), "{layer}"),
        (("in out", "in on"), "axes"),
        (("holds: up", "holds: sideways"), "gate"),
        (("holds: down", "holds: up"), "down"),
        (("family: mine", "family: [1]"), "family"),
        (("router:", "rooter:"), "rooter"),
        (("family: mine", "family: mine:"), "YAML"),
        (("w{expert}b", "w{whom}b"), "whom"),
        (("holds: up, axes: in out", "holds: [up, gate], axes: in out"), "part"),
        (("holds: up, axes: in out", "holds: up, axes: expert in out"), "expert"),
    ],
)
def test_a_malformed_entry_is_one_sentence(
    tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    path, _ = odd_model(tmp_path / "m")
    (path / LAYOUT_FILE).write_text(ENTRY.replace(*change))
    for attempt in (open_checkpoint, lambda path: read_layouts(path / LAYOUT_FILE)):
        with pytest.raises(CheckpointError) as caught:
            attempt(path)
        assert LAYOUT_FILE in str(caught.value)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


# Dense parents

DENSE: dict[str, Callable[[Tensors], Tensors]] = {
    "model.layers.3.mlp": lambda w: {f"{p}_proj.weight": w[p][0] for p in w},
    "transformer.h.3.mlp": lambda w: {
        "c_fc.weight": w["up"][0].mT,
        "c_proj.weight": w["down"][0].mT,
    },
    "layers.3.mlp": lambda w: {
        "gate_up_proj.weight": torch.cat([w["gate"][0], w["up"][0]]),
        "down_proj.weight": w["down"][0],
    },
    "gpt_neox.layers.3.mlp": lambda w: {
        "dense_h_to_4h.weight": w["up"][0],
        "dense_4h_to_h.weight": w["down"][0],
    },
    "model.decoder.layers.3": lambda w: {"fc1.weight": w["up"][0], "fc2.weight": w["down"][0]},
    "encoder.block.3.layer.1.DenseReluDense": lambda w: {
        "wi_0.weight": w["gate"][0],
        "wi_1.weight": w["up"][0],
        "wo.weight": w["down"][0],
    },
}


@pytest.mark.parametrize("block", DENSE)
def test_dense_ffns(tmp_path: Path, block: str) -> None:
    weights = experts(40)
    tensors = {f"{block}.{name}": tensor for name, tensor in DENSE[block](weights).items()}
    tensors |= {name.replace(".weight", ".bias"): torch.ones(3) for name in tensors}
    path = write(tmp_path / "m", tensors)
    readers = read_header(path / "model.safetensors")[0]
    (ffn,) = dense_ffns({name: reader.spec for name, reader in readers.items()})
    assert (ffn.block, ffn.layer) == (block, 3)
    assert {"up", "down"} <= set(ffn.weights)
    for projection, weight in ffn.weights.items():
        assert torch.equal(weight.matrix(readers).read(), weights[projection][0])
