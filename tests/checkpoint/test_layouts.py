"""Every form in which experts lie on disk, written by hand and read back as `[K, out, in]`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.bounded_time import at_most
from support.messages import raises_saying
from support.written_experts import D, H, K, Tensors, experts, same, write

from ders_core.checkpoint.layouts import LAYOUT_FILE, USER_LAYOUTS, read_layouts
from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint

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
    assert checkpoint.group(5, "down").matrix_name(2) == f"{block}.experts.mlp.w2 (expert 2)"


def test_dbrx_without_a_number_of_experts_is_refused(tmp_path: Path) -> None:
    weights = experts(3)
    block = "transformer.blocks.0.ffn.experts.mlp"
    tensors = {f"{block}.w1": weights["gate"].flatten(0, 1), f"{block}.w2": torch.randn(K * H, D)}
    tensors[f"{block}.v1"] = weights["up"].flatten(0, 1)
    with raises_saying(CheckpointError, "transformer.blocks.0.ffn.experts.mlp", "how many"):
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
    with raises_saying(CheckpointError, "no experts", LAYOUT_FILE):
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
    ("change", "fact"),
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
        (("{stack}.{layer}", "{stack}.{layer}.{layer}"), "{layer}"),
        (("w{expert}b", "w{expert}{expert}b"), "{expert}"),
        (("w{expert}b", "{stack}w{expert}b"), "{stack}"),
        (("w{expert}b", "{any}" * 17), "at most 16"),
        (("family: mine", "family: &a [*a]"), "alias"),
        (("family: mine", "family: !!timestamp 2024-13-45"), "timestamp"),
        (("family: mine", "family: !!timestamp 2024-01-01"), "family"),
        (("family: mine", "family: 3"), "family"),
        (("router:", "2024-01-01:"), "2024-01-01"),
    ],
)
def test_a_malformed_entry_is_one_sentence(
    tmp_path: Path, change: tuple[str, str], fact: str
) -> None:
    path, _ = odd_model(tmp_path / "m")
    (path / LAYOUT_FILE).write_text(ENTRY.replace(*change))
    for attempt in (open_checkpoint, lambda path: read_layouts(path / LAYOUT_FILE)):
        with raises_saying(CheckpointError, LAYOUT_FILE, fact):
            attempt(path)


def test_a_date_is_a_word(tmp_path: Path) -> None:
    path, weights = odd_model(tmp_path / "m")
    (path / LAYOUT_FILE).write_text(ENTRY.replace("family: mine", "family: 2024-01-01"))
    checkpoint = open_checkpoint(path)
    assert checkpoint.family == "2024-01-01"
    same(checkpoint, 0, weights)


@pytest.mark.parametrize("letters", ["a", "a.", "1"])
def test_a_layout_that_would_be_tried_for_ever(tmp_path: Path, letters: str) -> None:
    """Eight words and one long name: 20 kB, and more than the age of the world."""
    path, _ = odd_model(tmp_path / "m")
    long = {f"net.0.odd.{letters * (20_000 // len(letters))}": torch.zeros(2, 2)}
    save_file(load_file(path / "model.safetensors") | long, path / "model.safetensors")
    names = "".join(f'  "{"{any}" * count}!": up\n' for count in range(1, 9))
    dots = "".join(f'  "{"{any}." * count}!": up\n' for count in range(2, 9))
    entry = ENTRY.replace("experts:\n", f"experts:\n{names}{dots}")
    (path / LAYOUT_FILE).write_text(entry)
    with at_most(20):
        assert open_checkpoint(path).family == "mine"


def test_too_much_of_a_layout_is_refused(tmp_path: Path) -> None:
    path, _ = odd_model(tmp_path / "m")
    file = path / LAYOUT_FILE
    for text, fact in (
        (ENTRY + "#" * (1 << 18), "bytes"),
        ("- " + ENTRY.replace("\n", "\n  ") + "\n" + "\n".join(["- {}"] * 17), "16"),
        (ENTRY + "shared: {" + ", ".join(f"w{n}: gate" for n in range(65)) + "}", "64"),
    ):
        file.write_text(text)
        with raises_saying(CheckpointError, LAYOUT_FILE, fact):
            open_checkpoint(path)


@pytest.mark.parametrize("brace", ["{expert}", "{x}", "{", "}", "{layer}"])
def test_braces_in_names_are_no_placeholders(tmp_path: Path, brace: str) -> None:
    weights = experts(5, gate=False)
    names = {"up": "w1", "down": "w2"}
    tensors = {
        f"net.0.mo{brace}e.experts.{expert}.{names[p]}.weight": weights[p][expert]
        for p in weights
        for expert in range(K)
    }
    with raises_saying(CheckpointError, "no experts"):
        open_checkpoint(write(tmp_path / "m", tensors, model_type="odd", num_experts=K))
