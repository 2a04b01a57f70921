"""Models whose experts stay packed: they answer as with whole weights, and hold less."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MixtralForCausalLM, PreTrainedModel
from transformers.integrations.moe import use_experts_implementation

from ders_core.codecs import Chain, Codec, Keep, Lossless, LowRank, Quantized, Sparse
from ders_core.decompose.bases.clusters import ClusteredBase
from ders_core.decompose.bases.none import NoBase
from ders_core.errors import DersError
from ders_core.hf import load_model
from ders_core.packed.names import MANIFEST
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.recipe.rule import BaseRule
from ders_core.runtime.cache import WeightCache
from ders_core.runtime.forms.decorated import DecoratedForm
from ders_core.runtime.modes import MODES, Mode
from ders_core.runtime.probe import computes_as_known
from ders_core.runtime.resident import resident_bytes

IDS = torch.arange(3, 43)[None] % 90

RECIPES: dict[str, Recipe] = {
    "each its own": Recipe(
        name="held",
        rules=(
            Rule(codec=Quantized(bits=2, group_size=16), projections=("gate",)),
            Rule(codec=LowRank(rank=3, factor_bits=6), projections=("up",)),
            Rule(codec=Lossless(), projections=("down",)),
        ),
    ),
    "several bases": Recipe(
        name="held", rules=(Rule(codec=Sparse(drop_rate=0.5)),), base=ClusteredBase(clusters=2)
    ),
    "no base": Recipe(
        name="held", rules=(Rule(codec=Quantized(bits=4, group_size=16)),), base=NoBase()
    ),
    "a coded base, shared": Recipe(
        name="held",
        rules=(Rule(codec=Quantized(bits=1, group_size=16)),),
        base_codec=(BaseRule(codec=Quantized(bits=4, group_size=16)),),
        base_error="shared",
    ),
    "some kept": Recipe(
        name="held",
        rules=(
            Rule(codec=Keep(), projections=("down",)),
            Rule(codec=Quantized(bits=2, group_size=16), experts="0,2"),
        ),
    ),
}


@pytest.fixture(scope="module", params=RECIPES)
def packed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mixtral_dir: Path
) -> Path:
    out = tmp_path_factory.mktemp("held") / "packed"
    compress(mixtral_dir, out, RECIPES[request.param])
    return out


def answer(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(IDS).logits
    return logits


@pytest.mark.parametrize("mode", ["cached", "packed"])
def test_answers_are_those_of_whole_weights(packed: Path, mode: Mode) -> None:
    """In float32 but for the order of sums; also token by token, with what was cached before."""
    whole = load_model(packed, dtype=torch.float32)
    held = load_model(packed, dtype=torch.float32, mode=mode, cache_bytes=100_000)
    expected = answer(whole)
    assert float((answer(held) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(held.generate(IDS, **options), whole.generate(IDS, **options))


def test_cached_weights_are_the_synthesized_ones(packed: Path) -> None:
    """Bit for bit, in the dtype of the model."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        whole = load_model(packed, dtype=dtype)
        held = load_model(packed, dtype=dtype, mode="cached")
        for expected, layer in zip(whole.model.layers, held.model.layers, strict=True):
            groups = layer.mlp.experts.packed
            for expert in range(4):
                first = torch.cat([groups.group(name).weight(expert) for name in ("gate", "up")])
                assert torch.equal(first, expected.mlp.experts.gate_up_proj[expert])
                down = groups.group("down").weight(expert)
                assert torch.equal(down, expected.mlp.experts.down_proj[expert])


def test_memory_is_that_of_the_packed_form(tmp_path: Path, mixtral_dir: Path) -> None:
    """Bases whole, codes as on disk; no weight is held beside them."""
    rules = (Rule(codec=Quantized(bits=2, group_size=16)),)
    compress(mixtral_dir, tmp_path / "packed", Recipe(name="held", rules=rules))
    whole = load_model(tmp_path / "packed")
    held = load_model(tmp_path / "packed", mode="packed")
    experts = 2 * sum(
        weights.numel()
        for layer in whole.model.layers
        for weights in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj)
    )
    others = whole.get_memory_footprint() - whole.get_memory_footprint(False)  # of rotations
    saved = whole.get_memory_footprint() - held.get_memory_footprint()
    # of 4 experts at 16 bits stay one base and, of each, 2 bits and a scale of 16 for 16 weights
    assert saved == experts - experts / 4 - experts * 3 / 16
    sizes = resident_bytes(open_checkpoint(tmp_path / "packed"))
    assert sizes == (whole.get_memory_footprint(False), held.get_memory_footprint() - others)
    assert not [name for name, _ in held.named_parameters() if "gate_up" in name]


def test_memory_of_what_is_held_otherwise_is_told(tmp_path: Path, mixtral_dir: Path) -> None:
    """Entries by row take more than on disk, and just what is told from headers."""
    chain = Chain(stages=(LowRank(rank=1), Sparse(drop_rate=0.9, method="magnitude")))
    rules = (Rule(codec=Sparse(drop_rate=0.9)), Rule(codec=chain, projections=("down",)))
    compress(mixtral_dir, tmp_path / "packed", Recipe(name="held", rules=rules))
    whole = load_model(tmp_path / "packed")
    held = load_model(tmp_path / "packed", mode="packed")
    others = whole.get_memory_footprint() - whole.get_memory_footprint(False)  # of rotations
    sizes = resident_bytes(open_checkpoint(tmp_path / "packed"))
    assert sizes == (whole.get_memory_footprint(False), held.get_memory_footprint() - others)


