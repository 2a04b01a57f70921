"""Upcycled models of dense families: what they compute, that transformers keeps and loads them, and
that every part of the pipeline takes them. The references share no code with the classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from torch import nn
from transformers.utils import logging

from ders_core.analysis import analyze
from ders_core.calibrate import calibrate
from ders_core.checkpoint import Checkpoint
from ders_core.codecs import Codec, Keep, Lossless, LowRank, Sparse
from ders_core.compress import compress
from ders_core.errors import CheckpointError
from ders_core.evaluate import evaluate
from ders_core.evaluate.windows import token_windows
from ders_core.hf import load_model, load_tokenizer
from ders_core.hf.moe_ffn import MoeFFN, recorded_routers
from ders_core.hf.upcycled import UPCYCLED, register
from ders_core.recipe import Recipe, Rule
from ders_core.synthesize import synthesize
from ders_core.verify import verify

LAYERS, EXPERTS, TOP_K, TOKENS = 4, 4, 2, torch.arange(5, 25).view(2, 10)
SIZES: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
SMALL = {key: SIZES[key] for key in SIZES.keys() - {"num_key_value_heads"}}
GPT2 = {key: SMALL[key] for key in SMALL.keys() - {"intermediate_size"}} | {"n_inner": 48}
DENSE: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "llama with biases": lambda: transformers.LlamaConfig(**SIZES, mlp_bias=True),
    "mistral": lambda: transformers.MistralConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "qwen3": lambda: transformers.Qwen3Config(**SIZES, head_dim=8),
    "phi": lambda: transformers.PhiConfig(**SMALL),
    "phi3": lambda: transformers.Phi3Config(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**SMALL),
    "stablelm": lambda: transformers.StableLmConfig(**SIZES),
}
EVERY, ALTERNATE = list(range(LAYERS)), list(range(0, LAYERS, 2))

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models: threads cost more than they give
    yield
    torch.set_num_threads(threads)


def dense_model(family: str) -> Any:
    """Random, its biases too, and its logits far from flat."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(DENSE[family]()).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("bias") or ".mlp." in name:
                weight.normal_(std=0.2)
    return model


def blocks(model: Any) -> list[nn.Module]:
    """The FFN of each layer."""
    return [layer.mlp for layer in getattr(model.base_model, "layers", None) or model.base_model.h]


def ffn_weights(ffn: Any) -> Weights:
    """A dense FFN's weights under the names of an expert, `[out, in]`."""
    own = dict(ffn.named_parameters())
    names = {
        "fc1": "up_proj",
        "fc2": "down_proj",
        "c_fc": "up_proj",
        "c_proj": "down_proj",
        "dense_h_to_4h": "up_proj",
        "dense_4h_to_h": "down_proj",
    }
    found: Weights = {}
    for name, tensor in own.items():
        module, kind = name.split(".")
        if module == "gate_up_proj":
            found["gate_proj.weight"], found["up_proj.weight"] = tensor.chunk(2)
        else:
            turned = isinstance(ffn.get_submodule(module), transformers.pytorch_utils.Conv1D)
            found[f"{names.get(module, module)}.{kind}"] = (
                tensor.T if turned and kind == "weight" else tensor
            )
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def upcycled_model(family: str, layers: list[int], universal: bool = False) -> Any:
    """Random all over."""
    config = DENSE[family]()
    own = UPCYCLED[config.model_type]
    fields = config.to_dict() | {
        "model_type": f"{config.model_type}_upcycled",
        "moe_layers": layers,
        "num_local_experts": EXPERTS,
        "num_experts_per_tok": TOP_K,
        "universal_expert": universal,
    }
    torch.manual_seed(2)
    return own(own.config_class.from_dict(fields)).eval()


def mixtures(model: Any) -> list[MoeFFN]:
    return [block for block in blocks(model) if isinstance(block, MoeFFN)]


