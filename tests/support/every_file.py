"""One of every file that the program reads: checkpoints, tables, choices of a user, texts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from support.gradient_calibrations import with_gradients

from ders_core.analysis import analyze
from ders_core.checkpoint.layouts import LAYOUT_FILE
from ders_core.files.model_files import INDEX, SINGLE
from ders_core.files.output import STATE
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.calibration import write_calibration
from ders_core.pipeline.card import CARD
from ders_core.pipeline.compress import compress
from ders_core.pipeline.export import export
from ders_core.recipe import Recipe

EXPERTS, WIDTH, INNER = 3, 8, 16

RECIPE = """\
version: 1
name: three codecs
seed: 5
base: mean
rules:
  - {codec: quantized, bits: 2, group_size: 8}
  - layers: "1"
    projections: [up]
    codec: chain
    stages: [{codec: lowrank, rank: 2}, {codec: sparse, drop_rate: 0.9, method: magnitude}]
  - {projections: down, experts: 0-1, codec: entropy, bits: 1.5}
"""

WHOLE = """\
version: 1
name: whole
base: mean
base_codec:
  - {codec: quantized, bits: 4, group_size: 8}
  - {projections: [up], layers: "0", codec: entropy, bits: 2}
rules:
  - {codec: entropy, bits: 1.5}
  - {projections: [down], codec: sparse, drop_rate: 0.5}
others:
  - {codec: quantized, bits: 4, group_size: 8}
  - {kinds: router, codec: entropy, bits: 3}
"""

PLAIN = """\
version: 1
name: plain
base: none
rules:
  - {codec: quantized, bits: 4, group_size: 8}
  - {projections: [up], codec: entropy, bits: 3}
"""

BUDGET = """\
version: 2
name: small
calibration: CALIBRATION
budget: {knob: 0.001}
rules:
  - {layers: "1", projections: [up], codec: quantized, bits: 2, group_size: 8}
others:
  - {names: ["*.gate.weight"], kinds: [router, other], layers: "0", codec: lossless}
"""

UPCYCLE = """\
version: 1
name: mine
experts: 4
top_k: 2
layers: 0-1
forms:
  - {form: lowrank, rank: 4}
  - {projections: [down], form: sparse, drop_rate: 0.9}
router: {init: random, std: 0.02}
train: ["*.self_attn.*"]
data: {texts: [a.txt, b.jsonl], heldout: c.txt, window: 64}
training: {steps: 3, learning_rate: 1.0e-4, warmup: 1}
"""

LAYOUT = """\
- family: mine
  models: [odd]
  block: "{stack}.{layer}.mlp"
  experts:
    "experts.{expert}.{any}_one.weight": up
    "experts.{expert}.w2.weight": {holds: down, axes: out in}
    "experts.{expert}.w1.weight": gate
    "experts.{expert}.w3.weight": up
  router: [gate.weight, router]
  shared: {shared.w1.weight: gate}
  kinds: {"*.embed.weight": vector, "odd.*": router}
"""

OWN_LAYOUT = """\
- family: own
  models: [mixtral]
  block: "{stack}.{layer}.block_sparse_moe"
  experts:
    "experts.{expert}.w1.weight": gate
    "experts.{expert}.w3.weight": up
    "experts.{expert}.w2.weight": down
  kinds: {"*.gate.weight": attention, "model.embed*": head}
"""
"""Of `original`, with kinds that its tensors' names do not tell; `OF_KINDS` codes by them."""

OF_KINDS = """\
version: 1
name: by kind
rules: [{codec: quantized, bits: 4, group_size: 8}]
others:
  - {kinds: attention, layers: "1", codec: quantized, bits: 3, group_size: 8}
  - {kinds: head, codec: entropy, bits: 3}
"""

CHAT = (
    '{"text": "One line.\\nAnd more."}\n'
    '{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}\n'
)

CARD_TEXT = "---\nlicense: mit\ntags: [moe, x]\ndate: 2024-01-01\nbase_model: a/b\n---\n# A card\n"


