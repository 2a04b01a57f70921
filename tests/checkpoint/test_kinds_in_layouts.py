"""What tensors outside the experts are: as a layout says, else by the words of their names."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from support.messages import raises_saying
from support.written_experts import K, experts, write

from ders_core.checkpoint.kinds import Kind
from ders_core.checkpoint.layouts import LAYOUT_FILE, Layout, known_layouts
from ders_core.checkpoint.others import Surroundings
from ders_core.errors import CheckpointError
from ders_core.packed.open import open_checkpoint
from ders_core.recipe.rule import USUAL_KINDS

NAMED: tuple[tuple[str, str, tuple[int, ...], Kind], ...] = (
    ("mixtral", "model.layers.0.block_sparse_moe.gate_proj.weight", (48, 32), "ffn"),
    ("mixtral", "model.layers.0.block_sparse_moe.up_proj.weight", (48, 32), "ffn"),
    ("mixtral", "model.layers.0.block_sparse_moe.down_proj.weight", (32, 48), "ffn"),
    ("qwen2_moe", "model.layers.3.mlps.1.gate_proj.weight", (48, 32), "ffn"),
    ("qwen2_moe", "model.layers.3.mlp.moe_statics.e_score_correction_bias", (2, 4), "router"),
    ("qwen2_moe", "model.layers.3.mlp.moe_statics.e_score_correction_bias", (1, 4), "router"),
    ("deepseek_v4", "head.weight", (96, 32), "head"),
    ("mistral_large4", "layers.1.shared_experts.down_proj.weight", (32, 24), "shared"),
    ("mistral_large4", "output.weight", (96, 32), "head"),
    ("nemotron_h", "backbone.layers.2.mixer.q_proj.weight", (32, 32), "attention"),
    ("nemotron_h", "backbone.layers.2.mixer.o_proj.weight", (32, 32), "attention"),
    ("nemotron_h", "backbone.layers.2.mixer.up_proj.weight", (48, 32), "ffn"),
    ("nemotron_h", "backbone.layers.2.mixer.down_proj.weight", (32, 48), "ffn"),
    ("nemotron_h", "backbone.layers.2.mixer.in_proj.weight", (64, 32), "other"),
    ("jetmoe", "model.layers.0.self_attention.experts.router.layer.weight", (4, 32), "router"),
    ("jetmoe", "model.layers.0.self_attention.experts.input_linear.weight", (4, 8, 8), "attention"),
    ("fused", "model.layers.0.mlp.gate.router_mlp.fc1.weight", (256, 256), "router"),
    ("fused", "model.layers.0.mlp.gate.down_proj.bias", (256,), "router"),
    ("fused", "model.layers.0.mlp.gate_proj.weight", (48, 32), "ffn"),
    ("fused", "model.layers.0.mlp.shared_experts.up_proj", (2, 24, 32), "shared"),
    ("gemma4", "model.embed_tokens_per_layer.weight", (96, 16), "embedding"),
    ("inkling_mm_model", "model.llm.embed.weight", (96, 32), "embedding"),
    ("inkling_mm_model", "model.llm.unembed.weight", (96, 32), "head"),
    (
        "inkling_mm_model",
        "model.llm.layers.0.mlp.shared_experts.shared_w13_weight",
        (2, 48, 32),
        "shared",
    ),
    ("aria", "language_model.model.layers.0.mlp.shared_experts.up_proj.weight", (96, 32), "shared"),
)
"""Layout, name and shape as its families write it (`tests/families` builds them all), and what it
is in the model that transformers builds of it."""


def layout(family: str) -> Layout:
    return next(layout for layout in known_layouts() if layout.family == family)


@pytest.mark.parametrize(("family", "name", "shape", "kind"), NAMED)
def test_shipped_layouts_say_what_tensors_are(
    family: str, name: str, shape: tuple[int, ...], kind: Kind
) -> None:
    nothing: frozenset[str] = frozenset()
    stated = layout(family).kinds
    assert Surroundings(nothing, nothing, nothing, {}, stated).kind(name, shape) == kind


def test_every_pattern_is_there_for_a_tensor() -> None:
    """And one that is there for it says what the words of names do not."""
    nothing: frozenset[str] = frozenset()
    plain = Surroundings(nothing, nothing, nothing, {}, {})
    for each in known_layouts():
        for pattern, kind in each.kinds.items():
            fitting = [
                (name, shape)
                for family, name, shape, wanted in NAMED
                if family == each.family and wanted == kind and fnmatchcase(name, pattern)
            ]
            assert fitting, (each.family, pattern)
            assert any(plain.kind(*tensor) != kind for tensor in fitting), pattern


def test_a_users_layout_says_it_too(tmp_path: Path) -> None:
    """Before anything else; what it does not name is told by words, vectors by their shape."""
    place = write(
        tmp_path / "m",
        {
            **{
                f"model.layers.0.moe.experts.{number}.{name}": weight[number]
                for name, weight in experts(1, gate=False).items()
                for number in range(K)
            },
            "model.layers.0.mixing.wide": torch.ones(4, 6),
            "model.layers.0.mixing.bias": torch.ones(4),
            "model.layers.0.mixing.norm.weight": torch.ones(4),
            "model.layers.0.self_attn.q.weight": torch.ones(4, 6),
            "model.layers.0.hidden_mlp.weight": torch.ones(4, 6),
            "strange.weight": torch.ones(4, 6),
        },
    )
    entry = """
family: mine
block: "{stack}.{layer}.moe"
experts:
  experts.{expert}.up: up
  experts.{expert}.down: down
kinds:
  "*.mixing.*": attention
  "*.self_attn.q.*": router
"""
    (place / LAYOUT_FILE).write_text(entry)
    kinds = {name: other.kind for name, other in open_checkpoint(place).others.items()}
    assert kinds == {
        "model.layers.0.mixing.wide": "attention",
        "model.layers.0.mixing.bias": "vector",
        "model.layers.0.mixing.norm.weight": "norm",
        "model.layers.0.self_attn.q.weight": "router",
        "model.layers.0.hidden_mlp.weight": "other",
        "strange.weight": "other",
    }
    assert "router" not in USUAL_KINDS
    (place / LAYOUT_FILE).write_text(entry.replace("attention", "atention"))
    with raises_saying(CheckpointError, place / LAYOUT_FILE, "kinds", "attention"):
        open_checkpoint(place)
