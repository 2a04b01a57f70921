"""A few tokens are multiplied with packed deltas, which nobody decodes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.moe_families import Family, family_of

from ders_core.codecs import Codec, DeltaCodec, LowRank, Quantized, Sparse
from ders_core.hf import load_model
from ders_core.hf.plugin import experts_held
from ders_core.pipeline.compress import compress
from ders_core.recipe import Recipe, Rule
from ders_core.runtime.held import EachExpert, HeldGroup
from ders_core.runtime.routed import RoutedLayer

CODECS: tuple[Codec, ...] = (
    Quantized(bits=2, group_size=16),
    LowRank(rank=3),
    Sparse(drop_rate=0.5),
    LowRank(rank=3, factor_bits=6),
)


def packed(original: Path, out: Path, codec: Codec) -> Path:
    compress(original, out, Recipe(name="few", rules=(Rule(codec=codec),)))
    return out


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No delta is decoded, nor a weight synthesized."""
    for kind in (Quantized, LowRank, Sparse):
        if kind is not Quantized:  # whose decoding makes factors of few bits
            monkeypatch.setattr(kind, "decode", None)
        monkeypatch.setattr(kind, "unpack_as", None)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_those_of_whole_weights(
    codec: Codec, dtype: torch.dtype, mixtral_dir: Path, tmp_path: Path, request: Any
) -> None:
    """Of one token and of a few; in bfloat16 as near to float32 as that can be."""
    place = packed(mixtral_dir, tmp_path / "packed", codec)
    whole = load_model(place, dtype=torch.float32)
    held = load_model(place, dtype=dtype, mode="packed")
    inputs = {name: torch.arange(2, 2 + count)[:, None] for name, count in (("a", 1), ("b", 5))}
    layers = [model.model.layers[0].mlp.experts for model in (whole, held)]
    request.getfixturevalue("undecoded")
    for ids in inputs.values():
        x = torch.randn(len(ids), 64, generator=torch.Generator().manual_seed(len(ids)))
        x = x.to(dtype)
        chosen = torch.stack([(ids[:, 0] + shift) % 4 for shift in (0, 1)], 1)
        weights = torch.rand(chosen.shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            expected = layers[0](x.float(), chosen, weights)
            got = layers[1](x, chosen, weights)
        assert got.dtype is dtype
        rounding = 1e-5 if dtype is torch.float32 else 2**-8
        assert float((got - expected).abs().max()) <= rounding * float(expected.abs().max())


@pytest.mark.parametrize("model_type", ["gpt_oss", "nemotron_h"])
def test_layers_of_every_form(model_type: str, tmp_path: Path) -> None:
    """Gate and up that alternate, with biases and an activation of its own; no gate; and numbers
    that no expert has stand for none."""
    family = family_of(model_type)
    assert isinstance(family, Family)
    family.build().save_pretrained(tmp_path / "original")
    place = packed(tmp_path / "original", tmp_path / "packed", CODECS[0])
    whole = family.model_class.from_pretrained(place, dtype=torch.float32)
    with experts_held("packed"):
        held = family.model_class.from_pretrained(place, dtype=torch.float32)
    whole.set_experts_implementation("eager")
    names = [name for name, module in held.named_modules() if hasattr(module, "packed")]
    first, second = (model.get_submodule(names[0]) for model in (whole, held))
    with torch.no_grad():
        for name, bias in first.named_parameters():
            if name.endswith("bias"):
                bias.normal_(generator=torch.Generator().manual_seed(3))
                second.get_parameter(name).copy_(bias)
    width = second.packed.group("up").shape[2]
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([[0, 2], [3, 1], [2, 3]])
    weights = torch.rand(3, 2, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = first(x, chosen, weights)
        assert second.packed._routed_layer() is not None
        got = second(x, chosen, weights)
        scale = float(expected.abs().max())
        assert float((got - expected).abs().max()) <= 1e-5 * scale
        alone = second(x, torch.tensor([[0, 4], [-1, 1], [4, 4]]), weights)
        only = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        masked = first(x, torch.tensor([[0, 0], [1, 1], [0, 0]]), weights * only)
    assert float((alone - masked).abs().max()) <= 1e-5 * scale


@pytest.mark.parametrize("codec", CODECS[:3], ids=lambda codec: codec.label)
def test_what_is_quicker_otherwise_is_computed_otherwise(
    codec: Codec, mixtral_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many tokens, a model that is trained, and a cache of whole weights."""
    place = packed(mixtral_dir, tmp_path / "packed", codec)
    held = load_model(place, dtype=torch.float32, mode="packed")
    cached = load_model(place, dtype=torch.float32, mode="cached")
    monkeypatch.setattr(RoutedLayer, "compute", None)
    with torch.inference_mode():
        cached(torch.tensor([[5]]))
        held(torch.arange(300)[None])
        with pytest.raises(TypeError):
            held(torch.tensor([[5]]))
    held(torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()
    assert held.model.embed_tokens.weight.grad is not None


@pytest.mark.parametrize(
    "codec",
    [Sparse(drop_rate=0.5, method="magnitude", value_bits=8), CODECS[0]],
    ids=lambda codec: codec.label,
)
def test_codes_keep_their_dtype(codec: Codec, mixtral_dir: Path, tmp_path: Path) -> None:
    """A model that is moved to another dtype computes from the same codes, and its bases move."""
    place = packed(mixtral_dir, tmp_path / "packed", codec)
    held = load_model(place, dtype=torch.float32, mode="packed")
    group = held.model.layers[0].mlp.experts.packed.group("up")
    before = group.weight(1, torch.float32) - group.get_buffer(group.buffer_of("base 0"))
    held.to(torch.float16)
    base = group.get_buffer(group.buffer_of("base 0"))
    assert base.dtype is torch.float16
    after = group.weight(1, torch.float32) - base.float()
    assert float((after - before).abs().max()) <= 1e-6 * float(before.abs().max())
    x = torch.randn(1, 64, dtype=torch.float16, generator=torch.Generator().manual_seed(0))
    product, expected = group.delta_product(1, x).float(), x.float() @ after.T
    assert float((product - expected).abs().max()) <= 2e-3 * float(expected.abs().max())


def test_products_follow_the_weights(mixtral_dir: Path, tmp_path: Path) -> None:
    """What was prepared is prepared anew where a model moves; elsewhere than on a CPU, nothing."""
    place = packed(mixtral_dir, tmp_path / "packed", CODECS[0])
    experts = load_model(place, mode="packed").model.layers[0].mlp.experts.packed
    group: HeldGroup = experts.group("up")
    before = group.routed()
    assert before is group.routed()
    experts.to("cpu")
    assert group.routed() is not before
    assert not isinstance(group.routed(), EachExpert)
    experts.to("meta")
    assert group.routed() is None
    assert experts._routed_layer() is None


def test_a_copy_multiplies_with_its_own_weights(mixtral_dir: Path, tmp_path: Path) -> None:
    place = packed(mixtral_dir, tmp_path / "packed", CODECS[0])
    held = load_model(place, dtype=torch.float32, mode="packed")
    ids = torch.tensor([[5]])
    with torch.inference_mode():
        before = held(ids).logits
        copied = copy.deepcopy(held)
        for layer in held.model.layers:
            for buffer in layer.mlp.experts.packed.buffers():
                buffer.zero_()
        assert torch.equal(copied(ids).logits, before)
        assert not torch.equal(held(ids).logits, before)


def test_codecs_say_whether_they_are_decoded() -> None:
    answers = {
        (codec.label, tokens): codec.multiplies(tokens)
        for codec in CODECS
        for tokens in (1, 500)
        if isinstance(codec, DeltaCodec)
    }
    assert [*answers.values()] == [True, False, True, True, False, False, True, True]
    assert not Quantized(grid="ternary").multiplies(1)  # trits are no planes
    assert not Quantized(bits=4).multiplies(5)