def experts_apart(model: Any) -> Any:
    """Experts that share a start and differ, and routers that choose."""
    torch.manual_seed(3)
    with torch.no_grad():
        for block in mixtures(model):
            block.gate.weight.normal_(std=0.5)
            first = dict(block.experts[0].named_parameters())
            start = {name: torch.randn_like(weight) for name, weight in first.items()}
            for expert in filter(None, (*block.experts, block.shared_expert)):
                for name, weight in expert.named_parameters():
                    weight.copy_(0.2 * (start[name] + 0.3 * torch.randn_like(weight)))
    return model


@torch.no_grad()
def logits(model: Any, tokens: torch.Tensor = TOKENS) -> torch.Tensor:
    return model(input_ids=tokens, use_cache=False).logits


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
        for own in [key for key in state if key.startswith(f"{name}.")]:
            del state[own]
        copies = ffn_weights(ffn)
        whose = [f"experts.{expert}" for expert in range(EXPERTS)]
        if universal:
            whose.append("shared_expert")
            # the chosen experts count 1 together, the universal one sigmoid(0)
            state[f"{name}.shared_expert_gate.weight"] = torch.zeros(1, 32)
            copies = {
                key: tensor * (2 / 3 if key.startswith("down") else 1)
                for key, tensor in copies.items()
            }
        state |= {f"{name}.{own}.{key}": copies[key] for own in whose for key in copies}
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

    said = []
    for token in x.double().numpy():
        scores = np.exp(linear("gate", token))
        scores /= scores.sum()
        best = sorted(range(EXPERTS), key=lambda expert: -scores[expert])[:TOP_K]
        total = sum(scores[expert] for expert in best)
        y = sum(scores[expert] / total * ffn(f"experts.{expert}", token) for expert in best)
        if "shared_expert_gate.weight" in w:
            share = 1 / (1 + np.exp(-linear("shared_expert_gate", token)))
            y = y + share * ffn("shared_expert", token)
        said.append(y)
    return np.stack(said)


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
    checkpoint = Checkpoint(tmp_path)
    assert (checkpoint.family, checkpoint.recognition.sure) == (model.config.model_type, 1)
    assert checkpoint.top_k == TOP_K
    assert sorted({group.layer for group in checkpoint.groups(extended=True)}) == ALTERNATE
    assert {group.shape[0] for group in checkpoint.groups(extended=True)} == {EXPERTS + 1}


@pytest.mark.parametrize("family", DENSE)
def test_routers_tell_what_they_said_when_asked(family: str) -> None:
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


def test_another_threads_routers_are_not_ours() -> None:
    model = experts_apart(upcycled_model("llama", EVERY))
    with recorded_routers() as ours, ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(lambda: model(input_ids=TOKENS, output_router_logits=True)).result()
    assert len(theirs.router_logits) == LAYERS
    assert ours == []


@pytest.mark.parametrize("family", DENSE)
def test_the_cache_changes_nothing_of_what_is_generated(family: str) -> None:
    model = experts_apart(upcycled_model(family, EVERY, universal=True))
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    told = model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), **options)
    expected = TOKENS
    for _ in range(8):
        following = logits(model, expected)[:, -1].argmax(-1)
        expected = torch.cat([expected, following[:, None]], dim=1)
    assert torch.equal(told, expected)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_is_trained(family: str) -> None:
    model = experts_apart(upcycled_model(family, ALTERNATE, universal=True)).train()
    model(input_ids=TOKENS, labels=TOKENS, output_router_logits=True).loss.backward()
    assert all(bool(block.gate.weight.grad.any()) for block in mixtures(model))
    dropouts = {block.dropout.p for block in mixtures(model)}
    assert dropouts == {0.1 if family == "gpt2" else 0.0}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"moe_layers": [1, LAYERS]}, "names layer 4, and the model's layers are 0 to 3"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5 of 4 experts"),
        ({"norm_topk_prob": False}, "norm_topk_prob is false"),
    ],
)
def test_a_config_of_no_such_model_is_refused(fields: dict[str, Any], words: str) -> None:
    model = upcycled_model("phi", EVERY)
    config = copy.deepcopy(model.config)
    config.update(fields)
    with pytest.raises(CheckpointError, match=words):
        type(model)(config)


def test_a_second_registration_changes_nothing() -> None:
    register()
    found = transformers.AutoConfig.for_model("gpt2_upcycled")
    assert type(found) is UPCYCLED["gpt2"].config_class