def write_tree(place: Path) -> None:
    """Write one of every file into a directory."""
    torch.manual_seed(2)
    tensors = {"model.embed.weight": torch.randn(5, WIDTH)}
    for layer in range(2):
        block = f"model.layers.{layer}.mlp"
        for name, shape in (("w1", (INNER, WIDTH)), ("w3", (INNER, WIDTH)), ("w2", (WIDTH, INNER))):
            start = torch.randn(shape)
            tensors |= {
                f"{block}.experts.{expert}.{name}.weight": start + 0.1 * torch.randn(shape)
                for expert in range(EXPERTS)
            }
        tensors[f"{block}.gate.weight"] = torch.randn(EXPERTS, WIDTH)
    tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    config = {
        "model_type": "mixtral",
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "hidden_size": WIDTH,
        "rope_parameters": {"rope_theta": 1e6},
        "torch_dtype": "bfloat16",
        "eos_token_id": [1, 2],
        "tie_word_embeddings": False,
        "transformers_version": None,
    }
    renamed = {name.replace(".mlp.", ".block_sparse_moe."): t for name, t in tensors.items()}
    for name in ("original", "sharded"):
        (place / name).mkdir()
        (place / name / "config.json").write_text(json.dumps(config, indent=1))
    (place / "dense").mkdir()
    (place / "dense" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    parent = {
        f"model.layers.{layer}.mlp.{p}_proj.weight": torch.randn(*shape)
        for layer in range(2)
        for p, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER)))
    }
    save_file(parent, place / "dense" / SINGLE, {"format": "pt"})
    (place / "original" / "tokenizer_config.json").write_text("{}")
    save_file(renamed, place / "original" / SINGLE, {"format": "pt"})
    halves = [dict(list(renamed.items())[part::2]) for part in range(2)]
    for number, half in enumerate(halves):
        save_file(half, place / "sharded" / f"part-{number}.safetensors", {"format": "pt"})
    weight_map = {
        name: f"part-{number}.safetensors" for number, half in enumerate(halves) for name in half
    }
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (place / "sharded" / INDEX).write_text(json.dumps(index))
    (place / "original" / CARD).write_text(CARD_TEXT)
    compress(place / "original", place / "packed", Recipe.from_yaml(RECIPE))
    compress(place / "original", place / "whole", Recipe.from_yaml(WHOLE))
    compress(place / "original", place / "plain", Recipe.from_yaml(PLAIN))
    shutil.copytree(place / "original", place / "own")
    (place / "own" / LAYOUT_FILE).write_text(OWN_LAYOUT)
    compress(place / "own", place / "kinds", Recipe.from_yaml(OF_KINDS))
    export(place / "packed", place / "patch", "patch")
    checkpoint = open_checkpoint(place / "original")
    analyze(checkpoint).save(place / "analysis")
    write_calibration(
        place / "calibration.safetensors",
        checkpoint.identity,
        40,
        {
            f"{layer}.{name}": value
            for layer in range(2)
            for name, value in (
                ("in.moments", torch.eye(WIDTH)),
                ("mid.moments", torch.ones(INNER)),
                ("routed", torch.tensor([20, 30, 30])),
            )
        },
        texts=["a.txt"],
    )
    with_gradients(
        checkpoint, place / "gradients.safetensors", routers=True, others=["model.embed.weight"]
    )
    (place / "budget.yaml").write_text(
        BUDGET.replace("CALIBRATION", str(place / "gradients.safetensors"))
    )
    (place / "begun.partial").mkdir()
    (place / "begun.partial" / STATE).write_text(json.dumps({"work": {"recipe": {"seed": 1}}}))
    (place / "begun.partial" / "group.safetensors").write_bytes(b"")
    (place / "recipe.yaml").write_text(RECIPE)
    (place / "upcycle.yaml").write_text(UPCYCLE)
    (place / "layout.yaml").write_text(LAYOUT)
    (place / "texts.jsonl").write_text(CHAT)
    quality = {"tokens": 100, "perplexity": 4.5, "kl": 0.1, "top1_agreement": 0.9}
    (place / "quality.json").write_text(json.dumps(quality))
