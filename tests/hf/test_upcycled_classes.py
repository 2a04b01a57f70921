"""Upcycled models of dense families: what they compute, and that transformers keeps and loads them.
The references share no code with the classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from support.messages import raises_saying
from support.upcycled_models import (
    ALTERNATE,
    DENSE,
    EVERY,
    EXPERTS,
    LAYERS,
    TOKENS,
    TOP_K,
    blocks,
    dense_model,
    experts_apart,
    ffn_weights,
    logits,
    mixtures,
    upcycled_model,
)

from ders_core.codecs import Keep
from ders_core.errors import CheckpointError
from ders_core.hf import load_model
from ders_core.hf.moe_ffn import MoeFFN, recorded_routers
from ders_core.hf.upcycled import UPCYCLED, register
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule


@pytest.mark.parametrize("universal", [False, True])
@pytest.mark.parametrize("layers", [EVERY, ALTERNATE], ids=["every", "alternate"])
@pytest.mark.parametrize("family", DENSE)
def test_copies_of_the_ffn_are_the_dense_model(
    family: str, layers: list[int], universal: bool
) -> None:
    dense, model = dense_model(family), upcycled_model(family, layers, universal)
    state = dense.state_dict()
    for layer, (ffn, block) in enumerate(zip(blocks(dense), blocks(model), strict=True)):
        assert isinstance(block, MoeFFN) == (layer in layers)
        if not isinstance(block, MoeFFN):
            continue
        name = next(name for name, module in model.named_modules() if module is block)
        for key in [key for key in state if key.startswith(f"{name}.")]:
            del state[key]
        copies = ffn_weights(ffn)
        experts = [f"experts.{expert}" for expert in range(EXPERTS)]
        if universal:
            experts.append("shared_expert")
            # the chosen experts count 1 together, the universal one sigmoid(0)
            state[f"{name}.shared_expert_gate.weight"] = torch.zeros(1, 32)
            copies = {
                key: tensor * (2 / 3 if key.startswith("down") else 1)
                for key, tensor in copies.items()
            }
        state |= {f"{name}.{expert}.{key}": copies[key] for expert in experts for key in copies}
        state[f"{name}.gate.weight"] = torch.randn(EXPERTS, 32)
    model.load_state_dict(state)
    expected = logits(dense)
    assert expected.std() > 0.05
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=2e-6)


Numbers = NDArray[np.float64]
erf = np.vectorize(math.erf)
ACTIVATIONS: dict[str, Callable[[Numbers], Numbers]] = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x / 2 * (1 + erf(x / np.sqrt(2))),
    "gelu_new": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
}


def reference(block: MoeFFN, activation: str, x: torch.Tensor) -> Numbers:
    """The formula, token by token in float64, from the block's weights by their names."""
    w = {name: tensor.detach().double().numpy() for name, tensor in block.named_parameters()}
    act = ACTIVATIONS[activation]

    def linear(name: str, token: Numbers) -> Numbers:
        return w[f"{name}.weight"] @ token + w.get(f"{name}.bias", 0.0)

    def ffn(name: str, token: Numbers) -> Numbers:
        inner = linear(f"{name}.up_proj", token)
        if f"{name}.gate_proj.weight" in w:
            inner = act(linear(f"{name}.gate_proj", token)) * inner
        else:
            inner = act(inner)
        return linear(f"{name}.down_proj", inner)

    outputs = []
    for token in x.double().numpy():
        scores = np.exp(linear("gate", token))
        scores /= scores.sum()
        best = sorted(range(EXPERTS), key=lambda expert: -scores[expert])[:TOP_K]
        total = sum(scores[expert] for expert in best)
        y = sum(scores[expert] / total * ffn(f"experts.{expert}", token) for expert in best)
        if "shared_expert_gate.weight" in w:
            share = 1 / (1 + np.exp(-linear("shared_expert_gate", token)))
            y = y + share * ffn("shared_expert", token)
        outputs.append(y)
    return np.stack(outputs)


@pytest.mark.parametrize("universal", [False, True])
@pytest.mark.parametrize("family", DENSE)
def test_a_block_computes_the_formula(family: str, universal: bool) -> None:
    model = experts_apart(upcycled_model(family, ALTERNATE, universal))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("shared_expert_gate.weight", "bias")):
                weight.normal_(std=0.3)
    block = blocks(model)[2]
    assert isinstance(block, MoeFFN)
    config = model.config.to_dict()
    activation = config.get("hidden_act") or config["activation_function"]
    x = torch.randn(3, 7, 32)
    with torch.no_grad():
        got = block(x).double().numpy()
    expected = reference(block, activation, x.flatten(0, 1))
    np.testing.assert_allclose(got.reshape(-1, 32), expected, rtol=1e-4, atol=2e-6)
    biased = any(name.endswith("bias") for name, _ in block.named_parameters())
    assert biased == (family in ("llama with biases", "phi", "gpt2", "gpt_neox"))