@pytest.fixture(scope="module", params=["gpt2", "phi"])
def original(
    request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """bfloat16, with a universal expert, and a tokenizer beside it."""
    directory = tmp_path_factory.mktemp(request.param) / "original"
    model = experts_apart(upcycled_model(request.param, ALTERNATE, universal=True))
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def text(tiny_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(tiny_text, encoding="utf-8")
    return file


def recipe(codec: Codec, extended: bool) -> Recipe:
    return Recipe(name="one", seed=5, extended=extended, rules=(Rule(codec=codec),))


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("codec", [Sparse(drop_rate=0.7), LowRank(rank=2)], ids=["drop", "rank"])
def test_packed_it_is_loaded_and_measured(
    original: Path, text: Path, codec: Codec, extended: bool, tmp_path: Path
) -> None:
    compress(original, tmp_path / "packed", recipe(codec, extended))
    verification = verify(tmp_path / "packed", original)
    assert verification.ok
    assert all(0 < group.rel_error_weight < 1 for group in verification.groups)
    synthesize(tmp_path / "packed", tmp_path / "dense")
    packed, whole = load_model(tmp_path / "packed"), load_model(tmp_path / "dense")
    assert type(packed) is type(whole)
    assert torch.equal(logits(packed), logits(whole))
    shared = next(name for name, _ in packed.named_parameters() if "shared_expert.up" in name)
    assert extended != torch.equal(
        packed.state_dict()[shared], load_model(original).state_dict()[shared]
    )
    quality = evaluate(tmp_path / "packed", original, text=text, window=32, max_tokens=310, batch=3)
    assert quality.kl is not None
    assert quality.kl > 0
    assert quality.routing_agreement is not None
    assert 0.5 < quality.routing_agreement < 1


@pytest.mark.parametrize("extended", [False, True])
@pytest.mark.parametrize("codec", [Keep(), Lossless()], ids=["keep", "lossless"])
def test_what_loses_nothing_gives_the_same_bytes_back(
    original: Path, text: Path, codec: Codec, extended: bool, tmp_path: Path
) -> None:
    compress(original, tmp_path / "packed", recipe(codec, extended))
    synthesize(tmp_path / "packed", tmp_path / "back")
    for file in sorted(original.iterdir()):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    quality = evaluate(tmp_path / "packed", original, text=text, window=32, max_tokens=62)
    assert quality.kl == pytest.approx(0, abs=1e-9)
    assert quality.routing_agreement == 1


def test_it_is_analysed(original: Path) -> None:
    tables = analyze(Checkpoint(original))
    assert sorted(set(tables.similarity["layer"])) == ALTERNATE


def test_it_is_calibrated(original: Path, text: Path, tmp_path: Path) -> None:
    found = calibrate(
        original, tmp_path / "moments", text=text, window=32, max_tokens=310, dtype=torch.float32
    )
    model = load_model(original, dtype=torch.float32)
    windows = token_windows(load_tokenizer(original), text.read_text(), 32, 310)
    with torch.no_grad():
        routers = model(input_ids=windows, output_router_logits=True).router_logits
    for layer, router in zip(ALTERNATE, routers, strict=True):
        chosen = router.topk(TOP_K).indices.flatten().bincount(minlength=EXPERTS)
        assert torch.equal(found.routed(layer), chosen)


def test_more_tokens_than_a_model_has_places_for(original: Path, text: Path) -> None:
    quality = evaluate(original, text=text, window=500, max_tokens=63)
    assert quality.tokens == 63


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_tokenizer_that_names_no_class_is_the_dense_familys(
    family: str, original: Path, tmp_path: Path
) -> None:
    for config in (DENSE[family](), upcycled_model(family, EVERY).config):
        directory = tmp_path / config.model_type
        config.save_pretrained(directory)
        (directory / "tokenizer.json").write_bytes((original / "tokenizer.json").read_bytes())
    first, second = (load_tokenizer(tmp_path / name) for name in (family, f"{family}_upcycled"))
    assert type(first) is type(second)
    assert type(first).__name__ != "TokenizersBackend"
