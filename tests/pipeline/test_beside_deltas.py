"""Codecs of bases and of tensors outside the experts, and experts without a base: what is stored,
what comes back, and the sizes that a plan says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.disk_forms import FORMS, write
from support.messages import raises_saying
from transformers import AutoModelForCausalLM

import ders_core.hf  # noqa: F401  (registers the quantizer)
from ders_core.checkpoint import Checkpoint
from ders_core.codecs import EncodeContext, make_codec
from ders_core.codecs.coding.prng import tensor_seed
from ders_core.errors import CheckpointError, RecipeError
from ders_core.packed.names import MANIFEST
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.compress import compress
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.plan import PIECE, resolve
from ders_core.pipeline.synthesize import synthesize
from ders_core.pipeline.verify import verify
from ders_core.recipe import Recipe

QUANTIZED = {"codec": "quantized", "bits": 4, "group_size": 16}


def recipe(**fields: Any) -> Recipe:
    return Recipe.model_validate({"name": "whole", "seed": 3, "rules": [QUANTIZED], **fields})


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def same_weights(one: Path, other: Path) -> bool:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    return first.keys() == second.keys() and all(
        torch.equal(bits(first[name]), bits(second[name])) for name in first
    )


@pytest.mark.parametrize("form", FORMS)
def test_lossless_everywhere_comes_back_byte_for_byte(form: str, tmp_path: Path) -> None:
    """Bases, experts and all other tensors, vectors too, whatever the layout."""
    tensors, config = FORMS[form]
    source = write(tmp_path / "source", tensors, config)
    everything = recipe(
        rules=[{"codec": "lossless"}],
        base_codec="lossless",
        others={"codec": "lossless", "names": "*"},
    )
    compress(source, tmp_path / "packed", everything)
    manifest = PackedCheckpoint(tmp_path / "packed").manifest
    coded = {other.name for other in manifest.others}
    assert coded == set(open_checkpoint(source).others)
    assert all(group.base_codec == {"codec": "lossless"} for group in manifest.groups)
    assert verify(tmp_path / "packed", source).ok
    synthesize(tmp_path / "packed", tmp_path / "back")
    assert (source / "model.safetensors").read_bytes() == (
        tmp_path / "back" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("base", ["mean", "median", {"clusters": 2}])
def test_deltas_are_taken_against_the_base_that_comes_back(
    mixtral_dir: Path, tmp_path: Path, base: Any
) -> None:
    """A base of 3 bits is far from the experts' mean, and lossless experts are exact all the
    same: their deltas hold what it lost."""
    coarse = recipe(
        base=base,
        rules=[{"codec": "lossless"}],
        base_codec={"codec": "quantized", "bits": 3, "group_size": 32},
    )
    compress(mixtral_dir, tmp_path / "packed", coarse)
    assert verify(tmp_path / "packed", mixtral_dir).ok
    synthesize(tmp_path / "packed", tmp_path / "back")
    assert same_weights(mixtral_dir, tmp_path / "back")
    packed = PackedCheckpoint(tmp_path / "packed")
    group = packed.manifest.groups[0]
    experts = open_checkpoint(mixtral_dir).group(group.layer, group.projection).read().double()
    stored = packed.matrices.base(group)
    assert stored is not None
    far = float((stored.double() - experts.mean(0)).norm() / experts.mean(0).norm())
    assert 0.02 < far < 0.5


def test_a_shared_error_of_the_base_is_in_every_expert(mixtral_dir: Path, tmp_path: Path) -> None:
    """Deltas of 8 bits against the mean as it was: what is wrong is what the base lost. Lossless
    experts stay exact."""
    coarse = {"codec": "quantized", "bits": 3, "group_size": 32}
    fine = {"codec": "quantized", "bits": 8, "group_size": 16}
    rules = [fine, {"layers": 1, "codec": "lossless"}]
    chosen = recipe(rules=rules, base_codec=coarse, base_error="shared")
    report = compress(mixtral_dir, tmp_path / "packed", chosen)
    assert verify(tmp_path / "packed", mixtral_dir).ok
    packed = PackedCheckpoint(tmp_path / "packed")
    for group, entry in zip(packed.manifest.groups, report.entries, strict=True):
        experts = open_checkpoint(mixtral_dir).group(group.layer, group.projection).read()
        stored = packed.matrices.base(group)
        assert stored is not None
        of_base = stored.double() - experts.float().mean(0).bfloat16().double()
        for number, weight in enumerate(experts):
            lost = packed.matrices.weight(group, number).double() - weight.double()
            if group.layer == 1:
                assert not lost.any()
            else:
                assert float((lost - of_base).norm()) < 0.1 * float(of_base.norm())
        assert entry.gain == pytest.approx(1.0, abs=0.01)
        assert entry.noise is not None
        assert entry.noise < 0.05


def test_coded_base_is_what_the_codec_alone_gives(mixtral_dir: Path, tmp_path: Path) -> None:
    fields = {"codec": "quantized", "bits": 6, "group_size": 32, "scale_bits": 16}
    compress(mixtral_dir, tmp_path / "packed", recipe(base_codec=fields))
    packed = PackedCheckpoint(tmp_path / "packed")
    codec = make_codec(fields)
    for group in packed.manifest.groups:
        experts = open_checkpoint(mixtral_dir).group(group.layer, group.projection)
        mean = experts.read().float().mean(0).to(experts.dtype.torch)
        zeros, context = torch.zeros_like(mean), EncodeContext(mean.dtype, 0)
        wanted = codec.unpack(codec.pack(mean, zeros, context), zeros, context)
        stored = packed.matrices.base(group)
        assert stored is not None
        torch.testing.assert_close(stored.float(), wanted.float(), rtol=2**-7, atol=1e-6)


def test_without_a_base_codecs_hold_the_weights(mixtral_dir: Path, tmp_path: Path) -> None:
    """Plain quantization: what the codec gives for W itself."""
    fields = {"codec": "quantized", "bits": 4, "group_size": 16, "scale_bits": 16}
    compress(mixtral_dir, tmp_path / "packed", recipe(base="none", rules=[fields]))
    packed = PackedCheckpoint(tmp_path / "packed")
    assert not any(name.endswith(".base") for name in packed.store.tensors)
    codec = make_codec(fields)
    for group in packed.manifest.groups:
        experts = open_checkpoint(mixtral_dir).group(group.layer, group.projection)
        for number in range(experts.shape[0]):
            weight = experts.read(number)
            zeros, context = torch.zeros_like(weight), EncodeContext(weight.dtype, 0)
            wanted = codec.unpack(codec.pack(weight, zeros, context), zeros, context)
            assert torch.equal(packed.matrices.weight(group, number), wanted)
    assert verify(tmp_path / "packed", mixtral_dir).ok


def test_rules_choose_other_tensors(qwen2_moe_dir: Path, tmp_path: Path) -> None:
    """The last rule that selects a tensor counts; routers, norms and vectors stay unless named."""
    source = open_checkpoint(qwen2_moe_dir)
    chosen = recipe(
        others=[
            {"codec": "lossless"},
            {"kinds": "attention", **QUANTIZED},
            {"kinds": "attention", "layers": 0, "codec": "keep"},
            {"names": ["*.norm.weight"], "codec": "lossless"},
        ]
    )
    plan = resolve(chosen, source)
    labels = {entry.name: entry.codec.name for entry in plan.others}
    attention = {name: other for name, other in source.others.items() if other.kind == "attention"}
    assert {other.layer for other in attention.values()} >= {0, 1}
    for name, other in source.others.items():
        if name in attention:
            wanted = None if other.layer == 0 else "quantized"
        elif other.kind in ("router", "vector"):
            wanted = None
        elif other.kind == "norm":
            wanted = "lossless" if name.endswith(".norm.weight") else None
        else:
            wanted = "lossless"
        assert labels.get(name) == wanted, name
    compress(qwen2_moe_dir, tmp_path / "packed", chosen)
    assert verify(tmp_path / "packed", qwen2_moe_dir).ok


def test_a_plan_of_fixed_sizes_is_exact(mixtral_dir: Path, tmp_path: Path) -> None:
    chosen = recipe(base_codec={**QUANTIZED, "bits": 8}, others={**QUANTIZED, "bits": 8})
    plan = resolve(chosen, open_checkpoint(mixtral_dir))
    report = compress(mixtral_dir, tmp_path / "packed", chosen)
    assert plan.exact
    assert report.bytes_after == plan.bytes_after
    assert report.bytes_after == sum(
        file.stat().st_size for file in (tmp_path / "packed").glob("*.safetensors")
    )
    named = {entry.name: entry for entry in plan.others}
    assert {other.name for other in report.others} == set(named)
    assert all(other.bytes_after == named[other.name].bytes_after for other in report.others)


def test_a_forecast_tells_the_bytes_of_streams(mixtral_dir: Path, tmp_path: Path) -> None:
    """Within a few percent of what compression writes, where the plan has upper bounds alone."""
    chosen = recipe(base_codec="lossless", others={"codec": "entropy", "bits": 5})
    source = open_checkpoint(mixtral_dir)
    plan = resolve(chosen, source)
    told = forecast(plan, source)
    report = compress(mixtral_dir, tmp_path / "packed", chosen)
    assert not plan.exact
    assert plan.bytes_after > report.bytes_after
    assert abs(told.bytes_after / report.bytes_after - 1) < 0.05
    errors = {other.name: other.rel_error_weight for other in report.others}
    for other in told.others:
        assert other.rel_error_weight == pytest.approx(errors[other.name], rel=0.25)


def test_large_tensors_are_cut_between_rows(tmp_path: Path) -> None:
    """Pieces have seeds of their own, and come back as one tensor, rows in their order."""
    tensors, config = FORMS["phi"]
    rows, width = 7 * 601, 1024  # two pieces would do, but the rows are odd
    random = torch.Generator().manual_seed(0)
    large = torch.randn(rows, width, generator=random).bfloat16()
    source = write(tmp_path / "source", {**tensors, "model.wide_embedding.weight": large}, config)
    chosen = recipe(others={"kinds": "embedding", "codec": "sparse", "drop_rate": 0.5})
    compress(source, tmp_path / "packed", chosen)
    packed = PackedCheckpoint(tmp_path / "packed")
    (entry,) = packed.manifest.others
    pieces, height, _ = entry.stacked
    assert pieces == 7
    assert height * width <= PIECE
    back = packed.original.read(entry.name)
    codec = make_codec({"codec": "sparse", "drop_rate": 0.5})
    for piece in (0, 1, pieces - 1):
        part = large[piece * height : (piece + 1) * height]
        seed = tensor_seed(3, entry.name, piece)
        zeros, context = torch.zeros_like(part), EncodeContext(part.dtype, seed)
        wanted = codec.unpack(codec.pack(part, zeros, context), zeros, context)
        assert torch.equal(back[piece * height : (piece + 1) * height], wanted)
    some_rows = packed.original.readers[entry.name].read(slice(5, 9))
    assert torch.equal(some_rows, back[5:9])


def test_transformers_loads_what_is_coded(mixtral_dir: Path, tmp_path: Path) -> None:
    """The same parameters as of the checkpoint that is synthesized in that dtype."""
    chosen = recipe(base_codec={**QUANTIZED, "bits": 8}, others={**QUANTIZED, "bits": 8})
    compress(mixtral_dir, tmp_path / "packed", chosen)
    synthesize(tmp_path / "packed", tmp_path / "back", dtype="float32")
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(mixtral_dir, dtype=torch.float32)
    wanted = plain.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in packed.state_dict().items())
    first = original.state_dict()
    changed = [name for name in wanted if not torch.equal(wanted[name], first[name])]
    assert any("embed_tokens" in name for name in changed)
    assert not any("norm" in name for name in changed)


def test_a_packed_checkpoint_is_packed_again(mixtral_dir: Path, tmp_path: Path) -> None:
    """From the original that it stands for, coded tensors included."""
    lossless = recipe(rules=[{"codec": "lossless"}], base_codec="lossless", others="lossless")
    compress(mixtral_dir, tmp_path / "first", lossless)
    compress(tmp_path / "first", tmp_path / "again", recipe())
    compress(mixtral_dir, tmp_path / "direct", recipe())
    again, direct = (tmp_path / name / "model.safetensors" for name in ("again", "direct"))
    assert again.read_bytes() == direct.read_bytes()


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"others": {"names": "*.no_such", "codec": "lossless"}}, ["rule 1", "no_such"]),
        ({"others": {"layers": "7", "codec": "lossless"}}, ["rule 1", "7"]),
        ({"base_codec": [{"layers": "9", "codec": "lossless"}]}, ["base_codec", "rule 1", "9"]),
    ],
)
def test_rules_about_nothing_are_refused(
    mixtral_dir: Path, fields: dict[str, Any], facts: list[str]
) -> None:
    with raises_saying(RecipeError, *facts):
        resolve(recipe(**fields), open_checkpoint(mixtral_dir))


def test_damage_is_found(mixtral_dir: Path, tmp_path: Path) -> None:
    """Of each part, and of entries of the manifest that contradict themselves or the files."""
    chosen = recipe(base_codec={**QUANTIZED, "bits": 8}, others={**QUANTIZED, "bits": 8})
    compress(mixtral_dir, tmp_path / "packed", chosen)
    file = tmp_path / "packed" / MANIFEST
    good = json.loads(file.read_text())

    def refused(*facts: str) -> None:
        with raises_saying(CheckpointError, *facts):
            PackedCheckpoint(tmp_path / "packed")

    name = good["others"][0]["name"]
    for change, facts in (
        ({"pieces": 2}, (name,)),
        ({"dtype": "F32"}, (name,)),
        ({"shape": [3, 5]}, (name,)),
        ({"lengths": {"stream": [4]}}, (name,)),
        ({"codec": {"codec": "entropy", "bits": 3}}, (name,)),
    ):
        others = [{**good["others"][0], **change}, *good["others"][1:]]
        file.write_text(json.dumps({**good, "others": others}))
        refused(*facts)
    of_bases: list[dict[str, Any]] = [
        {"without_base": True},
        {"base_codec": None},
        {"base_lengths": {"codes": [1]}},
    ]
    for wrong in of_bases:
        groups = [{**good["groups"][0], **wrong}, *good["groups"][1:]]
        file.write_text(json.dumps({**good, "groups": groups}))
        refused("layer 0")
    file.write_text(json.dumps({**good, "others": [*good["others"], good["others"][0]]}))
    refused(name)


def kinds(source: Checkpoint) -> dict[str, str]:
    return {name: other.kind for name, other in source.others.items()}


def test_kinds_of_tensors(qwen2_moe_dir: Path) -> None:
    by_name = kinds(open_checkpoint(qwen2_moe_dir))
    layer = "model.layers.0"
    assert by_name["model.embed_tokens.weight"] == "embedding"
    assert by_name["lm_head.weight"] == "head"
    assert by_name[f"{layer}.mlp.gate.weight"] == "router"
    assert by_name[f"{layer}.mlp.shared_expert.up_proj.weight"] == "shared"
    assert by_name[f"{layer}.mlp.shared_expert_gate.weight"] == "vector"
    assert by_name[f"{layer}.self_attn.q_proj.weight"] == "attention"
    assert by_name[f"{layer}.self_attn.q_proj.bias"] == "vector"
    assert by_name[f"{layer}.input_layernorm.weight"] == "norm"