def test_gradients_pass_through(packed: Path) -> None:
    """What is trained before the experts gets the gradient that whole weights give it."""
    gradients = []
    modes: tuple[Mode, ...] = ("synthesized", "packed")
    for mode in modes:
        model = load_model(packed, dtype=torch.float32, mode=mode)
        model(IDS, labels=IDS).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    first, second = gradients
    assert float((first - second).abs().max()) <= 1e-4 * float(first.abs().max())


def test_projections_that_were_told_apart_otherwise_are_refused(
    mixtral_dir: Path, tmp_path: Path
) -> None:
    """As by a layout of before, which took gate for up."""
    out = tmp_path / "packed"
    compress(mixtral_dir, out, Recipe(name="held", rules=(Rule(codec=Quantized(bits=2)),)))
    manifest = json.loads((out / MANIFEST).read_text())
    groups = {group["projection"]: group for group in manifest["groups"] if group["layer"] == 1}
    gate, up = groups["gate"], groups["up"]
    gate["experts"], up["experts"] = up["experts"], gate["experts"]
    (out / MANIFEST).write_text(json.dumps(manifest))
    load_model(out)
    with pytest.raises(DersError, match="layer 1 of this model"):
        load_model(out, mode="packed")


def test_layers_that_a_class_leaves_on_disk_are_left(
    mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those that predict further tokens; other layers without a place are a reason to refuse."""
    original, out = tmp_path / "original", tmp_path / "packed"
    shutil.copytree(mixtral_dir, original)
    config = json.loads((original / "config.json").read_text()) | {"num_hidden_layers": 1}
    (original / "config.json").write_text(json.dumps(config))
    compress(original, out, Recipe(name="held", rules=(Rule(codec=Quantized(bits=2)),)))
    with pytest.raises(DersError, match="layer 1 of this model"):
        load_model(out, mode="packed")
    ignored = [r"model\.layers\.1\."]
    monkeypatch.setattr(MixtralForCausalLM, "_keys_to_ignore_on_load_unexpected", ignored)
    whole, held = (load_model(out, dtype=torch.float32, mode=mode) for mode in MODES[::2])
    assert hasattr(held.model.layers[0].mlp.experts, "packed")
    expected = answer(whole)
    assert float((answer(held) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_what_is_not_packed_is_refused(mixtral_dir: Path) -> None:
    with pytest.raises(DersError, match="is not packed"):
        load_model(mixtral_dir, mode="packed")


def test_the_cache_keeps_what_was_used_last_within_its_bytes() -> None:
    made: list[int] = []

    def weight(number: int, entries: int = 10) -> torch.Tensor:
        def make() -> torch.Tensor:
            made.append(number)
            return torch.full((entries,), float(number))

        return cache.get(number, make)

    cache = WeightCache(most=80)
    for number in (1, 2, 1, 3, 1, 2):
        assert float(weight(number)[0]) == number
    assert made == [1, 2, 3, 2]  # 3 took the place of 2, which was not used since 1
    weight(4, entries=21)
    assert float(weight(4, entries=21)[0]) == 4
    assert made[4:] == [4, 4]  # too large to be kept; and the others stay
    weight(2)
    assert cache.nbytes == 80
    assert made == [1, 2, 3, 2, 4, 4]


def test_a_copied_cache_is_empty() -> None:
    """What its keys name is not what is copied."""
    cache = WeightCache(most=80)
    cache.get(1, lambda: torch.zeros(10))
    copied = copy.deepcopy(cache)
    assert (cache.nbytes, copied.nbytes, copied.most) == (40, 0, 80)
    assert float(copied.get(1, lambda: torch.ones(10))[0]) == 1


def test_a_model_that_moves_leaves_no_cached_weight_behind(packed: Path) -> None:
    """Neither on the device that it was on, nor where it is freed."""
    held = load_model(packed, dtype=torch.float32, mode="cached")
    before = answer(held)
    cache = held.model.layers[0].mlp.experts.packed._cache
    assert cache.nbytes > 0
    held.to("cpu")
    assert cache.nbytes == 0
    assert torch.equal(answer(held), before)
    held.to("meta")
    assert cache.nbytes == 0


@use_experts_implementation
class Usual(nn.Module):
    """Experts as transformers writes them; `factor` is what another class might do besides."""

    factor = 1.0

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.num_experts = 4
        self.gate_up_proj = nn.Parameter(torch.empty(4, 2 * 6, 8))
        self.down_proj = nn.Parameter(torch.empty(4, 8, 6))
        self.act_fn = nn.functional.silu

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        total = torch.zeros_like(hidden_states)
        for token, (chosen, weights) in enumerate(zip(top_k_index, top_k_weights, strict=True)):
            for expert, weight in zip(chosen.tolist(), weights, strict=True):
                gate, up = (self.gate_up_proj[expert] @ hidden_states[token]).chunk(2)
                total[token] += weight * (self.down_proj[expert] @ (self.act_fn(gate) * up))
        return self.factor * total


class Unusual(Usual):
    factor = 1.01


def test_a_class_that_computes_otherwise_is_found_out() -> None:
    with torch.device("meta"):
        usual, unusual = Usual(None), Unusual(None)
    assert computes_as_known(DecoratedForm(usual))
    assert not computes_as_known(DecoratedForm(unusual))
    assert usual.down_proj.is_meta
    assert usual.num_experts == 4


def test_codecs_of_these_recipes_are_what_they_seem() -> None:
    """A recipe here that changed nothing would test nothing."""
    codecs: set[type[Codec]] = {
        type(rule.codec) for recipe in RECIPES.values() for rule in recipe.rules
    }
    assert codecs == {Quantized, LowRank, Lossless, Sparse, Keep}