@pytest.mark.parametrize("family", DENSE)
def test_saved_and_loaded_it_is_the_same(family: str, tmp_path: Path) -> None:
    model = experts_apart(upcycled_model(family, ALTERNATE, universal=True))
    model.save_pretrained(tmp_path)
    expected = logits(model)
    for loaded in (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path),
        load_model(tmp_path),
    ):
        assert type(loaded) is type(model)
        assert loaded.config.architectures == [type(model).__name__]
        assert loaded.config.moe_layers == ALTERNATE
        assert loaded.config.universal_expert is True
        assert torch.equal(logits(loaded), expected)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.recognition.sure) == (model.config.model_type, 1)
    assert (checkpoint.num_layers, checkpoint.top_k) == (LAYERS, TOP_K)
    assert sorted({group.layer for group in checkpoint.groups(extended=True)}) == ALTERNATE
    assert {group.shape[0] for group in checkpoint.groups(extended=True)} == {EXPERTS + 1}


def test_weights_without_the_models_prefix_are_loaded(tmp_path: Path) -> None:
    """As GPT-2 itself was published, with the masks that nobody reads any more."""
    model = experts_apart(upcycled_model("gpt2", ALTERNATE, universal=True))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    bare = {name.removeprefix("transformer."): weight for name, weight in load_file(file).items()}
    save_file(bare | {"h.0.attn.bias": torch.ones(1, 1, 64, 64)}, file, {"format": "pt"})
    compress(tmp_path, tmp_path / "packed", Recipe(name="kept", rules=(Rule(codec=Keep()),)))
    for directory in (tmp_path, tmp_path / "packed"):
        assert torch.equal(logits(load_model(directory)), logits(model))


@pytest.mark.parametrize("family", DENSE)
def test_router_logits_are_there_when_asked_for(family: str) -> None:
    model = experts_apart(upcycled_model(family, ALTERNATE))
    with torch.no_grad():
        plain = model(input_ids=TOKENS)
        asked = model(input_ids=TOKENS, labels=TOKENS, output_router_logits=True)
        unlabelled = model(input_ids=TOKENS, labels=TOKENS)
    assert "router_logits" not in plain
    assert torch.equal(plain.logits, asked.logits)
    assert [tuple(router.shape) for router in asked.router_logits] == [(20, EXPERTS)] * 2
    torch.testing.assert_close(
        asked.loss, unlabelled.loss + model.config.router_aux_loss_coef * asked.aux_loss
    )


def test_another_threads_routers_are_not_recorded() -> None:
    model = experts_apart(upcycled_model("llama", EVERY))
    with recorded_routers() as routers, ThreadPoolExecutor(1) as pool:
        output = pool.submit(lambda: model(input_ids=TOKENS, output_router_logits=True)).result()
    assert len(output.router_logits) == LAYERS
    assert routers == []


@pytest.mark.parametrize("family", DENSE)
def test_the_cache_changes_nothing_of_what_is_generated(family: str) -> None:
    model = experts_apart(upcycled_model(family, EVERY, universal=True))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    generated = model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), **options)
    expected = TOKENS
    for _ in range(8):
        following = logits(model, expected)[:, -1].argmax(-1)
        expected = torch.cat([expected, following[:, None]], dim=1)
    assert torch.equal(generated, expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_trained(family: str) -> None:
    model = experts_apart(upcycled_model(family, ALTERNATE, universal=True)).train()
    model(input_ids=TOKENS, labels=TOKENS, output_router_logits=True).loss.backward()
    gradients = [block.gate.weight.grad for block in mixtures(model)]
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients)
    dropouts = {block.dropout.p for block in mixtures(model)}
    assert dropouts == {0.1 if family == "gpt2" else 0.0}


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"moe_layers": [1, LAYERS]}, ["moe_layers", "layer 4", "0 to 3"]),
        ({"num_experts_per_tok": 5}, ["num_experts_per_tok", " 5 ", "4 experts"]),
        ({"norm_topk_prob": False}, ["norm_topk_prob", "false"]),
    ],
)
def test_a_config_of_no_such_model_is_refused(fields: dict[str, Any], facts: list[str]) -> None:
    model = upcycled_model("phi", EVERY)
    config = copy.deepcopy(model.config)
    config.update(fields)
    with raises_saying(CheckpointError, "config.json", *facts):
        type(model)(config)


def test_a_second_registration_changes_nothing() -> None:
    register()
    config = transformers.AutoConfig.for_model("gpt2_upcycled")
    assert type(config) is UPCYCLED["gpt2"].config_class
